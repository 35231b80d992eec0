"""Archives from strangers: what is a member, and twenty ways to hide something in one."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.storage import archives
from roost.storage.formats import Text, Unfit


def build(*infos: tarfile.TarInfo, format: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for info in infos:
            archive.addfile(info, io.BytesIO(b"x" * info.size))
    return stream.getvalue()


def info(
    name: str, size: int = 0, type: bytes = tarfile.REGTYPE, link: str = "", pax: dict[str, str] | None = None
) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size, made.type, made.linkname = size, type, link
    made.pax_headers = pax or {}
    return made


def members(data: bytes) -> tuple[archives.Member, ...]:
    return archives.members(Text(data, len(data)))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_found_where_they_lie(format: int) -> None:
    data = build(info("a.ovf", 700), info("./b", 512), info("d", type=tarfile.DIRTYPE), info("d/c", 1), format=format)
    found = members(data)
    assert [(member.name, member.size) for member in found] == [("a.ovf", 700), ("b", 512), ("d/c", 1)]
    assert all(data[member.start : member.start + member.size] == b"x" * member.size for member in found)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read(format: int) -> None:
    name = "d" * 150 + "/" + "ä" * 40
    assert [member.name for member in members(build(info(name, 3), format=format))] == [name]


@pytest.mark.fault(55)
@pytest.mark.parametrize(
    ("infos", "word"),
    [
        ([info("../x")], "leads elsewhere"),
        ([info("a/../../x")], "leads elsewhere"),
        ([info("/etc/passwd")], "leads elsewhere"),
        ([info("a//b")], "leads elsewhere"),
        ([info("a\\..\\b")], "letters"),
        ([info("a\nb")], "letters"),
        ([info("a\u202eb")], "letters"),
        ([info("link", type=tarfile.SYMTYPE, link="/etc"), info("link/passwd")], "symbolic link"),
        ([info("hard", type=tarfile.LNKTYPE, link="/etc/passwd")], "hard link"),
        ([info("sda", type=tarfile.BLKTYPE)], "device"),
        ([info("tty", type=tarfile.CHRTYPE)], "device"),
        ([info("pipe", type=tarfile.FIFOTYPE)], "pipe"),
        ([info("odd", type=b"Z")], "not known"),
        ([info("a.ovf"), info("a.ovf")], "same name"),
        ([info("disk.vmdk"), info("DISK.vmdk")], "same name"),
        ([info("stra\u00dfe"), info("STRASSE")], "same name"),
        ([info("\ufb01le"), info("file")], "same name"),
        ([info("sparse", type=tarfile.GNUTYPE_SPARSE)], "sparse"),
    ],
)
def test_what_an_archive_of_disks_has_no_use_for_is_refused(infos: list[tarfile.TarInfo], word: str) -> None:
    with pytest.raises(Unfit, match=word):
        members(build(*infos))


@pytest.mark.fault(55)
@pytest.mark.parametrize(
    "pax",
    [{"path": "../x"}, {"GNU.sparse.major": "1"}, {"linkpath": "/etc/passwd"}, {"size": "-1"}, {"size": "9" * 30}],
)
def test_what_an_extended_header_hides_is_refused(pax: dict[str, str]) -> None:
    with pytest.raises(Unfit):
        members(build(info("plain", 512, pax=pax), format=tarfile.PAX_FORMAT))


@pytest.mark.fault(54)
def test_an_archive_of_a_million_members_is_given_up_early() -> None:
    one = build(info("x"))[:512]

    class Endless:
        size = 1 << 40
        reads = 0

        def read(self, offset: int, length: int) -> bytes:
            self.reads += 1
            name = f"{offset:x}".encode().ljust(100, b"\0")
            head = name + one[100:148] + b" " * 8 + one[156:]
            return head[:148] + f"{sum(head):06o}\0 ".encode() + head[156:]

    endless = Endless()
    with pytest.raises(Unfit, match="more than 1024"):
        archives.members(endless)
    assert endless.reads < 1100


@pytest.mark.parametrize("cut", [lambda data: data[:700], lambda data: data[:512], lambda data: data[:100]])
def test_an_archive_that_breaks_off_is_refused(cut: Callable[[bytes], bytes]) -> None:
    with pytest.raises(Unfit, match="breaks off"):
        members(cut(build(info("a", 1000))))


@given(st.binary(max_size=1024), st.integers(0, 511))
def test_no_bytes_make_the_reader_fail(junk: bytes, at: int) -> None:
    whole = bytearray(build(info("a", 10), info("b", 600), format=tarfile.PAX_FORMAT))
    whole[at : at + len(junk)] = junk
    try:
        members(bytes(whole))
    except Unfit as problem:
        assert str(problem)
