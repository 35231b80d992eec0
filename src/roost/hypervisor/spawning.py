"""A QEMU in its jail, from its first descriptor to its greeting and its memory in place; whatever fails half-way leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from roost.errors import Unavailable
from roost.host import failpoints, files, jail, sockets
from roost.host.jail import Bind, Jail, Jailed
from roost.hypervisor import greeting, guestmemory, record
from roost.hypervisor.base import Launch
from roost.hypervisor.beside import Beside
from roost.hypervisor.guest import Reach
from roost.hypervisor.inmates import ErrorFile, Held
from roost.hypervisor.memory import VARIABLE
from roost.hypervisor.plan import Listen, Open, Plan, Resource, TapOf, Tpm
from roost.hypervisor.record import Entry, Record
from roost.hypervisor.signals import Signals
from roost.model.machine import Isolation, Process
from roost.model.meta import MiB
from roost.model.volume import LARGEST

_LIBRARY = "/memory.so"
_CAP_SYS_RESOURCE = 24


class Spawned(NamedTuple):
    """A QEMU that has greeted and whose guest has its memory; nothing ran in it yet. `isolation` is of its jail."""

    held: Held
    record: Record
    isolation: Isolation
    reach: Reach


async def spawn(
    launch: Launch, decided: Plan, account: int, beside: Beside, undo: contextlib.AsyncExitStack
) -> Spawned:
    """Start it. All of it is undone by `undo`. Raises what `jail.enter` raises, and what QEMU's last words mean."""
    await asyncio.to_thread(_make_directory, launch.files.live)
    undo.push_async_callback(asyncio.to_thread, files.remove_tree, launch.files.live)
    await asyncio.to_thread(guestmemory.prepare, launch.files, launch.memory, account)
    errors = ErrorFile()
    undo.callback(errors.close)
    known = Record(launch.uid, account, memory=launch.memory, bound=decided.bounds.memory)
    with contextlib.ExitStack() as ours:
        # Our copies are closed as soon as QEMU has its own: else a dead QEMU's sockets would still take connections.
        descriptors = {entry.fd: _open(entry, launch, beside, ours) for entry in decided.resources}
        jailed = await jail.enter(
            _jail(launch, decided, account, {**descriptors, 1: errors.fileno(), 2: errors.fileno()}),
            lambda process: _write_first(launch, known, process, beside),
        )
    _bound_files(jailed.process.pid, _largest(launch, decided))
    held = Held(record.hold(jailed), (), errors)
    undo.push_async_callback(held.qemu.end)
    await failpoints.reach("fork.spawned")
    signals = Signals()
    monitor = await greeting.unless_ended(held, launch, greeting.greet(launch.files, launch.uid, signals))
    undo.push_async_callback(monitor.close)
    memory = await greeting.unless_ended(held, launch, guestmemory.put_in_place(launch, held.qemu.process.pid))
    undo.push_async_callback(memory.close)
    await failpoints.reach("fork.mapped")
    known = msgspec.structs.replace(known, qemu=Entry.of(held.qemu), cloning=memory.cloning)
    return Spawned(held, known, _isolation(launch, jailed), Reach(monitor, signals, memory))


def virtual_size(path: Path) -> int:
    """The size of the disk in a qcow2 file (docs/interop/qcow2.txt: big-endian at byte 24), or of a raw file."""
    with open(path, "rb") as file:
        header = file.read(32)
        size = os.fstat(file.fileno()).st_size
    return int.from_bytes(header[24:32], "big") if header[:4] == b"QFI\xfb" else size


def _make_directory(path: Path) -> None:
    """The machine's directory in the run directory, closed to everybody else (fault 66: its sockets too)."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)


def _open(resource: Resource, launch: Launch, beside: Beside, stack: contextlib.ExitStack) -> int:
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
    if isinstance(resource, TapOf):
        return next(card.tap for card in launch.cards if card.slot == resource.slot and card.tap is not None)
    end: socket.socket | None = beside.tpm if isinstance(resource, Tpm) else beside.link
    if end is None:
        raise AssertionError("a plan has a Link or Tpm only for a launch with a network or a TPM")
    return end.fileno()


def _jail(launch: Launch, decided: Plan, account: int, descriptors: Mapping[int, int]) -> Jail:
    bounds = decided.bounds
    mounts = [Bind(mount.source, mount.target, mount.writable, mount.device) for mount in decided.mounts]
    environment = {}
    library = guestmemory.library()
    if library is not None:
        # At its own path, as the memory; but the loader takes no path with a space or a colon.
        target = _LIBRARY if re.search(r"[\s:]", str(library)) else str(library)
        mounts.append(Bind(library, target))
        environment = {"LD_PRELOAD": target, VARIABLE: str(decided.memory_control)}
    return Jail(
        name=launch.uid,
        argv=decided.argv,
        binds=(*jail.program_binds(Path(decided.argv[0])), *mounts),
        fds=descriptors,
        env=environment,
        limits=jail.Limits(
            memory=bounds.memory,
            processes=bounds.processes,
            files=bounds.files,
            file_size=_largest(launch, decided) if _may_raise_limits() else LARGEST * 11 // 10,
            cpus=bounds.cpus,
        ),
        uid=account,
        huge_pages=launch.accelerator == "kvm",
    )


def _largest(launch: Launch, decided: Plan) -> int:
    """Bytes that no file of this machine may exceed: its largest disk and a tenth for the tables of qcow2, or its memory, which is files
    too."""
    sizes = [virtual_size(entry.path) for entry in decided.resources if isinstance(entry, Open) and entry.writable]
    return max(max(sizes, default=0) * 11 // 10, launch.memory) + 64 * MiB


def _bound_files(pid: int, size: int) -> None:
    """Bound what QEMU writes to a file until a larger volume comes."""
    with contextlib.suppress(OSError, ValueError):  # it may have ended, or be another user's that we have no power over
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))


def _may_raise_limits() -> bool:
    """Whether we may raise the hard limit of another process (CAP_SYS_RESOURCE of capabilities(7)): else a volume that comes later needs it high
    from the start."""
    found = re.search(
        r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"), re.M
    )
    return bool(found and int(found[1], 16) >> _CAP_SYS_RESOURCE & 1)


def _isolation(launch: Launch, jailed: Jailed) -> Isolation:
    """Under emulation the guest's own CPU is a program of ours with a large attack surface: the jail is all there is."""
    kvm = launch.accelerator == "kvm"
    note = "" if kvm else "emulated: only the jail stands between the guest and this host"
    return Isolation(
        boundary="hardware+jail" if kvm else "jail", layers=jailed.layers, missing=jailed.missing, note=note
    )


async def _write_first(launch: Launch, known: Record, process: Process, beside: Beside) -> None:
    """Record a QEMU that has yet to be let go, as soon as what it needs beside it is there. One that goes on from a saved state gets its
    network later: then nothing waits for it here."""
    present = await beside.needed(launch)
    entries = tuple(map(Entry.of, present.processes))
    record.write(launch.files, msgspec.structs.replace(known, qemu=Entry(process), beside=entries))
