"""qcow2: what a header may say before any tool opens the file (pure).

Layout and numbers are those of QEMU's docs/interop/qcow2.txt.
"""

from __future__ import annotations

import struct

from roost.errors import Invalid
from roost.model import size as sizes

MAX_VIRTUAL = 16 << 40
"""Largest disk we take, in bytes: what ext4 and QEMU's default clusters both carry without trouble."""

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_V3 = struct.Struct(">QQQII")
_MAX_L1 = 32 << 20
"""Bytes of the level 1 table: QEMU's own bound (QCOW_MAX_L1_SIZE)."""

_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _SUBCLUSTERS = (1 << bit for bit in range(5))
_KNOWN = _DIRTY | _CORRUPT | _DATA_FILE | _COMPRESSION | _SUBCLUSTERS
_END, _DATA_FILE_NAME, _BACKING_FORMAT, _CRYPTO = 0, 0x44415441, 0xE2792ACA, 0x0537BE77


def judge(head: bytes, file_size: int) -> tuple[str, int]:
    """The first problem of a qcow2 header ("" when none) and the virtual size."""
    if len(head) < _HEADER.size:
        return "its header is cut off", 0
    (_, version, backing, _, bits, virtual, crypt, l1_entries, l1, table, table_clusters, _, _) = _HEADER.unpack_from(
        head
    )
    problem = ""
    if version not in (2, 3):
        problem = f"qcow2 version {version} is not known"
    elif backing:
        problem = "it has a backing file: a disk that is imported must be whole"
    elif crypt:
        problem = "it is encrypted"
    else:
        problem = _geometry(bits, virtual, l1_entries)
    if not problem and (not table or max(l1 + l1_entries * 8, table + (table_clusters << bits)) > file_size):
        problem = "its tables lie beyond the end of the file: it is cut off"
    return problem or _features(head, version), virtual


def _geometry(bits: int, virtual: int, l1_entries: int) -> str:
    if not 9 <= bits <= 21:
        return f"clusters of 2**{bits} bytes are not allowed"
    if not 0 < virtual <= MAX_VIRTUAL:
        return f"a disk of {virtual} bytes is not between 1 byte and {sizes.show(MAX_VIRTUAL)}"
    needed = -(-virtual >> (2 * bits - 3))  # an entry covers as many clusters as 8-byte entries fit into one
    if l1_entries * 8 > _MAX_L1 or l1_entries < needed:
        return f"a level 1 table of {l1_entries} entries does not fit a disk of {virtual} bytes"
    return ""


def _features(head: bytes, version: int) -> str:
    length = _HEADER.size
    if version == 3:
        if len(head) < _HEADER.size + _HEADER_V3.size:
            return "its header is cut off"
        incompatible, _, _, _, length = _HEADER_V3.unpack_from(head, _HEADER.size)
        if incompatible & _DATA_FILE:
            return "its data are in another file (data-file): a disk that is imported must be whole"
        if incompatible & _CORRUPT:
            return "it is marked corrupt"
        if incompatible & ~_KNOWN:
            return f"it uses features that are not known ({incompatible & ~_KNOWN:#x})"
        if not 104 <= length <= 4096 or length % 8:
            return f"a header of {length} bytes is not allowed"
    return _extensions(head, length)


def _extensions(head: bytes, offset: int) -> str:
    while offset + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, offset)
        if kind == _END:
            return ""
        if kind in (_DATA_FILE_NAME, _BACKING_FORMAT, _CRYPTO):
            return f"its header names another file or a key (extension {kind:#x})"
        offset += 8 + (length + 7 & ~7)
    return "its header extensions have no end"


def virtual_size(head: bytes) -> int:
    """The size in bytes that the guest of a qcow2 file of ours sees, from its first 32 bytes. Raises Invalid for anything else."""
    size = int.from_bytes(head[24:32], "big")
    if head[:4] != MAGIC or len(head) < 32 or not 0 < size <= MAX_VIRTUAL:
        raise Invalid("the disk can not be used", "it does not begin as a qcow2 file of ours")
    return size


def level_1(head: bytes) -> tuple[int, int]:
    """Where the level 1 table of a qcow2 file is and how long, in bytes, from its first 48. All zero, it says that nothing was ever written."""
    if len(head) < 48:
        return 0, 0
    entries, offset = struct.unpack_from(">IQ", head, 36)
    return offset, min(entries * 8, _MAX_L1)


def rename_backing(cluster: bytes, backing: str) -> bytes:
    """The first cluster of a qcow2 file, with another hint at its backing file. Raises Invalid when it has none, or no room."""
    name = backing.encode()
    offset, length = struct.unpack_from(">QI", cluster, 8)
    end = offset + max(len(name), length)
    if not _HEADER.size <= offset or end > len(cluster) or any(cluster[offset + length : end]):
        raise Invalid("the disk's header can not be changed", f"there is no room for {backing!r}")
    named = bytearray(cluster)
    named[offset:end] = name.ljust(end - offset, b"\0")
    struct.pack_into(">I", named, 16, len(name))
    return bytes(named)
