"""What keeps snapshots, over a memory store and a virtual clock: checkpoints and layers that are names in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from roost.control.checkpoints import Checkpoint, Checkpoints, Purpose
from roost.control.events import Recorder
from roost.control.housekeeping import Housekeeping, Parts
from roost.control.loop import Loop
from roost.control.records import Records, marked
from roost.control.snapshots import Means, Snapshots, Taking
from roost.errors import Conflict
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor.base import Guest, Launch
from roost.log import spawn_task
from roost.model import codec
from roost.model.event import Event
from roost.model.machine import Machine, MachineSpec, MachineStatus, Process, Traits
from roost.model.meta import GiB, Meta, MiB
from roost.model.snapshot import Snapshot, SnapshotSpec
from roost.storage.layers import Base, Layers, Next, Space
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock
from roost.testing.hypervisor import FakeGuest

IMAGE = "sha256:aa"
TRAITS = Traits(
    image=IMAGE, arch="x86_64", cpus=1, memory=256 * MiB, accelerator="tcg", firmware="direct", network=True, seed=False, tpm=False
)  # fmt: skip
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
SPEC = MachineSpec(image="disk", memory=256 * MiB)
RUNNING = MachineStatus(
    phase="running",
    image=IMAGE,
    agent="roost",
    born=True,
    generation=1,
    process=Process(pid=7, start=1, uid=1, boot="b"),
)
WEB = Machine(name="web", meta=Meta(uid="web-uid", created="2026-11-23T12:00:00.000Z"), spec=SPEC, status=RUNNING)
STOPPED = msgspec.structs.replace(
    WEB,
    spec=msgspec.structs.replace(SPEC, power="stopped"),
    status=msgspec.structs.replace(RUNNING, phase="stopped", process=None, agent="none"),
)


class Inline(ThreadPoolExecutor):
    """Does at once, in the event loop, what would be done in a thread: virtual time does not wait for threads."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class FakeLayers(Layers):
    """Which file stands on which, by name: `disks` of machines and `layers`; every instant puts one more below."""

    def __init__(self) -> None:
        self.disks: dict[str, Base] = {}
        self.layers: dict[str, Base] = {}
        self.collections = 0
        self.flattened: list[str] = []
        self.hashed: set[str] = set()
        self.unsettled: set[str] = set()
        self.going_on = asyncio.Event()
        self.going_on.set()

    def cover(self, uid: str) -> Base:
        """What `prepare` and `settle` do together."""
        layer = f"layer-{len(self.layers)}"
        self.layers[layer] = self.disks.get(uid, Base(image=IMAGE))
        self.disks[uid] = Base(layer=layer)
        return self.disks[uid]

    def grow(self, uid: str, files: int) -> None:
        """Make the machine's disk stand on so many files."""
        while len(self._chain(self.disks.get(uid, Base(image=IMAGE)))) < files:
            self.cover(uid)

    def base_of(self, machine: MachineFiles, image: str) -> Base:
        return self.disks.get(machine.keep.name, Base(image=image))

    def below(self, base: Base) -> tuple[Path, ...]:
        return tuple(Path(name) for name in self._chain(base))

    def _chain(self, base: Base) -> list[str]:
        return [base.layer, *self._chain(self.layers[base.layer])] if base.layer else [base.image]

    def pending(self, machine: MachineFiles) -> Next | None:
        name = machine.keep.name
        return Next("next", machine.next_disk, "disk1") if name in self.unsettled else None

    async def flatten(self, machine: MachineFiles, image: str) -> None:
        await self.going_on.wait()
        self.flattened.append(machine.keep.name)
        self.disks[machine.keep.name] = Base(image=image)

    async def hash(self, layer: str) -> None:
        self.hashed.add(layer)

    async def repoint(self, machine: MachineFiles, base: Base) -> None:
        self.disks[machine.keep.name] = base

    async def collect(self, roots: Iterable[Base]) -> list[str]:
        self.collections += 1
        await self.going_on.wait()
        used = {name for base in (*self.disks.values(), *roots) for name in self._chain(base)}
        gone = sorted(set(self.layers) - used)
        self.layers = {name: base for name, base in self.layers.items() if name in used}
        return gone

    def space(self, base: Base, others: Iterable[Base], owner: str = "") -> Space:
        used = {name for other in (*self.disks.values(), *others) for name in self._chain(other)}
        mine = set(self._chain(base)) & set(self.layers)
        return Space(len(mine - used) * MiB, len(mine & used) * MiB)


class FakeCheckpoints(Checkpoints):
    """A register that outlives a "restart" like a disk does: hand the same one to the next."""

    def __init__(self) -> None:
        self._damaged = set()
        self.disk: dict[str, Checkpoint] = {}
        self.refuse: Exception | None = None
        self.stall = asyncio.Event()
        self.stall.set()
        self.pinned_uids: set[str] = set()
        self.forgotten: list[str] = []

    async def keep(self, checkpoint: Checkpoint, purpose: Purpose) -> int:
        await self.stall.wait()
        if self.refuse is not None:
            raise self.refuse
        self.disk[checkpoint.id] = replace(checkpoint, saved=None)
        return 64 * MiB

    def kept(self, purpose: Purpose) -> Mapping[str, Checkpoint]:
        return self.disk if purpose == "snapshot" else {}

    def size(self, uid: str) -> int:
        return 64 * MiB if uid in self.disk else 0

    def in_use(self, uid: str) -> bool:
        return uid in self.pinned_uids

    async def forget(self, uid: str) -> None:
        self.disk.pop(uid, None)
        self.forgotten.append(uid)

    def roots(self) -> Iterable[Base]:
        return [checkpoint.base for checkpoint in self.disk.values() if checkpoint.base is not None]


