"""Watches how full pools are: warns, lets their trash go, and holds machines that write to them before they are full."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Literal, NamedTuple, NoReturn, TypeAlias

from msgspec.structs import replace

from roost.control.events import Recorder
from roost.control.poolplan import Level, accounted, level_of, measured, oldest_trash, told, writers
from roost.control.pools import Pools
from roost.control.records import Records, marked
from roost.errors import NotFound, RoostError
from roost.host.clock import Clock
from roost.log import get
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Trouble
from roost.model.pool import Pool
from roost.model.volume import Volume, VolumeSnapshot
from roost.storage.pool import Usage

LOOK = 2.0
"""Seconds between two looks at how full pools are, while machines write to volumes."""

REST = 30.0
"""The same while none does."""

SETTLE = 2.0
"""Seconds from a change of volumes until what they take is counted: once for many changes."""

Weight: TypeAlias = Literal["info", "warning", "error"]

_NEWS: dict[Level, tuple[str, Weight]] = {
    "ok": ("PoolHasRoom", "info"),
    "warn": ("PoolFills", "warning"),
    "closed": ("PoolClosed", "warning"),
    "paused": ("PoolFull", "error"),
}

_log = get(__name__)


class Parts(NamedTuple):
    """What it works with. `wake` is told the key of a machine about which something changed."""

    records: Records
    recorder: Recorder
    pools: Pools
    clock: Clock
    wake: Callable[[str], None]


class PoolWatch:
    """Nothing of this is remembered but what the pools' statuses say: how full they are is seen afresh at every start."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._held_back: dict[str, str] = {}
        self._busy = False
        self._counting, self._news = asyncio.Event(), asyncio.Event()
        self._looking = asyncio.Lock()

    def changed(self) -> None:
        """Volumes or pools came, went or changed: look at once, and count soon."""
        self._counting.set()
        self._news.set()

    def holds_back(self, machine: Machine) -> bool:
        """Whether the machine is to stand still because a pool that it writes to is all but full."""
        return machine.meta.uid in self._held_back

    async def why(self, machine: Machine) -> Trouble:
        """Why it stands still. Raises NotFound when the pool is gone."""
        name = self._held_back.get(machine.meta.uid, "")
        pool: Pool = await self._parts.records.pool(key_of(BY_NAME["pool"], "", name))
        what = f'machine "{machine.name}" stands still'
        fix = f"make room in pool {name}: roost volume list; it goes on by itself"
        return Trouble(what=what, why=f'pool "{name}" is all but full: {told(pool)}', fix=fix)

    async def begin(self) -> None:
        """What was so when the last daemon ended is so until it is looked at: nobody goes on for a moment."""
        pools: list[Pool] = await self._parts.records.all(Pool)
        full = {pool.name for pool in pools if pool.status.level == "paused"}
        if full:
            machines, volumes = await self._parts.records.all(Machine), await self._parts.records.all(Volume)
            self._held_back = writers(machines, volumes, full)

    async def run(self) -> NoReturn:
        """Look until cancelled."""
        self.changed()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._always(self._look_again), name="how full pools are")
            group.create_task(self._always(self._count_again), name="what volumes take")
        raise AssertionError("both go on until they are cancelled")

    async def _always(self, work: Callable[[], Awaitable[None]]) -> NoReturn:
        said = ""
        while True:
            try:
                await work()
                said = ""
            except Exception as error:
                if said != (said := repr(error)):
                    _log.warning("looking after pools failed, will retry", exc_info=error)
                await self._parts.clock.sleep(REST)

    # ------------------------------------------------------------------ how full

    async def _look_again(self) -> None:
        await self.look()
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK if self._busy else REST):
                await self._news.wait()
        self._news.clear()

    async def look(self) -> None:
        """Measure every pool that is open; hold back who writes to one that is all but full, and let go on who does not any more."""
        async with self._looking:
            pools = [await self._measure(pool) for pool in await self._parts.records.all(Pool)]
            await self._hold_back(pools)
            for pool in pools:
                if pool.status.level in ("closed", "paused"):
                    await self._empty_trash(pool)

    async def _measure(self, pool: Pool) -> Pool:
        place = self._parts.pools.places().get(pool.name)
        if place is None:
            return pool
        try:
            whole, used = await place.capacity()
        except RoostError as error:
            _log.info("a pool was not measured", pool=pool.name, why=str(error))
            return pool
        level = level_of(whole, used, pool.spec)

        def change(now: Pool) -> Pool:
            return replace(now, status=measured(now.status, whole, used, level))

        with suppress(NotFound):
            after = await self._parts.records.change(key_of(BY_NAME["pool"], "", pool.name), Pool, change)
            if after.status.level != pool.status.level:
                reason, weight = _NEWS[level]
                await self._parts.recorder.record(after, reason, told(after), level=weight)
            return after
        return pool

    async def _hold_back(self, pools: list[Pool]) -> None:
        full = {pool.name for pool in pools if pool.status.level == "paused"}
        machines: list[Machine] = []
        if full or self._held_back or self._busy:
            machines = await self._parts.records.all(Machine)
            self._busy = any(machine.status.volumes for machine in machines)
        held = writers(machines, await self._parts.records.all(Volume), full) if full else {}
        news = held.keys() ^ self._held_back.keys()
        self._held_back = held
        for machine in machines:
            if machine.meta.uid in news:
                self._parts.wake(key_of(BY_NAME["machine"], machine.project, machine.name))

    async def _empty_trash(self, pool: Pool) -> None:
        """The oldest goes, one at a look: then it is measured again."""
        volume = oldest_trash(await self._parts.records.all(Volume), pool.name)
        if volume is not None:
            with suppress(NotFound):
                await self._parts.records.change(key_of(BY_NAME["volume"], volume.project, volume.name), Volume, marked)
            text = f"pool {pool.name} is full: it goes before its time"
            await self._parts.recorder.record(volume, "Expired", text, level="warning")

    # ------------------------------------------------------------------ what volumes take

    async def _count_again(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(10 * REST):
                await self._counting.wait()
        await self._parts.clock.sleep(SETTLE)
        self._counting.clear()
        await self.count()

    async def count(self) -> None:
        """Write down what every volume and snapshot takes, and what that makes of the pools."""
        records = self._parts.records
        usage = await self._usage()
        machines = await records.all(Machine)
        self._busy = any(machine.status.volumes for machine in machines)
        for volume in await records.all(Volume):
            found = usage.get(volume.status.pool, {}).get(volume.meta.uid)
            if found is not None and (found.own, found.shared) != (volume.status.used, volume.status.shared):
                await self._note(volume, found)
        for snapshot in await records.all(VolumeSnapshot):
            found = usage.get(snapshot.status.pool, {}).get(snapshot.meta.uid)
            if found is not None and (found.own, found.shared) != (snapshot.status.own, snapshot.status.shared):
                await self._note(snapshot, found)
        volumes = await records.all(Volume)
        for pool in await records.all(Pool):
            status = accounted(pool, volumes)
            if status != pool.status:
                await self._note_pool(pool, status.volumes, status.provisioned, status.reclaimable)

    async def _usage(self) -> Mapping[str, Mapping[str, Usage]]:
        found: dict[str, Mapping[str, Usage]] = {}
        for name, place in self._parts.pools.places().items():
            with suppress(RoostError):  # its own reconciler, and `doctor storage`, say why
                found[name] = await place.usage()
        return found

    async def _note(self, thing: Volume | VolumeSnapshot, usage: Usage) -> None:
        key, records = key_of(BY_NAME[thing.kind], thing.project, thing.name), self._parts.records
        with suppress(NotFound):
            if isinstance(thing, Volume):
                await records.change(
                    key, Volume, lambda it: replace(it, status=replace(it.status, used=usage.own, shared=usage.shared))
                )
            else:
                await records.change(
                    key,
                    VolumeSnapshot,
                    lambda it: replace(it, status=replace(it.status, own=usage.own, shared=usage.shared)),
                )

    async def _note_pool(self, pool: Pool, volumes: int, provisioned: int, reclaimable: int) -> None:
        def change(now: Pool) -> Pool:
            status = replace(now.status, volumes=volumes, provisioned=provisioned, reclaimable=reclaimable)
            return replace(now, status=status)

        with suppress(NotFound):
            await self._parts.records.change(key_of(BY_NAME["pool"], "", pool.name), Pool, change)
