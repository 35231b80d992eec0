"""A daemon with fake guests on a real unix socket, in a thread of its own: real API, store, loop and reconciler over the real wire."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from roost import log
from roost.api.app import create_app
from roost.api.server import make_server
from roost.api.services import Services
from roost.build import build_id
from roost.control.addresses import Addresses
from roost.control.admission import Admission
from roost.control.checkpoints import Checkpoints
from roost.control.custody import Custody
from roost.control.events import Recorder, now
from roost.control.forwards import Forwards
from roost.control.holds import Holds
from roost.control.holds import Parts as HoldParts
from roost.control.loop import Loop
from roost.control.machines import Machines
from roost.control.networks import Means as NetworkMeans
from roost.control.networks import Networks, Residents, RuleSets
from roost.control.origins import Origins
from roost.control.pictures import Pictures
from roost.control.pools import Pools
from roost.control.poolwatch import Parts as WatchParts
from roost.control.poolwatch import PoolWatch
from roost.control.ports import Ports
from roost.control.preparation import Prepared
from roost.control.programs import Means, Programs
from roost.control.records import Records
from roost.control.reservations import Reservations
from roost.control.taking import Parts, Taker
from roost.control.volumes import Means as VolumeMeans
from roost.control.volumes import Volumes
from roost.control.volumesnapshots import VolumeSnapshots
from roost.control.volumesources import Sources
from roost.control.world import World
from roost.errors import Conflict
from roost.host.clock import SystemClock
from roost.host.paths import Paths
from roost.host.reserve import Reserve
from roost.host.sockets import listen_unix
from roost.hypervisor.base import Command, Session
from roost.log import spawn_task
from roost.model import codec
from roost.model.facts import HostFacts
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.machine import Machine
from roost.model.meta import GiB, Meta
from roost.model.node import Node, Verdict
from roost.model.pool import Pool as StoragePool
from roost.model.project import Project
from roost.storage.manifest import Manifest
from roost.store.memory import MemoryStore
from roost.testing.hypervisor import FakeAgent, FakeConsole, FakeGuest, FakeHypervisor, FakeSession
from roost.testing.network import FakeFabrics
from roost.testing.pool import FakePool
from tests.control_plane import FakeHouse, FakeKeys, FakeLayers, FakeTemplates
from tests.fake_keepers import FakeKeepers
from tests.fake_networks import FakeNetworks

FACTS = HostFacts(arch="x86_64", kernel="6.1", boot="this-boot", cpus=2, memory=8 * GiB)
MANIFEST = Manifest(
    digest="sha256:aa", name="disk", arch="x86_64", format="qcow2", size=1, virtual_size=GiB, firmwares=("direct", "bios"), agent="roost"
)  # fmt: skip


class Pool:
    """One image that is always there."""

    def find(self, digest: str) -> Manifest | None:
        return MANIFEST

    async def create_disk(self, manifest: Manifest, target: Path, size: int | None) -> None:
        target.write_bytes(b"disk")


class Uploads:
    """Keeps what comes."""

    def __init__(self, store: MemoryStore) -> None:
        self.content: dict[str, bytes] = {}
        self._store = store

    async def upload(self, image: Image, content: AsyncIterator[bytes]) -> None:
        self.content[image.name] = b"".join([part async for part in content])
        ready = Image(
            name=image.name, meta=image.meta, spec=image.spec, status=ImageStatus(phase="ready", digest="sha256:aa")
        )
        await self._store.put(f"images/default/{image.name}", codec.encode(ready))

    async def download(self, image: Image, format: str = "qcow2") -> AsyncIterator[bytes]:
        if image.name not in self.content:
            raise Conflict(f'image "{image.name}" was not exported', "it has no disk")
        return self._parts(self.content[image.name])

    async def _parts(self, content: bytes) -> AsyncIterator[bytes]:
        yield content


class Served:
    """The running daemon; `socket` is where, `guests` what it runs. `call` runs a coroutine on its loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "run" / "api.sock"
        self.hypervisor = FakeHypervisor()
        self.uploads: Uploads
        self.custody: Custody
        self.store: MemoryStore
        self._loop: asyncio.AbstractEventLoop
        self._listening = threading.Event()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), daemon=True)

    def begin(self) -> None:
        self._thread.start()
        assert self._listening.wait(20)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def guest(self, name: str) -> FakeGuest:
        machine = self.call(Records(self.store).machine(f"machines/default/{name}"))
        return self.hypervisor.guests[machine.meta.uid]

    async def _main(self) -> None:
        log.setup(io.StringIO())
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        clock = SystemClock()
        self.store = store = MemoryStore(clock)
        self.uploads = Uploads(store)
        for name in ("default", "system"):
            await store.put(f"projects/{name}", codec.encode(Project(name=name, meta=Meta(uid=name))))
        await store.put("nodes/system/here", codec.encode(Node(name="here")))
        tiny = Image(
            name="tiny",
            meta=Meta(uid="t"),
            spec=ImageSpec(template="tiny"),
            status=ImageStatus(phase="ready", digest="sha256:aa"),
        )
        await store.put("images/default/tiny", codec.encode(tiny))
        loop = Loop(store, clock)
        pictures = Pictures(store, "x86_64", lambda name, arch: name == "tiny", loop.wake)
        paths = Paths(self.directory / "state", self.directory / "run")
        self.custody = Custody(self.hypervisor, paths, clock, FACTS.boot, loop.wake)
        await self._storage(paths, loop)
        loop.add("machines/", self._machines(paths, loop, pictures))
        loop.add("programs/", self._programs(loop))
        tasks = [spawn_task(loop.run(), "loop"), spawn_task(pictures.follow(), "pictures")]
        tasks += [spawn_task(follow(), "networks") for follow in self._following]
        admission = Admission(store, "x86_64")
        services = Services(
            store=store,
            guests=Guests(self.custody),
            uploads=self.uploads,
            programs=self.keepers,
            networks=FakeNetworks(),
            now=now,
            owner=os.getuid(),
            node="here",
            build=build_id(),
            admit=admission.admit,
            dismiss=admission.dismiss,
        )
        server = make_server(create_app(services), os.getuid())
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        with listen_unix(self.socket) as listener:
            serving = spawn_task(server.serve(sockets=[listener]), "server")
            self._listening.set()
            await self._stop.wait()
            server.should_exit = server.force_exit = True
            await asyncio.wait([serving])
        await loop.stop()
        for task in tasks:
            task.cancel()

    async def _storage(self, paths: Paths, loop: Loop) -> None:
        records, recorder, clock = Records(self.store), Recorder(self.store), SystemClock()

        async def opened(pool: StoragePool) -> FakePool:
            return FakePool(self.directory / "pools" / pool.name)

        pools = Pools(records, recorder, opened, lambda: None)
        self._watch = PoolWatch(WatchParts(records, recorder, pools, clock, loop.wake))
        self._holds = Holds(HoldParts(records, pools, FakeKeys(), self.custody.guest, "fake", loop.wake))
        sources = Sources(records, self._holds, Pool(), lambda digest: paths.image(digest).disk)
        means = VolumeMeans(self._holds, sources, clock, lambda: datetime.now(UTC), lambda: None, loop.wake_after)
        loop.add("pools/", pools)
        loop.add("volumes/", Volumes(records, recorder, means))
        loop.add("volumesnapshots/", VolumeSnapshots(records, recorder, self._holds, lambda: None))
        await self.store.put("pools/default", codec.encode(StoragePool(name="default", meta=Meta(uid="p"))))
        await pools.begin()

    def _programs(self, loop: Loop) -> Programs:
        self.keepers = FakeKeepers()
        self.keepers.uploaded = lambda program: loop.wake(f"programs/{program.project}/{program.name}")
        clock = SystemClock()
        places = Reservations(clock, lambda: 64 * GiB, kept_back=0)
        means = Means(self.keepers, places, clock, lambda: datetime.now(UTC), FACTS.boot)
        return Programs(Records(self.store), Recorder(self.store), means, loop.wake, loop.wake_after)

    def _ports(self, records: Records, loop: Loop) -> Ports:
        fabrics, addresses = FakeFabrics(), Addresses(self.store, lambda: datetime.now(UTC))
        networks = Networks(
            records, Recorder(self.store), NetworkMeans(fabrics, addresses, fabrics.door, loop.wake, Residents())
        )
        loop.add("networks/", networks)
        loop.add("rulesets/", RuleSets(records))
        loop.add("forwards/", Forwards(records, networks))
        self._following = (networks.follow_machines, networks.follow_rules, networks.follow_forwards)
        return Ports(records, networks, addresses)

    def _machines(self, paths: Paths, loop: Loop, pictures: Pictures) -> Machines:
        clock, records, layers, pool, house = SystemClock(), Records(self.store), FakeLayers(), Pool(), FakeHouse()
        checkpoints = Checkpoints(paths, budget=GiB)
        taker = Taker(Parts(self.custody, layers, pool, house, paths))
        world = World(
            hypervisor=self.hypervisor,
            images=pool,
            layers=layers,
            house=house,
            origins=Origins(records, checkpoints, taker, clock),
            checkpoints=checkpoints,
            taker=taker,
            templates=FakeTemplates(),
            pictures=pictures,
            paths=paths,
            facts=FACTS,
            clock=clock,
            verdict=_emulated,
            reserve=Reserve(paths.reserve),
            reservations=Reservations(clock, lambda: 64 * GiB, kept_back=0),
            prepare=_prepare,
            ports=self._ports(records, loop),
            holds=self._holds,
            watch=self._watch,
        )
        return Machines(records, Recorder(self.store), self.custody, world, loop.wake_after)


