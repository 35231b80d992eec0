"""Time as a parameter: monotonic seconds, sleeping and timers, so that tests run on a virtual clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that was arranged for later."""

    def cancel(self) -> None:
        """Do not make the call; nothing when it was made already."""
        ...


class Clock(Protocol):
    """Seconds that only grow. They mean nothing outside this process: never store them."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` from the event loop after `seconds`."""
        ...


class SystemClock:
    """The clock of the computer (CLOCK_MONOTONIC)."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` from the event loop after `seconds`."""
        return asyncio.get_running_loop().call_later(seconds, callback)
