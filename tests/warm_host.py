"""A host for tests of warm templates: fakes of everything around them, and a virtual clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import msgspec

from roost.control.checkpoints import Checkpoint
from roost.control.making import Workshop
from roost.control.ports import blank_cards
from roost.control.reservations import Reservations
from roost.control.warm import LATER_SECONDS, Parts, Warm
from roost.control.warmth import SETTLE_SECONDS, Cold
from roost.errors import NotFound, RoostError, Unavailable
from roost.host.paths import Paths
from roost.hypervisor.base import Disk, Guest, Launch, Overlay, Saved
from roost.hypervisor.saved import release
from roost.model.machine import Machine
from roost.model.meta import GiB, Meta
from roost.storage.manifest import Manifest
from roost.testing.clock import VirtualClock
from roost.testing.hypervisor import FakeAgent, FakeGuest, FakeHypervisor
from roost.testing.network import FakeFabrics
from tests.control_plane import MANIFEST, WEB, FakeLayers, spec

TINY: Manifest = msgspec.structs.replace(MANIFEST, digest="sha256:bb", format="none")


class Inline(ThreadPoolExecutor):
    """Threads that do their work at once, so that virtual time does not overtake them."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


class Register:
    """A register of checkpoints without seals: `tampered` ones do not load, `full` lets nothing be written."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.written: dict[str, Checkpoint] = {}
        self.held: dict[str, Checkpoint] = {}
        self.pins: Counter[str] = Counter()
        self.tampered: set[str] = set()
        self.full: RoostError | None = None
        self.may_keep = asyncio.Event()
        self.may_keep.set()

    def hold(self, checkpoint: Checkpoint) -> None:
        self.held[checkpoint.id] = checkpoint

    async def keep(self, checkpoint: Checkpoint, purpose: Literal["snapshot", "warm"]) -> int:
        await self.may_keep.wait()
        if self.full is not None:
            raise self.full
        files = self.paths.checkpoint(checkpoint.id)
        files.directory.mkdir(parents=True)
        files.manifest.write_bytes(b"{}")
        self.written[checkpoint.id] = checkpoint
        return 2

    async def load(self, uid: str) -> Checkpoint:
        if uid in self.tampered:
            raise Unavailable("the checkpoint can not be used", "it does not match its seal")
        if uid not in self.held:
            raise NotFound(f"checkpoint {uid} does not exist")
        return self.held[uid]

    @contextlib.contextmanager
    def pinned(self, uid: str) -> Iterator[Checkpoint]:
        if uid not in self.held:
            raise NotFound(f"checkpoint {uid} is not loaded")
        checkpoint = self.held[uid]
        self.pins[uid] += 1
        try:
            yield checkpoint
        finally:
            self.pins[uid] -= 1
            self._let_go(checkpoint)

    def in_use(self, uid: str) -> bool:
        return self.pins[uid] > 0

    def find(self, uid: str) -> Checkpoint | None:
        return self.written.get(uid)

    def kept(self, purpose: Literal["snapshot", "warm"]) -> Mapping[str, Checkpoint]:
        return dict(self.written)

    def size(self, uid: str) -> int:
        return 2

    async def forget(self, uid: str) -> None:
        self.written.pop(uid, None)
        checkpoint = self.held.pop(uid, None)
        self.paths.checkpoint(uid).manifest.unlink(missing_ok=True)
        if checkpoint is not None:
            self._let_go(checkpoint)

    def _let_go(self, checkpoint: Checkpoint) -> None:
        if checkpoint.id not in self.held and not self.pins[checkpoint.id] and checkpoint.saved is not None:
            release(checkpoint.saved)


class Host:
    """Everything that warm templates act upon; `restart` is a new daemon over the same files."""

    def __init__(self, directory: Path) -> None:
        self.clock = VirtualClock()
        self.paths = Paths(directory / "state", directory / "run")
        self.paths.machines.mkdir(parents=True)
        self.hypervisor = Ovens()
        self.layers = FakeLayers()
        self.register = Register(self.paths)
        self.images = {MANIFEST.digest, TINY.digest}
        self.memory = 64 * GiB
        self.used = 0.0
        self.busy = 0.0
        self.woken: list[str] = []
        self.changes = 0
        self.restart()

    def restart(self) -> None:
        self.places = Reservations(self.clock, lambda: self.memory, 0)
        loose = FakeFabrics().loose
        shop = Workshop(self.hypervisor, self.layers, self.paths, self.clock, self.places, self.cpu_seconds, loose)
        self.warm = Warm(Parts(self.register, shop, self.images.__contains__, self.woken.append, self.change))

    def change(self) -> None:
        self.changes += 1

    async def passes(self, seconds: float) -> None:
        """Time passes, and what it woke comes to rest."""
        await self.clock.advance(seconds)
        await self.clock.advance(0)

    def cpu_seconds(self, pid: int) -> float:
        self.used += self.busy
        return self.used

    def launch(self, machine: Machine, manifest: Manifest = MANIFEST) -> Launch:
        files = self.paths.machine(machine.meta.uid)
        disks = () if manifest.format == "none" else (Disk(files.disk, (Path("image"),), serial="root"),)
        uid, cpus, memory = machine.meta.uid, machine.spec.cpus, machine.spec.memory
        launch = Launch(uid, "x86_64", cpus, memory, "tcg", "direct", files, disks=disks)
        return launch._replace(network=machine.spec.network, cards=blank_cards(machine))

    async def look(
        self, name: str = "web", *, project: str = "default", manifest: Manifest = MANIFEST, **changes: object
    ) -> Checkpoint | Literal["making"] | Cold:
        machine = Machine(
            name=name, project=project, meta=Meta(uid=f"uid-{project}-{name}"), spec=spec(**changes)(WEB.spec)
        )
        return await self.warm.look(machine, f"{project}/{name}", self.launch(machine, manifest), manifest)

    async def template(self, **how: object) -> Checkpoint:
        """A template, made when it is not there."""
        if isinstance(await self.look(**how), Cold):  # a shape beside another one waits its turn
            await self.passes(LATER_SECONDS)
        await self.passes(SETTLE_SECONDS)
        found = await self.look(**how)
        assert isinstance(found, Checkpoint)
        return found

    async def use(self, checkpoint: Checkpoint) -> None:
        self.warm.used(checkpoint, self.launch(WEB))
        await self.passes(0)

    def left(self) -> list[object]:
        """What is there of hidden machines: processes, files, memory."""
        tops = (self.paths.spares, self.paths.live_machines)
        entries = [entry for top in tops if top.is_dir() for entry in top.iterdir()]
        return [*entries, *self.hypervisor.running(), *([] if self.places.room() == self.memory else ["memory"])]


class Ovens(FakeHypervisor):
    """A hypervisor whose guests are saved with real descriptors, so that a leak or an early close shows."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: list[int] = []
        self.refuse_checkpoint: RoostError | None = None
        self.silent = False
        self.agent: type[FakeAgent] = FakeAgent
        self.build = "7.2"

    async def start(self, launch: Launch) -> Guest:
        await super().start(launch)
        guest = Loaf(launch, self.guests[launch.uid].process, hears_power=True)
        guest.oven, guest.silent, guest.refuse_checkpoint = self, self.silent, self.refuse_checkpoint
        guest.answering = self.agent()
        self.guests[launch.uid] = guest
        return guest

    def shape(self, launch: Launch) -> str:
        return f"{self.build} {super().shape(launch)}"

    def running(self) -> list[str]:
        return [uid for uid, guest in self.guests.items() if guest._state != "gone"]

    def open_devices(self) -> list[int]:
        return [device for device in self.devices if Path(f"/proc/self/fd/{device}").exists()]


class Loaf(FakeGuest):
    """A guest whose checkpoint has device state."""

    oven: Ovens

    async def checkpoint(
        self, overlays: Iterable[Overlay], copies: Iterable[tuple[Path, Path]] = (), *, memory: bool = True
    ) -> Saved:
        saved = await super().checkpoint(tuple(overlays), tuple(copies), memory=memory)
        device = os.memfd_create("device")
        os.write(device, b"device state")
        self.oven.devices.append(device)
        return saved._replace(device=device)


async def running(directory: Path) -> AsyncIterator[Host]:
    """A host that is wound up afterwards."""
    asyncio.get_running_loop().set_default_executor(Inline())
    made = Host(directory)
    yield made
    await made.warm.close()
    for device in made.hypervisor.open_devices():
        os.close(device)
