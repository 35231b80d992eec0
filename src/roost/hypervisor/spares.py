"""QEMUs that wait in their jails, memory mapped and disk open, so that a machine that goes on from a saved state need not start one."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec

from roost import log
from roost.errors import RoostError
from roost.host import failpoints, files, memory, processes
from roost.host.paths import Paths
from roost.hypervisor import record
from roost.hypervisor.base import Launch
from roost.hypervisor.checkpoint import GuestMemory
from roost.hypervisor.guestmemory import InPlace
from roost.hypervisor.memfd import Range
from roost.hypervisor.memory import Memory
from roost.hypervisor.saved import memory_of
from roost.hypervisor.spawning import Spawned, virtual_size
from roost.model.meta import MiB

Blank: TypeAlias = Callable[[int, str], bytes]
"""Makes an empty qcow2 file: of so many bytes, over the file of that name."""
Spawn: TypeAlias = Callable[[Launch, contextlib.AsyncExitStack], Awaitable[Spawned]]

_QUIET_SECONDS = 1.5
"""Spares are made when no machine has been started for so long: those who wait for one go first."""
_SETTLED_SECONDS = 1.0
"""After that a machine that goes on has touched most of what it touches while it idles."""
_RETRY_SECONDS = 30.0
_RESERVE = 512 * MiB
"""Memory of the host that spares leave alone; one takes some 30 MiB."""


class _Spare:
    """One that waits; `undo` ends it and removes what is its own."""

    def __init__(self, launch: Launch, spawned: Spawned, undo: contextlib.AsyncExitStack) -> None:
        self.launch = launch
        self.spawned = spawned
        self.undo = undo


class _Pool:
    """The spares of one kind. Owns `memory`."""

    def __init__(self, launch: Launch, kept: Memory, count: int) -> None:
        self.launch = launch
        self.memory = kept
        self.count = count
        self.waiting: list[_Spare] = []
        self.ranges: Sequence[Range] = ()
        self.learning = False

    def fits(self, launch: Launch) -> bool:
        """Whether what waits here is what `launch` needs."""
        return _kind(self.launch) == _kind(launch)


class Spares:
    """All spares of this host. `spawn` starts one, `blank` makes its empty disk."""

    def __init__(self, paths: Paths, spawn: Spawn, blank: Blank | None) -> None:
        self._paths = paths
        self._spawn = spawn
        self._blank = blank
        self._pools: dict[str, _Pool] = {}
        self._maker: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = asyncio.Event()
        self._last_start = 0.0

    def started(self) -> None:
        """A machine is being started: spares are not made meanwhile."""
        self._last_start = asyncio.get_running_loop().time()

    async def keep(self, launch: Launch, count: int) -> None:
        """See `base.Hypervisor.keep_spares`."""
        old = self._pools.get(launch.spare)
        if old is not None and count and old.launch.saved == launch.saved and old.fits(launch):
            old.count = count
        else:
            if old is not None:
                await self._drop(self._pools.pop(launch.spare))
            memory = memory_of(launch.saved) if launch.saved is not None else None
            if count and self._can_wait(launch) and memory is not None:
                self._pools[launch.spare] = _Pool(launch, memory.duplicate(), count)
        self._wanted.set()
        if self._maker is None and self._pools:
            self._maker = log.spawn_task(self._make_all(), "spares")

    async def take(self, launch: Launch, undo: contextlib.AsyncExitStack) -> Spawned | None:
        """A waiting QEMU that is machine `launch` from now on, its files and its empty disk in their places; None where there is none."""
        pool = self._pools.get(launch.spare)
        if pool is None or launch.saved is None or not await asyncio.to_thread(_same, pool, launch):
            return None
        while pool.waiting:
            spare = pool.waiting.pop(0)
            self._wanted.set()
            if await _answers(spare):
                undo.push_async_callback(asyncio.to_thread, files.remove_tree, launch.files.live)
                undo.push_async_exit(spare.undo.pop_all())
                spawned = await asyncio.to_thread(_hand_over, spare, launch)
                if isinstance(spawned.reach.memory, InPlace):
                    spawned.reach.memory.moved(launch.files.memory_control)
                await failpoints.reach("fork.spawned")
                return spawned
            await spare.undo.aclose()
        return None

    def learn(self, launch: Launch, guest: GuestMemory) -> None:
        """See what the first machine of its kind touches, so that it is there beforehand in those that come later."""
        pool = self._pools.get(launch.spare)
        if pool is not None and isinstance(guest, InPlace) and not pool.ranges and not pool.learning:
            pool.learning = True
            task = log.spawn_task(_learn(pool, guest), f"working set of {launch.spare}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End them all."""
        ending = [task for task in (self._maker, *self._tasks) if task is not None]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        self._maker = None
        for name in list(self._pools):
            await self._drop(self._pools.pop(name))

    def _can_wait(self, launch: Launch) -> bool:
        """What has files of its own from the start can not be kept for nobody, nor what has cards on taps: those are of one network."""
        own = launch.firmware == "uefi" or launch.seed is not None or launch.tpm or bool(launch.cards)
        return not own and (not launch.disks or (len(launch.disks) == 1 and self._blank is not None))

    async def _make_all(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pool = await asyncio.to_thread(self._neediest)
            if pool is None:
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_SECONDS):
                        await self._wanted.wait()
                continue
            quiet = self._last_start + _QUIET_SECONDS - loop.time()
            if quiet > 0:
                await asyncio.sleep(quiet)
                continue
            try:
                await self._make(pool)
            except (RoostError, OSError) as error:
                log.get(__name__).warning("no spare was made", kind=pool.launch.spare, error=str(error))
                await asyncio.sleep(_RETRY_SECONDS)

    def _neediest(self) -> _Pool | None:
        """One that has not as many as it should, if the host has the memory for one more."""
        for pool in list(self._pools.values()):
            for spare in [one for one in pool.waiting if not processes.is_alive(one.spawned.held.qemu.pidfd)]:
                pool.waiting.remove(spare)
            if len(pool.waiting) < pool.count and memory.available() > _RESERVE + pool.launch.memory // 4:
                return pool
        return None

    async def _make(self, pool: _Pool) -> None:
        launch = self._plain(pool)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(asyncio.to_thread, files.remove_tree, launch.files.keep)
            await asyncio.to_thread(self._make_disk, pool.launch, launch)
            spawned = await self._spawn(launch, undo)
            guest = spawned.reach.memory
            if isinstance(guest, InPlace) and pool.ranges:
                await guest.populate(pool.ranges)
            if self._pools.get(pool.launch.spare) is pool:
                pool.waiting.append(_Spare(launch, spawned, undo.pop_all()))

    def _plain(self, pool: _Pool) -> Launch:
        """The launch of a spare: nothing in it is of any machine."""
        uid = str(uuid.uuid4())
        where = self._paths.spare(uid)
        saved = pool.launch.saved
        return pool.launch._replace(
            uid=uid,
            files=where,
            disks=tuple(disk._replace(file=where.disk) for disk in pool.launch.disks),
            network="none" if pool.launch.network == "none" else "unplugged",
            publish=(),
            hostname="",
            saved=saved and saved._replace(device=None, memory=pool.memory),
        )

    def _make_disk(self, like: Launch, launch: Launch) -> None:
        launch.files.keep.mkdir(mode=0o700, parents=True)
        for disk in like.disks:
            if self._blank is not None:
                below = disk.below[0]
                content = self._blank(virtual_size(below), str(below))
                files.atomic_write(launch.files.disk, content, durable=False)

    async def _drop(self, pool: _Pool) -> None:
        pool.count = 0
        while pool.waiting:
            await pool.waiting.pop().undo.aclose()
        pool.memory.close()


