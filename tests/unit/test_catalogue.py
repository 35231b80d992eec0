"""The catalogue of cloud images: addresses, and hashes in the ways that publishers write them."""

from __future__ import annotations

import pytest

from roost.errors import Invalid, Unavailable
from roost.model.meta import IMAGE_NAME
from roost.storage.catalogue import ENTRIES, digest_in

A, B = "a" * 64, "b" * 64
LONG = "c" * 128


@pytest.mark.parametrize(
    ("text", "algorithm", "digest"),
    [
        (f"{A} *x.img\n{B} *y.img\n", "sha256", f"sha256:{A}"),
        (f"{A}  x.img\n", "sha256", f"sha256:{A}"),
        (f"# x.img: 12 bytes\nSHA256 (x.img) = {A.upper()}\nSHA256 (y.img) = {B}\n", "sha256", f"sha256:{A}"),
        (f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{A}  ./x.img\n", "sha256", f"sha256:{A}"),
        (f"{LONG}\n", "sha512", f"sha512:{LONG}"),
        (f"{LONG}  x.img", "sha512", f"sha512:{LONG}"),
    ],
)
def test_the_hash_of_a_file_is_found(text: str, algorithm: str, digest: str) -> None:
    assert digest_in(text, "x.img", algorithm) == digest


@pytest.mark.fault(60)
@pytest.mark.parametrize(
    "text",
    [
        "", f"{B}  y.img\n", f"{A[:40]}  x.img\n", f"{A}  x.img\n{B}  x.img\n", f"SHA256 (x.img) = {A[:63]}\n",
        f"SHA1 (x.img) = {A[:40]}\n", f"{A}  x.img.sig\n", f"{A}  zx.img\n", f"{A}\n{B}\n", "<html>404</html>",
    ],
)  # fmt: skip
def test_a_list_without_one_whole_hash_of_the_file_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        digest_in(text, "x.img", "sha256")


def test_names_are_image_names_and_unique() -> None:
    names = [entry.name for entry in ENTRIES]
    assert [name for name in names if not IMAGE_NAME.fullmatch(name)] == []
    assert len(set(names)) == len(names)


def test_hashes_and_images_come_over_https() -> None:
    places = [entry.locate("x86_64") for entry in ENTRIES]
    assert [
        place for place in places if not place.url.startswith("https://") or not place.sums_url.startswith("https://")
    ] == []
    assert [place for place in places if "{" in place.url + place.sums_url] == []


def test_an_architecture_that_is_not_published_is_named() -> None:
    with pytest.raises(Unavailable, match="archlinux"):
        ENTRIES[-1].locate("riscv64")
