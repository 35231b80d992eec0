"""Starts machines, from nothing or from where they were saved, and finds them again after the daemon's own death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from pathlib import Path

import msgspec

from roost.errors import Conflict, NotStarted, OutcomeUnknown, RoostError, Unavailable
from roost.host import failpoints, files, sockets
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor import cards, disks, greeting, guestmemory, record, volumes
from roost.hypervisor.base import Guest, Launch
from roost.hypervisor.beside import ACCOUNTS, FIRST_ACCOUNT, Beside, Network
from roost.hypervisor.firmware import create_variables
from roost.hypervisor.greeting import DiskInUse
from roost.hypervisor.guest import QemuGuest, Reach
from roost.hypervisor.inmates import Held
from roost.hypervisor.monitor import Monitor
from roost.hypervisor.plan import HUB, NETWORK_CABLE, Plan, plan, shape
from roost.hypervisor.record import Entry, Record
from roost.hypervisor.signals import Signals
from roost.hypervisor.spares import Blank, Spares
from roost.hypervisor.spawning import Spawned, spawn
from roost.model.facts import HostFacts


class Qemu:
    """Implements `base.Hypervisor`. `blank` makes the empty disks of spares; without it those of machines with a disk are not kept."""

    def __init__(self, paths: Paths, facts: HostFacts, network: Network, blank: Blank | None = None) -> None:
        self._paths = paths
        self._facts = facts
        self._network = network
        self._starting: set[int] = set()
        self._spares = Spares(paths, self._spawn_spare, blank)

    async def start(self, launch: Launch) -> Guest:
        """A guest paused before its first instruction or where it was saved: see `base.Hypervisor.start`. Raises Invalid too."""
        if launch.firmware == "uefi":
            await asyncio.to_thread(create_variables, launch.arch, self._facts, launch.files.variables)
        decided = plan(launch, self._facts)
        self._spares.started()
        try:
            async with contextlib.AsyncExitStack() as undo:
                guest = await self._start(launch, decided, undo)
                undo.pop_all()
                return guest
        except DiskInUse as error:
            holder = await asyncio.to_thread(self._find_holder, launch)
            raise Conflict(error.what, error.why.replace("another process", holder), error.fix) from None
        except OSError as error:
            why = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            raise Unavailable(f"machine {launch.uid} did not start", why, "roost doctor") from error

    async def adopt(self, machine: MachineFiles, uid: str) -> Guest | None:
        """The guest that an earlier daemon started, or None when it is gone; never a foreign process.

        Raises OutcomeUnknown for one that lives but does not answer.

        One whose start did not come to its end is ended: its record, written just before its exec, has no isolation yet.
        """
        known = await asyncio.to_thread(record.read, machine, uid)
        guest = await _adopt(machine, known) if known is not None else None
        if guest is None:
            await record.end_remains(uid, known)
            await asyncio.to_thread(files.remove_tree, machine.live)
        return guest

    def shape(self, launch: Launch) -> str:
        """See `base.Hypervisor.shape`. Raises what a start would raise for a launch that can not be."""
        return shape(launch, self._facts)

    async def keep_spares(self, launch: Launch, count: int) -> None:
        """See `base.Hypervisor.keep_spares`."""
        await self._spares.keep(launch, count)

    async def close(self) -> None:
        """End all spares."""
        await self._spares.close()

    async def _start(self, launch: Launch, decided: Plan, undo: contextlib.AsyncExitStack) -> QemuGuest:
        spawned = await self._spares.take(launch, undo)
        account = spawned.record.account if spawned else await asyncio.to_thread(self._reserve, launch.uid)
        try:
            async with Beside.started(self._network, self._facts, launch, account, undo) as beside:
                if spawned is None:
                    spawned = await spawn(launch, decided, account, beside, undo)
                guest = await _complete(launch, spawned, beside)
        finally:
            self._starting.discard(account)
        self._spares.learn(launch, spawned.reach.memory)
        return guest

    async def _spawn_spare(self, launch: Launch, undo: contextlib.AsyncExitStack) -> Spawned:
        """A QEMU for nobody yet."""
        decided = plan(launch, self._facts)
        account = await asyncio.to_thread(self._reserve, launch.uid)
        try:
            async with Beside.started(self._network, self._facts, launch, account, undo) as beside:
                return await spawn(launch, decided, account, beside, undo)
        finally:
            self._starting.discard(account)

    def _find_holder(self, launch: Launch) -> str:
        """Whose QEMU has one of the launch's writable files open."""
        wanted = {_identity(disk.file) for disk in launch.disks if not disk.read_only}
        for known in record.read_all(self._paths.live_machines):
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{known.qemu.process.pid}/fd").iterdir():
                    if _identity(entry) in wanted:
                        return f"machine {known.uid}"
        return "another process"

    def _reserve(self, uid: str) -> int:
        """A uid of the host that no other machine has: the machine's own number, or the next free one."""
        taken = self._starting | {known.account for known in record.read_all(self._paths.live_machines)}
        first = int(uid[:8], 16)
        account = next(
            number for step in range(ACCOUNTS) if (number := FIRST_ACCOUNT + (first + step) % ACCOUNTS) not in taken
        )
        self._starting.add(account)
        return account


