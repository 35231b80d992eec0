"""What every store over a `State` shares: reads, watches and leases; how a change is kept is left to the store."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from roost import log
from roost.errors import Invalid, NotFound, RoostError, Unavailable
from roost.store.base import Entry, Write
from roost.store.state import LEASE, Commit, Draft, State

EXPIRY_RETRY = 1.0
"""Seconds until an expired lease is revoked again after the store could not write."""

MAX_LEASE = 7 * 86400.0
"""Seconds that a lease may live without being renewed."""


class Timer(Protocol):
    """A call that was arranged for later."""

    def cancel(self) -> None:
        """Do not make the call."""
        ...


class LeaseClock(Protocol):
    """What a store needs of a clock (`roost.host.clock.Clock` has it)."""

    def now(self) -> float:
        """Monotonic seconds."""
        ...

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` from the event loop after `seconds`."""
        ...


class _Lease:
    """A lease's time: renewing moves `deadline`, and the timer looks again when it fires."""

    __slots__ = ("deadline", "timer")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.timer: Timer | None = None


Decide = Callable[[Draft], int]
"""Adds a change to a draft and gives what the caller gets; raises what the caller gets instead."""


class ServingStore(ABC):
    """A store whose readers are served from memory: a read never waits for a disk, and sees only what is kept already.

    A watcher has no queue of its own: it reads the shared, bounded history, and one that falls behind it is told to list again.
    """

    def __init__(self, state: State, clock: LeaseClock) -> None:
        self._state = state
        self._clock = clock
        self._closed = False
        self._watchers: set[asyncio.Event] = set()
        self._leases: dict[int, _Lease] = {}
        for lease in state.leases:
            # The clock that granted it is gone with its process: it gets its full time once more.
            self._lease_begins(lease)

    @abstractmethod
    async def _submit(self, decide: Decide) -> int:
        """Decide a change, keep it, publish it. Raises what `decide` raises, Unavailable, OutcomeUnknown."""

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget history up to `revision`; the latest value of every key stays."""

    async def get(self, key: str) -> Entry:
        """The entry of `key`. Raises NotFound."""
        return self._state.get(key)

    async def list(self, prefix: str) -> tuple[list[Entry], int]:
        """All entries below `prefix` in key order, and the store's revision at that instant."""
        return self._state.list(prefix), self._state.revision

    async def put(self, key: str, value: bytes | None, *, expect: int | None = None, lease: int | None = None) -> int:
        """Write (None: delete) one value and return the new revision. Raises Conflict, Invalid, NotFound (lease), Unavailable."""
        return await self.commit([Write(key, value, expect, lease)])

    async def commit(self, writes: Sequence[Write]) -> int:
        """All of `writes` at one revision, or none. Raises as `put`."""
        return await self._submit(lambda draft: draft.commit(writes))

    async def watch(self, prefix: str, *, since: int) -> AsyncIterator[Entry]:
        """Every change below `prefix` after `since`; ends when the store closes. Raises Conflict when they are not known (any more)."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            position = since
            if not self._state.compacted <= since <= self._state.revision:
                self._state.changes(since + 1)
            while not self._closed:
                while position < self._state.revision:
                    position += 1
                    for row in self._state.changes(position):
                        if row.key.startswith(prefix) and not row.key.startswith(LEASE):
                            yield row.entry
                changed.clear()
                if position == self._state.revision and not self._closed:
                    await changed.wait()
        finally:
            self._watchers.discard(changed)

    async def grant(self, seconds: float) -> int:
        """A lease: what was written with it is deleted when it is not renewed within `seconds` (up to a week)."""
        if not 0 < seconds <= MAX_LEASE or math.isnan(seconds):
            raise Invalid(f"a lease lives more than 0 and up to {MAX_LEASE:.0f} seconds, not {seconds}")
        return await self._submit(lambda draft: draft.grant(float(seconds)))

    async def renew(self, lease: int) -> None:
        """Let the lease live for its full time again. Raises NotFound when it has expired."""
        held = self._leases.get(lease)
        if held is None or held.deadline <= self._clock.now():
            raise NotFound(f"lease {lease} has expired", fix="grant a new one and write again what it held")
        held.deadline = self._clock.now() + self._state.leases[lease]

    async def revoke(self, lease: int) -> None:
        """Delete what was written with the lease, now. Raises NotFound when it has expired."""
        await self._submit(lambda draft: draft.revoke(lease))

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed", why="the daemon is stopping", fix="start the daemon: roost serve")

    def _publish(self, commits: Sequence[Commit]) -> None:
        """Let readers and watchers see what is kept."""
        for commit in commits:
            self._state.apply(commit)
            for row in commit:
                if row.key.startswith(LEASE):
                    self._lease_changed(int(row.key.removeprefix(LEASE)))
        self._wake_watchers()

    def _serve_no_more(self) -> None:
        """End watches and timers."""
        self._closed = True
        for lease in tuple(self._leases):
            self._lease_ends(lease)
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        for changed in self._watchers:
            changed.set()

    def _lease_changed(self, lease: int) -> None:
        if lease in self._leases:
            self._lease_ends(lease)
        if lease in self._state.leases:
            self._lease_begins(lease)

    def _lease_begins(self, lease: int) -> None:
        seconds = self._state.leases[lease]
        held = self._leases[lease] = _Lease(self._clock.now() + seconds)
        held.timer = self._clock.call_later(seconds, lambda: self._lease_due(lease, held))

    def _lease_ends(self, lease: int) -> None:
        held = self._leases.pop(lease)
        if held.timer is not None:
            held.timer.cancel()

    def _lease_due(self, lease: int, held: _Lease) -> None:
        left = held.deadline - self._clock.now()
        if left > 0:
            held.timer = self._clock.call_later(left, lambda: self._lease_due(lease, held))
        else:
            log.spawn_task(self._expire(lease, held), f"expire lease {lease}")

    async def _expire(self, lease: int, held: _Lease) -> None:
        try:
            await self.revoke(lease)
        except NotFound:
            return
        except RoostError as error:
            if not self._closed:
                log.get(__name__).warning("an expired lease could not be removed yet", lease=lease, why=str(error))
                held.timer = self._clock.call_later(EXPIRY_RETRY, lambda: self._lease_due(lease, held))
