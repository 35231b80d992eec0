"""Starts QEMU in its jail, and finds it again after the daemon's own death. Whatever fails half-way leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from roost import log
from roost.errors import Conflict, NotStarted, OutcomeUnknown, RoostError, Unavailable
from roost.host import files, jail, processes, sockets
from roost.host.cgroups import CGroup
from roost.host.jail import Bind, Jail, Jailed
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor.base import Guest, Launch
from roost.hypervisor.firmware import create_variables
from roost.hypervisor.guest import ErrorFile, Held, Inmate, QemuGuest
from roost.hypervisor.monitor import Monitor
from roost.hypervisor.plan import Link, Listen, Open, Plan, Resource, plan
from roost.model.facts import HostFacts
from roost.model.machine import Isolation, Process, Publish
from roost.model.meta import MiB

_GREETING_SECONDS = 30.0
_LAST_SECONDS = 2.0
_RECORD_LIMIT = 64 << 10
_FIRST_ACCOUNT, _ACCOUNTS = jail.FIRST_UID + 1, 60_000
_FIRST_NETWORK_ACCOUNT = _FIRST_ACCOUNT + _ACCOUNTS
"""Machine N runs as the host's uid _FIRST_ACCOUNT + N, its network process as _FIRST_NETWORK_ACCOUNT + N."""


class Network(Protocol):
    """Makes a machine's network: whoever builds the daemon hands one in, so that engines need not know each other."""

    async def connect(
        self, uid: str, account: int, publish: Sequence[Publish], ends: tuple[socket.socket, socket.socket]
    ) -> tuple[tuple[Jailed, ...], tuple[str, ...]]:
        """Start the processes that are the network of machine `uid`, as the host's uid `account`, and see that they answer.

        `ends` are the machine's and the network's end of a pair of stream sockets; both stay the caller's, and nobody
        else may use the machine's end meanwhile. Returns the processes and the machine's addresses. Raises Conflict
        (port taken), Unavailable; then nothing is left behind.
        """
        ...


class DiskInUse(Conflict):
    """QEMU could not lock an image: somebody else has it open."""


class _Saved(msgspec.Struct, frozen=True):
    """A jailed process in the record."""

    process: Process
    cgroup: tuple[str, ...] = ()

    @classmethod
    def of(cls, inmate: Inmate) -> _Saved:
        return cls(inmate.process, tuple(map(str, inmate.cgroup.directories)) if inmate.cgroup else ())


class _Record(msgspec.Struct, frozen=True):
    """`MachineFiles.record`: what a later daemon needs to find a machine again."""

    uid: str
    account: int
    qemu: _Saved
    isolation: Isolation | None = None
    addresses: tuple[str, ...] = ()
    network: tuple[_Saved, ...] = ()


class _Connected(NamedTuple):
    """A machine's network: its processes, and the addresses the machine has in it."""

    processes: tuple[Inmate, ...] = ()
    addresses: tuple[str, ...] = ()


