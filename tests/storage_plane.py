"""A control plane of fakes with pools and volumes, and verbs on them."""

from __future__ import annotations

from msgspec.structs import replace

from roost.control.records import Records, marked
from roost.model import codec
from roost.model.event import Event
from roost.model.machine import Machine
from roost.model.meta import Meta, MiB
from roost.model.volume import (
    Mount,
    Volume,
    VolumeSnapshot,
    VolumeSnapshotSpec,
    VolumeSpec,
)
from roost.testing.hypervisor import FakeGuest
from roost.testing.pool import FakePool
from tests.control_plane import READY, WEB, Bench

UID = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
SNAP = "33333333-3333-4333-8333-333333333333"


class Storage(Bench):
    """A control plane with a pool, and verbs on volumes."""

    async def volume(self, name: str = "data", uid: str = UID, **fields: object) -> Volume:
        wanted = replace(VolumeSpec(size=8 * MiB), **fields)
        made = Volume(name=name, meta=Meta(uid=uid), spec=wanted)
        await self.store.put(f"volumes/default/{name}", codec.encode(made), expect=0)
        await self.settle()
        return await self.shown(name)

    async def shown(self, name: str = "data") -> Volume:
        return await Records(self.store).volume(f"volumes/default/{name}")

    async def wish_volume(self, name: str = "data", **fields: object) -> Volume:
        def change(volume: Volume) -> Volume:
            meta = replace(volume.meta, generation=volume.meta.generation + 1)
            return replace(volume, spec=replace(volume.spec, **fields), meta=meta)

        await Records(self.store).change(f"volumes/default/{name}", Volume, change)
        await self.settle()
        return await self.shown(name)

    async def delete_volume(self, name: str = "data") -> None:
        await Records(self.store).change(f"volumes/default/{name}", Volume, marked)
        await self.settle()

    async def names(self) -> list[str]:
        return [volume.name for volume in await Records(self.store).all(Volume)]

    async def take_snapshot(self, name: str = "data.one") -> VolumeSnapshot:
        made = VolumeSnapshot(name=name, meta=Meta(uid=SNAP), spec=VolumeSnapshotSpec(volume=name.partition(".")[0]))
        await self.store.put(f"volumesnapshots/default/{name}", codec.encode(made), expect=0)
        await self.settle()
        return await Records(self.store).volumesnapshot(f"volumesnapshots/default/{name}")

    async def running(self, *mounts: Mount) -> Machine:
        await self.image(READY)
        await self.put(replace(WEB, spec=replace(WEB.spec, volumes=mounts)))
        await self.settle()
        return await self.get()

    async def events(self) -> list[str]:
        entries, _ = await self.store.list("events/")
        return [codec.stored(entry.value or b"", Event).spec.reason for entry in entries]

    def guest(self) -> FakeGuest:
        return self.hypervisor.guests[WEB.meta.uid]

    def place(self, name: str = "default") -> FakePool:
        return self.places[name]

    async def restart(self) -> None:
        await self.end()
        self.begin()
        await self.watch.begin()
        await self.settle()
