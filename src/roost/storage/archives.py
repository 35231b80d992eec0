"""The members of a tar archive, such as an OVA, where they lie: nothing is unpacked, so a name can lead nowhere.

The format is POSIX.1-1988 ustar with the pax (`x`) and GNU (`L`) extensions for long names. An archive that two readers could understand in
two ways (names twice or alike, links, sparse members) is refused rather than understood in one.
"""

from __future__ import annotations

import tarfile
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from roost.storage.formats.content import Content, Unfit, exactly

BLOCK = 512
MOST_MEMBERS = 1024
"""Members of one archive: an appliance has a descriptor, a manifest, a certificate, and its disks in at most some hundred pieces."""

_LONGEST_EXTENSION = 64 << 10
_MOST_EXTENSIONS = 4 * MOST_MEMBERS
_PAYLOAD = {tarfile.REGTYPE, tarfile.AREGTYPE}
_EXTENSIONS = {tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME}
_KINDS = {
    tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symbolic link", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe", tarfile.GNUTYPE_SPARSE: "a sparse file", tarfile.GNUTYPE_LONGLINK: "a link"
}  # fmt: skip


class Member(NamedTuple):
    """A file in an archive: `size` bytes from byte `start`."""

    name: str
    start: int
    size: int


def members(content: Content) -> tuple[Member, ...]:
    """The files of a tar archive. Raises Unfit for one that is cut off, or holds anything else than files and directories."""
    found: dict[str, Member] = {}
    for member in _members(content):
        key = unicodedata.normalize("NFKC", member.name).casefold()
        if key in found:
            raise Unfit(f"its members {found[key].name!r} and {member.name!r} are the same name to some systems")
        found[key] = member
        if len(found) > MOST_MEMBERS:
            raise Unfit(f"it has more than {MOST_MEMBERS} members")
    return tuple(found.values())


def _members(content: Content) -> Iterator[Member]:
    offset, extended, extensions = 0, dict[str, str](), 0
    while True:
        info = _header(content, offset)
        if info is None:
            return
        offset += BLOCK
        if info.type in _EXTENSIONS:
            extended |= _extension(content, offset, info)
        elif info.type not in (tarfile.XGLTYPE, tarfile.DIRTYPE):
            info.size = _size(extended.get("size"), info.size)
            yield _member(content, offset, info, extended.get("path", info.name))
            extended = {}
        else:
            extended = {}
        extensions += info.type not in _PAYLOAD
        if extensions > _MOST_EXTENSIONS:
            raise Unfit(f"it has more than {_MOST_EXTENSIONS} headers that are no files")
        offset += 0 if info.type == tarfile.DIRTYPE else -(-info.size // BLOCK) * BLOCK


def _header(content: Content, offset: int) -> tarfile.TarInfo | None:
    """The next header, None at the end. Raises Unfit."""
    block = content.read(offset, BLOCK)
    if len(block) < BLOCK:
        raise Unfit("the archive breaks off")
    if not block.strip(b"\0"):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise Unfit(f"it is no valid tar archive: {error}") from None
    if info.type in _KINDS or info.issparse():
        raise Unfit(f"its member {info.name[:200]!r} is {_KINDS.get(info.type, 'a sparse file')}")
    if info.type not in _PAYLOAD | _EXTENSIONS | {tarfile.XGLTYPE, tarfile.DIRTYPE}:
        raise Unfit(f"its member {info.name[:200]!r} is of a kind that is not known ({info.type!r})")
    if info.size < 0:
        raise Unfit(f"its member {info.name[:200]!r} has an impossible size")
    return info


def _size(told: str | None, otherwise: int) -> int:
    if told is None:
        return otherwise
    if not told.isascii() or not told.isdecimal() or len(told) > 18:
        raise Unfit(f"a member has the impossible size {told[:40]!r}")
    return int(told)


def _member(content: Content, start: int, info: tarfile.TarInfo, name: str) -> Member:
    name = name.removeprefix("./")
    parts = name.split("/")
    if not name or len(name) > 255 or any(part in ("", ".", "..") for part in parts):
        raise Unfit(f"its member {name[:200]!r} has a name that leads elsewhere")
    if "\\" in name or any(unicodedata.category(letter) in ("Cc", "Cf", "Cs") for letter in name):
        raise Unfit(f"its member {name[:200]!r} has a name with letters that no file should have")
    if start + info.size > content.size:
        raise Unfit(f"the archive breaks off in its member {name!r}")
    return Member(name, start, info.size)


def _extension(content: Content, offset: int, info: tarfile.TarInfo) -> dict[str, str]:
    if info.size > _LONGEST_EXTENSION:
        raise Unfit(f"it has a header of {info.size} bytes")
    data = exactly(content, offset, info.size, "header")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    return dict(_pax(data))


def _pax(data: bytes) -> Iterator[tuple[str, str]]:
    """The records of a pax header that say what a member is (POSIX.1-2001, pax interchange format)."""
    while data:
        digits, _, _ = data[:10].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record, data = data[:length], data[length:]
        key, equals, value = record[len(digits) + 1 :].rstrip(b"\n").partition(b"=")
        if length < len(digits) + 2 or not equals:
            raise Unfit("it has a broken extended header")
        if key.startswith(b"GNU.sparse") or key == b"linkpath":
            raise Unfit("it has a sparse file or a link")
        if key in (b"path", b"size"):
            yield key.decode(), value.decode("utf-8", "surrogateescape")
