"""When a machine may come up from a warm template, and which templates stay: pure decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from roost.control.plan import is_born
from roost.hypervisor.base import Launch
from roost.model.machine import Machine
from roost.model.meta import GiB, MiB
from roost.storage.manifest import Manifest

PROGRESS = "booting the template once: later launches take under a second"
"""What a machine shows while its template is being made."""

WINDOW = 0.25
"""Seconds between two looks at the CPU time of a guest that is to settle."""

CALM = 0.1
"""A guest is calm in a window in which it used less than this part of one CPU. Measured under emulation: Debian at rest 4 to 9 % on a host
that is busy itself, "tiny" 1 %."""

CALM_WINDOWS = 2
"""Calm windows in a row after which a guest has settled."""

SETTLE_SECONDS = 30.0
"""Longest that a guest is given to settle: what it still does then, every machine made from it will go on doing. Debian's services take some
15 s after its first answer under emulation, and several times that on a host that is busy itself."""

MOST_BYTES = 4 * GiB
"""Most that all templates may take on disk, however large that is."""

MOST_TEMPLATES = 8
"""Most templates that are kept."""

HOT_SECONDS = 600.0
"""How long after its last use a template is worth spare processes."""

SPARES = (2, 1)
"""Spares of the template that was used last, and of the one before it."""

SPARE_MEMORY = 64 * MiB
"""What a spare takes before a machine has it: measured 30 MiB, with room for a larger QEMU."""


class Cold(NamedTuple):
    """The machine boots, for this `reason` (a sentence for people). `expected`: it is what was asked for, so nobody need be told."""

    reason: str
    expected: bool = False


class Kept(NamedTuple):
    """A template that is kept: its bytes on disk, when it was used last (seconds, any epoch), and whether it is in use now."""

    id: str
    size: int
    used: float
    busy: bool = False


def reason_for_cold(machine: Machine, manifest: Manifest, launch: Launch) -> str:
    """Why the machine has to boot; "" when it may go on from a warm template."""
    image = f'image "{machine.spec.image}"'
    reasons = (
        (machine.spec.cold, "a cold start was asked for"),
        (is_born(machine), "it has run before, so it boots from its own disk"),
        (machine.spec.source is not None, "it is a copy of another machine"),
        (launch.saved is not None, "it goes on from a saved state already"),
        (launch.seed is not None, "its user data needs cloud-init, which works during a boot only"),
        (launch.tpm, "it has a TPM, whose keys are made at its first boot"),
        (manifest.agent != "roost", f"{image} has no Roost agent that could give a copy an identity of its own"),
        (len(launch.disks) > 1, "it has more disks than its template"),
        (launch.network == "unplugged", "it keeps the identity of another machine"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def settled(samples: Sequence[float]) -> bool:
    """Whether a guest has come to rest. `samples` are CPU seconds that its process had used, WINDOW seconds apart, the last one last."""
    last = samples[-CALM_WINDOWS - 1 :]
    used = [after - before for before, after in pairwise(last)]
    return len(used) == CALM_WINDOWS and all(seconds < CALM * WINDOW for seconds in used)


def budget(disk: int) -> int:
    """Bytes that templates may take on a file system of `disk` bytes."""
    return min(MOST_BYTES, disk // 10)


def evict(kept: Sequence[Kept], bytes_allowed: int, most: int = MOST_TEMPLATES) -> list[str]:
    """Which templates go, those unused for longest first, so that the rest keep the bounds.

    Never one in use, nor the one used last: a host for which a single template is too much would boot it again at every launch.
    """
    order = sorted(kept, key=lambda entry: entry.used)
    size, count, going = sum(entry.size for entry in order), len(order), []
    for entry in order[:-1]:
        if size <= bytes_allowed and count <= most:
            break
        if not entry.busy:
            size, count = size - entry.size, count - 1
            going.append(entry.id)
    return going


def spares(used: Mapping[str, float], now: float, free: int) -> dict[str, int]:
    """How many spares each template deserves, by when it was used last. `free` bytes of memory are for them; without room there are none."""
    hot = sorted((moment, id) for id, moment in used.items() if now - moment < HOT_SECONDS)
    given: dict[str, int] = {}
    for (_, id), wanted in zip(reversed(hot), SPARES, strict=False):
        given[id] = max(0, min(wanted, free // SPARE_MEMORY))
        free -= given[id] * SPARE_MEMORY
    return {id: count for id, count in given.items() if count}
