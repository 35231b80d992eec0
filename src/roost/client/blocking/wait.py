"""The only thing in which the two faces differ: how to wait. This one blocks the calling thread, and imports no asyncio."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")


def ready(read: Collection[int], write: Collection[int], deadline: float | None) -> frozenset[int]:
    """The descriptors that can be read or written; empty when the monotonic `deadline` (seconds) has passed."""
    poller = select.poll()
    for descriptor in {*read, *write}:
        poller.register(
            descriptor, (select.POLLIN if descriptor in read else 0) | (select.POLLOUT if descriptor in write else 0)
        )
    milliseconds = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    return frozenset(descriptor for descriptor, _ in poller.poll(milliseconds))


def apart(work: Callable[[], T]) -> T:
    """Do blocking work; here there is nobody to hold up."""
    return work()
