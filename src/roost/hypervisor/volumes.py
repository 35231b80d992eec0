"""The volumes of a running QEMU: plugging them in and out, their limits, growing, covering and moving them while the guest goes on."""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import NamedTuple

from roost import log
from roost.errors import Conflict, Invalid, NotFound, OutcomeUnknown, RoostError, Unavailable
from roost.host import failpoints
from roost.hypervisor import disks, insidevolumes, media
from roost.hypervisor.base import Agent, Attachment, Medium, Overlay, RunState
from roost.hypervisor.media import Layer
from roost.hypervisor.monitor import Drive, Monitor, NoSuchDevice
from roost.hypervisor.plan import CONTROLLER
from roost.hypervisor.signals import Expected, Signals
from roost.model.meta import MiB
from roost.model.volume import MOST_VOLUMES, Limits

_JOB = "roost-move-"
_DEVICE = re.compile(r"volume(\d{1,2})-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_UID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SERIAL = re.compile(r"[A-Za-z0-9._-]{1,36}")
_RELEASE_SECONDS = 10.0
_AGENT_SECONDS = 3.0
"""Longest that a guest may take to answer before it is taken to have no agent."""
_PIVOT_SECONDS = 60.0
_REST = 4 * MiB
_LOOKS, _LOOK_SECONDS = 200, 0.05
_UNMOVED = "the volume was not moved"
_READY = frozenset({"ready", "concluded"})
_CONCLUDED = frozenset({"concluded"})


class Machine(NamedTuple):
    """What of a guest its volumes need. `monitor` raises Unavailable when its process has ended."""

    pid: int
    monitor: Callable[[], Monitor]
    signals: Signals
    nodes: asyncio.Lock
    state: Callable[[], Awaitable[RunState]]
    agent: Callable[[], Awaitable[Agent]]
    still: Callable[[], AbstractAsyncContextManager[None]]


class _Volume(NamedTuple):
    """One that is attached: `device` is QEMU's name of it, `node` what it writes to."""

    lun: int
    uid: str
    device: str
    node: str


class QemuVolumes:
    """Implements `base.Volumes`."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._moving: set[int] = set()

    async def attached(self) -> Mapping[int, str]:
        """The uids of the volumes by their LUNs."""
        return {volume.lun: volume.uid for volume in await self._all()}

    async def attach(self, attachment: Attachment) -> None:
        """Plug a volume in: see `base.Volumes.attach`."""
        _check(attachment)
        monitor, name = self._machine.monitor(), media.node_name(attachment.uid)
        async with self._machine.nodes:
            there = await self._find(attachment.lun)
            if there is not None and there.uid == attachment.uid:
                return
            if there is not None:
                raise Conflict("the volume was not attached", f"another one is at LUN {attachment.lun}", "detach that")
            async with media.left_clean(monitor):
                await media.open_medium(monitor, name, attachment.medium, writable=not attachment.read_only)
                await failpoints.reach("volume.opened")
                await self._plug_in(monitor, attachment, name)
        await failpoints.reach("volume.attached")

    async def detach(self, lun: int, *, force: bool = False) -> None:
        """Take a volume out: see `base.Volumes.detach`."""
        if await self._find(lun) is None:
            return
        self._refuse_moving(lun)
        if not force:
            await self._ask(lun)
            await failpoints.reach("volume.released")
        async with self._machine.nodes:
            monitor, volume = self._machine.monitor(), await self._find(lun)
            if volume is None:
                return
            await self._unplug(monitor, volume.device)
            await disks.prune(monitor)
            if volume.node in {node.name for node in await monitor.query_nodes()}:
                raise Unavailable("the volume was not detached", "QEMU does not close its file", "it is tried again")

    async def limit(self, lun: int, limits: Limits) -> None:
        """Other limits, from now on."""
        await self._machine.monitor().set_throttle((await self._get(lun)).device, throttle(limits))

    async def grow(self, lun: int, size: int) -> None:
        """Grow a volume: see `base.Volumes.grow`."""
        self._refuse_moving(lun)
        async with self._machine.nodes:
            monitor, volume = self._machine.monitor(), await self._get(lun)
            now = await _size(monitor, volume.node)
            if size < now:
                raise Invalid("the volume was not grown", f"it has {now} bytes already", f"--size {now} or more")
            if size > now:
                disks.allow_files(self._machine.pid, size)
                await monitor.block_resize(volume.node, size)

    async def backing(self, lun: int) -> Medium | None:
        """Which file the volume is written to now."""
        volume = await self._find(lun)
        if volume is None:
            return None
        monitor = self._machine.monitor()
        drivers = {node.name: node.driver for node in await monitor.query_nodes()}
        file = await media.file_of(monitor, volume.node, self._machine.pid)
        return Medium("qcow2" if drivers.get(volume.node) == "qcow2" else "raw", file)

    async def cover(self, lun: int, overlay: Overlay, key: bytes | None = None) -> None:
        """Have a volume written to another file from now on: see `base.Volumes.cover`."""
        self._refuse_moving(lun)
        async with self._machine.nodes:
            monitor, volume = self._machine.monitor(), await self._get(lun)
            layer = Layer(overlay.node, overlay.file, "qcow2", writable=True)
            async with media.left_clean(monitor):
                await media.open_overlay(monitor, layer, key)
                await failpoints.reach("volume.overlay")
                async with self._frozen():
                    await monitor.blockdev_snapshot([(volume.node, overlay.node)])
                await failpoints.reach("volume.covered")
            await media.forbid_writing(monitor, volume.node)

    async def move(
        self, lun: int, to: Medium, progress: Callable[[float], None], ready: Callable[[], Awaitable[None]]
    ) -> None:
        """Copy a volume and use the copy from then on: see `base.Volumes.move`."""
        self._refuse_moving(lun)
        self._moving.add(lun)
        try:
            await self._move(lun, to, progress, ready)
            progress(1.0)
        finally:
            self._moving.discard(lun)

    async def _move(
        self, lun: int, to: Medium, progress: Callable[[float], None], ready: Callable[[], Awaitable[None]]
    ) -> None:
        monitor, job = self._machine.monitor(), f"{_JOB}{lun}-{uuid.uuid4().hex[:12]}"
        with self._machine.signals.expect("JOB_STATUS_CHANGE", _READY, job) as changes:
            try:
                target = await self._begin(monitor, job, lun, to)
                await failpoints.reach("move.started")
                if await disks.follow(monitor, job, changes, progress) == "concluded":
                    await disks.dismiss(monitor, job, _UNMOVED)
                await failpoints.reach("move.ready")
                await _nearly_done(monitor, job)
                # What the guest is told of after this is on the target alone: it waits until somebody has written that down.
                async with self._machine.still():
                    await monitor.job_complete(job)
                    await failpoints.reach("move.completing")
                    await _until_concluded(changes)
                    await disks.dismiss(monitor, job, _UNMOVED)
                    if (await self._get(lun)).node != target:
                        raise Unavailable(_UNMOVED, "its machine was told to give it up")
                    await failpoints.reach("move.concluded")
                    await ready()
            except BaseException:
                await asyncio.shield(log.spawn_task(disks.give_up(monitor, job, changes), f"give up {job}"))
                raise
            finally:
                await asyncio.shield(log.spawn_task(self._tidy(), "nodes of a moved volume"))

    async def _begin(self, monitor: Monitor, job: str, lun: int, to: Medium) -> str:
        """Open it and let the job go: the node that takes over."""
        async with self._machine.nodes, media.left_clean(monitor):
            await self._end_earlier(monitor, lun)
            volume = await self._get(lun)
            target = media.node_name(volume.uid)
            disks.allow_files(self._machine.pid, await _size(monitor, volume.node))
            await media.open_medium(monitor, target, to, writable=True)
            await failpoints.reach("move.opened")
            await monitor.blockdev_mirror(job, volume.node, target)
        return target

    async def _end_earlier(self, monitor: Monitor, lun: int) -> None:
        """What an earlier move of the volume left is gone: its job, its nodes and their descriptors. Raises Conflict as long as it is not."""
        mine = f"{_JOB}{lun}-"
        await disks.end_jobs(monitor, self._machine.signals, mine)
        if any(job.name.startswith(mine) for job in await monitor.query_jobs()):
            raise Conflict(_UNMOVED, "an earlier move of it has not ended yet", "it is tried again")
        await disks.prune(monitor)

    async def _tidy(self) -> None:
        with suppress(RoostError):
            async with self._machine.nodes:
                await disks.prune(self._machine.monitor())

    async def _plug_in(self, monitor: Monitor, attachment: Attachment, node: str) -> None:
        name = f"volume{attachment.lun}-{attachment.uid}"
        disks.allow_files(self._machine.pid, await _size(monitor, node))
        place = {"driver": "scsi-hd", "id": name, "bus": f"{CONTROLLER}.0", "scsi-id": 0, "lun": attachment.lun}
        # A guest learns of no error that a host's full disk or slow server is the reason of: it stands still.
        device = {"drive": node, "serial": attachment.serial, "werror": "stop", "rerror": "stop", "rotation_rate": 1}
        await monitor.add_device({**place, **device})
        if attachment.limits != Limits():
            try:
                await monitor.set_throttle(name, throttle(attachment.limits))
            except BaseException:
                await asyncio.shield(log.spawn_task(self._forget(monitor, name), f"remove {name}"))
                raise

    async def _forget(self, monitor: Monitor, name: str) -> None:
        with suppress(RoostError):
            await self._unplug(monitor, name)

    async def _unplug(self, monitor: Monitor, name: str) -> None:
        with self._machine.signals.expect("DEVICE_DELETED", {""}, name) as deleted, suppress(NoSuchDevice):
            await monitor.remove_device(name)
            try:
                await deleted.next(_RELEASE_SECONDS)
            except OutcomeUnknown:
                why = "the machine does not let go of it"
                raise Unavailable(
                    "the volume was not detached", why, "it is tried again; or stop the machine"
                ) from None

    async def _ask(self, lun: int) -> None:
        """Have the guest let go of the disk, if it can be asked."""
        state = await self._machine.state()
        if state in ("paused", "io-error"):
            why = "the machine stands still, and may have more to write to it"
            raise Conflict("the volume was not detached", why, "resume it first: roost resume")
        if state == "running" and (agent := await self._answering()) is not None:
            await insidevolumes.release(agent, lun)

    async def _answering(self) -> Agent | None:
        """The agent inside, where there is one that answers at once."""
        with suppress(RoostError, OSError, TimeoutError):
            async with asyncio.timeout(_AGENT_SECONDS):
                return await self._machine.agent()
        return None

    @asynccontextmanager
    async def _frozen(self) -> AsyncIterator[None]:
        """The guest's file systems are whole on its disks and not written, where its agent can see to that quickly."""
        agent = await self._answering() if await self._machine.state() == "running" else None
        if agent is None:
            yield
            return
        try:
            with suppress(RoostError, TimeoutError):
                async with asyncio.timeout(_AGENT_SECONDS):
                    await agent.freeze()
            yield
        finally:
            with suppress(RoostError, TimeoutError):  # they thaw by themselves too
                async with asyncio.timeout(_AGENT_SECONDS):
                    await agent.thaw()

    def _refuse_moving(self, lun: int) -> None:
        if lun in self._moving:
            raise Conflict("nothing was done with the volume", "it is being moved", "wait until it has")

    async def _get(self, lun: int) -> _Volume:
        volume = await self._find(lun)
        if volume is None:
            raise NotFound("nothing was done with the volume", f"the machine has none at LUN {lun}")
        return volume

    async def _find(self, lun: int) -> _Volume | None:
        return next((volume for volume in await self._all() if volume.lun == lun), None)

    async def _all(self) -> list[_Volume]:
        found = map(_volume, await self._machine.monitor().query_drives())
        return [volume for volume in found if volume is not None]


async def settle(monitor: Monitor, signals: Signals) -> None:
    """End what an earlier daemon began and left: moves are given up, or come to their end where the guest went over already."""
    await disks.end_jobs(monitor, signals, _JOB)
    await media.forget_keys(monitor)
    if any(media.is_ours(node.name) for node in await monitor.query_nodes()):
        await disks.prune(monitor)


def throttle(limits: Limits) -> dict[str, int]:
    """The same as QEMU takes it: 0 is no limit; bursts last a second."""
    values = {"iops": limits.iops, "iops_rd": 0, "iops_wr": 0, "bps": limits.bandwidth, "bps_rd": 0, "bps_wr": 0}
    return {**values, "iops_max": limits.burst_iops, "bps_max": limits.burst_bandwidth}


def _check(attachment: Attachment) -> None:
    what = "the volume was not attached"
    if not 0 <= attachment.lun < MOST_VOLUMES:
        raise Invalid(what, f"there is no LUN {attachment.lun}: a machine has {MOST_VOLUMES}")
    if not _UID.fullmatch(attachment.uid) or not _SERIAL.fullmatch(attachment.serial):
        raise Invalid(what, f"{attachment.uid[:80]!r} is no UUID or {attachment.serial[:80]!r} no serial")


def _volume(drive: Drive) -> _Volume | None:
    match = _DEVICE.fullmatch(drive.id)
    return _Volume(int(match[1]), match[2], drive.id, drive.node) if match else None


async def _size(monitor: Monitor, name: str) -> int:
    return next((node.size for node in await monitor.query_nodes() if node.name == name), 0)


async def _nearly_done(monitor: Monitor, job: str) -> None:
    """Returns when the guest need not stand still for long while the rest is copied, or writes faster than that will ever be."""
    for _ in range(_LOOKS):
        found = await disks.find_job(monitor, job)
        if found is None or found.total - found.done <= _REST:
            return
        await asyncio.sleep(_LOOK_SECONDS)  # no event tells it


async def _until_concluded(changes: Expected) -> None:
    while await changes.next(_PIVOT_SECONDS) not in _CONCLUDED:
        pass
