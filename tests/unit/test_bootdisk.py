"""The partition table and GRUB's sectors of a template's disk."""

from __future__ import annotations

import struct
import zlib

import pytest

from roost.storage import bootdisk

SIZE = 10 << 30


def checksum_holds(header: bytes) -> bool:
    zeroed = header[:16] + bytes(4) + header[20:92]
    return struct.unpack_from("<I", header, 16)[0] == zlib.crc32(zeroed)


def test_partitions_are_aligned_and_inside_the_disk() -> None:
    plan = bootdisk.layout(SIZE)
    parts = (plan.bios, plan.esp, plan.root)
    assert [part.first % bootdisk.MiB_SECTORS for part in parts] == [0, 0, 0]
    assert plan.bios.first + plan.bios.sectors == plan.esp.first
    assert plan.esp.first + plan.esp.sectors == plan.root.first
    assert plan.root.first + plan.root.sectors <= plan.sectors - 34


def test_both_headers_are_valid_and_name_each_other() -> None:
    plan = bootdisk.layout(SIZE)
    front, back = bootdisk.partition_tables(plan, "debian:12")
    first, last = front[512:1024], back[-512:]
    assert (len(front), len(back)) == (34 * 512, 33 * 512)
    assert checksum_holds(first)
    assert checksum_holds(last)
    assert struct.unpack_from("<QQ", first, 24) == (1, plan.sectors - 1)
    assert struct.unpack_from("<QQ", last, 24) == (plan.sectors - 1, 1)
    assert front[1024:] == back[:-512]


def test_the_table_is_the_same_every_time_and_another_for_another_template() -> None:
    plan = bootdisk.layout(SIZE)
    assert (
        bootdisk.partition_tables(plan, "a")
        == bootdisk.partition_tables(plan, "a")
        != bootdisk.partition_tables(plan, "b")
    )


def test_grubs_sectors_lead_to_each_other_and_keep_the_protective_mbr() -> None:
    front, _ = bootdisk.partition_tables(bootdisk.layout(SIZE), "x")
    boot, core = bytes(range(256)) + bytes(254) + b"\x55\xaa", bytes(1000)
    sector, patched = bootdisk.bios_boot(boot, core, front, 2048)
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
    assert sector[440:512] == front[440:512]
    assert sector[512:] == front[512:]
    assert struct.unpack_from("<QHH", patched, 500) == (2049, 1, 0x820)


@pytest.mark.parametrize(
    ("boot", "core"), [(bytes(512), bytes(1000)), (bytes(510) + b"\x55\xaa", b""), (b"", bytes(2 << 20))]
)
def test_files_that_are_not_grubs_are_refused(boot: bytes, core: bytes) -> None:
    front, _ = bootdisk.partition_tables(bootdisk.layout(SIZE), "x")
    with pytest.raises(ValueError, match="GRUB"):
        bootdisk.bios_boot(boot, core, front, 2048)
