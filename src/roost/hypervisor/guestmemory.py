"""Puts a guest's memory in its place when its QEMU starts, and finds it again: mapped by the library in QEMU, or in the file that QEMU has."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from roost import guest
from roost.errors import RoostError, Unavailable
from roost.host.paths import MachineFiles
from roost.hypervisor import memory
from roost.hypervisor.base import Launch
from roost.hypervisor.checkpoint import CAPABILITIES, GuestMemory
from roost.hypervisor.memfd import Range
from roost.hypervisor.memory import Memory, MemoryPort
from roost.hypervisor.monitor import Monitor
from roost.hypervisor.saved import memory_of
from roost.hypervisor.signals import Signals

_LOAD_SECONDS = 30.0
_ENDS = frozenset({"completed", "failed"})


class InPlace:
    """Memory that the library in QEMU maps: it is shared, never copied."""

    cloning: Literal["in-place", "copy"] = "in-place"

    def __init__(self, port: MemoryPort) -> None:
        self._port = port

    async def prepare(self) -> None:
        """See `GuestMemory.prepare`."""
        await self._port.prepare()

    async def written(self) -> tuple[Range, ...]:
        """See `GuestMemory.written`."""
        return await self._port.written()

    async def absorb(self, ranges: Sequence[Range]) -> None:
        """See `GuestMemory.absorb`."""
        await self._port.absorb(ranges)

    async def freeze(self) -> None:
        """See `GuestMemory.freeze`."""
        await self._port.freeze()

    async def seal(self) -> Memory:
        """See `GuestMemory.seal`."""
        return await self._port.seal()

    async def populate(self, ranges: Sequence[Range]) -> None:
        """Make pages present before the guest touches them."""
        await self._port.populate(ranges)

    async def working_set(self) -> tuple[Range, ...]:
        """The pages that are present now."""
        return await self._port.working_set()

    def moved(self, path: Path) -> None:
        """The library's socket has another name from now on."""
        self._port.moved(path)

    async def close(self) -> None:
        """See `GuestMemory.close`."""
        await self._port.close()


class Copied:
    """Memory that is the named file which QEMU has: it is copied while the guest stands still."""

    cloning: Literal["in-place", "copy"] = "copy"

    def __init__(self, file: Path, size: int) -> None:
        self._file = file
        self._size = size
        self._frozen: Memory | None = None

    async def prepare(self) -> None:
        """Nothing can be done before."""

    async def written(self) -> tuple[Range, ...]:
        """Nothing can be absorbed."""
        return ()

    async def absorb(self, ranges: Sequence[Range]) -> None:
        """Nothing can be absorbed."""

    async def freeze(self) -> None:
        """See `GuestMemory.freeze`."""
        await self.close()
        self._frozen = await asyncio.to_thread(memory.copy_out, self._file, self._size)

    async def seal(self) -> Memory:
        """See `GuestMemory.seal`."""
        frozen, self._frozen = self._frozen, None
        if frozen is None:
            raise Unavailable("a guest's memory was not saved", "it was not frozen")
        return frozen

    async def close(self) -> None:
        """See `GuestMemory.close`."""
        if self._frozen is not None:
            self._frozen.close()
            self._frozen = None


class Lost:
    """Memory that we do not reach any more: the guest runs, and can not be saved."""

    cloning: Literal["in-place", "copy"] = "in-place"

    def __init__(self, error: RoostError) -> None:
        self._error = error

    async def prepare(self) -> None:
        """Raises Unavailable: better now than while the guest stands still."""
        await self.freeze()

    async def written(self) -> tuple[Range, ...]:
        """Nothing can be absorbed."""
        return ()

    async def absorb(self, ranges: Sequence[Range]) -> None:
        """Nothing can be absorbed."""

    async def freeze(self) -> None:
        """Raises Unavailable."""
        fix = "stop and start it: roost restart"
        raise Unavailable("a guest's memory can not be saved", self._error.why or self._error.what, fix)

    async def seal(self) -> Memory:
        """Raises Unavailable."""
        raise Unavailable("a guest's memory was not saved", self._error.why or self._error.what)

    async def close(self) -> None:
        """Nothing is held."""


def library() -> Path | None:
    """The library for this host's QEMU; None where there is none for its architecture."""
    with contextlib.suppress(RoostError):
        return guest.binary(os.uname().machine, "memory.so")
    return None


def prepare(machine: MachineFiles, size: int, account: int) -> None:
    """Make the empty file by which QEMU knows the memory; it belongs to QEMU's uid on the host where we are root."""
    descriptor = os.open(machine.memory, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        if os.geteuid() == 0:
            os.fchown(descriptor, account, account)
    finally:
        os.close(descriptor)


async def put_in_place(launch: Launch, pid: int) -> GuestMemory:
    """The memory of a QEMU that has greeted and has not run yet. Raises Unavailable, OutcomeUnknown."""
    files, saved = launch.files, memory_of(launch.saved) if launch.saved is not None else None
    try:
        port = await MemoryPort.connect(files.memory_control, pid)
    except Unavailable:  # a static QEMU, or a host without the library
        if saved is not None:
            await asyncio.to_thread(memory.copy_in, saved, files.memory)
        return Copied(files.memory, launch.memory)
    try:
        if saved is not None:
            await port.load(saved, files.memory)
        else:
            await port.take_over(launch.memory, files.memory)
    except BaseException:
        await port.close()
        raise
    return InPlace(port)


async def find(machine: MachineFiles, cloning: Literal["in-place", "copy"], size: int, pid: int) -> GuestMemory:
    """The memory of a QEMU that an earlier daemon started; when the library does not answer the guest runs on, but can not be saved."""
    if cloning == "copy":
        return Copied(machine.memory, size)
    try:
        port = await MemoryPort.connect(machine.memory_control, pid)
        try:
            await port.adopt(size)
        except BaseException:
            await port.close()
            raise
    except RoostError as error:
        return Lost(error)
    return InPlace(port)


async def load_devices(monitor: Monitor, signals: Signals, device: int) -> None:
    """Let a QEMU that waits for it take over the state of all devices. It ends itself when it does not like it; raises Unavailable."""
    # A descriptor of its own, for several machines may read it at once, each from its own place.
    descriptor = os.open(f"/proc/self/fd/{device}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        await monitor.set_capabilities(*CAPABILITIES)
        with signals.expect("MIGRATION", _ENDS) as ended:
            await monitor.migrate_incoming(descriptor)
            if await ended.next(_LOAD_SECONDS) == "failed":
                why = (await monitor.query_migrate()).error
                raise Unavailable("the saved machine was not loaded", f"QEMU says: {why}", "roost start --cold")
    finally:
        os.close(descriptor)
