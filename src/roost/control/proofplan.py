"""Whether a disk from elsewhere boots: what is tried in which order, and what the signs of a booting guest mean (pure)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from roost.hypervisor.base import RunState
from roost.model.image import Attempt
from roost.model.meta import Arch, Firmware

Outcome = Literal["booted", "unclear", "failed"]

_RANK: tuple[Outcome, ...] = ("booted", "unclear", "failed")
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?=]*[ -/]*[@-~]|\][^\x07\x1b]*\x07?|[@-Z\\-_()][0-9A-B]?)")
_LONGEST_CONSOLE = 2000


class Patience(NamedTuple):
    """Seconds: how long a boot may take at all, and after how long a picture that does not change any more is the last."""

    longest: float
    still: float


def patience(accelerator: Literal["kvm", "tcg"]) -> Patience:
    """How long to wait. An emulated processor is some ten times slower."""
    return Patience(90.0, 25.0) if accelerator == "kvm" else Patience(300.0, 75.0)


class Seen(NamedTuple):
    """A guest at one moment: what QEMU says of it, who answers in it ("" nobody), what it printed, for how many seconds its screen and its
    console did not change, and since how many seconds it runs."""

    state: RunState
    agent: str
    console: str
    still: float
    elapsed: float


class Finding(NamedTuple):
    """What was made of it."""

    outcome: Outcome
    why: str
    suggestion: str = ""


_FIRMWARE = (
    "try the other firmware (--firmware bios or uefi), or look whether this is the disk that holds the boot loader"
)
_ROOT = (
    "in the original system, put the drivers virtio_pci, virtio_blk and virtio_scsi into its initramfs, and name the root device by UUID in "
    "/etc/fstab and on the kernel's command line"
)
_FAILURES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (re.compile(r"Unable to mount root fs|Cannot open root device"), "its kernel finds no root file system", _ROOT),
    (
        re.compile(
            r"ALERT! .{0,200}does not exist|Gave up waiting for root|Warning: /dev/\S{1,200} does not exist|Starting dracut emergency|\(initramfs\)"
        ),
        "its initramfs waits for a root device that is not there",
        _ROOT,
    ),
    (
        re.compile(r"You are in (?:emergency|rescue) mode|Give root password for maintenance"),
        "its system ended in emergency mode",
        "look at the console: as a rule /etc/fstab names a device that is called otherwise here; name it by UUID",
    ),
    (
        re.compile(r"grub rescue>|error: no such (?:device|partition)"),
        "its boot loader finds no system",
        "install the boot loader again in the original system, with its whole disk exported",
    ),
    (re.compile(r"Kernel panic"), "its kernel panicked", "look at the console for what came before the panic"),
    (
        re.compile(r"No bootable device|not a bootable disk|No bootable option|UEFI Interactive Shell|Boot failed"),
        "its firmware finds nothing to boot",
        _FIRMWARE,
    ),
)
_LOGIN = re.compile(
    r"^[^\n]{0,200}(?<!Last )\blogin:(?: |$)|Reached target\S* .{0,40}(?:Multi-User|Graphical)", re.MULTILINE
)


def candidates(firmwares: Sequence[Firmware], arch: Arch) -> tuple[Firmware, ...]:
    """The firmwares that are tried, in order: those that this disk may boot by and this architecture's machines have."""
    has: tuple[Firmware, ...] = ("bios", "uefi") if arch == "x86_64" else ("uefi",)
    return tuple(dict.fromkeys(firmware for firmware in firmwares if firmware in has)) or has[:1]


def printed(console: bytes) -> str:
    """The end of what a guest printed, as plain text."""
    text = _ESCAPES.sub(b"", console[-16 * _LONGEST_CONSOLE :]).decode(errors="replace").replace("\r", "")
    return "".join(char for char in text if char == "\n" or char.isprintable())[-_LONGEST_CONSOLE:]


def _spoken(seen: Seen) -> Finding | None:
    """What the guest itself says."""
    if seen.agent:
        return Finding("booted", f"the agent in it ({seen.agent}) answered")
    if _LOGIN.search(seen.console):
        return Finding("booted", "it asks for a login on its console")
    for pattern, why, suggestion in _FAILURES:
        if pattern.search(seen.console):
            return Finding("failed", why, suggestion)
    return None


def _ended(seen: Seen) -> Finding | None:
    """What QEMU says."""
    if seen.state == "panicked":
        return Finding("failed", "its kernel panicked", "look at the picture of its screen")
    if seen.state in ("gone", "shutdown", "internal-error", "io-error"):
        return Finding("failed", f"it ended by itself ({seen.state})", "look at the picture of its screen")
    return None


def judge(seen: Seen, patience: Patience) -> Finding | None:
    """What is known by now; None: wait."""
    known = _spoken(seen) or _ended(seen)
    if known is not None:
        return known
    if seen.still >= patience.still:
        why = "nothing in it answers, and its screen does not change any more"
        return Finding("unclear", why, "look at the picture of its screen: a login there means that it booted")
    if seen.elapsed >= patience.longest:
        why = f"nothing in it answered within {patience.longest:.0f} s"
        return Finding("unclear", why, "look at the picture of its screen, or launch it and watch: roost console NAME")
    return None


def best(attempts: Sequence[Attempt]) -> int:
    """The place of the attempt that came furthest, the first of equals."""
    return min(range(len(attempts)), key=lambda place: _RANK.index(attempts[place].outcome))
