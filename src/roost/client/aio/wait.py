"""The only thing in which the two faces differ: how to wait. This one lets the event loop run meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")


async def ready(read: Collection[int], write: Collection[int], deadline: float | None) -> frozenset[int]:
    """The descriptors that can be read or written; empty when the monotonic `deadline` (seconds) has passed."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    found: set[int] = set()

    def mark(descriptor: int) -> None:
        found.add(descriptor)
        if not done.done():
            done.set_result(None)

    for descriptor in read:
        loop.add_reader(descriptor, mark, descriptor)
    for descriptor in write:
        loop.add_writer(descriptor, mark, descriptor)
    try:
        async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
            await done
    except TimeoutError:
        pass
    finally:
        for descriptor in read:
            loop.remove_reader(descriptor)
        for descriptor in write:
            loop.remove_writer(descriptor)
    return frozenset(found)


async def apart(work: Callable[[], T]) -> T:
    """Do blocking work without holding up the event loop."""
    return await asyncio.to_thread(work)
