"""What a new volume is filled from: nothing, an image, another volume at one instant, or a snapshot; in the same pool at once, else by a copy."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from roost.control.base import Retry
from roost.control.holds import Holds
from roost.control.records import Records
from roost.errors import Conflict, NotFound
from roost.host import failpoints
from roost.model.kinds import BY_NAME, key_of
from roost.model.volume import Volume
from roost.storage.manifest import Manifest
from roost.storage.pool import Opened, Origin
from roost.storage.pool import Pool as Place

_WAIT = 1.0
"""Seconds between two looks at an image that is still being made."""


class Images(Protocol):
    """What is needed of the image pool."""

    def find(self, digest: str) -> Manifest | None:
        """The manifest of an image that is there."""
        ...


class Found(NamedTuple):
    """What a volume is a copy of: `pool` is where that is ("" for images, which every pool can take), `keyed` the key that it is encrypted with.
    `volume` is set when it is to be taken at one instant."""

    origin: Origin
    size: int
    pool: str = ""
    keyed: str = ""
    volume: Volume | None = None


class Sources:
    """Finds what volumes are made of, and makes them."""

    def __init__(self, records: Records, holds: Holds, images: Images, disk: Callable[[str], Path]) -> None:
        self._records = records
        self._holds = holds
        self._images = images
        self._disk = disk

    async def find(self, volume: Volume) -> Found | None:
        """What it is a copy of; None for an empty one. Raises NotFound, Conflict, Retry (not yet)."""
        source = volume.spec.source
        if source is None:
            return None
        if source.image is not None:
            return await self._image(volume, source.image)
        if source.snapshot is not None:
            return await self._snapshot(volume, source.snapshot)
        assert source.volume is not None
        return await self._volume(volume, source.volume)

    async def _image(self, volume: Volume, name: str) -> Found:
        try:
            image = await self._records.image(key_of(BY_NAME["image"], volume.project, name))
        except NotFound:
            raise _gone(volume, f'image "{name}"', "roost image list") from None
        if image.status.phase == "failed":
            raise Conflict(_not_made(volume), f'image "{name}" could not be made', f"roost show image {name}")
        manifest = self._images.find(image.status.digest) if image.status.phase == "ready" else None
        if manifest is None:
            raise Retry(f"waiting for image {name}", after=_WAIT)
        if manifest.format == "none":
            raise Conflict(_not_made(volume), f'image "{name}" has no disk, only a kernel', "roost image list")
        return Found(Origin("image", manifest.digest), manifest.virtual_size)

    async def _snapshot(self, volume: Volume, name: str) -> Found:
        try:
            found = await self._records.volumesnapshot(key_of(BY_NAME["volumesnapshot"], volume.project, name))
        except NotFound:
            raise _gone(volume, f'snapshot "{name}"', "roost volume snapshots") from None
        if found.status.phase in ("pending", "saving"):
            raise Retry(f"waiting for snapshot {name}", after=_WAIT)
        if found.status.phase == "failed":
            raise Conflict(_not_made(volume), f'snapshot "{name}" was not taken', "roost volume snapshots")
        status = found.status
        return Found(Origin("snapshot", found.meta.uid), status.size, status.pool, status.keyed)

    async def _volume(self, volume: Volume, name: str) -> Found:
        try:
            found = await self._records.volume(key_of(BY_NAME["volume"], volume.project, name))
        except NotFound:
            raise _gone(volume, f'volume "{name}"', "roost volume list") from None
        if found.status.phase in ("pending", "creating", "moving"):
            raise Retry(f"waiting for volume {name}", after=_WAIT)
        if found.status.phase != "ready":
            raise Conflict(_not_made(volume), f'volume "{name}" is {found.status.phase}', f"roost volume show {name}")
        status = found.status
        if status.rekeying:
            raise Retry(f"the key of volume {name} is being changed", after=_WAIT)
        return Found(Origin("volume", found.meta.uid), status.size, status.pool, status.keyed, found)

    async def make(self, volume: Volume, found: Found | None, progress: Callable[[float], None]) -> None:
        """The bytes of the volume, in the pool that its status names. Raises what the pools raise; then there are none."""
        uid, place, key = volume.meta.uid, self._holds.place(volume), await self._holds.key(volume)
        if found is None:
            await place.create(uid, volume.spec.size, None, key)
            return
        async with self._origin(volume, found) as origin:
            if _at_once(volume, found, place):
                await place.create(uid, volume.spec.size, origin, key)
                return
            async with self._opened(volume, found, origin) as opened:
                await place.fill(uid, opened, volume.spec.size or found.size, key, progress)

    @asynccontextmanager
    async def _origin(self, volume: Volume, found: Found) -> AsyncIterator[Origin]:
        """What is copied; of a volume that a machine writes to it is a snapshot for as long as the copy lasts."""
        if found.volume is None:
            yield found.origin
            return
        async with self._holds.lock(found.volume.meta.uid):
            fresh = await self._records.volume(key_of(BY_NAME["volume"], volume.project, found.volume.name))
            if fresh.meta.uid != found.volume.meta.uid or fresh.status.phase != "ready":
                raise Retry("what it is made of has changed", after=_WAIT)
            if fresh.status.rekeying or fresh.status.keyed != found.keyed:
                raise Conflict(_not_made(volume), "the key of what it is made of was changed meanwhile", "do it again")
            if await self._holds.holder(fresh) is None:
                yield found.origin
                return
            await self._holds.keep(fresh, instant_of(volume))
        await failpoints.reach("volume.copying")
        place = self._holds.pools.place(fresh.status.pool)
        try:
            yield Origin("snapshot", instant_of(volume))
        finally:
            await place.remove_snapshot(instant_of(volume))

    @asynccontextmanager
    async def _opened(self, volume: Volume, found: Found, origin: Origin) -> AsyncIterator[Opened]:
        if origin.kind == "image":
            yield Opened("qcow2", self._disk(origin.id))
            return
        key = await self._holds.key(volume) if found.keyed else None
        async with self._holds.pools.place(found.pool).opened(origin.id, key) as opened:
            yield opened


def instant_of(volume: Volume) -> str:
    """The uid of the snapshot that a copy of a running volume is made from: always the same, so that it is found again after a cut."""
    return str(uuid.uuid5(uuid.UUID(volume.meta.uid), "origin"))


def _at_once(volume: Volume, found: Found, place: Place) -> bool:
    if not place.abilities.clones or found.pool not in ("", volume.status.pool):
        return False
    return bool(found.keyed) == bool(volume.status.keyed)  # who encrypts what was not so reads and writes all of it


def _not_made(volume: Volume) -> str:
    return f'volume "{volume.name}" was not created'


def _gone(volume: Volume, what: str, fix: str) -> NotFound:
    return NotFound(_not_made(volume), f"{what} does not exist", fix)
