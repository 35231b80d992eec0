"""The reconciler of pools: each is opened once, and asked by name from then on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.records import Records
from roost.errors import NotFound, RoostError, Unavailable
from roost.host import failpoints
from roost.log import bind
from roost.model.meta import Trouble
from roost.model.pool import Pool
from roost.model.volume import Volume, VolumeSnapshot
from roost.storage.pool import Pool as Place

Open: TypeAlias = Callable[[Pool], Awaitable[Place]]
"""Opens the place that a pool stands for. Raises Unavailable, Conflict (another daemon has it), Invalid."""

NOT_YET = 0.2
"""Seconds until a pool that is being opened is asked for again."""

IN_USE_DELAY = 2.0
"""Seconds until a deletion that waits for volumes looks again."""


class Pools:
    """Brings pools from pending to ready or failed, and deleted ones to nothing."""

    def __init__(self, records: Records, recorder: Recorder, open_: Open, changed: Callable[[], None]) -> None:
        self._records = records
        self._recorder = recorder
        self._open = open_
        self._changed = changed
        self._places: dict[str, Place] = {}
        self._known: set[str] = set()
        self._failures: dict[str, str] = {}

    async def begin(self) -> None:
        """Know which pools there are, before any of them is open."""
        pools: list[Pool] = await self._records.all(Pool)
        self._known = {pool.name for pool in pools}

    def images(self) -> set[str]:
        """The digests of all images that volumes stand on. Raises Unavailable as long as a pool is not open: then nobody can tell."""
        if missing := sorted(self._known - self._places.keys()):
            raise Unavailable("what images are used for is not known", f'pool "{missing[0]}" is not open', "try again")
        return {digest for name in sorted(self._known) for digest in self.place(name).images()}

    def place(self, name: str) -> Place:
        """The place of a pool that is ready. Raises Retry for one that is about to be (after a start of the daemon), Unavailable."""
        if name in self._places:
            return self._places[name]
        if name in self._failures:
            raise Unavailable(f'pool "{name}" is not ready', self._failures[name], f"roost pool show {name}")
        raise Retry(f"waiting for pool {name}", after=NOT_YET)

    def places(self) -> Mapping[str, Place]:
        """All that are open, by name."""
        return dict(self._places)

    async def reconcile(self, key: str) -> None:
        """Open, show or remove the pool at `key`. Raises Retry."""
        try:
            pool = await self._records.pool(key)
        except NotFound:
            return
        self._known.add(pool.name)
        with bind(pool=pool.name):
            if pool.meta.deleting is not None:
                await self._remove(key, pool)
                return
            try:
                await self._ready(key, pool)
            except RoostError as error:
                await self._failed(key, pool, error)
                raise Retry(str(error)) from error

    async def _ready(self, key: str, pool: Pool) -> None:
        if pool.name not in self._places:
            place = await self._open(pool)
            await place.prepare()
            await failpoints.reach("pool.prepared")
            self._places[pool.name] = place
            self._failures.pop(pool.name, None)
            self._changed()
        if await self._show(key, phase="ready", error=None, generation=pool.meta.generation):
            self._changed()
            if pool.status.phase != "ready":
                await self._recorder.record(pool, "Ready", f"the pool is ready ({pool.spec.type})")

    async def _failed(self, key: str, pool: Pool, error: RoostError) -> None:
        why = self._failures[pool.name] = f"{error.what}: {error.why}" if error.why else error.what
        trouble = Trouble(what=f'pool "{pool.name}" is not ready', why=why, fix=error.fix, code=error.code)
        if await self._show(key, phase="failed", error=trouble, generation=pool.meta.generation):
            await self._recorder.record(pool, "Failed", f"{trouble.what}: {why}", level="error")

    async def _remove(self, key: str, pool: Pool) -> None:
        """What holds a volume or a snapshot stays."""
        volumes: list[Volume] = await self._records.all(Volume)
        snapshots: list[VolumeSnapshot] = await self._records.all(VolumeSnapshot)
        if any(pool.name in (it.spec.pool, it.status.pool, it.status.target) for it in volumes) or any(
            it.status.pool == pool.name for it in snapshots
        ):
            raise Retry("volumes are in it", after=IN_USE_DELAY)
        place = self._places.pop(pool.name, None)
        if place is not None:
            await place.discard()
        await failpoints.reach("pool.discarded")
        await self._records.remove(key, pool.meta.revision)
        self._known.discard(pool.name)
        self._failures.pop(pool.name, None)
        await self._recorder.record(pool, "Deleted", "the pool is gone")

    async def _show(self, key: str, **changes: object) -> bool:
        """Write a changed status; whether it was another."""
        before = await self._records.pool(key)
        after = await self._records.change(key, Pool, lambda now: replace(now, status=replace(now.status, **changes)))
        return after.status != before.status