async def _complete(launch: Launch, spawned: Spawned, beside: Beside) -> QemuGuest:
    """Load what was saved, plug in the network, write it all down."""
    held, reach = spawned.held, spawned.reach
    if launch.saved is not None:
        if launch.saved.device is None:
            raise Unavailable(f"machine {launch.uid} did not start", "of what it goes on from only disks were saved")
        loading = guestmemory.load_devices(reach.monitor, reach.signals, launch.saved.device)
        await greeting.unless_ended(held, launch, loading)
        await failpoints.reach("fork.loaded")
    present = await beside.present()
    if launch.saved is not None and beside.link is not None:
        # Cut behind the card: the guest, which has a link, need not begin its network anew when it is joined.
        await reach.monitor.plug_in(HUB, beside.link.fileno(), NETWORK_CABLE)
        await reach.monitor.set_link(NETWORK_CABLE, up=False)
    if launch.network == "unplugged":
        await cards.set_link(reach.monitor, (0,), up=False)
    if launch.saved is not None:
        # It is another's twin until it has addresses of its own.
        await cards.set_link(reach.monitor, [card.slot for card in launch.cards], up=False)
    known = msgspec.structs.replace(
        spawned.record,
        isolation=spawned.isolation,
        addresses=present.addresses,
        beside=tuple(map(Entry.of, present.processes)),
    )
    await asyncio.to_thread(record.write, launch.files, known)
    return QemuGuest(launch.files, held._replace(beside=present.processes), known, reach)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file apart from every other one, also behind the links in /proc/PID/fd."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


async def _adopt(machine: MachineFiles, known: Record) -> QemuGuest | None:
    """The recorded machine, when its process is the recorded one and its monitor answers as that machine from that process."""
    qemu = record.find(known.qemu) if known.isolation is not None else None
    if qemu is None:
        return None
    beside = tuple(inmate for inmate in map(record.find, known.beside) if inmate is not None)
    signals = Signals()
    async with contextlib.AsyncExitStack() as undo:
        for inmate in (qemu, *beside):
            undo.callback(os.close, inmate.pidfd)
        try:
            _check_peer(machine, known)
            monitor = await greeting.greet(machine, known.identity or known.uid, signals)
            undo.push_async_callback(monitor.close)
            await _wake(machine, known, monitor)
            await disks.end_jobs(monitor, signals)
            await volumes.settle(monitor, signals)
            memory = await guestmemory.find(machine, known.cloning, known.memory, qemu.process.pid)
            undo.push_async_callback(memory.close)
            guest = QemuGuest(machine, Held(qemu, beside, None), known, Reach(monitor, signals, memory))
        except (RoostError, OSError) as error:
            # It lives, and it is ours: to end somebody's machine because it is slow to answer would be the worse mistake.
            what = f"machine {known.uid} was not taken over"
            raise OutcomeUnknown(what, f"process {qemu.process.pid} lives, but: {error}", "it is tried again") from None
        undo.pop_all()
        return guest


async def _wake(machine: MachineFiles, known: Record, monitor: Monitor) -> None:
    """Let a guest go on that stands still because a daemon died while it saved it."""
    if known.interrupted:
        if await monitor.query_status() == "paused":
            await monitor.cont()
        await disks.prune(monitor)
        await asyncio.to_thread(record.write, machine, msgspec.structs.replace(known, interrupted=False))


def _check_peer(machine: MachineFiles, known: Record) -> None:
    """See that the recorded process listens at the monitor's socket: SO_PEERCRED of unix(7)."""
    with sockets.connect_unix(machine.monitor) as probe:
        pid, _, _ = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if pid != known.qemu.process.pid:
        raise NotStarted(f"machine {known.uid} was not taken over", "another process holds its monitor's socket")
