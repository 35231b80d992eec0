"""A disk that boots anywhere, as bytes: its GUID partition table, and GRUB's first sectors pointed at its core (pure).

GPT: UEFI specification 2.10, chapter 5. GRUB: grub-core/boot/i386/pc/{boot,diskboot}.S; grub-install does the same patching but wants
a block device, hence root.
"""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import NamedTuple

SECTOR = 512
MiB_SECTORS = (1 << 20) // SECTOR

_TABLE_SECTORS = 32
_NAMESPACE = uuid.UUID("5f0f3a3c-6f0c-4b0a-9d1e-5e0c7a6b1d42")


class Partition(NamedTuple):
    """A partition: first sector, number of sectors, GPT type, and the name that the guest sees as PARTLABEL."""

    first: int
    sectors: int
    type: uuid.UUID
    name: str


BIOS_BOOT = uuid.UUID("21686148-6449-6e6f-744e-656564454649")
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
ROOT_X86_64 = uuid.UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709")


class Layout(NamedTuple):
    """Where everything is on a disk of `sectors`."""

    sectors: int
    bios: Partition
    esp: Partition
    root: Partition


def layout(size: int) -> Layout:
    """The partitions of a disk of `size` bytes: 1 MiB for GRUB's core, 64 MiB EFI system partition, the rest root, MiB aligned."""
    sectors = size // SECTOR
    esp = Partition(2 * MiB_SECTORS, 64 * MiB_SECTORS, EFI_SYSTEM, "esp")
    start = esp.first + esp.sectors
    end = (sectors - _TABLE_SECTORS - 1) // MiB_SECTORS * MiB_SECTORS
    return Layout(
        sectors,
        Partition(MiB_SECTORS, MiB_SECTORS, BIOS_BOOT, "bios"),
        esp,
        Partition(start, end - start, ROOT_X86_64, "root"),
    )


def partition_tables(plan: Layout, seed: str) -> tuple[bytes, bytes]:
    """The first 34 sectors of the disk (protective MBR without boot code) and its last 33. GUIDs derive from `seed`."""
    entries = b"".join(_entry(part, seed) for part in (plan.bios, plan.esp, plan.root)).ljust(
        _TABLE_SECTORS * SECTOR, b"\0"
    )
    last = plan.sectors - 1
    front = _mbr(plan.sectors) + _header(plan, seed, (1, last, 2), entries) + entries
    return front, entries + _header(plan, seed, (last, 1, last - _TABLE_SECTORS), entries)


def _mbr(sectors: int) -> bytes:
    protective = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + protective + bytes(48) + b"\x55\xaa"


def _entry(part: Partition, seed: str) -> bytes:
    unique = uuid.uuid5(_NAMESPACE, f"{seed}/{part.name}")
    name = part.name.encode("utf-16-le").ljust(72, b"\0")
    return (
        part.type.bytes_le + unique.bytes_le + struct.pack("<QQQ", part.first, part.first + part.sectors - 1, 0) + name
    )


def _header(plan: Layout, seed: str, places: tuple[int, int, int], entries: bytes) -> bytes:
    """One of the two headers; `places` are its own sector, the other header's, and that of its table."""
    own, other, table = places
    usable = 2 + _TABLE_SECTORS, plan.sectors - 2 - _TABLE_SECTORS
    disk = uuid.uuid5(_NAMESPACE, seed).bytes_le

    def packed(checksum: int) -> bytes:
        start = struct.pack("<8sIIIIQQQQ", b"EFI PART", 0x10000, 92, checksum, 0, own, other, *usable)
        return start + disk + struct.pack("<QIII", table, 128, 128, zlib.crc32(entries))

    return packed(zlib.crc32(packed(0))).ljust(SECTOR, b"\0")


def bios_boot(boot: bytes, core: bytes, front: bytes, first: int) -> tuple[bytes, bytes]:
    """GRUB's boot.img in the disk's first sector (`front` is the table made above), and its core for the BIOS partition at sector `first`.

    Raises ValueError when the two are not what they should be.
    """
    if len(boot) != SECTOR or boot[510:512] != b"\x55\xaa" or not SECTOR < len(core) <= MiB_SECTORS * SECTOR:
        raise ValueError(f"not GRUB's boot image and core ({len(boot)} and {len(core)} bytes)")
    sector = bytearray(boot[:440] + front[440:SECTOR])
    sector[0x5C:0x64] = first.to_bytes(8, "little")
    sector[0x66:0x68] = b"\x90\x90"  # do not distrust the drive number: it is a hard disk (grub-install does the same)
    patched = bytearray(core.ljust(-(-len(core) // SECTOR) * SECTOR, b"\0"))
    # The last entry of the block list, at the end of the core's first sector: where the rest is, how much, and to which segment.
    struct.pack_into("<QHH", patched, SECTOR - 12, first + 1, len(patched) // SECTOR - 1, 0x820)
    return bytes(sector) + front[SECTOR:], bytes(patched)
