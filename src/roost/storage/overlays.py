"""Our own qcow2 files as bytes: empty ones over a file or over none, plain or with the LUKS header of another, and how they grow (pure).

Layout and numbers are those of QEMU's docs/interop/qcow2.txt. A LUKS header holds the key of the data, locked by passphrases: an overlay that
has the header of what it covers opens by the same passphrase, and making it needs none.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from roost.errors import Invalid
from roost.model import size as sizes
from roost.storage.formats import MAX_VIRTUAL

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_LENGTH = 112
"""Bytes of a version 3 header with its compression type."""
_BITS = 16
_CLUSTER = 1 << _BITS
_COVERED = _CLUSTER * _CLUSTER // 8
"""Bytes of a disk that one entry of the level 1 table stands for: 512 MiB."""
_END, _BACKING_FORMAT, _CRYPTO = 0, 0xE2792ACA, 0x0537BE77
_LUKS = 2
_LARGEST_LUKS = 32 << 20
"""Bytes of a LUKS header that we take for one: QEMU's have 2 MiB."""


class Span(NamedTuple):
    """A part of a file: bytes from its beginning, and how many."""

    offset: int
    length: int


def is_locked(head: bytes) -> bool:
    """Whether a qcow2 file is encrypted by LUKS, from its first 36 bytes."""
    return head[:4] == _MAGIC and head[32:36] == _LUKS.to_bytes(4, "big")


def luks_header(head: bytes) -> Span:
    """Where the LUKS header of a qcow2 file is, from its first HEAD bytes. Raises Invalid when there is none."""
    if is_locked(head) and len(head) >= 104:
        at = int.from_bytes(head[100:104], "big")
        while at + 24 <= len(head):
            kind, length = struct.unpack_from(">II", head, at)
            if kind == _CRYPTO and length == 16:
                found = Span(*struct.unpack_from(">QQ", head, at + 8))
                if 0 < found.length <= _LARGEST_LUKS:
                    return found
            if kind == _END:
                break
            at += 8 + (length + 7 & ~7)
    raise Invalid("the disk can not be used", "its header says that it is encrypted, and not by which key")


def empty(virtual_size: int, backing: str = "", luks: bytes = b"") -> bytes:
    """A whole, empty qcow2 file (version 3, 64 KiB clusters) of `virtual_size` bytes, over the qcow2 file `backing` or over none.

    `backing` is a hint for people and tools: whoever opens the disk names every layer himself. Raises Invalid when the name does not fit or
    the size is out of bounds.
    """
    name = backing.encode()
    if len(name) > 1023 or not 0 < virtual_size <= MAX_VIRTUAL or len(luks) > _LARGEST_LUKS:
        raise Invalid(
            f"cannot make a disk of {virtual_size} bytes over {backing!r}",
            f"at most {sizes.show(MAX_VIRTUAL)} and 1023 bytes of name",
        )
    entries = -(-virtual_size // _COVERED)
    tables, locks = -(-entries * 8 // _CLUSTER), -(-len(luks) // _CLUSTER)
    where = (3 + tables) * _CLUSTER
    extensions = struct.pack(">II8s", _BACKING_FORMAT, 5, b"qcow2") if name else b""
    extensions += struct.pack(">IIQQ", _CRYPTO, 16, where, len(luks)) if luks else b""
    extensions += struct.pack(">II", _END, 0)
    at = _LENGTH + len(extensions) if name else 0
    header = _HEADER.pack(
        _MAGIC, 3, at, len(name), _BITS, virtual_size, _LUKS if luks else 0, entries, 3 * _CLUSTER, _CLUSTER, 1, 0, 0
    )  # fmt: skip
    header += struct.pack(">QQQII", 0, 0, 0, 4, _LENGTH) + bytes(8)
    used = struct.pack(">H", 1) * (3 + tables + locks)
    clusters = (header + extensions + name, struct.pack(">Q", 2 * _CLUSTER), used, bytes(tables * _CLUSTER))
    return b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in clusters) + luks.ljust(locks * _CLUSTER, b"\0")


def grown(head: bytes, virtual_size: int) -> tuple[bytes, Span] | None:
    """The first 40 bytes of a qcow2 file for a guest that sees `virtual_size` bytes, and the part of its level 1 table that must be zero before
    they are written; None when that table has no room for so many."""
    bits, entries = int.from_bytes(head[20:24], "big"), int.from_bytes(head[36:40], "big")
    table = int.from_bytes(head[40:48], "big")
    if head[:4] != _MAGIC or not 9 <= bits <= 21:
        raise Invalid("the disk can not be resized", "it does not begin as a qcow2 file of ours")
    needed = max(-(-virtual_size >> (2 * bits - 3)), entries)
    room = -(-entries * 8 >> bits) << bits
    if needed * 8 > room or len(head) < 48 or virtual_size > MAX_VIRTUAL:
        return None
    changed = bytearray(head[:40])
    struct.pack_into(">Q", changed, 24, virtual_size)
    struct.pack_into(">I", changed, 36, needed)
    return bytes(changed), Span(table + entries * 8, room - entries * 8)
