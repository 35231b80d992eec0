"""VHD, the format of Virtual PC, Hyper-V and Azure: what its footer and dynamic header may say (pure).

Layout: Microsoft, Virtual Hard Disk Image Format Specification 1.0; all numbers are big-endian.
"""

from __future__ import annotations

import struct
from array import array
from sys import byteorder
from typing import NamedTuple

from roost.storage.formats.content import Content, Unfit, exactly

MAGIC = b"conectix"

_FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB")
_DYNAMIC = struct.Struct(">8sQQIIII16sII512s")
_FIXED, _GROWING, _DIFFERENCING = 2, 3, 4
_NO_BLOCK = 0xFFFFFFFF
_LARGEST = 2040 << 30
"""Bytes: the specification's bound."""


class _Footer(NamedTuple):
    version: int
    header: int
    size: int
    kind: int
    checksum: int
    saved: int


def is_fixed(content: Content) -> bool:
    """Whether it is a disk of fixed size, which only its last sector tells: a valid footer that fits the file's size."""
    tail = content.read(max(content.size - 512, 0), 512)
    if tail[:8] != MAGIC or len(tail) < 512:
        return False
    footer = _footer(tail)
    return footer.kind == _FIXED and footer.checksum == _checksum(tail, 64) and footer.size <= content.size - 512


def judge(content: Content) -> int:
    """The virtual size in bytes. Raises Unfit."""
    data = exactly(content, max(content.size - 512, 0), 512, "footer")
    if data[:8] != MAGIC:
        raise Unfit("it does not end with a footer: it is cut off")
    footer = _footer(data)
    if _checksum(data, 64) != footer.checksum:
        raise Unfit("the checksum of its footer is wrong")
    _check_footer(footer)
    if footer.kind == _FIXED:
        if footer.size > content.size - 512:
            raise Unfit("its data end beyond the end of the file: it is cut off")
    elif content.read(0, 512) != data:
        raise Unfit("its footer and its copy differ: it is cut off or damaged")
    else:
        _check_dynamic(content, footer.header, footer.size)
    return footer.size


def _footer(data: bytes) -> _Footer:
    fields = _FOOTER.unpack_from(data)
    return _Footer(fields[2], fields[3], fields[9], fields[13], fields[14], fields[16])


def _check_footer(footer: _Footer) -> None:
    if footer.version != 0x10000:
        raise Unfit(f"VHD version {footer.version:#x} is not known")
    if footer.kind == _DIFFERENCING:
        raise Unfit(
            "it is a differencing disk, which stands on another (parent): a disk that is imported must be whole"
        )
    if footer.kind not in (_FIXED, _GROWING):
        raise Unfit(f"VHD type {footer.kind} is not known")
    if footer.saved:
        raise Unfit("it holds the saved state of a running machine")
    if not 0 < footer.size <= _LARGEST:
        raise Unfit(f"a VHD of {footer.size} bytes is not allowed")


def _check_dynamic(content: Content, offset: int, size: int) -> None:
    header = exactly(content, offset, 1024, "dynamic header")
    magic, _, table, version, entries, block, checksum, parent, _, _, name = _DYNAMIC.unpack_from(header)
    if magic != b"cxsparse" or version != 0x10000:
        raise Unfit("it has no valid dynamic header")
    if _checksum(header, 36) != checksum:
        raise Unfit("the checksum of its dynamic header is wrong")
    if any(parent) or any(name) or any(header[_DYNAMIC.size : _DYNAMIC.size + 8 * 24]):
        raise Unfit("it names a parent: a disk that is imported must be whole")
    if block & (block - 1) or not 4096 <= block <= 256 << 20 or not size <= entries * block <= size + (1 << 40):
        raise Unfit(f"{entries} blocks of {block} bytes do not fit a disk of {size} bytes")
    _check_table(content, exactly(content, table, entries * 4, "block table"), block)


def _check_table(content: Content, data: bytes, block: int) -> None:
    table = array("I", data)
    if byteorder == "little":
        table.byteswap()
    bitmap = max(512, -(-block // 512 // 8 // 512) * 512)
    used = [entry for entry in table if entry != _NO_BLOCK]
    if used and max(used) * 512 + bitmap + block > content.size:
        raise Unfit("its blocks end beyond the end of the file: it is cut off")
    if len(set(used)) != len(used):
        raise Unfit("its table names a block twice")


def _checksum(data: bytes, at: int) -> int:
    """The one's complement of the sum of all bytes but those of the checksum itself."""
    return ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF
