"""Crafted qcow2 headers, field by field as in QEMU's docs/interop/qcow2.txt."""

from __future__ import annotations

import struct
from typing import NamedTuple

CLUSTER = 1 << 16
NAME_AT = 1024


class _Fields(NamedTuple):
    version: int = 3
    backing: bytes = b""
    cluster_bits: int = 16
    virtual: int = 10 << 30
    crypt: int = 0
    l1_entries: int = 20
    l1_offset: int = 3 * CLUSTER
    table_offset: int = CLUSTER
    incompatible: int = 0
    header_length: int = 104
    extensions: bytes = b""


def header(**changes: object) -> bytes:
    """The first 4096 bytes of a qcow2 of 10 GiB, with fields changed at will; a backing file's name stands at NAME_AT."""
    f = _Fields(**changes)  # type: ignore[arg-type]
    packed = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb", f.version, NAME_AT if f.backing else 0, len(f.backing), f.cluster_bits, f.virtual, f.crypt,
        f.l1_entries, f.l1_offset, f.table_offset, 1, 0, 0,
    )  # fmt: skip
    if f.version == 3:
        packed += struct.pack(">QQQII", f.incompatible, 0, 0, 4, f.header_length)
    packed += f.extensions
    return packed.ljust(NAME_AT, b"\0") + f.backing.ljust(4096 - NAME_AT, b"\0")
