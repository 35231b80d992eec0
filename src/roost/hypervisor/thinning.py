"""How what a guest has written is cut into slices, each so small that the guest stands still for a moment only while it is copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from roost.hypervisor.memfd import Range
from roost.model.meta import MiB

ENOUGH = 16 * MiB
"""So much may be left for the instant itself: 10 ms at 0.6 to 0.7 ms for each MiB."""
SLICE = 12 * MiB
"""Copied at one stop."""
ROUNDS = 3
"""What the guest writes meanwhile is looked at so often."""
RANGES = 1500
"""Most ranges of one round: see the bounds of `memory`, which a checkpoint with all its rounds must not exceed."""
REST = 0.01
"""Seconds that the guest runs at least between two slices."""


def size(ranges: Iterable[Range]) -> int:
    """Bytes, together."""
    return sum(end - start for start, end in ranges)


def slices(ranges: Sequence[Range], most: int = SLICE) -> Iterator[tuple[Range, ...]]:
    """All of the ranges, which are in order and apart, in slices of `most` bytes; the last one may have less. `most` is whole pages."""
    slice_: list[Range] = []
    left = most
    for start, end in ranges:
        while start < end:
            stop = min(end, start + left)
            slice_.append(Range(start, stop))
            left -= stop - start
            start = stop
            if not left:
                yield tuple(slice_)
                slice_, left = [], most
    if slice_:
        yield tuple(slice_)


def worthwhile(written: int, before: int | None) -> bool:
    """Whether a round pays: much was written, and, after a round that began with `before` bytes, the guest does not write as fast as we
    copy."""
    return written > ENOUGH and (before is None or written <= before // 2)
