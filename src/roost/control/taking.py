"""Takes one instant of a machine: its disk becomes a layer that nobody writes any more, its memory a checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from roost.control.checkpoints import Checkpoint
from roost.control.custody import Custody
from roost.control.events import now
from roost.control.held import Held
from roost.errors import Conflict, RoostError
from roost.host import failpoints, files
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor.base import Guest, Overlay, Saved
from roost.hypervisor.saved import release
from roost.model.machine import Machine, Traits
from roost.storage.layers import Base, Next
from roost.storage.manifest import Manifest

_SMALL = 4 << 20
"""Bytes of a small file beside the disk: UEFI variables have 540 KiB, a TPM's state a few KiB."""

_FREEZE_SECONDS = 3.0
"""Longest the guest may take to write its file systems out; it is not waited for longer, for they then are as after a power cut."""


class Layers(Protocol):
    """What is needed of the layers."""

    async def prepare(self, machine: MachineFiles, image: str) -> Next:
        """The overlay that is to cover the root disk."""
        ...

    def pending(self, machine: MachineFiles) -> Next | None:
        """The `prepare` that was not settled yet."""
        ...

    async def settle(self, machine: MachineFiles, image: str, *, covered: bool) -> Base:
        """End what `prepare` began."""
        ...

    def virtual_size(self, base: Base) -> int:
        """Bytes that the guest sees."""
        ...


class Images(Protocol):
    """What is needed of the image pool."""

    def find(self, digest: str) -> Manifest | None:
        """The manifest of an image that is there."""
        ...


class House(Protocol):
    """What is needed of control.housekeeping.Housekeeping."""

    def holding(self) -> AbstractAsyncContextManager[None]:
        """No layer is removed meanwhile."""
        ...

    def using(self, uid: str) -> AbstractAsyncContextManager[None]:
        """The disk of this machine is not flattened meanwhile."""
        ...


class Parts(NamedTuple):
    """What an instant is made from."""

    custody: Custody
    layers: Layers
    images: Images
    house: House
    paths: Paths


