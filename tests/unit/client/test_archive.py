"""Archives: what is packed comes back, and what a hostile guest sends stays inside the target and inside its bounds."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roost.client import archive
from roost.client.archive import Unpacker, pack
from roost.errors import Invalid, NotFound


def member(
    name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", link: str = "", mode: int = 0o644
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(data), link, mode
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=form) as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    return whole.getvalue()


def unpack(data: bytes, directory: Path, name: str = "out", step: int = 1 << 20) -> list[str]:
    unpacker = Unpacker(directory, name)
    try:
        for begin in range(0, len(data), step):
            unpacker.feed(data[begin : begin + step])
        unpacker.close()
    finally:
        unpacker.abandon()
    return unpacker.skipped


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with all that people copy."""
    root = tmp_path / "tree"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "script").write_bytes(b"#!/bin/sh\n")
    (root / "script").chmod(0o755)
    (root / "sub" / "zeros").write_bytes(bytes(100_000))
    (root / "sub" / ("long-" * 40 + "name")).write_bytes(b"long")
    (root / "na\u00efve \u96ea").write_bytes(b"text")
    (root / "nothing").write_bytes(b"")
    (root / "link").symlink_to("sub/zeros")
    (root / "sub").chmod(0o750)
    return root


def listing(root: Path) -> dict[str, tuple[int, bytes | str]]:
    return {
        str(path.relative_to(root)): (
            stat.S_IMODE(path.lstat().st_mode),
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory",
        )
        for path in root.rglob("*")
    }


@pytest.mark.parametrize("step", [1 << 20, 1000, 512, 7])
def test_a_directory_comes_back_as_it_was_however_the_stream_is_cut(tree: Path, tmp_path: Path, step: int) -> None:
    assert unpack(b"".join(pack(tree, "tree")), tmp_path, "back", step) == []
    assert listing(tmp_path / "back") == listing(tree)


def test_what_is_packed_is_an_archive_for_everybody(tree: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(tree, "tree")))) as made:
        assert {name.removeprefix("tree/") for name in made.getnames()} - {"tree"} == set(listing(tree))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_usual_format_is_read(tmp_path: Path, form: int) -> None:
    name = "top/" + "d" * 60 + "/" + "f" * 70
    unpack(tar(member("top", tarfile.DIRTYPE, mode=0o755), member(name, data=b"x"), form=form), tmp_path)
    assert (tmp_path / "out" / ("d" * 60) / ("f" * 70)).read_bytes() == b"x"


def test_one_file_gets_the_name_that_was_asked_for(tmp_path: Path) -> None:
    unpack(tar(member("hosts", data=b"127.0.0.1")), tmp_path, "copy")
    assert (tmp_path / "copy").read_bytes() == b"127.0.0.1"


def test_a_file_replaces_the_one_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"old and longer")
    unpack(tar(member("hosts", data=b"new")), tmp_path)
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_link_that_is_there_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "out").symlink_to("precious")
    unpack(tar(member("hosts", data=b"new")), tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_set_id_bits_are_dropped(tmp_path: Path) -> None:
    unpack(tar(member("su", data=b"x", mode=0o6755)), tmp_path)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_directory_that_nobody_may_write_can_be_filled(tmp_path: Path) -> None:
    unpack(tar(member("d", tarfile.DIRTYPE, mode=0o555), member("d/f", data=b"x")), tmp_path)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o555
    assert (tmp_path / "out" / "f").read_bytes() == b"x"


def test_a_file_that_shrinks_while_it_is_read_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 1000)
    pieces = pack(tmp_path / "log", "log")
    head = next(pieces)
    (tmp_path / "log").write_bytes(b"y")
    unpack(head + b"".join(pieces), tmp_path)
    assert (tmp_path / "out").read_bytes() == b"y" + bytes(999)


