"""Who has which volume: one lock for each, the claims of machines, and what QEMU is given of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.pools import Pools
from roost.control.records import Records
from roost.control.volumeplan import claimed, let_go
from roost.errors import Conflict, NotFound, RoostError
from roost.host import failpoints
from roost.hypervisor.base import Guest, Medium, Overlay
from roost.log import get, spawn_task
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.volume import MountStatus, Volume
from roost.storage.pool import Cover
from roost.storage.pool import Pool as Place


class Keys(Protocol):
    """The passphrases that volumes are encrypted with, by their names."""

    async def current(self, project: str) -> str:
        """The name of the key that a project's new volumes get; made when there is none. Raises Unavailable."""
        ...

    async def rotate(self, project: str) -> str:
        """The same of another one, which is made now and is the current one from then on. Raises Unavailable."""
        ...

    async def key(self, project: str, name: str) -> bytes:
        """The passphrase. Raises NotFound (it is lost), Unavailable."""
        ...


class Holder(NamedTuple):
    """The running guest that a volume is attached to, and the LUN of it there."""

    guest: Guest
    lun: int
    machine: str
    read_only: bool


class Parts(NamedTuple):
    """What it asks. `guest` is Custody's, `boot` this boot of the host."""

    records: Records
    pools: Pools
    keys: Keys
    guest: Callable[[Machine], Awaitable[Guest]]
    boot: str
    wake: Callable[[str], None]