class Qemu:
    """Implements `base.Hypervisor`."""

    def __init__(self, paths: Paths, facts: HostFacts, network: Network) -> None:
        self._paths = paths
        self._facts = facts
        self._network = network
        self._starting: set[int] = set()

    async def start(self, launch: Launch) -> Guest:
        """A guest paused before its first instruction, recorded in `launch.files.record`.

        Raises Invalid, Unavailable, Conflict (port taken, disk in use), NotStarted; then nothing is left behind.
        """
        if launch.firmware == "uefi":
            await asyncio.to_thread(create_variables, launch.arch, self._facts, launch.files.variables)
        decided = plan(launch, self._facts)
        account = await asyncio.to_thread(self._reserve, launch.uid)
        try:
            async with contextlib.AsyncExitStack() as undo:
                guest = await self._start(launch, decided, account, undo)
                undo.pop_all()
                return guest
        except DiskInUse as error:
            holder = await asyncio.to_thread(self._find_holder, launch)
            raise Conflict(error.what, error.why.replace("another process", holder), error.fix) from None
        except OSError as error:
            why = f"{error.strerror}: {error.filename}" if error.filename else str(error)
            raise Unavailable(f"machine {launch.uid} did not start", why, "roost doctor") from error
        finally:
            self._starting.discard(account)

    async def adopt(self, machine: MachineFiles, uid: str) -> Guest | None:
        """The guest that an earlier daemon started, or None when it is gone; never a foreign process.

        Raises OutcomeUnknown for one that lives but does not answer.

        One whose start did not come to its end is ended: its record, written just before its exec, has no isolation yet.
        """
        record = await asyncio.to_thread(_read_record, machine, uid)
        guest = await _adopt(machine, record) if record is not None else None
        if guest is None:
            if record is not None:
                await _end_remains(record)
            await asyncio.to_thread(files.remove_tree, machine.live)
        return guest

    async def _start(self, launch: Launch, decided: Plan, account: int, undo: contextlib.AsyncExitStack) -> QemuGuest:
        await asyncio.to_thread(_make_directory, launch.files.live)
        undo.push_async_callback(asyncio.to_thread, files.remove_tree, launch.files.live)
        errors = ErrorFile()
        undo.callback(errors.close)
        with contextlib.ExitStack() as ours:
            # Our copies are closed as soon as QEMU has its own: else a dead QEMU's sockets would still take connections,
            # and the network process would not see its machine's end.
            link, connecting = self._connect(launch, decided, account, ours)
            undo.push_async_callback(_disconnect, connecting)
            descriptors = {entry.fd: _open(entry, link, ours) for entry in decided.resources}
            jailed = await jail.enter(
                _jail(launch, decided, account, {**descriptors, 1: errors.fileno(), 2: errors.fileno()}),
                lambda process: _write_first(launch, account, process, connecting),
            )
        network = _result(await connecting)
        held = Held(_hold(jailed), network.processes, errors)
        undo.push_async_callback(held.qemu.end)
        guest = QemuGuest(launch.files, held, _isolation(launch, jailed), network.addresses)
        monitor = await _greet(launch, guest, held)
        undo.push_async_callback(monitor.close)
        saved = tuple(map(_Saved.of, network.processes))
        _write(
            launch.files, _Record(launch.uid, account, _Saved.of(held.qemu), guest.isolation, guest.addresses, saved)
        )
        guest.attend(monitor)
        return guest

    def _connect(
        self, launch: Launch, decided: Plan, account: int, ours: contextlib.ExitStack
    ) -> tuple[socket.socket | None, asyncio.Task[_Connected | RoostError | OSError]]:
        """QEMU's end of the socket to the machine's network, and the start of that network at the other end.

        It starts while QEMU's jail does, and QEMU is let go only when the network has answered.
        """
        if not any(isinstance(resource, Link) for resource in decided.resources):
            return None, log.spawn_task(_unconnected(), "no network")
        link, far = socket.socketpair()
        ours.callback(link.close)
        return link, log.spawn_task(self._try_connect(launch, account, (link, far)), f"network of {launch.uid}")

    async def _try_connect(
        self, launch: Launch, account: int, ends: tuple[socket.socket, socket.socket]
    ) -> _Connected | RoostError | OSError:
        """The network or why there is none: an error that is an answer is not one the log should hold."""
        account += _FIRST_NETWORK_ACCOUNT - _FIRST_ACCOUNT
        with ends[1]:
            try:
                jailed, addresses = await self._network.connect(launch.uid, account, launch.publish, ends)
            except (RoostError, OSError) as error:
                return error
        return _Connected(tuple(map(_hold, jailed)), addresses)

    def _find_holder(self, launch: Launch) -> str:
        """Whose QEMU has one of the launch's writable files open."""
        wanted = {_identity(disk.file) for disk in launch.disks if not disk.read_only}
        for record in _records(self._paths.live_machines):
            with contextlib.suppress(OSError):
                for entry in Path(f"/proc/{record.qemu.process.pid}/fd").iterdir():
                    if _identity(entry) in wanted:
                        return f"machine {record.uid}"
        return "another process"

    def _reserve(self, uid: str) -> int:
        """A uid of the host that no other machine has: the machine's own number, or the next free one."""
        taken = self._starting | {record.account for record in _records(self._paths.live_machines)}
        first = int(uid[:8], 16)
        account = next(
            number for step in range(_ACCOUNTS) if (number := _FIRST_ACCOUNT + (first + step) % _ACCOUNTS) not in taken
        )
        self._starting.add(account)
        return account


