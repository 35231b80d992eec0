"""How full a pool is, in words, and what that means for whom: pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from msgspec.structs import replace

from roost.model import size
from roost.model.machine import Machine
from roost.model.pool import Pool, PoolSpec, PoolStatus
from roost.model.volume import Volume

Level: TypeAlias = Literal["ok", "warn", "closed", "paused"]

NEWS = 100
"""A change of less than one part in so many of a pool is not worth a write."""


def level_of(whole: int, used: int, spec: PoolSpec) -> Level:
    """How full a place of `whole` bytes is. One of unknown size is never full."""
    if whole <= 0:
        return "ok"
    percent = 100 * used / whole
    levels: tuple[tuple[int, Level], ...] = ((spec.pause, "paused"), (spec.close, "closed"), (spec.warn, "warn"))
    return next((level for mark, level in levels if percent >= mark), "ok")


def measured(status: PoolStatus, whole: int, used: int, level: Level) -> PoolStatus:
    """The status when the place is so full; the same one for a change that is not worth a write."""
    small = abs(used - status.used) * NEWS < max(whole, 1)
    if level == status.level and whole == status.size and small:
        return status
    return replace(status, level=level, size=whole, used=used)


def accounted(pool: Pool, volumes: Iterable[Volume]) -> PoolStatus:
    """The status with what all volumes of all projects make of it."""
    inside = [volume for volume in volumes if volume.status.pool == pool.name]
    return replace(
        pool.status,
        volumes=len(inside),
        provisioned=sum(volume.status.size for volume in inside),
        reclaimable=sum(volume.status.used for volume in inside if volume.status.phase == "trash"),
    )


def writers(machines: Iterable[Machine], volumes: Iterable[Volume], pools: set[str]) -> dict[str, str]:
    """The uids of the machines that write to volumes in any of the pools, and the pool."""
    places = {volume.meta.uid: volume.status.pool for volume in volumes if volume.status.pool in pools}
    return {
        machine.meta.uid: places[mount.volume_uid]
        for machine in machines
        for mount in machine.status.volumes
        if not mount.read_only and mount.volume_uid in places
    }


def oldest_trash(volumes: Iterable[Volume], pool: str) -> Volume | None:
    """What goes first when the pool is full."""
    lying = [it for it in volumes if it.status.pool == pool and it.status.phase == "trash" and it.meta.deleting is None]
    return min(lying, key=lambda volume: volume.status.trashed, default=None)


def told(pool: Pool) -> str:
    """How full it is, for people."""
    status, spec = pool.status, pool.spec
    taken = f"{size.show(status.used)} of {size.show(status.size)} are taken"
    marks = {
        "ok": f"it has room: {taken}",
        "warn": f"it fills up: {taken}, and from {spec.close}% on nothing begins in it",
        "closed": f"nothing begins in it any more: {taken}, and from {spec.pause}% on its writers stand still",
        "paused": f"its writers stand still until there is room again: {taken}",
    }
    return marks[status.level]
