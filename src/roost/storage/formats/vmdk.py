"""VMDK, VMware's format: what the header of a sparse extent and a descriptor may say (pure).

Layout: VMware, Virtual Disk Format 5.0 (Technical Note); all numbers are little-endian, places and sizes are in sectors of 512 bytes.
"""

from __future__ import annotations

import re
import struct
from array import array
from sys import byteorder
from typing import Literal, NamedTuple

from roost.storage.formats.content import Content, Unfit, exactly

MAGIC = b"KDMV"
DESCRIPTOR = b"# Disk DescriptorFile"
LONGEST = 1 << 20
"""Bytes of a descriptor."""

MOST_EXTENTS = 512
"""2 GiB each, as products cut them: disks of 1 TiB."""

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH")
_GRAIN = struct.Struct("<QI")
_SECTOR = 512
_AT_END = (1 << 64) - 1
_NEWLINES = b"\n \r\n"
_COMPRESSED = 1 << 16
_FOOTER = 3
_WORDS = re.compile(r"\s*(RW|RDONLY|NOACCESS)\b")
_EXTENT = re.compile(r'\s*(RW|RDONLY)\s+(\d{1,15})\s+([A-Z]+)(?:\s+"([^"\x00-\x1f]{1,255})"(?:\s+(\d{1,15}))?)?\s*')
_SETTING = re.compile(r'\s*([\w.]+)\s*=\s*"?([^"\r\n]*)"?\s*')


class Extent(NamedTuple):
    """A part of a disk: `size` bytes that are `flat` in a file from byte `offset`, `sparse` in a file with a header, or `zero`."""

    kind: Literal["flat", "sparse", "zero"]
    size: int
    file: str = ""
    offset: int = 0


class Descriptor(NamedTuple):
    """What a descriptor says: `kind` is its createType."""

    kind: str
    extents: tuple[Extent, ...]


class _Header(NamedTuple):
    magic: bytes
    version: int
    flags: int
    capacity: int
    grain: int
    descriptor: int
    descriptor_size: int
    entries: int
    spare_directory: int
    directory: int
    overhead: int
    unclean: int
    newlines: bytes
    algorithm: int


def judge(content: Content) -> int:
    """The virtual size in bytes of a disk that is one sparse file. Raises Unfit."""
    header = _read(content, 0)
    data = exactly(content, _SECTOR, min(header.descriptor_size * _SECTOR, LONGEST + 1), "descriptor")
    if header.descriptor != 1 or not data.strip(b"\0"):
        raise Unfit(
            "it has no descriptor: it is one part of a disk in several files, which must come together in one tar archive"
        )
    told = descriptor(data)
    if told.kind not in ("monolithicSparse", "streamOptimized"):
        raise Unfit(f"its descriptor says that it is of the kind {told.kind!r}")
    if [(extent.kind, extent.offset) for extent in told.extents] != [("sparse", 0)]:
        raise Unfit("its descriptor names extents that are not in this file")
    if not 0 <= header.capacity * _SECTOR - told.extents[0].size < header.grain * _SECTOR:
        raise Unfit("descriptor and header do not agree on its size")
    return _sparse(content, header)


def sparse(content: Content) -> int:
    """The virtual size in bytes of a sparse extent: one of several, which has no descriptor of its own. Raises Unfit."""
    return _sparse(content, _read(content, 0))


def descriptor(data: bytes) -> Descriptor:
    """What a descriptor says. Raises Unfit for one that stands on another disk, or names what is no file beside it."""
    if len(data) > LONGEST:
        raise Unfit(f"its descriptor has more than {LONGEST} bytes")
    if b"parentFileNameHint" in data:
        raise Unfit("it stands on another disk (parentFileNameHint): a disk that is imported must be whole")
    lines = data.partition(b"\0")[0].decode("utf-8", "replace").splitlines()
    found = [match for line in lines if not _WORDS.match(line) and (match := _SETTING.fullmatch(line))]
    settings = {match[1].lower(): match[2].strip() for match in found}
    if settings.get("parentcid", "ffffffff").lower() != "ffffffff" or "cid" not in settings:
        raise Unfit("it stands on another disk (parentCID), or its descriptor is damaged")
    if any(name.startswith(("encryption", "ddb.encryption")) for name in settings):
        raise Unfit("it is encrypted")
    extents = tuple(_extent(line) for line in lines if _WORDS.match(line))
    if not 0 < len(extents) <= MOST_EXTENTS:
        raise Unfit(f"its descriptor names {len(extents)} extents, not 1 to {MOST_EXTENTS}")
    return Descriptor(settings.get("createtype", ""), extents)


