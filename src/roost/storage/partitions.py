"""What a disk may boot by, told from its first sectors: boot code, partition tables, an EFI system partition (pure).

Sources: UEFI specification 2.10, chapter 5 (MBR and GUID partition tables); the BIOS takes any first sector that ends in 55 AA.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator

from roost.model.meta import Firmware
from roost.storage.bootdisk import EFI_SYSTEM, SECTOR

HEAD = 1 << 20
"""Bytes from the start of a disk that are looked at."""

_CODE = 440
_ESP_TYPE = 0xEF
_MOST_ENTRIES = 1024


def firmwares(head: bytes) -> tuple[Firmware, ...]:
    """The firmwares to boot a disk by, the likeliest first, of which `head` is the start. Both are always there: a disk may boot in ways that
    its tables do not tell of (a bootable file system without partitions, an EFI partition of another type)."""
    signed = head[SECTOR - 2 : SECTOR] == b"\x55\xaa"
    if signed and any(head[:_CODE]):
        return ("bios", "uefi")
    if EFI_SYSTEM in _guid_types(head) or (signed and _ESP_TYPE in _mbr_types(head)):
        return ("uefi", "bios")
    return ("bios", "uefi")


def _mbr_types(head: bytes) -> Iterator[int]:
    return (head[446 + 16 * entry + 4] for entry in range(4))


def _guid_types(head: bytes) -> Iterator[uuid.UUID]:
    header = head[SECTOR : SECTOR + 92]
    if len(header) < 92 or not header.startswith(b"EFI PART"):
        return
    table, count, size = struct.unpack_from("<QII", header, 72)
    if size < 128 or size > SECTOR * 8:
        return
    for number in range(min(count, _MOST_ENTRIES)):
        entry = head[table * SECTOR + number * size :][:16]
        if len(entry) < 16:
            return
        yield uuid.UUID(bytes_le=entry)