class FakeTaking:
    """Takes what it is told to; the machine's disk gets one more layer."""

    def __init__(self, layers: FakeLayers) -> None:
        self._layers = layers
        self.taken: list[tuple[str, bool]] = []
        self.refuse: BaseException | None = None

    async def take(self, machine: Machine, *, memory: bool, uid: str = "") -> Checkpoint:
        if self.refuse is not None:
            raise self.refuse
        self.taken.append((machine.name, memory))
        base = self._layers.cover(machine.meta.uid)
        return Checkpoint(
            id=uid, project=machine.project, shape="", traits=TRAITS, base=base, virtual_size=GiB, taken="2026-11-23T12:00:01.000Z", pause=0.02
        )  # fmt: skip


class Keeping:
    """Snapshots and housekeeping; `begin` after `end` is a restart of the daemon over the same store, disk and guests."""

    def __init__(self, directory: Path) -> None:
        asyncio.get_running_loop().set_default_executor(Inline())
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.records = Records(self.store)
        self.paths = Paths(directory / "state", directory / "run")
        self.layers = FakeLayers()
        self.checkpoints = FakeCheckpoints()
        self.taking = FakeTaking(self.layers)
        self.guests: dict[str, FakeGuest] = {}
        self.skew = timedelta(0)
        self.began = self.clock.now()
        self.begin()

    def begin(self) -> None:
        recorder = Recorder(self.store)
        parts = Parts(self.layers, self.checkpoints, self.paths, self.guest, self.clock)
        self.housekeeping = Housekeeping(self.records, recorder, parts)
        means = Means(self.guest, self.taker(), self.checkpoints, self.housekeeping, self.clock, self.wall)
        self.loop = Loop(self.store, self.clock)
        self.loop.add("snapshots/", Snapshots(self.records, recorder, means, self.loop.wake_after))
        self.tasks = [spawn_task(self.loop.run(), "loop"), spawn_task(self.housekeeping.run(), "housekeeping")]

    def taker(self) -> Taking:
        """Who takes the instants."""
        return self.taking

    async def end(self) -> None:
        await self.loop.stop(grace=0.0)
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    async def kill(self) -> None:
        """The daemon dies: nothing more is written, nothing is settled."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    def wall(self) -> datetime:
        return NOON + timedelta(seconds=self.clock.now() - self.began) + self.skew

    async def guest(self, machine: Machine) -> Guest:
        if machine.meta.uid not in self.guests:
            raise Conflict(f'machine "{machine.name}" is not running')
        return self.guests[machine.meta.uid]

    async def machine(self, machine: Machine) -> Machine:
        """Put a machine there, with its guest when it runs and a disk."""
        where = self.paths.machine(machine.meta.uid)
        where.keep.mkdir(parents=True, exist_ok=True)
        where.disk.touch()
        if machine.status.process is not None:
            launch = Launch(
                uid=machine.meta.uid, arch="x86_64", cpus=1, memory=256 * MiB, accelerator="tcg", firmware="direct", files=where
            )  # fmt: skip
            self.guests[machine.meta.uid] = FakeGuest(launch, machine.status.process, hears_power=True)
        await self.store.put(f"machines/default/{machine.name}", codec.encode(machine))
        return await self.records.machine(f"machines/default/{machine.name}")

    async def change(self, name: str, change: Callable[[Machine], Machine]) -> None:
        await self.records.update(f"machines/default/{name}", change)

    async def ask(self, name: str, uid: str = "s", *, settle: bool = True, **spec: Any) -> Snapshot:
        """A user asks for the snapshot `name`."""
        snapshot = Snapshot(
            name=name, meta=Meta(uid=uid), spec=SnapshotSpec(**{"machine": name.partition(".")[0], **spec})
        )
        await self.store.put(f"snapshots/default/{name}", codec.encode(snapshot), expect=0)
        if settle:
            await self.loop.settle()
        return await self.get(name)

    async def get(self, name: str = "web.one") -> Snapshot:
        return await self.records.snapshot(f"snapshots/default/{name}")

    async def delete(self, name: str = "web.one") -> None:
        await self.records.change(f"snapshots/default/{name}", Snapshot, marked)
        await self.loop.settle()

    async def names(self) -> list[str]:
        return [snapshot.name for snapshot in await self.records.all(Snapshot)]

    async def events(self) -> list[str]:
        entries, _ = await self.store.list("events/")
        events = [codec.stored(entry.value, Event) for entry in entries if entry.value is not None]
        return [event.spec.reason for event in events]
