"""Who was promised how much memory: a machine takes its place before it starts, so that many asked at once count each other."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Literal

from roost.control.forecast import REMEMBERED, Pending, admits, forecast, left
from roost.errors import RoostError
from roost.host.clock import Clock
from roost.log import spawn_task

LEARN_SECONDS = 20.0
"""How long after its start a machine is measured for the forecasts of those after it."""

FRESH_SECONDS = 1.0
"""A measurement that is younger need not be repeated."""

Measure = Callable[[], Awaitable[int]]


class _Place:
    """One machine's place."""

    def __init__(self, promised: int, shape: str) -> None:
        self.promised = promised
        self.shape = shape
        self.used = 0
        self.measure: Measure | None = None
        self.learning: asyncio.Task[Any] | None = None


class Reservations:
    """The places of all machines on this host. `free` tells the bytes that the host can give out now, `kept_back` what stays with it."""

    def __init__(self, clock: Clock, free: Callable[[], int], kept_back: int) -> None:
        self._clock = clock
        self._free = free
        self._kept_back = kept_back
        self._places: dict[str, _Place] = {}
        self._history: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        self._measured = float("-inf")
        self._looking = asyncio.Lock()

    def forecast(self, way: Literal["cold", "fork"], memory: int, shape: str = "") -> int:
        """Bytes of its own that such a machine is going to need; `shape` tells forks of one kind together."""
        return forecast(way, memory, tuple(self._history.get(shape, ())))

    async def take(self, uid: str, wanted: int, shape: str = "") -> None:
        """A place for the machine `uid`, in place of what it may have had. Raises Unavailable: there is no room, and it has none then.

        Between the look at the host and the place taken nothing else runs: of any number that ask at once each counts those before.
        """
        self.release(uid)
        # What the others use is asked only where it decides: without it they count in full, which is too much, never too little.
        if self._refusal(wanted) is not None:
            await self._refresh()
            refusal = self._refusal(wanted)
            if refusal is not None:
                raise refusal
        self._places[uid] = _Place(wanted, shape)

    def hold(self, uid: str, wanted: int, shape: str = "") -> None:
        """A place for a machine that runs already (it was adopted), whether there is room or not."""
        self.release(uid)
        self._places[uid] = _Place(wanted, shape)

    def started(self, uid: str, measure: Measure) -> None:
        """The machine runs: `measure` (Guest.private_memory) tells what it uses, 0 when that can not be told."""
        place = self._places.get(uid)
        if place is not None:
            place.measure = measure
            place.learning = spawn_task(self._learn(place), f"memory of {uid}")

    def release(self, uid: str) -> None:
        """The machine ended, or did not start; nothing when it has no place."""
        place = self._places.pop(uid, None)
        if place is not None and place.learning is not None:
            place.learning.cancel()

    def close(self) -> None:
        """At the daemon's end: measure no more."""
        for uid in tuple(self._places):
            self.release(uid)

    def room(self) -> int:
        """Bytes that nobody was promised."""
        return left(self._free(), self._pending(), self._kept_back)

    def _refusal(self, wanted: int) -> RoostError | None:
        return admits(wanted, self._free(), self._pending(), self._kept_back)

    def _pending(self) -> list[Pending]:
        return [Pending(place.promised, place.used) for place in self._places.values()]

    async def _refresh(self) -> None:
        """Look what everybody uses, unless that was done a moment ago."""
        async with self._looking:
            if self._clock.now() - self._measured < FRESH_SECONDS:
                return
            for place in tuple(self._places.values()):
                await self._look(place)
            self._measured = self._clock.now()

    async def _learn(self, place: _Place) -> None:
        await self._clock.sleep(LEARN_SECONDS)
        await self._look(place)
        if place.shape and place.used:
            self._history[place.shape].append(place.used)

    async def _look(self, place: _Place) -> None:
        if place.measure is not None:
            with suppress(RoostError):  # it is ending
                place.used = await place.measure()