def _make_directory(path: Path) -> None:
    """The machine's directory in the run directory, closed to everybody else (fault 66: its sockets too)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def _open(resource: Resource, link: socket.socket | None, stack: contextlib.ExitStack) -> int:
    """Our descriptor of a resource of the plan."""
    if isinstance(resource, Listen):
        return stack.enter_context(sockets.listen_unix(resource.path)).fileno()
    if isinstance(resource, Open):
        mode = os.O_RDWR if resource.writable else os.O_RDONLY
        try:
            descriptor = os.open(resource.path, mode | os.O_CLOEXEC | os.O_NOFOLLOW * resource.writable)
        except OSError as error:
            fix = "roost delete it and launch again, or restore the file from a backup"
            raise Unavailable(
                f"{resource.path.name} can not be opened", f"{error.strerror}: {resource.path}", fix
            ) from None
        stack.callback(os.close, descriptor)
        return descriptor
    if link is None:
        raise AssertionError("a plan has a Link only for a launch with a network")
    return link.fileno()


def _jail(launch: Launch, decided: Plan, account: int, descriptors: Mapping[int, int]) -> Jail:
    bounds = decided.bounds
    mounts = tuple(Bind(mount.source, mount.target, device=mount.device) for mount in decided.mounts)
    return Jail(
        name=launch.uid,
        argv=decided.argv,
        binds=(*jail.program_binds(Path(decided.argv[0])), *mounts),
        fds=descriptors,
        limits=jail.Limits(
            memory=bounds.memory,
            processes=bounds.processes,
            files=bounds.files,
            file_size=_largest(decided),
            cpus=bounds.cpus,
        ),
        uid=account,
        huge_pages=launch.accelerator == "kvm",
    )


def _largest(decided: Plan) -> int:
    """Bytes that no file of this machine may exceed: its largest disk, and a tenth for the tables of qcow2."""
    sizes = [_virtual_size(entry.path) for entry in decided.resources if isinstance(entry, Open) and entry.writable]
    return max(sizes, default=0) * 11 // 10 + 64 * MiB


def _virtual_size(path: Path) -> int:
    """The size of the disk in a qcow2 file (docs/interop/qcow2.txt: big-endian at byte 24), or of a raw file."""
    with open(path, "rb") as file:
        header = file.read(32)
        size = os.fstat(file.fileno()).st_size
    return int.from_bytes(header[24:32], "big") if header[:4] == b"QFI\xfb" else size


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file apart from every other one, also behind the links in /proc/PID/fd."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino
    return None


def _hold(jailed: Jailed) -> Inmate:
    return Inmate(jailed.process, jailed.pidfd, jailed.cgroup)


async def _unconnected() -> _Connected:
    return _Connected()


def _result(answer: _Connected | RoostError | OSError) -> _Connected:
    if isinstance(answer, _Connected):
        return answer
    raise answer


async def _disconnect(connecting: asyncio.Task[_Connected | RoostError | OSError]) -> None:
    """End a machine's network, however far its start has come."""
    connecting.cancel()
    await asyncio.wait([connecting])
    if not connecting.cancelled() and connecting.exception() is None and isinstance(connecting.result(), _Connected):
        for inmate in _result(connecting.result()).processes:
            await inmate.end()


async def _write_first(
    launch: Launch, account: int, process: Process, connecting: asyncio.Task[_Connected | RoostError | OSError]
) -> None:
    """Record a QEMU that has yet to be let go, as soon as its network is there."""
    network = _result(await asyncio.shield(connecting))
    saved = tuple(map(_Saved.of, network.processes))
    _write(launch.files, _Record(launch.uid, account, _Saved(process), network=saved))


def _write(machine: MachineFiles, record: _Record) -> None:
    """Not durable: the processes that it tells of do not outlive the host either."""
    files.atomic_write(machine.record, msgspec.json.encode(record), durable=False)


def _isolation(launch: Launch, jailed: Jailed) -> Isolation:
    """Under emulation the guest's own CPU is a program of ours with a large attack surface: the jail is all there is."""
    kvm = launch.accelerator == "kvm"
    note = "" if kvm else "emulated: only the jail stands between the guest and this host"
    return Isolation(
        boundary="hardware+jail" if kvm else "jail", layers=jailed.layers, missing=jailed.missing, note=note
    )


async def _greet(launch: Launch, guest: QemuGuest, held: Held) -> Monitor:
    """QEMU's monitor after its greeting. Raises what QEMU's last words mean when it ends instead."""
    greeting = log.spawn_task(_try_monitor(launch.files, launch.uid, guest), "greeting")
    ended = log.spawn_task(processes.wait_exit(held.qemu.pidfd), "end before greeting")
    try:
        await asyncio.wait([greeting, ended], return_when=asyncio.FIRST_COMPLETED)
        answer: Monitor | RoostError = await greeting
        if isinstance(answer, Monitor):
            return answer
        await asyncio.wait([ended], timeout=_LAST_SECONDS)  # a QEMU that ends closes its sockets a moment before
        raise translate(held.last_words(), launch) if ended.done() else answer
    finally:
        for task in (greeting, ended):
            task.cancel()
        await asyncio.wait([greeting, ended])


