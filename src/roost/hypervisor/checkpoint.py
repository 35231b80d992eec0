"""The instant of a checkpoint: the guest stands still, its disks are covered, its devices saved, its memory frozen, and it goes on.

Whatever fails or is cancelled in between, the guest goes on; a daemon that dies in between has noted it in the machine's record.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from roost import log
from roost.errors import Conflict, OutcomeUnknown, RoostError, Unavailable
from roost.host import failpoints, files
from roost.hypervisor import thinning
from roost.hypervisor.base import Overlay, Saved
from roost.hypervisor.disks import Covers
from roost.hypervisor.gate import Gate
from roost.hypervisor.memfd import Range
from roost.hypervisor.memory import Memory
from roost.hypervisor.monitor import Monitor
from roost.hypervisor.signals import Signals

_SAVE_SECONDS = 20.0
"""Device state is under a mebibyte and takes 5 to 30 ms; a virt board's 128 MiB of flash some hundred."""
_RETRIES = (0.001, 0.01, 0.1, 0.5, 2.0)
"""Seconds between two attempts to let a guest go on."""
_LOOKS = 5000
_LARGEST_COPY = 64 << 20
CAPABILITIES = ("events", "x-ignore-shared")
_ENDS = frozenset({"completed", "failed", "cancelled"})
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class GuestMemory(Protocol):
    """The memory of one running guest, and how an instant of it is kept."""

    cloning: Literal["in-place", "copy"]

    async def prepare(self) -> None:
        """Do what can be done before the guest is stopped, so that it stands still for less."""
        ...

    async def written(self) -> tuple[Range, ...]:
        """What `freeze` would copy now, if it copies more slowly than the guest may stand still; the guest may run."""
        ...

    async def absorb(self, ranges: Sequence[Range]) -> None:
        """Have these copied before the next `freeze`, which copies only what is written again; the guest stands still."""
        ...

    async def freeze(self) -> None:
        """Keep it as it is now, for `seal`; the guest stands still."""
        ...

    async def seal(self) -> Memory:
        """What the last `freeze` kept; the guest may run."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class Scene(NamedTuple):
    """All that a checkpoint works on. `note` writes down whether the guest is to be woken by whoever finds it standing still."""

    uid: str
    monitor: Monitor
    signals: Signals
    gate: Gate
    memory: GuestMemory
    note: Callable[[bool], Coroutine[Any, Any, None]]


class Wish(NamedTuple):
    """What a checkpoint is to hold: see `base.Guest.checkpoint`."""

    overlays: Sequence[Overlay]
    copies: Sequence[tuple[Path, Path]] = ()
    memory: bool = True


class _Parts(NamedTuple):
    """What was saved while the guest stood still."""

    device: int | None
    pause: float


async def take(scene: Scene, wish: Wish) -> Saved:
    """See `base.Guest.checkpoint`."""
    if wish.memory:
        await _refuse_blocked(scene)
        await scene.monitor.set_capabilities(*CAPABILITIES)
        await scene.memory.prepare()
    longest = await _thin(scene) if wish.memory else 0.0
    async with Covers.prepared(scene.monitor, wish.overlays) as covers:
        parts = await _finish(log.spawn_task(_instant(scene, wish, covers), f"instant of {scene.uid}"))
    async with _closed_on_failure(parts.device):
        await failpoints.reach("checkpoint.resumed")
        memory = await scene.memory.seal() if wish.memory else None
    return Saved(parts.device, memory, max(parts.pause, longest), scene.memory.cloning)


async def save_devices(monitor: Monitor, signals: Signals) -> int:
    """QEMU's stream of the state of all devices of a guest that stands still, in a sealed memfd, which is the caller's."""
    descriptor = os.memfd_create("devices", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    async with _closed_on_failure(descriptor):
        with signals.expect("MIGRATION", _ENDS) as ended:
            try:
                await monitor.migrate(descriptor)
                status = await ended.next(_SAVE_SECONDS)
            except OutcomeUnknown:
                with contextlib.suppress(RoostError):
                    await monitor.migrate_cancel()
                    await ended.next(_SAVE_SECONDS)
                raise
        if status != "completed":
            why = (await monitor.query_migrate()).error or status
            raise Unavailable("the machine's devices could not be saved", f"QEMU says: {why}")
        await _settled(monitor)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    return descriptor


async def _refuse_blocked(scene: Scene) -> None:
    """Raises Conflict when something in the machine can not be saved (a directory that is shared with the host, for one)."""
    blocked = (await scene.monitor.query_migrate()).blocked
    if blocked:
        why = "QEMU says: " + "; ".join(blocked)
        raise Conflict("the machine's memory can not be saved", why, "unmount or remove what it names, and try again")


async def _finish(instant: asyncio.Task[_Parts]) -> _Parts:
    """Its result; when we are cancelled it comes to its end all the same, so that the guest goes on."""
    try:
        return await asyncio.shield(instant)
    except asyncio.CancelledError:
        await asyncio.wait([instant])
        if not instant.cancelled() and instant.exception() is None and (device := instant.result().device) is not None:
            os.close(device)
        raise


async def _thin(scene: Scene) -> float:
    """Have most of what the guest has written copied before the instant, in slices between which it runs at least half of the time.
    Gives the longest that it stood still at once, in seconds."""
    longest, before = 0.0, None
    if await scene.monitor.query_status() != "running":
        return longest
    for _ in range(thinning.ROUNDS):
        written = await scene.memory.written()
        size = thinning.size(written)
        if not thinning.worthwhile(size, before):
            break
        before = size
        for ranges in thinning.slices(written):
            pause = (await _finish(log.spawn_task(_absorb(scene, ranges), f"slice of {scene.uid}"))).pause
            longest = max(longest, pause)
            await asyncio.sleep(max(thinning.REST, pause))
    return longest


async def _absorb(scene: Scene, ranges: Sequence[Range]) -> _Parts:
    async with scene.gate.shut(), standing_still(scene) as stand:
        await scene.memory.absorb(ranges)
    return _Parts(None, stand.seconds)


async def _instant(scene: Scene, wish: Wish, covers: Covers) -> _Parts:
    device: int | None = None
    try:
        async with scene.gate.shut(), standing_still(scene) as stand:
            await failpoints.reach("checkpoint.stopped")
            await covers.put_on()
            await failpoints.reach("checkpoint.covered")
            for source, target in wish.copies:
                await asyncio.to_thread(_copy, source, target)
            if wish.memory:
                device = await save_devices(scene.monitor, scene.signals)
                await failpoints.reach("checkpoint.saved")
                await scene.memory.freeze()
                await failpoints.reach("checkpoint.frozen")
        return _Parts(device, stand.seconds)
    except BaseException as error:
        if device is not None:
            os.close(device)
        if isinstance(error, OSError):
            why = error.strerror or str(error)
            raise Unavailable("the machine could not be saved", f"{why}: {error.filename}", "roost doctor") from error
        raise


class _Stand:
    """How long a guest stood still, in seconds."""

    seconds = 0.0


@contextlib.asynccontextmanager
async def standing_still(scene: Scene) -> AsyncIterator[_Stand]:
    """Stop the guest, and let it go on if it ran."""
    stand = _Stand()
    if await scene.monitor.query_status() != "running":
        yield stand
        return
    await scene.note(True)
    began = time.perf_counter()
    try:
        await scene.monitor.stop()
        yield stand
    finally:
        await _go_on(scene.monitor)
        stand.seconds = time.perf_counter() - began
        with contextlib.suppress(OSError):
            await scene.note(False)


async def _go_on(monitor: Monitor) -> None:
    """Let it run. QEMU refuses that while it still puts a saving that failed in order, and no event tells when it has."""
    for pause in _RETRIES:
        with contextlib.suppress(RoostError):
            await monitor.cont()
            return
        await asyncio.sleep(pause)
    try:
        await monitor.cont()
    except RoostError as error:
        what = "the machine may stand still"
        raise OutcomeUnknown(what, f"it could not be let go on: {error.why}", "roost resume it") from error


async def _settled(monitor: Monitor) -> None:
    """QEMU says that it is done a moment before it has let go, and one that is told to go on in between ends itself."""
    for _ in range(_LOOKS):
        if await monitor.is_saved():  # nearly always the first time
            return
        await asyncio.sleep(0.001)  # no event tells it
    raise OutcomeUnknown("the machine's devices may not be saved", "QEMU does not come to an end with it")


def _copy(source: Path, target: Path) -> None:
    files.atomic_write(target, files.read_bounded(source, _LARGEST_COPY), durable=False)


@contextlib.asynccontextmanager
async def _closed_on_failure(descriptor: int | None) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        if descriptor is not None:
            os.close(descriptor)
        raise
