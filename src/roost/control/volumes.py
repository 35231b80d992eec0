"""The reconciler of volumes: makes them, changes them where they are, moves them, and keeps what is deleted in the trash for a while."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import NamedTuple

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.holds import Holds, with_status
from roost.control.moving import Moving
from roost.control.records import Records, marked
from roost.control.rekeying import Rekeying
from roost.control.reporting import reporting
from roost.control.volumeplan import Seen, Step, given_up, next_step, trashed
from roost.control.volumesources import Found, Sources, instant_of
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host import failpoints
from roost.host.clock import Clock
from roost.log import bind
from roost.model import codec, size
from roost.model.kinds import BY_NAME, key_of
from roost.model.meta import Trouble
from roost.model.pool import Pool
from roost.model.volume import Volume
from roost.store.base import Write

FAILS: frozenset[Step] = frozenset({"create", "grow", "limit", "move", "rekey"})
"""Steps whose error is written down, and the wish with it given up; every other step is tried again."""

IN_USE_DELAY = 2.0
"""Seconds until a deletion that waits for a machine looks again."""


class Means(NamedTuple):
    """What the reconciler acts with. `wall` is the time of day, `changed` is told that what volumes take has changed."""

    holds: Holds
    sources: Sources
    clock: Clock
    wall: Callable[[], datetime]
    changed: Callable[[], None]
    wake_after: Callable[[str, float], None]


class Volumes:
    """Brings volumes from what is to what is wanted."""

    def __init__(self, records: Records, recorder: Recorder, means: Means) -> None:
        self._records = records
        self._recorder = recorder
        self._means = means
        self._holds = means.holds
        self._moving = Moving(records, recorder, means.holds, self._show)
        self._rekeying = Rekeying(recorder, means.holds, self._show)
        self._acts: dict[Step, Callable[[str, Volume], Awaitable[None]]] = {
            "create": self._create,
            "settle-move": self._moving.settle,
            "let-go": self._let_go,
            "rekey": self._rekeying.rekey,
            "limit": self._limit,
            "grow": self._grow,
            "move": self._move,
            "trash": self._trash,
            "restore": self._restore,
            "expire": self._expire,
            "remove": self._remove,
            "show": self._show_generation,
        }

    async def reconcile(self, key: str) -> None:
        """Observe, plan, act for the volume at `key`, until nothing differs. Raises Retry."""
        try:
            while await self._step(key):
                pass
        finally:
            self._holds.changed(key)

    async def _step(self, key: str) -> bool:
        """One step; whether to look again."""
        try:
            volume = await self._records.volume(key)
        except NotFound:
            return False
        with bind(volume=volume.name, project=volume.project):
            async with self._holds.lock(volume.meta.uid):
                return await self._look(key)

    async def _look(self, key: str) -> bool:
        volume = await self._records.volume(key)
        seen = await self._observe(volume)
        step = next_step(volume, seen)
        if step is not None:
            return await self._act(step, key, volume)
        if volume.status.phase == "trash":  # once an hour at least: the grace of its pool may change
            self._means.wake_after(key, min(3600.0, max(1.0, seen.left)))
        elif volume.status.phase == "ready":
            self._holds.tend(key, volume)
        return False

    async def _act(self, step: Step, key: str, volume: Volume) -> bool:
        try:
            await self._acts[step](key, volume)
        except Retry:
            raise
        except (RoostError, OSError) as error:
            known = (
                error if isinstance(error, RoostError) else Unavailable("the host refused", str(error), "roost doctor")
            )
            if step not in FAILS:
                await self._show(key, progress=str(known)[:200])  # or who waits for it never hears why
                raise Retry(str(known)) from error
            await self._fail(step, key, volume, known)
        self._means.changed()
        return True

    async def _observe(self, volume: Volume) -> Seen:
        stale = await self._holds.stale(volume)
        if volume.meta.deleting is None and volume.status.phase != "trash":
            return Seen(stale)
        return Seen(stale, await self._grace(volume), await self._left(volume))

    async def _grace(self, volume: Volume) -> float:
        """Seconds that what is deleted is kept in its pool."""
        try:
            pool: Pool = await self._records.pool(key_of(BY_NAME["pool"], "", volume.status.pool))
        except NotFound:
            return 0.0
        return pool.spec.grace

    async def _left(self, volume: Volume) -> float:
        """Seconds that are left to it in the trash."""
        if not volume.status.trashed:
            return 0.0
        lies = (self._means.wall() - datetime.fromisoformat(volume.status.trashed)).total_seconds()
        return await self._grace(volume) - lies

    # ------------------------------------------------------------------ towards ready

    async def _create(self, key: str, volume: Volume) -> None:
        found = await self._found(key, volume)
        keyed = volume.status.keyed or (found.keyed if found is not None else "")
        if volume.spec.encrypted and not keyed:
            keyed = await self._holds.new_key(volume.project)
        self._holds.pools.place(volume.spec.pool)
        shown = await self._show(
            key, phase="creating", pool=volume.spec.pool, keyed=keyed, progress="creating", error=None,
        )  # fmt: skip
        await failpoints.reach("volume.creating")
        async with reporting(self._means.clock, partial(self._tell, key, "copying")) as progress:
            await self._means.sources.make(shown, found, progress)
        await failpoints.reach("volume.created")
        usage = (await self._holds.place(shown).usage())[volume.meta.uid]
        ready = await self._show(
            key, phase="ready", size=usage.virtual, used=usage.own, shared=usage.shared, progress="", fraction=None,
            rekeys=volume.spec.rekeys,
        )  # fmt: skip
        await self._recorder.record(ready, "Created", f"the volume is ready: {size.show(usage.virtual)}")

    async def _found(self, key: str, volume: Volume) -> Found | None:
        try:
            return await self._means.sources.find(volume)
        except Retry as retry:
            await self._show(key, progress=str(retry))
            raise

    async def _tell(self, key: str, doing: str, fraction: float) -> None:
        await self._show(key, progress=f"{doing}: {fraction:.0%}", fraction=round(fraction, 3))

    # ------------------------------------------------------------------ changes

    async def _limit(self, key: str, volume: Volume) -> None:
        for held in await self._holds.users(volume):
            await held.guest.volumes.limit(held.lun, volume.spec.limits)
        await failpoints.reach("volume.limited")
        await self._show(key, limits=volume.spec.limits, error=None)

    async def _grow(self, key: str, volume: Volume) -> None:
        wanted, held = volume.spec.size or 0, await self._holds.holder(volume)
        await failpoints.reach("volume.growing")
        if held is None:
            phrase = await self._holds.key(volume)
            await self._holds.place(volume).resize(volume.meta.uid, wanted, phrase)
        else:
            await held.guest.volumes.grow(held.lun, wanted)
        await failpoints.reach("volume.grown")
        grown = await self._show(key, size=wanted, error=None)
        await self._recorder.record(grown, "Grown", f"the volume has {size.show(wanted)} now")

    async def _move(self, key: str, volume: Volume) -> None:
        async with reporting(self._means.clock, partial(self._tell, key, "moving")) as progress:
            await self._moving.move(key, volume, progress)

    async def _let_go(self, key: str, volume: Volume) -> None:
        await self._holds.drop(volume, await self._holds.stale(volume))

    # ------------------------------------------------------------------ towards nothing, and back

    async def _trash(self, key: str, volume: Volume) -> None:
        """One commit: whoever looks finds it under the one name or the other."""
        self._check_free(volume)
        after = trashed(volume, secrets.token_hex(3), self._means.wall().isoformat(timespec="milliseconds"))
        new = key_of(BY_NAME["volume"], after.project, after.name)
        writes = (
            Write(key, None, expect=volume.meta.revision),
            Write(new, codec.encode(after), expect=0),
        )
        try:
            await self._records.store.commit(writes)
        except Conflict as conflict:
            raise Retry("it was changed meanwhile", after=0.0) from conflict
        await failpoints.reach("volume.trashed")
        text = f"the volume is in the trash as {after.name}; it comes back by: roost volume restore {after.name}"
        await self._recorder.record(volume, "Trashed", text)

    async def _restore(self, key: str, volume: Volume) -> None:
        await self._show(key, phase="ready", trashed="", error=None)
        await failpoints.reach("volume.restored")
        await self._recorder.record(volume, "Restored", "the volume is back from the trash")

    async def _expire(self, key: str, volume: Volume) -> None:
        await self._records.change(key, Volume, marked)
        await self._recorder.record(volume, "Expired", "its time in the trash was over")

    async def _remove(self, key: str, volume: Volume) -> None:
        self._check_free(volume)
        if volume.status.pool:
            place = self._holds.place(volume)
            await place.remove(volume.meta.uid)
            await place.remove_snapshot(instant_of(volume))
        await failpoints.reach("volume.removed")
        try:
            await self._records.remove(key, volume.meta.revision)
        except Conflict as conflict:
            raise Retry("it was changed meanwhile", after=0.0) from conflict
        self._holds.forget(volume.meta.uid)
        await self._recorder.record(volume, "Deleted", "the volume is gone")

    def _check_free(self, volume: Volume) -> None:
        """Nothing that a machine has goes. Raises Retry."""
        if volume.status.holders:
            raise Retry(f"{', '.join(volume.status.machines)} has it", after=IN_USE_DELAY)

    # ------------------------------------------------------------------ shared

    async def _fail(self, step: Step, key: str, volume: Volume, error: RoostError) -> None:
        """The error stays to be seen; nothing is tried again until somebody asks."""
        doing = {"create": "created", "grow": "grown", "limit": "limited", "move": "moved", "rekey": "rekeyed"}[step]
        what = f'volume "{volume.name}" was not {doing}'
        why = error.why if error.what == what else f"{error.what}: {error.why}" if error.why else error.what
        trouble = Trouble(what=what, why=why, fix=error.fix, code=error.code)
        if step == "create":
            await self._show(key, phase="failed", error=trouble, progress="", fraction=None)
        else:
            await self._records.change(key, Volume, partial(_gave_up, trouble=trouble))
        await self._recorder.record(volume, f"Not{doing.capitalize()}", f"{what}: {why}", level="error")

    async def _show_generation(self, key: str, volume: Volume) -> None:
        await self._show(key, error=None, progress="", fraction=None)

    async def _show(self, key: str, **changes: object) -> Volume:
        """Write a changed status; for the present generation once it is at rest."""

        def change(volume: Volume) -> Volume:
            after = with_status(volume, **changes)
            rests = next_step(after, Seen(grace=1.0, left=1.0)) in (None, "show")
            return with_status(after, generation=volume.meta.generation) if rests or after.status.error else after

        return await self._records.change(key, Volume, change)


def _gave_up(volume: Volume, trouble: Trouble) -> Volume:
    after = given_up(volume)
    return with_status(after, error=trouble, progress="", fraction=None, generation=after.meta.generation)