def _extent(line: str) -> Extent:
    match = _EXTENT.fullmatch(line)
    if match is None:
        raise Unfit(f"its descriptor names an extent that can not be read: {line.strip()[:120]!r}")
    size, kind, name = int(match[2]) * _SECTOR, match[3], match[4] or ""
    if kind == "ZERO":
        return Extent("zero", size)
    if kind not in ("FLAT", "VMFS", "SPARSE"):
        raise Unfit(f"its descriptor names an extent of the kind {kind}, which is not in a file beside it")
    if not name or name.startswith(".") or any(mark in name for mark in "/\\:"):
        raise Unfit(f"its descriptor names {name!r}: an extent must be a file beside the descriptor")
    return Extent("sparse" if kind == "SPARSE" else "flat", size, name, int(match[5] or 0) * _SECTOR)


def _read(content: Content, offset: int) -> _Header:
    header = _Header(*_HEADER.unpack(exactly(content, offset, _HEADER.size, "header")))
    if header.magic != MAGIC or not 1 <= header.version <= 3:
        raise Unfit(f"VMDK version {header.version} is not known")
    if header.newlines != _NEWLINES:
        raise Unfit("it was damaged by a transfer as text")
    if not header.capacity:
        raise Unfit("it says that it has no size: its data are in other files")
    return header


def _sparse(content: Content, header: _Header) -> int:
    if header.directory == _AT_END:
        header = _footer(content, header)
    if header.flags & _COMPRESSED and header.algorithm != 1:
        raise Unfit(f"its compression {header.algorithm} is not known")
    if header.grain & (header.grain - 1) or not 8 <= header.grain <= 128 << 11 or header.entries != 512:
        raise Unfit(f"grains of {header.grain} sectors, {header.entries} to a table, are not allowed")
    if header.capacity > 1 << 40:
        raise Unfit(f"a disk of {header.capacity} sectors is not allowed")
    _check_grains(content, header)
    return header.capacity * _SECTOR


def _footer(content: Content, first: _Header) -> _Header:
    """The header that counts of a streamOptimized disk: in its last but one sector, between two markers."""
    tail = exactly(content, max(content.size - 3 * _SECTOR, 0), 3 * _SECTOR, "footer")
    marker, end = tail[:_SECTOR], tail[2 * _SECTOR :]
    if struct.unpack_from("<QII", marker) != (1, 0, _FOOTER) or any(end):
        raise Unfit("it does not end with a footer: it is cut off")
    header = _read(content, content.size - 2 * _SECTOR)
    if (header.capacity, header.grain, header.entries) != (first.capacity, first.grain, first.entries):
        raise Unfit("its header and its footer do not agree")
    return header


def _check_grains(content: Content, header: _Header) -> None:
    """Every grain that is there lies within the file: one that does not would read as zeros."""
    tables = -(-header.capacity // (header.grain * header.entries))
    directory = _numbers(exactly(content, header.directory * _SECTOR, tables * 4, "grain directory"))
    last = 0
    for place in set(directory) - {0}:
        table = _numbers(exactly(content, place * _SECTOR, header.entries * 4, "grain table"))
        last = max(last, *table)
    if last > 1 and last * _SECTOR + _length(content, header, last) > content.size:  # 1 stands for a grain of zeros
        raise Unfit("its grains end beyond the end of the file: it is cut off")


def _length(content: Content, header: _Header, place: int) -> int:
    """Bytes of a grain; a compressed one says so in its own head, after the sector that it stands for."""
    if not header.flags & _COMPRESSED:
        return header.grain * _SECTOR
    return _GRAIN.size + int(_GRAIN.unpack(exactly(content, place * _SECTOR, _GRAIN.size, "last grain"))[1])


def _numbers(data: bytes) -> array[int]:
    numbers = array("I", data)
    if byteorder == "big":
        numbers.byteswap()
    return numbers