class Echo(FakeConsole):
    """Shows what is typed."""

    def __init__(self) -> None:
        super().__init__()
        self._typed: asyncio.Queue[bytes] = asyncio.Queue()

    async def follow(self) -> AsyncIterator[bytes]:
        yield b"login: "
        while True:
            yield await self._typed.get()

    async def write(self, data: bytes) -> None:
        await self._typed.put(data)


class Talker(FakeSession):
    """A session that remembers its sizes, and that a SIGTERM ends."""

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.sizes = [command.terminal]

    async def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def signal(self, number: int) -> None:
        await super().signal(number)
        if number == signal.SIGTERM:
            await self.end_input()


class Talkers(FakeAgent):
    """An agent that keeps its sessions."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: list[Talker] = []

    async def execute(self, command: Command) -> Session:
        self.sessions.append(Talker(command))
        return self.sessions[-1]


class Guests:
    """The reconciler's guests, and a console record for those that ended."""

    def __init__(self, custody: Custody) -> None:
        self.guest = custody.guest
        self.greeted = custody.greeted

    def record(self, machine: Machine) -> bytes:
        return b"an older boot\n"


async def _emulated() -> Verdict:
    return Verdict(accelerator="tcg", reason="no KVM here")


async def _prepare(machine: Machine, manifest: Manifest) -> Prepared:
    return Prepared()


@contextmanager
def served(directory: Path) -> Iterator[Served]:
    """A daemon that serves until the context ends."""
    daemon = Served(directory)
    daemon.begin()
    try:
        yield daemon
    finally:
        daemon.end()