async def _try_monitor(machine: MachineFiles, uid: str, guest: QemuGuest) -> Monitor | RoostError:
    """The monitor or why there is none: an error that is an answer is not one the log should hold."""
    try:
        return await _monitor(machine, uid, guest)
    except OSError as error:
        return NotStarted(f"machine {uid} was not started", f"QEMU's monitor can not be reached: {error}")
    except RoostError as error:
        return error


async def _monitor(machine: MachineFiles, uid: str, guest: QemuGuest) -> Monitor:
    monitor = await Monitor.connect(sockets.connect_unix(machine.monitor), guest.on_event, timeout=_GREETING_SECONDS)
    try:
        if await monitor.query_uuid() != uid:
            raise NotStarted(f"machine {uid} was not started", "the QEMU that answers says that it is another machine")
    except BaseException:
        await monitor.close()
        raise
    return monitor


_MESSAGES: tuple[tuple[str, type[RoostError], str, str], ...] = (
    (
        r'Failed to get (?:"write"|shared "write"|"consistent read") lock',
        DiskInUse,
        "its disk is in use by another process",
        "stop the machine that uses it: roost list",
    ),
    (
        r"[Cc]annot (?:set up guest|allocate) memory",
        Unavailable,
        "this host has not enough free memory",
        "stop another machine or give this one less: --memory",
    ),
    (
        r"Could not access KVM kernel module|failed to initialize kvm",
        Unavailable,
        "the jail may not use /dev/kvm",
        "sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm",
    ),
)
"""What QEMU's last words mean."""


def translate(words: str, launch: Launch) -> RoostError:
    """The error for a QEMU that ended before its greeting."""
    what = f"machine {launch.uid} did not start"
    for pattern, error, why, fix in _MESSAGES:
        if re.search(pattern, words):
            return error(what, f"{why} ({words.splitlines()[0][:300]})", fix)
    return NotStarted(what, f"QEMU ended at once: {words or 'it said nothing'}", "roost doctor")


def _read_record(machine: MachineFiles, uid: str) -> _Record | None:
    try:
        record = msgspec.json.decode(files.read_bounded(machine.record, _RECORD_LIMIT), type=_Record)
    except (OSError, RoostError, msgspec.MsgspecError):
        return None
    return record if record.uid == uid else None


def _records(directory: Path) -> Iterator[_Record]:
    """The records of all machines that live."""
    for path in directory.iterdir() if directory.is_dir() else ():
        record = _read_record(MachineFiles(path, path), path.name)
        if record is not None:
            yield record


def _find(saved: _Saved) -> Inmate | None:
    """Exactly that process, held by a pidfd; None when it is gone or its pid is another's now."""
    pidfd = processes.open_process(saved.process)
    if pidfd is None:
        return None
    return Inmate(saved.process, pidfd, CGroup(tuple(map(Path, saved.cgroup))) if saved.cgroup else None)


async def _adopt(machine: MachineFiles, record: _Record) -> QemuGuest | None:
    """The recorded machine, when its process is the recorded one and its monitor answers as that machine from that process."""
    qemu = _find(record.qemu) if record.isolation is not None else None
    if qemu is None or record.isolation is None:
        return None
    network = tuple(inmate for inmate in map(_find, record.network) if inmate is not None)
    guest = QemuGuest(machine, Held(qemu, network, None), record.isolation, record.addresses)
    try:
        with sockets.connect_unix(machine.monitor) as probe:
            if _peer(probe) != record.qemu.process.pid:
                raise NotStarted(
                    f"machine {record.uid} was not taken over", "another process holds its monitor's socket"
                )
        guest.attend(await _monitor(machine, record.uid, guest))
    except (RoostError, OSError) as error:
        # It lives, and it is ours: to end somebody's machine because it is slow to answer would be the worse mistake.
        for inmate in (qemu, *network):
            os.close(inmate.pidfd)
        what = f"machine {record.uid} was not taken over"
        raise OutcomeUnknown(what, f"process {qemu.process.pid} lives, but: {error}", "it is tried again") from None
    return guest


async def _end_remains(record: _Record) -> None:
    """The network processes of a machine that is gone, and the control groups."""
    for saved in (*record.network, record.qemu):
        inmate = _find(saved)
        if inmate is not None:
            await inmate.end()
        elif saved.cgroup:
            await CGroup(tuple(map(Path, saved.cgroup))).remove()


def _peer(connection: socket.socket) -> int:
    """The pid of the process that listens at the other end: SO_PEERCRED of unix(7)."""
    pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(pid)
