"""The reconciler of snapshots of volumes: each is one instant, kept in the pool of its volume, whatever becomes of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.events import Recorder, now
from roost.control.holds import Holds
from roost.control.records import Records
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host import failpoints
from roost.log import bind
from roost.model.kinds import BY_NAME, key_of
from roost.model.meta import Trouble
from roost.model.volume import Volume, VolumeSnapshot

Step = Literal["remove", "take", "recover", "show"]
"""What there is to do for a snapshot."""


def next_step(snapshot: VolumeSnapshot) -> Step | None:
    """The one thing to do now, or None."""
    if snapshot.meta.deleting is not None:
        return "remove"
    if snapshot.status.phase in ("pending", "saving"):
        return "take" if snapshot.status.phase == "pending" else "recover"
    return "show" if snapshot.status.generation != snapshot.meta.generation else None


class VolumeSnapshots:
    """Brings snapshots from pending to ready or failed, and deleted ones to nothing. `changed` is told that what is taken has changed."""

    def __init__(self, records: Records, recorder: Recorder, holds: Holds, changed: Callable[[], None]) -> None:
        self._records = records
        self._recorder = recorder
        self._holds = holds
        self._changed = changed

    async def reconcile(self, key: str) -> None:
        """Take, keep or remove the snapshot at `key`. Raises Retry."""
        try:
            snapshot = await self._records.volumesnapshot(key)
        except NotFound:
            return
        with bind(snapshot=snapshot.name, project=snapshot.project):
            step = next_step(snapshot)
            if step in ("take", "recover"):
                await self._take(key, snapshot)
            elif step == "remove":
                await self._remove(key, snapshot)
            elif step == "show":
                await self._show(key)

    # ------------------------------------------------------------------ towards ready

    async def _take(self, key: str, snapshot: VolumeSnapshot) -> None:
        try:
            volume = await self._volume(snapshot)
            async with self._holds.lock(volume.meta.uid):
                await self._save(key, snapshot, await self._volume(snapshot))
        except (RoostError, OSError) as error:
            known = (
                error if isinstance(error, RoostError) else Unavailable("the host refused", str(error), "roost doctor")
            )
            await self._fail(key, snapshot, known)
        self._changed()

    async def _volume(self, snapshot: VolumeSnapshot) -> Volume:
        """What it is taken of. Raises NotFound, Conflict, Retry (not yet)."""
        name = snapshot.spec.volume
        try:
            volume = await self._records.volume(key_of(BY_NAME["volume"], snapshot.project, name))
        except NotFound:
            raise NotFound(f'volume "{name}" does not exist', fix="roost volume list") from None
        if volume.status.phase in ("pending", "creating", "moving"):
            raise Retry(f"volume {name} is {volume.status.phase}", after=0.5)
        if volume.status.phase != "ready" or volume.meta.deleting is not None:
            raise Conflict(f'volume "{name}" is not ready', f"it is {volume.status.phase}", f"roost volume show {name}")
        if snapshot.status.volume_uid not in ("", volume.meta.uid):
            raise NotFound(f'volume "{name}" does not exist', "another one has its name", "roost volume list")
        return volume

    async def _save(self, key: str, snapshot: VolumeSnapshot, volume: Volume) -> None:
        """A daemon that died here may have taken it or not; either way it is of an instant between the request and the answer."""
        status, uid = volume.status, snapshot.meta.uid
        await self._show(
            key, phase="saving", volume_uid=volume.meta.uid, pool=status.pool, size=status.size, keyed=status.keyed,
            error=None,
        )  # fmt: skip
        await failpoints.reach("volumesnapshot.saving")
        place = self._holds.place(volume)
        if uid not in await place.usage():
            await self._holds.keep(volume, uid)
        await failpoints.reach("volumesnapshot.kept")
        usage = (await place.usage())[uid]
        shown = await self._show(
            key, phase="ready", taken=now(), size=usage.virtual, own=usage.own, shared=usage.shared,
        )  # fmt: skip
        await self._recorder.record(shown, "SnapshotTaken", f"{snapshot.spec.volume} is kept")

    async def _fail(self, key: str, snapshot: VolumeSnapshot, error: RoostError) -> None:
        what = f'snapshot "{snapshot.name}" was not taken'
        why = f"{error.what}: {error.why}" if error.why else error.what
        trouble = Trouble(what=what, why=why, fix=error.fix, code=error.code)
        shown = await self._show(key, phase="failed", error=trouble)
        await self._recorder.record(shown, "SnapshotFailed", f"{what}: {why}", level="error")

    # ------------------------------------------------------------------ towards nothing

    async def _remove(self, key: str, snapshot: VolumeSnapshot) -> None:
        """Volumes that are being made of it are made first."""
        volumes: list[Volume] = await self._records.all(Volume, snapshot.project)
        makes = [it.name for it in volumes if _is_being_made(it, snapshot.name)]
        if makes:
            raise Retry(f"{', '.join(makes[:5])} is being made of it", after=1.0)
        try:
            if snapshot.status.pool:
                await self._holds.pools.place(snapshot.status.pool).remove_snapshot(snapshot.meta.uid)
            await failpoints.reach("volumesnapshot.removed")
            await self._records.remove(key, snapshot.meta.revision)
        except RoostError as error:
            raise Retry(str(error)) from error
        self._changed()
        await self._recorder.record(snapshot, "SnapshotDeleted", "the snapshot and all it kept alone are gone")

    async def _show(self, key: str, **changes: object) -> VolumeSnapshot:
        def change(snapshot: VolumeSnapshot) -> VolumeSnapshot:
            changed = {"generation": snapshot.meta.generation, **changes}
            return replace(snapshot, status=replace(snapshot.status, **changed))

        return await self._records.change(key, VolumeSnapshot, change)


def _is_being_made(volume: Volume, snapshot: str) -> bool:
    if volume.spec.source is None or volume.spec.source.snapshot != snapshot:
        return False
    return volume.meta.deleting is None and volume.status.phase in ("pending", "creating")
