"""The reconcile loop: one queue per object, woken by events, with growing delays after failures and a re-list as a net."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from roost import log
from roost.control.base import Reconciler, Retry
from roost.errors import Conflict, Invalid
from roost.host.clock import Clock, Timer
from roost.store.base import Entry, Store

FIRST_DELAY = 0.1
"""Seconds before the first retry; also the shortest time between two runs of a key that keeps failing, whoever wakes it."""

LONGEST_DELAY = 60.0
"""Seconds that the doubling delay grows to."""

RESYNC = 300.0
"""Seconds between two wakes of everything: a net below the events, never the way things normally move."""

STOP_GRACE = 10.0
"""Seconds that `stop` leaves running reconciles before it cancels them."""

SETTLED_TURNS = 20
"""Turns of the event loop without work after which `settle` believes that no event is still on its way."""


class _Object:
    """What the loop remembers of a key that is not at rest."""

    __slots__ = ("again", "due", "failures", "not_before", "running", "said", "timer")

    def __init__(self) -> None:
        self.running = False
        self.again = False
        self.failures = 0
        self.not_before = 0.0
        self.due = 0.0
        self.timer: Timer | None = None
        self.said = ""

    def at_rest(self) -> bool:
        """Whether it may be forgotten."""
        return not (self.running or self.failures or self.timer)


class _Kind:
    """The objects below one prefix: who reconciles them, and who waits. `urgent` goes before `routine`."""

    def __init__(self, prefix: str, reconciler: Reconciler, workers: int) -> None:
        self.prefix = prefix
        self.reconciler = reconciler
        self.workers = workers
        self.running = 0
        self.known: set[str] = set()
        self.urgent: dict[str, None] = {}
        self.routine: dict[str, None] = {}

    def put(self, key: str, *, routine: bool = False) -> None:
        """Queue a key once, at the end; what someone waits for leaves the routine queue."""
        if key in self.urgent:
            return
        if not routine:
            self.routine.pop(key, None)
        (self.routine if routine else self.urgent)[key] = None

    def take(self) -> str | None:
        """The next key, or None when nothing waits or all workers are busy."""
        waiting = self.urgent or self.routine
        if not waiting or self.running >= self.workers:
            return None
        key = next(iter(waiting))
        del waiting[key]
        return key


class Loop:
    """Runs reconcilers: a change of an object wakes it at once, and never two runs of one object overlap.

    A run that raises is repeated after 0.1 s, doubling to 60 s (each delay is shortened at random by up to half, so that many
    objects do not come back at one instant). A wake during a run makes another run follow it. A reconciler that writes its
    object wakes itself: it must write only what differs, or it runs for ever.
    `chance` gives numbers in [0, 1). Not thread-safe: call everything from the event loop.
    """

    def __init__(
        self, store: Store, clock: Clock, *, resync: float = RESYNC, chance: Callable[[], float] = random.random
    ) -> None:
        self._store = store
        self._clock = clock
        self._resync = resync
        self._chance = chance
        self._kinds: list[_Kind] = []
        self._objects: dict[str, _Object] = {}
        self._group: asyncio.TaskGroup | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._stopped = asyncio.Event()
        self.reconciles = 0
        """Runs that ended, well or not, since the start."""
        self.failures = 0
        """Runs that raised, since the start (a Retry with a delay of its own is a plan, not a failure)."""

    @property
    def queued(self) -> int:
        """Keys that wait for a worker now."""
        return sum(len(kind.urgent) + len(kind.routine) for kind in self._kinds)

    @property
    def running(self) -> int:
        """Keys that are being reconciled now."""
        return len(self._running)

    def add(self, prefix: str, reconciler: Reconciler, workers: int = 8) -> None:
        """Reconcile the objects whose keys begin with `prefix`, at most `workers` of them at a time. Call it before `run`."""
        self._kinds.append(_Kind(prefix, reconciler, workers))

    def wake(self, key: str) -> None:
        """Reconcile `key` now, or once more when it is running; a key that just failed waits at least 0.1 s.

        Raises Invalid for a key that no reconciler was added for. Nothing happens after `stop`.
        """
        kind = self._kind_of(key)
        if self._stopping.is_set():
            return
        state = self._objects.get(key)
        if state is not None and state.running:
            state.again = True
        elif state is not None and (wait := state.not_before - self._clock.now()) > 0:
            self._arm(key, state, wait)
        else:
            kind.put(key)
            self._pump(kind)

    def wake_after(self, key: str, seconds: float) -> None:
        """Reconcile `key` after `seconds`. The earliest of several holds, and a run that starts before takes its place."""
        self._kind_of(key)
        if not self._stopping.is_set():
            self._arm(key, self._objects.setdefault(key, _Object()), seconds)

    async def run(self) -> None:
        """Follow the store and reconcile until `stop`. Everything that exists is reconciled once at the start."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                followers = [
                    group.create_task(self._follow(kind), name=f"follow {kind.prefix}") for kind in self._kinds
                ]
                followers.append(group.create_task(self._resync_all(), name="resync"))
                for kind in self._kinds:
                    self._pump(kind)
                try:
                    await self._stopping.wait()
                finally:
                    self._stopping.set()
                    for follower in followers:
                        follower.cancel()
        finally:
            self._group = None
            self._forget_timers()
            self._stopped.set()

    async def stop(self, grace: float = STOP_GRACE) -> None:
        """Start nothing more, let running reconciles end for `grace` seconds, cancel the rest, and return when `run` has."""
        self._stopping.set()
        self._forget_timers()
        if self._group is None:
            return
        deadline = self._clock.call_later(grace, self._cancel_running)
        try:
            await self._stopped.wait()
        finally:
            deadline.cancel()

    def idle(self) -> bool:
        """Whether nothing waits and nothing runs (delayed retries do not count)."""
        return not self.queued and not self._running

    async def settle(self) -> None:
        """Return when the loop is idle and no event is on its way. For tests over a MemoryStore."""
        quiet = 0
        while quiet < SETTLED_TURNS:
            if self._running:
                await asyncio.wait(tuple(self._running))
            await asyncio.sleep(0)
            quiet = quiet + 1 if self.idle() else 0

    def _kind_of(self, key: str) -> _Kind:
        for kind in self._kinds:
            if key.startswith(kind.prefix):
                return kind
        raise Invalid(f"nobody reconciles {key!r}", why="known: " + ", ".join(kind.prefix for kind in self._kinds))

    def _pump(self, kind: _Kind) -> None:
        """Start what waits, as far as workers are free."""
        while self._group is not None and not self._stopping.is_set() and (key := kind.take()) is not None:
            state = self._objects.setdefault(key, _Object())
            self._disarm(state)
            state.running, state.again = True, False
            kind.running += 1
            task = self._group.create_task(self._reconcile(kind, key, state), name=f"reconcile {key}")
            self._running.add(task)
            task.add_done_callback(partial(self._ended, kind, key, state))

    async def _reconcile(self, kind: _Kind, key: str, state: _Object) -> None:
        with log.bind(object=key):
            try:
                await kind.reconciler.reconcile(key)
            except Retry as retry:
                self._retry(key, state, retry)
            except Exception as error:
                self._failed(key, state, f"{type(error).__name__}: {error}", error)
            else:
                if state.failures:
                    log.get(__name__).info("reconciled again", after_failures=state.failures)
                state.failures, state.not_before, state.said = 0, 0.0, ""

    def _ended(self, kind: _Kind, key: str, state: _Object, task: asyncio.Task[None]) -> None:
        # A done callback runs also for a task that was cancelled before its first step, which a `finally` inside it would not.
        self._running.discard(task)
        self.reconciles += 1
        kind.running -= 1
        state.running = False
        if task.cancelled() and not self._stopping.is_set():
            self._failed(key, state, "it was cancelled from inside", None)
        if state.again and not self._stopping.is_set():
            self.wake(key)
        elif state.at_rest():
            self._objects.pop(key, None)
        self._pump(kind)

    def _retry(self, key: str, state: _Object, retry: Retry) -> None:
        if retry.after is None:
            self._failed(key, state, str(retry), None)
            return
        state.failures, state.not_before = 0, 0.0
        self._arm(key, state, retry.after)

    def _failed(self, key: str, state: _Object, reason: str, error: Exception | None) -> None:
        self.failures += 1
        state.failures += 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(state.failures - 1, 32)) * (1 - self._chance() / 2)
        state.not_before = self._clock.now() + min(delay, FIRST_DELAY)
        if reason != state.said:
            # Once per reason: the tenth repetition of a traceback tells nothing new.
            state.said = reason
            log.get(__name__).warning("reconcile failed, will retry", why=reason, delay=round(delay, 2), exc_info=error)
        self._arm(key, state, delay)

    def _arm(self, key: str, state: _Object, seconds: float) -> None:
        due = self._clock.now() + seconds
        if self._stopping.is_set() or (state.timer is not None and state.due <= due):
            return
        self._disarm(state)
        state.due, state.timer = due, self._clock.call_later(seconds, lambda: self._alarm(key, state))

    def _alarm(self, key: str, state: _Object) -> None:
        state.timer, state.not_before = None, 0.0
        self.wake(key)

    def _disarm(self, state: _Object) -> None:
        if state.timer is not None:
            state.timer.cancel()
            state.timer = None

    def _forget_timers(self) -> None:
        for state in self._objects.values():
            self._disarm(state)

    def _cancel_running(self) -> None:
        for task in self._running:
            task.cancel()

    async def _follow(self, kind: _Kind) -> NoReturn:
        """List, then watch from there; again when the watch is broken. A store that fails is asked again with growing delay."""
        delay = FIRST_DELAY
        while True:
            try:
                since = await self._list(kind)
                delay = FIRST_DELAY
                async for entry in self._store.watch(kind.prefix, since=since):
                    self._changed(kind, entry)
            except Conflict as error:
                log.get(__name__).info("watch was left behind, listing again", prefix=kind.prefix, why=error.why)
            except Exception as error:
                log.get(__name__).warning("cannot follow the store", prefix=kind.prefix, exc_info=error)
            await self._clock.sleep(delay)
            delay = min(LONGEST_DELAY, delay * 2)

    def _changed(self, kind: _Kind, entry: Entry) -> None:
        if entry.value is None:
            kind.known.discard(entry.key)
        else:
            kind.known.add(entry.key)
        self.wake(entry.key)

    async def _resync_all(self) -> NoReturn:
        while True:
            await self._clock.sleep(self._resync)
            for kind in self._kinds:
                try:
                    await self._list(kind)
                except Exception as error:
                    log.get(__name__).warning("cannot list the store", prefix=kind.prefix, exc_info=error)

    async def _list(self, kind: _Kind) -> int:
        """Queue everything below the prefix, also what has gone unseen, and say from which revision to watch."""
        entries, revision = await self._store.list(kind.prefix)
        listed = {entry.key for entry in entries}
        for key in [*(entry.key for entry in entries), *(kind.known - listed)]:
            state = self._objects.get(key)
            if state is not None and state.running:
                state.again = True
            else:
                kind.put(key, routine=True)
        kind.known = listed
        self._pump(kind)
        return revision
