"""How much memory of its own a machine is going to need, and whether the host can still give it: pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from roost.errors import Unavailable
from roost.model.meta import GiB, MiB

OVERHEAD = 96 * MiB
"""What QEMU takes beside the guest's memory: some 20 MiB of its own, and the translation cache of an emulated guest (32 to 128 MiB)."""

LEAST = 96 * MiB
"""What a fork is given at least before any of its kind was measured; idle ones were measured at 50 to 80 MiB."""

REMEMBERED = 16
"""Measurements of a shape that count."""


class Pending(NamedTuple):
    """A machine that has its place already: the bytes that it was given, and those that it uses by now."""

    forecast: int
    used: int = 0


def forecast(way: Literal["cold", "fork"], memory: int, earlier: Sequence[int] = ()) -> int:
    """Bytes of private memory that a machine with `memory` bytes is going to use.

    A boot may touch all of it. A fork shares what it does not write: `earlier` are the private bytes of machines of the same
    shape, of which the largest counts, and a quarter more; without any it is a quarter of the memory.
    """
    whole = memory + OVERHEAD
    if way == "cold":
        return whole
    largest = max(earlier, default=0)
    return min(whole, largest * 5 // 4 if largest else max(LEAST, memory // 4))


def reserve(total: int) -> int:
    """Bytes that no machine gets, so that the daemon and the host go on: a twentieth of `total`, at least 128 MiB, at most 1 GiB."""
    return min(max(total // 20, 128 * MiB), GiB)


def left(free: int, pending: Iterable[Pending], kept_back: int) -> int:
    """Bytes still to be given: what is `free` now, less what those who have a place will still take of it, less the reserve."""
    return free - sum(max(0, each.forecast - each.used) for each in pending) - kept_back


def admits(wanted: int, free: int, pending: Iterable[Pending], kept_back: int) -> Unavailable | None:
    """The refusal of one more machine that is going to need `wanted` bytes, None when there is room for it."""
    there = list(pending)
    room = left(free, there, kept_back)
    if wanted <= room:
        return None
    growth = sum(max(0, each.forecast - each.used) for each in there)
    why = (
        f"it is going to need {wanted // MiB} MiB of memory of its own and {max(0, room) // MiB} MiB are left: {free // MiB} MiB are free, "
        f"the {len(there)} machines that run are going to take {growth // MiB} MiB of it, and {kept_back // MiB} MiB stay with the host"
    )
    return Unavailable(
        "there is not enough memory for one more machine", why, "stop another machine, or give it less: --memory"
    )
