"""UEFI for a machine: which firmware the host has for its board, and the machine's own copy of the variables."""

from __future__ import annotations

from pathlib import Path

from roost.errors import Unavailable
from roost.host import files
from roost.hypervisor.boards import BOARDS, find_pflash
from roost.model.facts import HostFacts
from roost.model.meta import Arch, MiB

_LARGEST = 64 * MiB  # a flash bank of the virt boards


def create_variables(arch: Arch, facts: HostFacts, target: Path) -> None:
    """Make the machine's own UEFI variables at `target` (0600) from the firmware's; those that are there stay.

    Raises Unavailable when the host has no UEFI for the architecture, OSError when the disk is full.
    """
    if target.exists():
        return
    board = BOARDS[arch]
    pair = find_pflash(board, facts.files)
    if pair is None:
        raise Unavailable(
            f"no machine for {arch} can boot by UEFI here",
            "the firmware is not installed",
            f"sudo apt-get install --no-install-recommends {board.firmware_package}",
        )
    files.atomic_write(target, files.read_bounded(Path(pair.variables), _LARGEST))