def test_what_is_not_there_can_not_be_packed(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        next(pack(tmp_path / "nothing", "nothing"))


HOSTILE: dict[str, list[tuple[tarfile.TarInfo, bytes]]] = {
    "parent": [member("top/../../evil", data=b"x")],
    "absolute": [member("/tmp/evil", data=b"x")],
    "only dots": [member("..", tarfile.DIRTYPE)],
    "nothing": [member("./", tarfile.DIRTYPE)],
    "another tree": [member("top", tarfile.DIRTYPE), member("other/evil", data=b"x")],
    "through a link": [
        member("top", tarfile.DIRTYPE),
        member("top/l", tarfile.SYMTYPE, link="sub"),
        member("top/l/evil", data=b"x"),
    ],
    "through a file": [member("top", tarfile.DIRTYPE), member("top/f", data=b"x"), member("top/f/evil", data=b"x")],
    "directory over a link": [member("top/l", tarfile.SYMTYPE, link="sub"), member("top/l", tarfile.DIRTYPE)],
    "hard link out": [member("top/l", tarfile.LNKTYPE, link="../../etc/passwd")],
    "deep": [member("/".join(["top"] * 300), data=b"x")],
}


@pytest.mark.fault(65)
@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_a_hostile_archive_is_refused_and_nothing_leaves_the_target(case: str, tmp_path: Path) -> None:
    target = tmp_path / "inner" / "target"
    target.mkdir(parents=True)
    with pytest.raises(Invalid):
        unpack(tar(*HOSTILE[case]), target)
    assert [path.name for path in tmp_path.rglob("evil")] == []
    assert names(tmp_path) == ["inner"]


SKIPPED: dict[str, tuple[tarfile.TarInfo, bytes]] = {
    "device": member("top/x", tarfile.CHRTYPE),
    "pipe": member("top/x", tarfile.FIFOTYPE),
    "absolute link": member("top/x", tarfile.SYMTYPE, link="/etc/passwd"),
    "link to a parent": member("top/x", tarfile.SYMTYPE, link="../outside"),
    "link by way of a name": member("top/x", tarfile.SYMTYPE, link="a/../../outside"),
    "hard link to nothing": member("top/x", tarfile.LNKTYPE, link="top/missing"),
    "hard link to itself": member("top/x", tarfile.LNKTYPE, link="top/x"),
}


@pytest.mark.parametrize("case", sorted(SKIPPED))
def test_what_points_out_or_is_no_file_is_left_out_and_told(case: str, tmp_path: Path) -> None:
    (skipped,) = unpack(tar(member("top", tarfile.DIRTYPE, mode=0o755), SKIPPED[case]), tmp_path)
    assert skipped.startswith("out/x: ")
    assert names(tmp_path / "out") == []


def test_links_inside_the_tree_are_kept(tmp_path: Path) -> None:
    members = [
        member("top/d/f", data=b"x"),
        member("top/d/s", tarfile.SYMTYPE, link="../d/f"),
        member("top/h", tarfile.LNKTYPE, link="top/d/f"),
    ]
    assert unpack(tar(*members), tmp_path) == []
    assert (tmp_path / "out/d/s").read_bytes() == (tmp_path / "out/h").read_bytes() == b"x"


def claims(size: int) -> bytes:
    info = tarfile.TarInfo("top")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def long_name(size: int) -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT)


def pax(record: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    return info.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512) + tar(member("top", data=b"x"))


BROKEN: dict[str, Callable[[], bytes]] = {
    "8 EiB": lambda: claims(1 << 62),
    "a name of 1 GiB": lambda: long_name(1 << 30),
    "noise": lambda: b"\x55" * 1024,
    "cut head": lambda: claims(5)[:100],
    "cut body": lambda: claims(5) + b"abc",
    "nothing at all": lambda: b"",
    "empty": lambda: bytes(1024),
    "pax without length": lambda: pax(b"path=x\n"),
    "pax with length 0": lambda: pax(b"0 path=x\n"),
    "pax size negative": lambda: pax(b"11 size=-1\n"),
    "pax size huge": lambda: pax(b"22 size=99999999999999\n"[:22] + b"\n"),
    "pax name with NUL": lambda: pax(b"12 path=a\0b\n"),
}


@pytest.mark.fault(65)
@pytest.mark.parametrize("case", sorted(BROKEN))
def test_a_broken_or_boundless_archive_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        unpack(BROKEN[case](), tmp_path)


def test_the_number_of_members_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_MEMBERS", 10)
    with pytest.raises(Invalid, match="stopped"):
        unpack(tar(*[member(f"top/{number}") for number in range(20)]), tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=2048), at=st.integers(0, 2000))
def test_noise_never_does_anything_but_raise(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int) -> None:
    good = tar(member("top", tarfile.DIRTYPE), member("top/f", data=b"x" * 600))
    directory = tmp_path_factory.mktemp("noise")
    with contextlib.suppress(Invalid):
        unpack(good[:at] + data + good[at:], directory)
    assert set(names(directory)) <= {"out"}
