"""Keeps the host tidy: removes layers that nobody stands on, flattens disks that stand on too many, and tells what snapshots take."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import NamedTuple, NoReturn

from msgspec.structs import replace

from roost.control.checkpoints import Checkpoint, Checkpoints
from roost.control.events import Recorder
from roost.control.records import Records, read
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host.clock import Clock
from roost.host.paths import Paths
from roost.hypervisor.base import Guest
from roost.log import get
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.snapshot import Snapshot
from roost.storage.chains import hint
from roost.storage.layers import LONGEST, Base, Layers, Space

SETTLE = 5.0
"""Seconds from a change until everything is looked at: one look for many changes, and none between two copies that are made at once."""

FULL = 4 * LONGEST
"""Files under a disk from which on its flattening is no longer given up for another copy, which waits instead: so that it ends."""

AGAIN = 30.0
"""Seconds until a disk that could not be flattened because its machine was busy is looked at again."""

AFTER_FAILURE = 600.0
"""Seconds until a flattening that failed (the host's disk is full, ...) is tried again: each try writes as much as the last one."""

_log = get(__name__)


class Parts(NamedTuple):
    """What it works upon. `guest` is Custody's."""

    layers: Layers
    checkpoints: Checkpoints
    paths: Paths
    guest: Callable[[Machine], Awaitable[Guest]]
    clock: Clock


class _Copying(NamedTuple):
    """A disk that is being flattened: whose, by which task, and how many files it stood on."""

    uid: str
    task: asyncio.Task[Exception | None]
    length: int


class Housekeeping:
    """Nothing of this is remembered: what is garbage, and which chain is long, is seen afresh after every change and at every start."""

    def __init__(self, records: Records, recorder: Recorder, parts: Parts) -> None:
        self._records = records
        self._recorder = recorder
        self._parts = parts
        self._builders = 0
        self._built = asyncio.Event()
        self._users: Counter[str] = Counter()
        self._copying: _Copying | None = None
        self._not_before: dict[str, float] = {}
        self._untidy, self._grown, self._unread = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def changed(self) -> None:
        """Something went, or a disk stands on more than before: look soon."""
        for news in (self._untidy, self._grown, self._unread):
            news.set()

    @contextlib.asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        """No layer is removed meanwhile; `changed` follows by itself. It may be nested, and nobody ever waits to begin it.

        For whoever makes a layer until it is written down, or held by the register of checkpoints, who stands there.
        """
        self._builders += 1
        try:
            yield
        finally:
            self._builders -= 1
            if not self._builders:
                self._built.set()
            self.changed()

    @contextlib.asynccontextmanager
    async def using(self, uid: str) -> AsyncIterator[None]:
        """The disk of this machine is not flattened meanwhile: what is under way is given up first; `changed` follows by itself.

        For whoever takes an instant of the machine, starts it, replaces its disk or removes its files. It may be nested.
        """
        self._users[uid] += 1
        try:
            await self._stand_aside(uid)
            yield
        finally:
            self._users[uid] -= 1
            if not self._users[uid]:
                del self._users[uid]
            self.changed()

    def idle(self) -> bool:
        """Whether no disk is being flattened."""
        return self._copying is None

    async def space_of(self, checkpoint: Checkpoint) -> Space:
        """What a kept checkpoint and the layers below it take on the host."""
        return await asyncio.to_thread(self._space, checkpoint)

    async def run(self) -> None:
        """Keep house until cancelled, beginning with a look at everything."""
        self.changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._whenever(self._untidy, self._tidy), name="collect layers")
            group.create_task(self._whenever(self._grown, self._shorten), name="flatten disks")
            group.create_task(self._whenever(self._unread, self._digest), name="digest layers")

    async def _whenever(self, news: asyncio.Event, work: Callable[[], Awaitable[None]]) -> NoReturn:
        said = ""
        while True:
            await news.wait()
            await self._parts.clock.sleep(SETTLE)
            news.clear()
            try:
                await work()
                said = ""
            except Exception as error:
                if said != (said := repr(error)):  # once per reason: a chain that is damaged stays so for long
                    _log.warning("housekeeping failed, will retry", exc_info=error)
                self._parts.clock.call_later(AGAIN, news.set)

    # ------------------------------------------------------------------ garbage and space

    async def _tidy(self) -> None:
        while self._builders:
            self._built.clear()
            await self._built.wait()
        self._untidy.clear()
        # Of a damaged checkpoint nobody knows what it stands on.
        checkpoints = self._parts.checkpoints
        gone = [] if checkpoints.damaged else await self._parts.layers.collect(checkpoints.roots())
        if gone:
            _log.info("layers removed that nothing stands on", layers=gone)
        await self._refresh()

    async def _refresh(self) -> None:
        """What each snapshot takes changes when its neighbours come and go."""
        kept = self._parts.checkpoints.kept("snapshot")
        for snapshot in await self._records.all(Snapshot):
            if snapshot.status.phase == "ready" and snapshot.meta.uid in kept:
                space = await self.space_of(kept[snapshot.meta.uid])
                key = key_of(BY_NAME["snapshot"], snapshot.project, snapshot.name)
                with contextlib.suppress(NotFound):
                    await self._records.change(key, Snapshot, partial(_taking, space=space))

    def _space(self, checkpoint: Checkpoint) -> Space:
        size = self._parts.checkpoints.size(checkpoint.id)
        if checkpoint.base is None:
            return Space(size, 0)
        # Every instant ends a layer of its own, so what has the same base is the checkpoint itself.
        others = [base for base in self._parts.checkpoints.roots() if base != checkpoint.base]
        try:
            below = self._parts.layers.space(checkpoint.base, others)
        except RoostError:  # a layer is damaged: `doctor storage` tells
            return Space(size, 0)
        return Space(size + below.own, below.shared)

    async def _digest(self) -> None:
        """Note what is in the layers that anything stands on, so that `doctor storage` can tell whether it still is."""
        layers, paths = self._parts.layers, self._parts.paths
        for layer in {base.layer for base in self._parts.checkpoints.roots()}:
            await self._hash(layer)
        for machine in await self._records.all(Machine):
            with contextlib.suppress(RoostError):
                await self._hash(layers.base_of(paths.machine(machine.meta.uid), machine.status.image).layer)

    async def _hash(self, layer: str) -> None:
        with contextlib.suppress(RoostError):  # it is damaged, or went meanwhile: `doctor storage` tells
            if layer:
                await self._parts.layers.hash(layer)

    # ------------------------------------------------------------------ chains

    async def _shorten(self) -> None:
        """Flatten every disk that stands on too many files, the longest chain first, one at a time."""
        machines, now = await self._records.all(Machine), self._parts.clock.now()
        self._not_before = {uid: time for uid, time in self._not_before.items() if time > now}
        lengths = await asyncio.to_thread(lambda: {machine.meta.uid: self._length(machine) for machine in machines})
        for machine in sorted(machines, key=lambda machine: -lengths[machine.meta.uid]):
            if lengths[machine.meta.uid] > LONGEST and machine.meta.uid not in self._not_before:
                await self._flatten(key_of(BY_NAME["machine"], machine.project, machine.name), machine.meta.uid)

    def _length(self, machine: Machine) -> int:
        """How many files the machine's disk stands on; 0 when it has none, or they are damaged (`doctor storage` tells)."""
        where = self._parts.paths.machine(machine.meta.uid)
        if not machine.status.image or not where.disk.exists():
            return 0
        try:
            return len(self._parts.layers.below(self._parts.layers.base_of(where, machine.status.image)))
        except RoostError:
            return 0

    async def _flatten(self, key: str, uid: str) -> None:
        entries, since = await self._records.store.list(key)
        machine = next((read(entry, Machine) for entry in entries if entry.key == key), None)
        if machine is None or machine.meta.uid != uid or machine.meta.deleting is not None:
            return
        length = await asyncio.to_thread(self._length, machine)
        ready, guest = await self._at_rest(machine)
        # From here to the task nothing is awaited: nobody can begin to use the disk in between.
        if not ready or self._users[uid]:
            self._look_again(AGAIN)
            return
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._copy(machine, guest, length), name=f"flatten {key}")
            watch = group.create_task(self._watch(key, since, machine, task), name=f"watch {key}")
            task.add_done_callback(lambda _: watch.cancel())
            self._copying = _Copying(uid, task, length)
            task.add_done_callback(self._forget)
        if task.cancelled():
            self._look_again(AGAIN)
        elif (failure := task.result()) is not None:
            _log.warning("a disk was not flattened", machine=machine.name, why=str(failure))
            self._not_before[uid] = self._parts.clock.now() + AFTER_FAILURE
            self._look_again(AFTER_FAILURE)

    async def _at_rest(self, machine: Machine) -> tuple[bool, Guest | None]:
        """Whether the machine is neither on its way up nor down, nor at an instant of it, and its guest when it runs."""
        try:
            if self._parts.layers.pending(self._parts.paths.machine(machine.meta.uid)) is not None:
                return False, None
            guest = await self._parts.guest(machine)
        except Unavailable:
            return False, None
        except (Conflict, TimeoutError):
            resting = machine.status.phase in ("stopped", "crashed", "failed") and machine.spec.power == "stopped"
            return resting, None
        return machine.status.phase in ("running", "paused") and machine.spec.power != "stopped", guest

    async def _copy(self, machine: Machine, guest: Guest | None, length: int) -> Exception | None:
        """The copying itself; what went wrong is returned. Killed anywhere in it, the disk stands where it stood, and is found again."""
        layers, where = self._parts.layers, self._parts.paths.machine(machine.meta.uid)
        began = self._parts.clock.now()
        await self._recorder.record(machine, "Flattening", f"its disk stands on {length} files: they are made one")
        try:
            if guest is not None:
                name = hint(where, layers.below(Base(image=machine.status.image))[-1])
                await guest.flatten(_Quarters(machine.name), name)
                await layers.repoint(where, Base(image=machine.status.image))
            else:
                await layers.flatten(where, machine.status.image)
        except (RoostError, OSError) as error:
            return error
        seconds = self._parts.clock.now() - began
        await self._recorder.record(machine, "Flattened", f"its disk stands on its image alone, after {seconds:.1f} s")
        self.changed()
        return None

    async def _watch(self, key: str, since: int, before: Machine, task: asyncio.Task[Exception | None]) -> None:
        """Give up when something else is wanted of the machine."""
        with contextlib.suppress(Conflict):  # left behind by the store: whoever needs the disk still says so by `using`
            async for entry in self._records.store.watch(key, since=since):
                if entry.key == key and (entry.value is None or _wishes_differ(before, read(entry, Machine))):
                    task.cancel()

    async def _stand_aside(self, uid: str) -> None:
        copying = self._copying
        if copying is None or copying.uid != uid:
            return
        if copying.length < FULL:
            copying.task.cancel()
        await asyncio.wait([copying.task])

    def _forget(self, _: asyncio.Task[Exception | None]) -> None:
        self._copying = None

    def _look_again(self, seconds: float) -> None:
        self._parts.clock.call_later(seconds, self._grown.set)


class _Quarters:
    """Logs each quarter of the way once."""

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self._told = 0

    def __call__(self, fraction: float) -> None:
        if (quarter := int(fraction * 4)) > self._told:
            self._told = quarter
            _log.info("flattening a disk", machine=self._machine, percent=25 * quarter)


def _taking(snapshot: Snapshot, space: Space) -> Snapshot:
    return replace(snapshot, status=replace(snapshot.status, own=space.own, shared=space.shared))


def _wishes_differ(before: Machine, now: Machine) -> bool:
    """Whether the machine is to be stopped, started, put back or deleted."""
    if now.meta.deleting is not None:
        return True
    return any(getattr(before.spec, field) != getattr(now.spec, field) for field in ("power", "restarts", "restore"))
