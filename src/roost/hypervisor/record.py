"""A machine's processes written down, so that a later daemon finds exactly these again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from roost.errors import RoostError
from roost.host import cgroups, files, processes
from roost.host.cgroups import CGroup
from roost.host.jail import Jailed
from roost.host.paths import MachineFiles
from roost.hypervisor.inmates import Inmate
from roost.model.machine import Isolation, Process

_LIMIT = 64 << 10


class Entry(msgspec.Struct, frozen=True):
    """A jailed process in the record."""

    process: Process
    cgroup: tuple[str, ...] = ()

    @classmethod
    def of(cls, inmate: Inmate) -> Entry:
        """The entry of a process that we hold."""
        return cls(inmate.process, tuple(map(str, inmate.cgroup.directories)) if inmate.cgroup else ())


class Record(msgspec.Struct, frozen=True):
    """`MachineFiles.record`. `account` is the host's uid of QEMU; `beside` are the processes that are its network and its TPM.

    `isolation` is None until the start has come to its end. `identity` is QEMU's own UUID where that is not the machine's.
    `memory` is the guest's, `bound` what QEMU may use in all, in bytes. `interrupted` says that QEMU stands still for a moment, and is to run again.
    """

    uid: str
    account: int
    qemu: Entry = Entry(Process(pid=0, start=0, uid=0, boot=""))
    isolation: Isolation | None = None
    addresses: tuple[str, ...] = ()
    beside: tuple[Entry, ...] = ()
    identity: str = ""
    cloning: Literal["in-place", "copy"] = "copy"
    memory: int = 0
    bound: int = 0
    interrupted: bool = False


def write(machine: MachineFiles, record: Record) -> None:
    """Not durable: the processes that it tells of do not outlive the host either."""
    files.atomic_write(machine.record, msgspec.json.encode(record), durable=False)


def read(machine: MachineFiles, uid: str) -> Record | None:
    """The record of the machine or waiting QEMU `uid`; None when there is none, or it is broken or another's."""
    try:
        record = msgspec.json.decode(files.read_bounded(machine.record, _LIMIT), type=Record)
    except (OSError, RoostError, msgspec.MsgspecError):
        return None
    return record if uid in (record.uid, record.identity) else None


def read_all(directory: Path) -> Iterator[Record]:
    """The records of all machines that live."""
    for path in directory.iterdir() if directory.is_dir() else ():
        record = read(MachineFiles(path, path), path.name)
        if record is not None:
            yield record


def hold(jailed: Jailed) -> Inmate:
    """A process that was just started."""
    return Inmate(jailed.process, jailed.pidfd, jailed.cgroup)


def find(entry: Entry) -> Inmate | None:
    """Exactly that process, held by a pidfd; None when it is gone or its pid is another's now."""
    pidfd = processes.open_process(entry.process)
    if pidfd is None:
        return None
    return Inmate(entry.process, pidfd, CGroup(tuple(map(Path, entry.cgroup))) if entry.cgroup else None)


async def end_remains(uid: str, record: Record | None) -> None:
    """The other processes of a machine that is gone, and the control groups: also those of a start that a daemon died in, of which the
    record does not tell yet."""
    for entry in (*record.beside, record.qemu) if record is not None else ():
        inmate = find(entry)
        if inmate is not None:
            await inmate.end()
    names = {uid, record.uid, record.identity or uid} if record is not None else {uid}
    for name in sorted(names):
        for group in await asyncio.to_thread(cgroups.find, name):
            await group.remove()