async def _answers(spare: _Spare) -> bool:
    with contextlib.suppress(RoostError):
        return await spare.spawned.reach.monitor.query_status() == "prelaunch"
    return False


def _kind(launch: Launch) -> tuple[object, ...]:
    disks = [disk._replace(file=Path()) for disk in launch.disks]
    slots = sorted([card.slot for card in launch.cards] + [0] * (launch.network != "none"))
    return launch.arch, launch.cpus, launch.memory, launch.accelerator, launch.direct, slots, disks


def _same(pool: _Pool, launch: Launch) -> bool:
    """Whether a spare of the pool will do: also its disk, which is as large as what it stands on."""
    return pool.fits(launch) and all(virtual_size(disk.file) == virtual_size(disk.below[0]) for disk in launch.disks)


def _hand_over(spare: _Spare, launch: Launch) -> Spawned:
    """Its files become those of the machine. The record names both, so that a daemon that finds them under either name knows them."""
    for disk in launch.disks:
        spare.launch.files.disk.replace(disk.file)
    known = msgspec.structs.replace(spare.spawned.record, uid=launch.uid, identity=spare.launch.uid)
    record.write(spare.launch.files, known)
    spare.launch.files.live.rename(launch.files.live)
    files.remove_tree(spare.launch.files.keep)
    return spare.spawned._replace(record=known)


async def _learn(pool: _Pool, guest: InPlace) -> None:
    try:
        await asyncio.sleep(_SETTLED_SECONDS)
        with contextlib.suppress(RoostError, OSError):  # it may have ended meanwhile
            pool.ranges = await guest.working_set()
    finally:
        pool.learning = False
