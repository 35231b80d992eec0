"""VDI, VirtualBox's own format: what its header may say (pure).

Layout: the comment at the top of QEMU's block/vdi.c and VirtualBox's VDICore.h; all numbers are little-endian.
"""

from __future__ import annotations

import struct
from array import array
from sys import byteorder

from roost.storage.formats.content import Content, Unfit, exactly

MAGIC = b"\x7f\x10\xda\xbe"
MAGIC_AT = 64

_HEADER = struct.Struct("<4sIIII256sIIIIIIIQIIII16s16s16s16s")
_KINDS = {3: "an undo image", 4: "a differencing image, which stands on another"}
_BLOCK = 1 << 20
_NO_BLOCK = 0xFFFFFFFE  # from here on: not allocated, or discarded


def judge(content: Content) -> int:
    """The virtual size in bytes. Raises Unfit."""
    fields = _HEADER.unpack(exactly(content, MAGIC_AT, _HEADER.size, "header"))
    (_, version, _, kind, _, _, table, data, _, _, _, sector, _, size, block, extra, blocks, allocated) = fields[:18]
    _, _, link, parent = fields[18:]
    if version >> 16 != 1:
        raise Unfit(f"VDI version {version >> 16}.{version & 0xFFFF} is not known")
    if kind not in (1, 2):
        raise Unfit(f"it is {_KINDS.get(kind, f'a VDI of the unknown kind {kind}')}")
    if any(link) or any(parent):
        raise Unfit("it stands on another image (parent): a disk that is imported must be whole")
    if (sector, block, extra) != (512, _BLOCK, 0):
        raise Unfit(f"sectors of {sector} and blocks of {block}+{extra} bytes are not allowed")
    if blocks * block < size or blocks > 1 << 24:
        raise Unfit(f"{blocks} blocks do not fit a disk of {size} bytes")
    if table % 512 or data % 512 or not MAGIC_AT + _HEADER.size <= table <= table + blocks * 4 <= data:
        raise Unfit("its tables overlap")
    _check_blocks(exactly(content, table, blocks * 4, "block table"), allocated)
    if data + allocated * block > content.size:
        raise Unfit(f"its {allocated} blocks end beyond the end of the file: it is cut off")
    return int(size)


def _check_blocks(table: bytes, allocated: int) -> None:
    entries = array("I", table)
    if byteorder == "big":
        entries.byteswap()
    used = [entry for entry in entries if entry < _NO_BLOCK]
    if used and max(used) >= allocated:
        raise Unfit(f"its table names block {max(used)} of {allocated}")
    if len(set(used)) != len(used):
        raise Unfit("its table names a block twice")
