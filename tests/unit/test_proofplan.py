"""What the signs of a booting guest mean, and which firmware a disk is tried with first."""

from __future__ import annotations

import struct

import pytest

from roost.control import proofplan
from roost.control.proofplan import Seen
from roost.model.image import Attempt
from roost.storage import bootdisk, partitions

PATIENCE = proofplan.patience("kvm")
NOTHING = Seen("running", "", "", 0.0, 1.0)


def outcome(seen: Seen) -> str:
    """What is made of it; "" for nothing yet."""
    found = proofplan.judge(seen, PATIENCE)
    return found.outcome if found is not None else ""


@pytest.mark.parametrize(
    ("console", "expected"),
    [
        ("Booting from Hard Disk...\n", ""),
        ("\nDebian GNU/Linux 12 web ttyS0\n\nweb login: ", "booted"),
        ("\nweb login: [   10.1] random: crng init done\n", "booted"),
        ("Last login: Mon", ""),
        ("[    2.1] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)", "failed"),
        ("ALERT!  UUID=1 does not exist.  Dropping to a shell!\n(initramfs) ", "failed"),
        ("No bootable device.", "failed"),
        ("BdsDxe: No bootable option or device was found.", "failed"),
    ],
)
def test_what_a_guest_prints_tells_whether_it_booted(console: str, expected: str) -> None:
    assert outcome(NOTHING._replace(console=console)) == expected


def test_a_kernel_without_a_root_is_told_to_get_virtio_drivers() -> None:
    found = proofplan.judge(NOTHING._replace(console="VFS: Unable to mount root fs"), PATIENCE)
    assert found is not None
    assert "virtio_blk" in found.suggestion


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (NOTHING._replace(agent="qemu-ga"), "booted"),
        (NOTHING._replace(state="panicked"), "failed"),
        (NOTHING._replace(state="shutdown"), "failed"),
        (NOTHING._replace(still=PATIENCE.still), "unclear"),
        (NOTHING._replace(elapsed=PATIENCE.longest), "unclear"),
    ],
)
def test_a_guest_that_says_nothing_is_judged_by_what_qemu_says_and_never_waited_for_without_end(
    seen: Seen, expected: str
) -> None:
    assert outcome(seen) == expected


def test_escape_sequences_and_controls_are_no_part_of_what_was_printed() -> None:
    assert proofplan.printed(b"\x1b[2J\x1b[01;01Hweb\x07 \x1b]0;title\x07login: \r\n") == "web login: \n"


def test_a_board_without_a_bios_is_not_asked_for_one() -> None:
    assert proofplan.candidates(("bios", "uefi"), "aarch64") == ("uefi",)
    assert proofplan.candidates(("uefi", "bios"), "x86_64") == ("uefi", "bios")
    assert proofplan.candidates(("direct",), "x86_64") == ("bios",)


def test_the_attempt_that_came_furthest_counts() -> None:
    attempts = [Attempt(firmware="bios", outcome=it, why="", seconds=1) for it in ("failed", "unclear", "unclear")]
    assert proofplan.best(attempts) == 1


def test_a_disk_with_boot_code_is_tried_by_bios_first() -> None:
    assert partitions.firmwares(b"\xeb\x63".ljust(510, b"\0") + b"\x55\xaa") == ("bios", "uefi")


def test_a_disk_with_an_efi_partition_and_no_boot_code_is_tried_by_uefi_first() -> None:
    front, _ = bootdisk.partition_tables(bootdisk.layout(256 << 20), "seed")
    assert partitions.firmwares(front) == ("uefi", "bios")
    mbr = bytes(450) + b"\xef" + bytes(59) + b"\x55\xaa"
    assert partitions.firmwares(mbr) == ("uefi", "bios")


@pytest.mark.parametrize(
    "head",
    [
        b"",
        bytes(512),
        bytes(512) + b"EFI PART",
        bytes(512) + b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 1 << 63, 1 << 31, 128) + bytes(4),
    ],
)
def test_a_table_that_lies_is_no_harm(head: bytes) -> None:
    assert partitions.firmwares(head) == ("bios", "uefi")
