"""Tells how far something long has come, about once a second and never faster than that is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

from roost.errors import RoostError
from roost.host.clock import Clock
from roost.log import spawn_task

EVERY = 1.0
"""Seconds between two tellings."""


@asynccontextmanager
async def reporting(clock: Clock, tell: Callable[[float], Awaitable[object]]) -> AsyncIterator[Callable[[float], None]]:
    """What is told fractions as often as it likes, and passes the last of them on to `tell`. Nothing is told once the context has ended."""
    news, last = asyncio.Event(), 0.0

    def progress(fraction: float) -> None:
        nonlocal last
        last = fraction
        news.set()

    async def pass_on() -> NoReturn:
        while True:
            await news.wait()
            news.clear()
            with suppress(RoostError):
                await tell(last)
            await clock.sleep(EVERY)

    task = spawn_task(pass_on(), "progress")
    try:
        yield progress
    finally:
        task.cancel()
        await asyncio.wait([task])