class Taker:
    """Takes checkpoints; one at a time of each machine, and none while its reconciler acts upon it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def take(self, machine: Machine, *, memory: bool, uid: str = "") -> Checkpoint:
        """`machine` now: with `memory` as it runs (or is paused), else its disk alone. The caller owns what it gets.

        Raises Conflict (it does not run, something in it can not be saved), Unavailable (disk full). Then the machine goes on as before.
        """
        held = await self._parts.custody.looked(machine)
        house = self._parts.house
        async with house.holding(), house.using(machine.meta.uid), held.acting:
            await self._recover(machine, held)
            guest = held.guest
            traits = machine.status.started_as
            if memory and machine.status.volumes:
                names = ", ".join(mount.volume for mount in machine.status.volumes)
                what = f'the memory of machine "{machine.name}" can not be kept'
                fix = (
                    f"roost volume detach {machine.status.volumes[0].volume} {machine.name}; or do without: --no-memory"
                )
                raise Conflict(what, f"volumes are attached to it: {names}, and go on without it", fix)
            if guest is None and memory:
                what = f'the memory of machine "{machine.name}" can not be kept'
                raise Conflict(what, "it is not running", f"roost start {machine.name}; or do without: --no-memory")
            if traits is None or (guest is None and not self._files(machine).keep.exists()):
                what = f'machine "{machine.name}" has nothing to copy'
                raise Conflict(what, "it has never been started", f"roost start {machine.name}")
            await failpoints.reach("take.begin")
            saved, base = await self._save(machine, guest, traits, memory=memory)
            await failpoints.reach("take.settled")
            return self._checkpoint(machine, traits, base, saved, uid)

    async def recover(self, machine: Machine, held: Held) -> None:
        """End what a daemon before this one began; looks once."""
        if not held.recovered:
            async with held.acting:
                await self._recover(machine, held)
            held.recovered = True

    async def _recover(self, machine: Machine, held: Held) -> None:
        """QEMU tells whether it writes to the overlay; without QEMU both answers are right, and forward is the shorter way."""
        where = self._files(machine)
        pending = self._parts.layers.pending(where)
        if pending is not None:
            covered = held.guest is None or pending.node in await held.guest.tops()
            await self._parts.layers.settle(where, machine.status.image, covered=covered)

    def _files(self, machine: Machine) -> MachineFiles:
        return self._parts.paths.machine(machine.meta.uid)

    async def _save(
        self, machine: Machine, guest: Guest | None, traits: Traits, *, memory: bool
    ) -> tuple[Saved, Base | None]:
        where = self._files(machine)
        copies = _copies(where, tpm=traits.tpm)
        manifest = self._parts.images.find(traits.image)
        diskless = manifest is not None and manifest.format == "none"
        if guest is None:
            await asyncio.to_thread(_copy, copies)
            return Saved(None, None), None if diskless else await self._cover_stopped(where, traits)
        if diskless:
            return await guest.checkpoint((), copies, memory=memory), None
        return await self._cover_running(where, traits, guest, copies, memory=memory)

    async def _cover_stopped(self, where: MachineFiles, traits: Traits) -> Base:
        await self._parts.layers.prepare(where, traits.image)
        return await self._parts.layers.settle(where, traits.image, covered=True)

    async def _cover_running(
        self, where: MachineFiles, traits: Traits, guest: Guest, copies: list[tuple[Path, Path]], *, memory: bool
    ) -> tuple[Saved, Base]:
        cover = await self._parts.layers.prepare(where, traits.image)
        await failpoints.reach("take.prepared")
        saved: Saved | None = None
        try:
            async with contextlib.nullcontext() if memory else _frozen(guest):
                saved = await guest.checkpoint((Overlay(cover.file, cover.node),), copies, memory=memory)
            await failpoints.reach("take.taken")
            return saved, await self._parts.layers.settle(where, traits.image, covered=True)
        except BaseException:
            if saved is not None:
                release(saved)
            with contextlib.suppress(RoostError):  # a guest that is gone stands on whatever was there last
                covered = cover.node in await guest.tops()
                await self._parts.layers.settle(where, traits.image, covered=covered)
            raise

    def _checkpoint(self, machine: Machine, traits: Traits, base: Base | None, saved: Saved, uid: str) -> Checkpoint:
        where = self._files(machine)
        variables = _read(_beside(where.variables))
        return Checkpoint(
            id=uid or str(uuid.uuid4()),
            project=machine.project,
            shape=traits.shape,
            traits=traits,
            base=base,
            virtual_size=self._parts.layers.virtual_size(base) if base is not None else 0,
            saved=saved if saved.device is not None else None,
            variables=variables.get(_beside(where.variables).name),
            tpm={name.removesuffix(_SUFFIX): data for name, data in _read(*where.tpm.glob(f"*{_SUFFIX}")).items()},
            access=_read(where.access_key, where.host_key, keep=True),
            origin=f"machine {machine.name}",
            taken=now(),
            pause=saved.pause,
        )


_SUFFIX = ".checkpoint"


def _beside(path: Path) -> Path:
    return path.with_name(path.name + _SUFFIX)


def _copies(where: MachineFiles, *, tpm: bool) -> list[tuple[Path, Path]]:
    """Small files that belong to the instant, and where they are copied to while the machine stands still."""
    state = sorted(path for path in where.tpm.glob("*") if path.suffix != _SUFFIX) if tpm else []
    found = [path for path in (where.variables, *state) if path.is_file()]
    return [(path, _beside(path)) for path in found]


def _copy(copies: list[tuple[Path, Path]]) -> None:
    for source, target in copies:
        files.atomic_write(target, files.read_bounded(source, _SMALL), durable=False)


def _read(*paths: Path, keep: bool = False) -> dict[str, bytes]:
    """The contents of those that are there, by name; copies are removed."""
    found = {path.name: files.read_bounded(path, _SMALL) for path in paths if path.is_file()}
    for path in () if keep else paths:
        path.unlink(missing_ok=True)
    return found


@contextlib.asynccontextmanager
async def _frozen(guest: Guest) -> AsyncIterator[None]:
    """The guest's file systems, written out and still, where its agent can do that quickly; else as they are."""
    agent = None
    with contextlib.suppress(RoostError, TimeoutError):
        async with asyncio.timeout(_FREEZE_SECONDS):
            agent = await guest.agent()
            await agent.freeze()
    try:
        yield
    finally:
        if agent is not None:
            with contextlib.suppress(RoostError, TimeoutError):
                async with asyncio.timeout(_FREEZE_SECONDS):
                    await agent.thaw()