class Holds:
    """Everybody who does anything to the bytes of a volume has its lock meanwhile; machines claim what they attach, in the volume's own status."""

    def __init__(self, parts: Parts) -> None:
        self.pools = parts.pools
        self._parts = parts
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, set[str]] = {}
        self._passing: dict[str, asyncio.Task[None]] = {}
        self._giving_way: set[str] = set()
        self._tending = asyncio.Lock()

    def lock(self, uid: str) -> asyncio.Lock:
        """The lock of the volume with this uid. Whoever asks for it wants the volume: what is done to it in passing is given up."""
        if (passing := self._passing.get(uid)) is not None:
            passing.cancel()
        return self._locks.setdefault(uid, asyncio.Lock())

    def is_busy(self, uid: str) -> bool:
        """Whether somebody has the lock who does not give way."""
        return self.lock(uid).locked() and uid not in self._giving_way

    def tend(self, key: str, volume: Volume) -> None:
        """Have its pool do what can wait, in the background, one volume at a time, until somebody wants it."""
        uid = volume.meta.uid
        if uid not in self._passing:
            self._passing[uid] = spawn_task(self._tend(volume), f"tend volume {volume.name}")
            self._passing[uid].add_done_callback(lambda _: self._tended(key, uid))

    async def _tend(self, volume: Volume) -> None:
        uid = volume.meta.uid
        try:
            async with self._locks.setdefault(uid, asyncio.Lock()):
                self._giving_way.add(uid)
                try:
                    async with self._tending:
                        await self.place(volume).tend(uid, await self.key(volume))
                finally:
                    self._giving_way.discard(uid)
        except (RoostError, OSError, Retry) as error:
            get(__name__).info("a volume is not tended", volume=volume.name, why=str(error))

    def _tended(self, key: str, uid: str) -> None:
        del self._passing[uid]
        self.changed(key)

    def forget(self, uid: str) -> None:
        """The volume is no more."""
        self._locks.pop(uid, None)

    def expect(self, volume: str, machine: str) -> None:
        """Wake the machine with this key when something of the volume with that key has changed."""
        self._waiting.setdefault(volume, set()).add(machine)

    def changed(self, volume: str) -> None:
        """Something of the volume with this key has changed."""
        for machine in self._waiting.pop(volume, set()):
            self._parts.wake(machine)

    async def key(self, volume: Volume) -> bytes | None:
        """The passphrase of an encrypted volume. Raises NotFound, Unavailable."""
        return await self._parts.keys.key(volume.project, volume.status.keyed) if volume.status.keyed else None

    async def named_key(self, volume: Volume, name: str) -> bytes:
        """The passphrase with that name. Raises NotFound, Unavailable."""
        return await self._parts.keys.key(volume.project, name)

    async def another_key(self, project: str) -> str:
        """The name of a key that nothing is encrypted with yet."""
        return await self._parts.keys.rotate(project)

    async def new_key(self, project: str) -> str:
        """The name of the key that a new volume gets."""
        return await self._parts.keys.current(project)

    def place(self, volume: Volume) -> Place:
        """Where its bytes are. Raises Unavailable."""
        return self.pools.place(volume.status.pool)

    async def medium(self, volume: Volume) -> Medium:
        """What QEMU is given; held from now on until `release`. Raises what the pool raises."""
        return Medium(*await self.place(volume).hold(volume.meta.uid, await self.key(volume)))

    # ------------------------------------------------------------------ claims

    async def claim(self, key: str, machine: Machine) -> Volume:
        """The machine is to have the volume at `key`: written down before it is held."""
        return await self._parts.records.change(key, Volume, partial(claimed, machine=machine))

    async def release(self, machine: Machine, mount: MountStatus) -> None:
        """The guest has the volume no more, or there is no guest: nobody serves it any longer, and others may have it. Repeatable."""
        volume = await self._find(machine.project, mount)
        if volume is not None and machine.meta.uid in volume.status.holders:
            async with self.lock(volume.meta.uid):
                await self.drop(volume, (machine.meta.uid,))

    async def drop(self, volume: Volume, uids: tuple[str, ...]) -> None:
        """These machines have it no more; the caller has the lock."""
        if set(volume.status.holders) <= set(uids):
            with suppress(RoostError, Retry):  # of a pool that is not there nothing is held either
                await self.place(volume).release(volume.meta.uid)
        await failpoints.reach("mount.released")
        key = key_of(BY_NAME["volume"], volume.project, volume.name)
        with suppress(NotFound):
            await self._parts.records.change(key, Volume, partial(let_go, uids=uids))

    async def _find(self, project: str, mount: MountStatus) -> Volume | None:
        """By its name, as a rule; whoever was renamed meanwhile is looked for."""
        records = self._parts.records
        with suppress(NotFound):
            volume = await records.volume(key_of(BY_NAME["volume"], project, mount.volume))
            if volume.meta.uid == mount.volume_uid:
                return volume
        volumes: list[Volume] = await records.all(Volume, project)
        return next((volume for volume in volumes if volume.meta.uid == mount.volume_uid), None)

    async def stale(self, volume: Volume) -> tuple[str, ...]:
        """The machines that claim it and can not have it: they are gone, or have no process since this boot, or do not know of it."""
        if not volume.status.holders:
            return ()
        machines = {machine.meta.uid: machine for machine in await self._parts.records.all(Machine, volume.project)}
        return tuple(uid for uid in volume.status.holders if not self._has(machines.get(uid), volume))

    def _has(self, machine: Machine | None, volume: Volume) -> bool:
        if machine is None or machine.status.process is None or machine.status.process.boot != self._parts.boot:
            return False
        return any(mount.volume_uid == volume.meta.uid for mount in machine.status.volumes)

    async def holder(self, volume: Volume) -> Holder | None:
        """The guest that writes to the volume, None when nobody has it; the caller has the lock. Raises Conflict for one that is only read, Retry for
        a machine that is just ending."""
        found = await self.users(volume)
        if any(it.read_only for it in found):
            what = f'volume "{volume.name}" is attached read-only'
            fix = f"roost volume detach {volume.name} {found[0].machine}"
            raise Conflict(what, f"{', '.join(volume.status.machines)} would not see the change", fix)
        return found[0] if found else None

    async def users(self, volume: Volume) -> list[Holder]:
        """All guests that have it; the caller has the lock. Raises Retry."""
        if not volume.status.holders:
            return []
        machines = {machine.meta.uid: machine for machine in await self._parts.records.all(Machine, volume.project)}
        return [await self._user(volume, machines.get(uid)) for uid in volume.status.holders]

    async def _user(self, volume: Volume, machine: Machine | None) -> Holder:
        uid = volume.meta.uid
        mount = next((it for it in machine.status.volumes if it.volume_uid == uid), None) if machine else None
        if machine is None or mount is None:
            raise Retry("whoever had it is gone", after=0.5)
        try:
            guest = await self._parts.guest(machine)
            if (await guest.volumes.attached()).get(mount.lun) != uid:
                raise Retry("it is being attached or detached", after=0.5)
        except RoostError as error:
            raise Retry(str(error), after=0.5) from error
        return Holder(guest, mount.lun, machine.name, mount.read_only)

    # ------------------------------------------------------------------ instants

    async def keep(self, volume: Volume, snapshot: str) -> None:
        """The volume as it is now becomes `snapshot`; the caller has the lock. Raises Conflict, Unavailable, Retry; then it is as it was."""
        place, held = self.place(volume), await self.holder(volume)
        if held is None:
            await place.snapshot(volume.meta.uid, snapshot)
            return
        await self.adopt(volume, held.guest, held.lun)  # what a daemon before this one began ends first
        key = await self.key(volume)
        cover = await place.cover(volume.meta.uid, snapshot)
        await failpoints.reach("volume.covering")
        try:
            await held.guest.volumes.cover(held.lun, Overlay(cover.file, cover.node), key)
            await failpoints.reach("volume.kept")
        except BaseException:
            with suppress(RoostError):  # a guest that is gone stands on whatever was there last
                await place.settle(volume.meta.uid, covered=await _covers(held, cover))
            raise
        await place.settle(volume.meta.uid, covered=True)

    async def adopt(self, volume: Volume, guest: Guest, lun: int) -> None:
        """After a start of the daemon: hold what a guest has, and end what was begun with it; the caller has the lock."""
        if volume.status.phase == "moving":
            return  # its own reconciler finds out where it is
        medium = await self.medium(volume)
        backing = await guest.volumes.backing(lun)
        if backing is not None and medium.file is not None:
            covered = backing.file != medium.file
            await self.place(volume).settle(volume.meta.uid, covered=covered)
            if covered:
                get(__name__).info("a snapshot that was cut is ended", volume=volume.name)


async def _covers(held: Holder, cover: Cover) -> bool:
    backing = await held.guest.volumes.backing(held.lun)
    return backing is not None and backing.file == cover.file


def with_status(volume: Volume, **changes: object) -> Volume:
    """The volume with other fields of its status."""
    return replace(volume, status=replace(volume.status, **changes))
