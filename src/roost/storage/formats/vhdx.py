"""VHDX, Hyper-V's format: what its headers, region tables and metadata may say (pure).

Layout: Microsoft, [MS-VHDX] Virtual Hard Disk v2 File Format; all numbers are little-endian.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import NamedTuple
from uuid import UUID

from roost.storage.formats.content import Content, Unfit, exactly

MAGIC = b"vhdxfile"

_KiB, _MiB = 1 << 10, 1 << 20
_HEADERS = (64 * _KiB, 128 * _KiB)
_REGIONS = (192 * _KiB, 256 * _KiB)
_HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")
_TABLE = struct.Struct("<4sIII")
_REGION = struct.Struct("<16sQII")
_METADATA = struct.Struct("<8sHH")
_ITEM = struct.Struct("<16sIIII")
_MOST = 2047
"""Entries of a table (2.2.3.1, 2.6.1.1)."""


def _guid(text: str) -> bytes:
    return UUID(text).bytes_le


_BAT = _guid("2dc27766-f623-4200-9d64-115e9bfd4a08")
_META = _guid("8b7ca206-4790-4b9a-b8fe-575f050f886e")
_PARAMETERS = _guid("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
_SIZE = _guid("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
_PARENT = _guid("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
_LOGICAL = _guid("8141bf1d-a96f-4709-ba47-f233a8faab5f")
_PHYSICAL = _guid("cda348c7-445d-4471-9cc9-e9885251c556")
_PAGE_83 = _guid("beca12ab-b2e6-4523-93ef-c309e000c746")
_KNOWN = frozenset({_PARAMETERS, _SIZE, _PARENT, _LOGICAL, _PHYSICAL, _PAGE_83})


class _Region(NamedTuple):
    offset: int
    length: int


def judge(content: Content) -> int:
    """The virtual size in bytes. Raises Unfit."""
    _check_headers(content)
    regions = _regions(content)
    items = _items(content, regions[_META])
    size = _parameters(content, items)
    block, _ = struct.unpack("<II", _item(content, items, _PARAMETERS, 8))
    _check_blocks(content, regions[_BAT], size, block, struct.unpack("<I", _item(content, items, _LOGICAL, 4))[0])
    return size


def _check_headers(content: Content) -> None:
    """The newer of the two valid headers must say that no log waits to be replayed."""
    found = [header for offset in _HEADERS if (header := _header(content, offset)) is not None]
    if not found:
        raise Unfit("neither of its headers is valid")
    newest = max(found, key=lambda fields: int(fields[2]))
    if newest[7] != 1 or newest[6] != 0:
        raise Unfit(f"VHDX version {newest[7]} with log version {newest[6]} is not known")
    if any(newest[5]):
        raise Unfit("it was not closed cleanly: its log waits to be replayed, so what it holds is not settled")


def _header(content: Content, offset: int) -> tuple[int, int, int, bytes, bytes, bytes, int, int, int, int] | None:
    data = content.read(offset, 4096)
    if len(data) < 4096 or data[:4] != b"head":
        return None
    fields = _HEADER.unpack_from(data)
    return fields if _checksum(data) == fields[1] else None


def _regions(content: Content) -> dict[bytes, _Region]:
    """The regions of the file, of the first valid one of the two tables."""
    for offset in _REGIONS:
        data = content.read(offset, 64 * _KiB)
        if len(data) == 64 * _KiB and data[:4] == b"regi" and _checksum(data) == _TABLE.unpack_from(data)[1]:
            return _read_regions(content, data)
    raise Unfit("neither of its region tables is valid")


def _read_regions(content: Content, data: bytes) -> dict[bytes, _Region]:
    count = _TABLE.unpack_from(data)[2]
    if count > _MOST:
        raise Unfit(f"a region table of {count} entries is not allowed")
    regions: dict[bytes, _Region] = {}
    for number in range(count):
        guid, offset, length, required = _REGION.unpack_from(data, _TABLE.size + number * _REGION.size)
        if offset % _MiB or offset < _MiB or length % _MiB or offset + length > content.size:
            raise Unfit("a region lies beyond the end of the file or at an impossible place: it is cut off or damaged")
        if guid not in (_BAT, _META) and required & 1:
            raise Unfit(f"it needs a region that is not known ({UUID(bytes_le=guid)})")
        if guid in regions:
            raise Unfit("it names a region twice")
        regions[guid] = _Region(offset, length)
    if not {_BAT, _META} <= set(regions):
        raise Unfit("it has no block table or no metadata")
    _check_overlaps(regions)
    return regions


def _check_overlaps(regions: dict[bytes, _Region]) -> None:
    places = sorted(regions.values())
    if any(one.offset + one.length > two.offset for one, two in pairwise(places)):
        raise Unfit("its regions overlap")


def _items(content: Content, region: _Region) -> dict[bytes, _Region]:
    """The metadata, by GUID; offsets are those in the file."""
    table = exactly(content, region.offset, 64 * _KiB, "metadata table")
    magic, _, count = _METADATA.unpack_from(table)
    if magic != b"metadata" or count > _MOST:
        raise Unfit("it has no valid metadata")
    items: dict[bytes, _Region] = {}
    for number in range(count):
        guid, offset, length, flags, _ = _ITEM.unpack_from(table, 32 + number * _ITEM.size)
        if guid == _PARENT:
            raise Unfit("it names a parent (parent locator): a disk that is imported must be whole")
        if guid not in _KNOWN and flags & 4:
            raise Unfit(f"it needs metadata that are not known ({UUID(bytes_le=guid)})")
        if guid in items or (length and not 64 * _KiB <= offset <= offset + length <= region.length):
            raise Unfit("its metadata are damaged")
        items[guid] = _Region(region.offset + offset, length)
    return items


def _item(content: Content, items: dict[bytes, _Region], guid: bytes, length: int) -> bytes:
    if guid not in items or items[guid].length < length:
        raise Unfit("its metadata lack what a disk must say of itself")
    return exactly(content, items[guid].offset, length, "metadata")


def _parameters(content: Content, items: dict[bytes, _Region]) -> int:
    block, flags = struct.unpack("<II", _item(content, items, _PARAMETERS, 8))
    if flags & 2:
        raise Unfit("it has a parent: a disk that is imported must be whole")
    if block & (block - 1) or not _MiB <= block <= 256 * _MiB:
        raise Unfit(f"blocks of {block} bytes are not allowed")
    sector = int.from_bytes(_item(content, items, _LOGICAL, 4), "little")
    if sector not in (512, 4096):
        raise Unfit(f"sectors of {sector} bytes are not allowed")
    size = int.from_bytes(_item(content, items, _SIZE, 8), "little")
    if size % sector or not 0 < size <= 64 << 40:
        raise Unfit(f"a VHDX of {size} bytes is not allowed")
    return size


def _check_blocks(content: Content, region: _Region, size: int, block: int, sector: int) -> None:
    """Every block that is there lies within the file (2.5.1)."""
    ratio = (1 << 23) * sector // block
    blocks = -(-size // block)
    entries = blocks + (blocks - 1) // ratio
    if entries * 8 > region.length:
        raise Unfit(f"its block table does not fit a disk of {size} bytes")
    table = exactly(content, region.offset, entries * 8, "block table")
    # Bits 0 to 2 are the state, bits 20 to 63 the place in MiB; 6 is present, 7 present in part, which only a child has.
    # Every entry after `ratio` blocks is one of the bitmap of a child, and not used.
    used = [entry >> 20 for (entry,) in struct.iter_unpack("<Q", table) if entry & 7 == 6]
    if used and max(used) * _MiB + block > content.size:
        raise Unfit("its blocks end beyond the end of the file: it is cut off")


def _table() -> tuple[int, ...]:
    def entry(value: int) -> int:
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        return value

    return tuple(entry(value) for value in range(256))


_CRC = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), which the standard library does not have; 64 KiB take some 5 ms."""
    crc, table = 0xFFFFFFFF, _CRC
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> int:
    """Of a structure whose checksum stands in its bytes 4 to 7."""
    return crc32c(data[:4] + bytes(4) + data[8:])
