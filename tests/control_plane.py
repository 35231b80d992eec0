"""A whole control plane over a memory store, a fake hypervisor and a virtual clock; `begin` after `end` is a restart of the daemon."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from roost.control.custody import Custody
from roost.control.events import Recorder
from roost.control.loop import Loop
from roost.control.machines import Machines, World
from roost.control.pictures import Pictures
from roost.control.preparation import Prepared
from roost.control.records import Records
from roost.host.paths import Paths
from roost.log import spawn_task
from roost.model import codec
from roost.model.facts import HostFacts
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import GiB, Meta, MiB
from roost.model.node import Verdict
from roost.storage.manifest import Manifest
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock
from roost.testing.hypervisor import FakeHypervisor

FACTS = HostFacts(arch="x86_64", kernel="6.1", boot="this-boot", cpus=2, memory=8 * GiB)
MANIFEST = Manifest(
    digest="sha256:aa", name="disk", arch="x86_64", format="qcow2", size=1, virtual_size=GiB, firmwares=("direct", "bios"), agent="roost"
)  # fmt: skip


class FakePool:
    """A pool with one image."""

    def __init__(self) -> None:
        self.made: list[Path] = []

    def find(self, digest: str) -> Manifest | None:
        return MANIFEST if digest == MANIFEST.digest else None

    async def create_disk(self, manifest: Manifest, target: Path, size: int | None) -> None:
        target.write_bytes(b"disk")
        self.made.append(target)


class Bench:
    """A control plane; `restart` makes the next one over the same store and the same guests."""

    def __init__(self, directory: Path) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.hypervisor = FakeHypervisor()
        self.paths = Paths(directory / "state", directory / "run")
        self.pool = FakePool()
        self.memory_free = 4 * GiB
        self.begin()

    def begin(self) -> None:
        self.loop = Loop(self.store, self.clock)
        self.pictures = Pictures(self.store, "x86_64", lambda name, arch: name == "tiny", self.loop.wake)
        world = World(
            hypervisor=self.hypervisor,
            images=self.pool,
            pictures=self.pictures,
            paths=self.paths,
            facts=FACTS,
            clock=self.clock,
            verdict=_emulated,
            memory_free=lambda: self.memory_free,
            prepare=_prepare,
        )
        self.custody = Custody(self.hypervisor, self.paths, self.clock, FACTS.boot, self.loop.wake)
        self.machines = Machines(Records(self.store), Recorder(self.store), self.custody, world, self.loop.wake_after)
        self.loop.add("machines/", self.machines)
        self.tasks = [spawn_task(self.loop.run(), "loop"), spawn_task(self.pictures.follow(), "pictures")]

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
