"""What is checked before a volume, a snapshot of one, a pool, or a mount of a machine enters the store, or is deleted there."""

from __future__ import annotations

from typing import Any, TypeVar

from msgspec.structs import replace

from roost.control import volumerules as rules
from roost.errors import Conflict, Invalid, NotFound, Problem, QuotaExceeded
from roost.model import codec, size
from roost.model.image import Image
from roost.model.kinds import BY_NAME, Object, key_of, prefix_of
from roost.model.machine import Machine
from roost.model.pool import Pool, PoolType
from roost.model.project import Quota
from roost.model.volume import Volume, VolumeSnapshot, VolumeSource
from roost.store.base import Store

T = TypeVar("T", Machine, Image, Pool, Volume, VolumeSnapshot)


class VolumeAdmission:
    """The gate of the store for what has to do with volumes. The API lets one write of them after another through it."""

    def __init__(self, store: Store, types: frozenset[PoolType]) -> None:
        self._store = store
        self._types = types

    def pool(self, new: Pool, old: Pool | None) -> Pool:
        """The pool, if it may be so. Raises Invalid."""
        rules.check_pool(new, old, self._types)
        return new

    async def mounts(self, new: Machine, old: Machine | None) -> None:
        """Whether the machine may have the volumes that it had not before. Raises NotFound, Conflict."""
        added = rules.added(new, old)
        others = await self._others(new) if added else []
        for mount in added:
            volume = await self._find(Volume, new.project, mount.volume)
            rules.check_mount(new.name, mount, volume, others)

    async def admit(self, new: Volume | VolumeSnapshot, old: Object | None, quota: Quota) -> Volume | VolumeSnapshot:
        """The object to store. Raises Invalid, NotFound, Conflict, QuotaExceeded, Unavailable (its pool is full)."""
        if isinstance(new, Volume):
            return await self._volume(new, old if isinstance(old, Volume) else None, quota)
        await self._snapshot(new, old if isinstance(old, VolumeSnapshot) else None)
        return new

    async def _volume(self, new: Volume, old: Volume | None, quota: Quota) -> Volume:
        if old is None:
            new = await self._created(new)
        elif new.name != old.name:
            machines = await self._all(Machine, old.project)
            rules.check_rename(new, old, machines, await self._all(Volume, old.project))
        else:
            new = new if new.spec.size is not None else replace(new, spec=replace(new.spec, size=old.spec.size))
            rules.check_change(new, old, await self._all(Machine, old.project))
            await self._check_pool(new, old)
        await self._check_quota(new, old, quota)
        return new

    async def _created(self, new: Volume) -> Volume:
        what = f'volume "{new.name}" was not created'
        rules.check_name(new.name, what)
        await self._check_pool(new, None)
        return rules.sized(new, await self._size_of(new.project, new.spec.source, what) if new.spec.source else 0)

    async def _size_of(self, project: str, source: VolumeSource, what: str) -> int:
        """Bytes of what a volume is to be a copy of; 0 for an image that is not there yet. Raises NotFound, Conflict."""
        if source.image is not None:
            image = await self._find(Image, project, source.image)
            return (image.status.virtual_size or 0) if image is not None else 0
        if source.volume is not None:
            volume = await self._find(Volume, project, source.volume)
            if volume is None:
                raise NotFound(what, f'volume "{source.volume}" does not exist', "roost volume list")
            rules.check_usable(volume, what)
            return volume.status.size or volume.spec.size or 0
        name = source.snapshot or ""
        snapshot = await self._find(VolumeSnapshot, project, name)
        fix = f"roost volume snapshots {name.partition('.')[0]}"
        if snapshot is None:
            raise NotFound(what, f'snapshot "{name}" of a volume does not exist', fix)
        if snapshot.status.phase != "ready" or snapshot.meta.deleting is not None:
            state = "being deleted" if snapshot.meta.deleting is not None else f"{snapshot.status.phase}, not ready"
            raise Conflict(what, f'snapshot "{name}" is {state}', fix)
        return snapshot.status.size

    async def _check_pool(self, new: Volume, old: Volume | None) -> None:
        """Raises NotFound, Unavailable for a pool in which nothing may begin, where something is to."""
        moves = old is None or new.spec.pool != old.spec.pool
        if not moves and old is not None and new.spec.size == old.spec.size:
            return
        what = f'volume "{new.name}" was not {"created" if old is None else "moved" if moves else "grown"}'
        pool = await self._pool(new.spec.pool, what)
        if moves and pool.spec.type == "nbd" and await self._is_taken(pool, new):
            # Whose it is stays unsaid: it may be of a project that the caller knows nothing of.
            raise Conflict(what, f'the export of pool "{pool.name}" holds another volume already', "roost pool list")

    async def _is_taken(self, pool: Pool, new: Volume) -> bool:
        others = [it for it in await self._all(Volume) if it.meta.uid != new.meta.uid]
        return any(pool.name in (it.spec.pool, it.status.pool) for it in others)

    async def _pool(self, name: str, what: str) -> Pool:
        """The pool, in which something is to begin. Raises NotFound, Conflict, Unavailable."""
        pool = await self._find(Pool, "", name)
        if pool is None:
            raise NotFound(what, f'pool "{name}" does not exist', "roost pool list, or: roost pool create")
        rules.check_room(pool, what)
        return pool

    async def _check_quota(self, new: Volume, old: Volume | None, quota: Quota) -> None:
        """Raises QuotaExceeded when the volume takes more than it did, and the project then more than it may."""
        if quota.volumes is None and quota.storage is None:
            return
        if old is not None and (new.spec.size or 0) <= (old.spec.size or 0):
            return
        what = f'volume "{new.name}" is over quota'
        others = [it for it in await self._all(Volume, new.project) if it.meta.uid != new.meta.uid]
        fix = (
            "delete a volume for good: roost volume delete --now NAME (those in the trash count), or ask root for more"
        )
        if quota.volumes is not None and len(others) + 1 > quota.volumes:
            why = f'project "{new.project}" may have {quota.volumes} volumes, with this it would have {len(others) + 1}'
            raise QuotaExceeded(what, why, fix)
        if quota.storage is None:
            return
        if new.spec.size is None:
            problem = Problem("spec.size", "must be said where a quota bounds them: --size 10GiB")
            raise Invalid(f'volume "{new.name}" was not created', problems=[problem])
        total = new.spec.size + sum(max(it.spec.size or 0, it.status.size) for it in others)
        if total > quota.storage:
            limit = size.show(quota.storage)
            why = (
                f'the volumes of project "{new.project}" may have {limit}, with this they would have {size.show(total)}'
            )
            raise QuotaExceeded(what, why, fix)

    async def _snapshot(self, new: VolumeSnapshot, old: VolumeSnapshot | None) -> None:
        if old is not None:
            if new.spec != old.spec:
                problem = Problem("spec.volume", "can not change after creation")
                raise Invalid(f'snapshot "{new.name}" was not changed', problems=[problem])
            return
        volume = rules.check_snapshot(new, await self._find(Volume, new.project, new.spec.volume))
        await self._pool(volume.status.pool or volume.spec.pool, f'snapshot "{new.name}" was not taken')

    async def dismiss(self, thing: Volume | VolumeSnapshot | Pool) -> None:
        """Whether it may be deleted. Raises Conflict."""
        if isinstance(thing, Pool):
            rules.check_pool_deletion(thing, await self._all(Volume), await self._all(VolumeSnapshot))
        elif isinstance(thing, Volume):
            machines = await self._all(Machine, thing.project)
            rules.check_deletion(thing, machines, await self._all(Volume, thing.project))
        else:
            rules.check_snapshot_deletion(thing, await self._all(Volume, thing.project))

    async def _others(self, new: Machine) -> list[Machine]:
        return [it for it in await self._all(Machine, new.project) if it.meta.uid != new.meta.uid]

    async def _find(self, type_: type[T], project: str, name: str) -> T | None:
        try:
            entry = await self._store.get(key_of(BY_NAME[type_.__name__.lower()], project, name))
        except NotFound:
            return None
        assert entry.value is not None
        found: Any = codec.stored(entry.value, type_)
        return found if isinstance(found, type_) else None

    async def _all(self, type_: type[T], project: str | None = None) -> list[T]:
        entries, _ = await self._store.list(prefix_of(BY_NAME[type_.__name__.lower()], project))
        found: list[Any] = [codec.stored(entry.value, type_) for entry in entries if entry.value is not None]
        return [it for it in found if isinstance(it, type_)]
