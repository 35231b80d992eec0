"""A whole control plane over a memory store, a fake hypervisor and a virtual clock; `begin` after `end` is a restart of the daemon."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from roost.control.addresses import Addresses
from roost.control.checkpoints import Checkpoint, Checkpoints
from roost.control.custody import Custody
from roost.control.events import Recorder
from roost.control.forwards import Forwards
from roost.control.holds import Holds
from roost.control.holds import Parts as HoldParts
from roost.control.loop import Loop
from roost.control.machines import Machines
from roost.control.networks import Means, Networks, Residents, RuleSets
from roost.control.origins import Origins
from roost.control.pictures import Pictures
from roost.control.pools import Pools
from roost.control.poolwatch import Parts as WatchParts
from roost.control.poolwatch import PoolWatch
from roost.control.ports import Ports
from roost.control.preparation import Prepared
from roost.control.records import Records
from roost.control.reservations import Reservations
from roost.control.taking import Parts, Taker
from roost.control.volumes import Means as VolumeMeans
from roost.control.volumes import Volumes
from roost.control.volumesnapshots import VolumeSnapshots
from roost.control.volumesources import Sources
from roost.control.warmth import Cold
from roost.control.world import World
from roost.errors import RoostError, Unavailable
from roost.host.paths import MachineFiles, Paths
from roost.host.reserve import Reserve
from roost.hypervisor.base import Launch
from roost.log import spawn_task
from roost.model import codec
from roost.model.facts import HostFacts
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import GiB, Meta, MiB
from roost.model.node import Verdict
from roost.model.pool import Pool, PoolSpec
from roost.storage.layers import Base, Next
from roost.storage.manifest import Manifest
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock
from roost.testing.hypervisor import FakeHypervisor
from roost.testing.network import FakeFabrics
from roost.testing.pool import FakePool as FakeVolumePool

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
FACTS = HostFacts(arch="x86_64", kernel="6.1", boot="this-boot", cpus=2, memory=8 * GiB)
MANIFEST = Manifest(
    digest="sha256:aa", name="disk", arch="x86_64", format="qcow2", size=1, virtual_size=GiB, firmwares=("direct", "bios"), agent="roost"
)  # fmt: skip


class FakePool:
    """A pool with one image."""

    def find(self, digest: str) -> Manifest | None:
        return MANIFEST if digest == MANIFEST.digest else None


class FakeLayers:
    """Layers that are only remembered: a disk is a file that names what it stands on."""

    def __init__(self) -> None:
        self.made = 0
        self.disks: list[Path] = []
        self.nexts: dict[Path, Next] = {}

    def base_of(self, machine: MachineFiles, image: str) -> Base:
        return Base(layer=machine.base.read_text()) if machine.base.exists() else Base(image=image)

    def below(self, base: Base) -> tuple[Path, ...]:
        return (Path(base.layer or base.image),)

    def virtual_size(self, base: Base) -> int:
        return GiB

    async def create_disk(self, base: Base, machine: MachineFiles, size: int | None = None) -> None:
        machine.disk.write_bytes(b"overlay")
        self.disks.append(machine.disk)
        machine.base.unlink(missing_ok=True)
        if base.layer:
            machine.base.write_text(base.layer)

    async def prepare(self, machine: MachineFiles, image: str) -> Next:
        self.made += 1
        self.nexts[machine.keep] = Next(f"layer-{self.made}", machine.next_disk, f"node-{self.made}")
        return self.nexts[machine.keep]

    def pending(self, machine: MachineFiles) -> Next | None:
        return self.nexts.get(machine.keep)

    async def settle(self, machine: MachineFiles, image: str, *, covered: bool) -> Base:
        done = self.nexts.pop(machine.keep)
        if covered:
            machine.base.write_text(done.layer)
        return self.base_of(machine, image)

    async def collect(self, roots: object) -> list[str]:
        return []

    async def sweep(self) -> None:
        return None

    def images(self) -> set[str]:
        return set()


class FakeHouse:
    """Housekeeping that never does anything."""

    def holding(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def using(self, uid: str) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class FakeTemplates:
    """No template, unless a test brings one."""

    def __init__(self) -> None:
        self.answer: Checkpoint | Literal["making"] | Cold = Cold("templates are not what this is about", expected=True)
        self.asked: list[str] = []

    async def look(
        self, machine: Machine, key: str, launch: Launch, manifest: Manifest
    ) -> Checkpoint | Literal["making"] | Cold:
        self.asked.append(key)
        return self.answer

    async def failed(self, checkpoint: Checkpoint, error: RoostError) -> Cold:
        return Cold(str(error))

    def used(self, checkpoint: Checkpoint, launch: Launch) -> None:
        self.asked.append(f"used {checkpoint.id}")


class FakeKeys:
    """One key for each project, unless a test takes them away."""

    def __init__(self) -> None:
        self.lost = False
        self.made = 1

    async def current(self, project: str) -> str:
        return f"{project}-{self.made}"

    async def rotate(self, project: str) -> str:
        self.made += 1
        return await self.current(project)

    async def key(self, project: str, name: str) -> bytes:
        if self.lost:
            raise Unavailable("the key is lost", "nobody has it", "look in a backup")
        return name.encode()


class Bench:
    """A control plane; `restart` makes the next one over the same store and the same guests."""

    def __init__(self, directory: Path) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.hypervisor = FakeHypervisor()
        self.paths = Paths(directory / "state", directory / "run")
        self.pool = FakePool()
        self.layers = FakeLayers()
        self.templates = FakeTemplates()
        self.fabrics = FakeFabrics()
        self.memory_free = 4 * GiB
        self.directory = directory
        self.places: dict[str, FakeVolumePool] = {}
        self.keys = FakeKeys()
        self.begin()

    def begin(self) -> None:
        self.loop = Loop(self.store, self.clock)
        self.pictures = Pictures(self.store, "x86_64", lambda name, arch: name == "tiny", self.loop.wake)
        self.custody = Custody(self.hypervisor, self.paths, self.clock, FACTS.boot, self.loop.wake)
        self.checkpoints = Checkpoints(self.paths, budget=GiB)
        self.house = FakeHouse()
        self.taker = Taker(Parts(self.custody, self.layers, self.pool, self.house, self.paths))
        records, recorder = Records(self.store), Recorder(self.store)
        self.addresses = Addresses(self.store, lambda: EPOCH + timedelta(seconds=self.clock.now()))
        self.networks = Networks(
            records, recorder, Means(self.fabrics, self.addresses, self.fabrics.door, self.loop.wake, Residents())
        )
        self._begin_storage(records, recorder)
        world = World(
            hypervisor=self.hypervisor,
            images=self.pool,
            layers=self.layers,
            house=self.house,
            origins=Origins(Records(self.store), self.checkpoints, self.taker, self.clock),
            checkpoints=self.checkpoints,
            taker=self.taker,
            templates=self.templates,
            pictures=self.pictures,
            paths=self.paths,
            facts=FACTS,
            clock=self.clock,
            verdict=_emulated,
            reserve=Reserve(self.paths.reserve),
            reservations=Reservations(self.clock, lambda: self.memory_free, kept_back=0),
            prepare=_prepare,
            ports=Ports(records, self.networks, self.addresses),
            holds=self.holds,
            watch=self.watch,
        )
        self.machines = Machines(records, recorder, self.custody, world, self.loop.wake_after)
        self.loop.add("machines/", self.machines)
        self.loop.add("networks/", self.networks)
        self.loop.add("rulesets/", RuleSets(records))
        self.loop.add("forwards/", Forwards(records, self.networks))
        following = (self.networks.follow_machines(), self.networks.follow_rules(), self.networks.follow_forwards())
        tasks = (self.loop.run(), self.pictures.follow(), *following)
        self.tasks = [spawn_task(work, f"work {number}") for number, work in enumerate(tasks)]

    def _begin_storage(self, records: Records, recorder: Recorder) -> None:
        """Volumes in fake pools, which outlive a restart as what they stand for does."""
        self.pools = Pools(records, recorder, self.open_pool, lambda: None)
        self.watch = PoolWatch(WatchParts(records, recorder, self.pools, self.clock, self.loop.wake))
        parts = HoldParts(records, self.pools, self.keys, self.custody.guest, "fake", self.loop.wake)
        self.holds = Holds(parts)
        sources = Sources(records, self.holds, self.pool, lambda digest: self.directory / digest)
        means = VolumeMeans(self.holds, sources, self.clock, self.wall, lambda: None, self.loop.wake_after)
        self.loop.add("pools/", self.pools)
        self.loop.add("volumes/", Volumes(records, recorder, means))
        self.loop.add("volumesnapshots/", VolumeSnapshots(records, recorder, self.holds, lambda: None))

    def wall(self) -> datetime:
        return EPOCH + timedelta(seconds=self.clock.now())

    async def open_pool(self, pool: Pool) -> FakeVolumePool:
        return self.places.setdefault(pool.name, FakeVolumePool(self.directory / "pools" / pool.name))

    async def add_pool(self, name: str = "default", **spec: object) -> None:
        pool = Pool(name=name, meta=Meta(uid=f"pool-{name}"), spec=msgspec.structs.replace(PoolSpec(), **spec))
        await self.store.put(f"pools/{name}", codec.encode(pool), expect=0)
        await self.settle()

    async def end(self) -> None:
        await self.loop.stop()
        for task in self.tasks:
            task.cancel()

    async def put(self, machine: Machine, expect: int = 0) -> Machine:
        await self.store.put(f"machines/default/{machine.name}", codec.encode(machine), expect=expect)
        await self.settle()
        return await self.get(machine.name)

    async def get(self, name: str = "web") -> Machine:
        return await Records(self.store).machine(f"machines/default/{name}")

    async def wish(self, change: Callable[[MachineSpec], MachineSpec], name: str = "web") -> Machine:
        def changed(machine: Machine) -> Machine:
            meta = msgspec.structs.replace(machine.meta, generation=machine.meta.generation + 1)
            return msgspec.structs.replace(machine, spec=change(machine.spec), meta=meta)

        await Records(self.store).update(f"machines/default/{name}", changed)
        await self.settle()
        return await self.get(name)

    async def settle(self) -> None:
        await self.loop.settle()

    async def image(self, status: ImageStatus, name: str = "disk") -> None:
        image = Image(name=name, meta=Meta(uid="i"), spec=ImageSpec(upload=True), status=status)
        await self.store.put(f"images/default/{name}", codec.encode(image))
        await self.settle()


async def _emulated() -> Verdict:
    return Verdict(accelerator="tcg", reason="no KVM here")


async def _prepare(machine: Machine, manifest: Manifest) -> Prepared:
    return Prepared()


READY = ImageStatus(phase="ready", digest=MANIFEST.digest)
WEB = Machine(name="web", meta=Meta(uid="0" * 8), spec=MachineSpec(image="disk", memory=256 * MiB))


def spec(**changes: object) -> Callable[[MachineSpec], MachineSpec]:
    return lambda before: msgspec.structs.replace(before, **changes)
