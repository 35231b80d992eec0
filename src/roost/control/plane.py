"""The control plane of one host: all reconcilers and what they share, begun in order and ended in reverse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from roost import log
from roost.control import holds, housekeeping, poolwatch, snapshots, volumes, warm
from roost.control.addresses import Addresses
from roost.control.checkpoints import Checkpoints
from roost.control.contents import Contents
from roost.control.custody import Custody
from roost.control.events import Recorder
from roost.control.forecast import reserve
from roost.control.forwards import Forwards
from roost.control.holds import Holds, Keys
from roost.control.housekeeping import Housekeeping
from roost.control.images import ImageReconciler
from roost.control.images import Parts as ImageParts
from roost.control.images import Pool as ImagePool
from roost.control.keepers import LocalKeepers
from roost.control.loop import Loop
from roost.control.machines import Machines
from roost.control.making import Workshop
from roost.control.networks import Means as NetworkMeans
from roost.control.networks import Networks, Residents, RuleSets
from roost.control.origins import Origins
from roost.control.pictures import Pictures
from roost.control.pools import Pools
from roost.control.poolwatch import PoolWatch
from roost.control.ports import Ports
from roost.control.preparation import Prepared
from roost.control.programs import Means as ProgramMeans
from roost.control.programs import Programs
from roost.control.records import Records
from roost.control.reservations import Reservations
from roost.control.schedules import Schedules
from roost.control.snapshots import Snapshots
from roost.control.taking import Parts, Taker
from roost.control.volumes import Volumes
from roost.control.volumesnapshots import VolumeSnapshots
from roost.control.volumesources import Sources
from roost.control.warm import Warm
from roost.control.world import Pool as MachinePool
from roost.control.world import World
from roost.errors import NotFound
from roost.host import memory, processes
from roost.host.clock import Clock
from roost.host.paths import Paths
from roost.host.reserve import Reserve
from roost.hypervisor.base import Hypervisor
from roost.model.facts import HostFacts
from roost.model.machine import Machine
from roost.model.meta import Arch
from roost.model.network import Mode
from roost.model.node import Verdict
from roost.model.pool import Pool as StoragePool
from roost.model.program import Program
from roost.model.snapshot import Snapshot
from roost.network.base import Door, Fabrics
from roost.storage.layers import Layers
from roost.storage.manifest import Manifest
from roost.storage.pool import Pool as Place
from roost.store.base import Store

MACHINE_WORKERS = 64
"""Machines worked on at once: a step may wait for a guest (its set-up, its end), and others must not wait with it."""

PROGRAM_WORKERS = 32
"""Programs worked on at once."""

SNAPSHOT_WORKERS = 8
"""Snapshots written down at once."""

VOLUME_WORKERS = 16
"""Volumes worked on at once: one may take hours to move."""


class Pool(MachinePool, ImagePool, Protocol):
    """What machines and images need of the image pool together."""


class Engines(Protocol):
    """What the control plane needs of this host's engines."""

    @property
    def hypervisor(self) -> Hypervisor:
        """What runs machines."""
        ...

    @property
    def pool(self) -> Pool:
        """What makes images."""
        ...

    @property
    def layers(self) -> Layers:
        """What the disks stand on."""
        ...

    @property
    def known(self) -> Callable[[str, Arch], bool]:
        """Whether there is a template of this name."""
        ...

    @property
    def fabrics(self) -> Fabrics:
        """What makes networks."""
        ...

    @property
    def door(self) -> Callable[[Mode], Awaitable[tuple[Door, str]]]:
        """How a network of a mode reaches the world here, and why not better, or ""."""
        ...

    @property
    def residents(self) -> Residents:
        """Who the engine of networks asks for what machines are told of themselves."""
        ...

    @property
    def open_pool(self) -> Callable[[StoragePool], Awaitable[Place]]:
        """What opens the places where volumes live."""
        ...

    @property
    def keys(self) -> Keys:
        """The passphrases of encrypted volumes."""
        ...

    @property
    def prepare(self) -> Callable[[Machine, Manifest], Awaitable[Prepared]]:
        """What is made before a first start."""
        ...


class Here(NamedTuple):
    """What the control plane is told of its host."""

    store: Store
    paths: Paths
    facts: HostFacts
    clock: Clock
    verdict: Callable[[], Awaitable[Verdict]]
    node: str


class Storage(NamedTuple):
    """Pools and volumes."""

    pools: Pools
    holds: Holds
    watch: PoolWatch


class Plane(NamedTuple):
    """The reconcilers, running."""

    loop: Loop
    custody: Custody
    images: ImageReconciler
    checkpoints: Checkpoints
    layers: Layers
    warm: Warm
    schedules: Schedules
    housekeeping: Housekeeping
    programs: Programs
    contents: Contents
    networks: Networks
    storage: Storage
    places: Reservations

    def running(self) -> int:
        """Machines and programs that run."""
        return self.custody.running() + self.programs.running()

    def idle(self) -> bool:
        """Whether nothing is being done."""
        return self.loop.idle() and self.schedules.loop.idle() and self.housekeeping.idle() and not self.warm.busy


async def begin(here: Here, engine: Engines, stack: AsyncExitStack) -> Plane:
    """Put the control plane together and start it; `stack` stops it in order and lets the guests go on."""
    shared = await _begin_shared(here, engine, stack)
    loop, custody, clock = shared.loop, shared.custody, here.clock
    common = shared.records, shared.recorder
    house = Housekeeping(
        *common, housekeeping.Parts(engine.layers, shared.checkpoints, here.paths, custody.guest, clock)
    )
    templates = await _begin_warm(here, engine, shared, house, stack)
    taker = Taker(Parts(custody, engine.layers, engine.pool, house, here.paths))
    storage = await _begin_storage(here, engine, shared, stack)
    stands = _Stands(engine.layers, shared.checkpoints, templates, storage.pools)
    images = ImageReconciler(*common, ImageParts(engine.pool, here.facts.arch, stands))
    schedules = Schedules(*common, clock, _wall)
    contents = Contents(here.paths)
    programs = await _begin_programs(here, shared, contents, stack)
    networks, ports = _begin_networks(here, engine, shared, stack)
    plane = Plane(
        loop,
        custody,
        images,
        shared.checkpoints,
        engine.layers,
        templates,
        schedules,
        house,
        programs,
        contents,
        networks,
        storage,
        shared.places,
    )
    world = _world(here, engine, shared, plane, taker, ports)
    means = snapshots.Means(custody.guest, taker, shared.checkpoints, house, clock, _wall)
    loop.add("machines/", Machines(*common, custody, world, loop.wake_after), workers=MACHINE_WORKERS)
    loop.add("programs/", programs, workers=PROGRAM_WORKERS)
    loop.add("images/", images)
    loop.add("projects/", _Projects(here.store, templates))
    loop.add("snapshots/", Snapshots(*common, means, loop.wake_after), workers=SNAPSHOT_WORKERS)
    for name, work in (
        ("reconcile loop", loop.run()),
        ("images for machines", world.pictures.follow()),
        ("schedules", schedules.loop.run()),
        ("housekeeping", house.run()),
    ):
        stack.callback(log.spawn_task(work, name).cancel)
    stack.push_async_callback(schedules.loop.stop)
    stack.push_async_callback(loop.stop)
    return plane


class _Shared(NamedTuple):
    """What several reconcilers use."""

    records: Records
    recorder: Recorder
    custody: Custody
    checkpoints: Checkpoints
    places: Reservations
    loop: Loop


async def _begin_shared(here: Here, engine: Engines, stack: AsyncExitStack) -> _Shared:
    """Also ends and removes what a killed daemon left and nobody owns, before anything else is begun."""
    records, loop = Records(here.store), Loop(here.store, here.clock)
    custody = Custody(engine.hypervisor, here.paths, here.clock, here.facts.boot, loop.wake)
    stack.push_async_callback(custody.detach)
    stack.push_async_callback(engine.hypervisor.close)
    await engine.layers.sweep()
    await custody.sweep(await records.machine_uids())
    checkpoints = Checkpoints(here.paths, budget=here.facts.memory // 4)
    await checkpoints.begin({snapshot.meta.uid for snapshot in await records.all(Snapshot)})
    stack.callback(checkpoints.close)
    places = Reservations(here.clock, memory.available, reserve(memory.total()))
    stack.callback(places.close)
    return _Shared(records, Recorder(here.store), custody, checkpoints, places, loop)


def _world(here: Here, engine: Engines, shared: _Shared, plane: Plane, taker: Taker, ports: Ports) -> World:
    reserved = Reserve(here.paths.reserve)
    reserved.hold()
    return World(
        hypervisor=engine.hypervisor,
        images=engine.pool,
        layers=engine.layers,
        house=plane.housekeeping,
        pictures=Pictures(here.store, here.facts.arch, engine.known, shared.loop.wake),
        origins=Origins(shared.records, shared.checkpoints, taker, here.clock),
        checkpoints=shared.checkpoints,
        taker=taker,
        templates=plane.warm,
        paths=here.paths,
        facts=here.facts,
        clock=here.clock,
        verdict=here.verdict,
        reservations=shared.places,
        reserve=reserved,
        prepare=engine.prepare,
        ports=ports,
        holds=plane.storage.holds,
        watch=plane.storage.watch,
        node=here.node,
    )


async def _begin_programs(here: Here, shared: _Shared, contents: Contents, stack: AsyncExitStack) -> Programs:
    """Also ends and removes what a killed daemon left of programs that are no more."""
    keepers = LocalKeepers(here.paths, contents)
    await keepers.sweep({program.meta.uid for program in await shared.records.all(Program)})
    means = ProgramMeans(keepers, shared.places, here.clock, _wall, here.facts.boot, here.node)
    loop = shared.loop
    programs = Programs(shared.records, shared.recorder, means, loop.wake, loop.wake_after)
    stack.callback(programs.detach)
    return programs


def _begin_networks(here: Here, engine: Engines, shared: _Shared, stack: AsyncExitStack) -> tuple[Networks, Ports]:
    """Networks, rule sets and forwards, and what plugs machines in."""
    loop, addresses = shared.loop, Addresses(here.store, _wall)
    means = NetworkMeans(engine.fabrics, addresses, engine.door, loop.wake, engine.residents)
    networks = Networks(shared.records, shared.recorder, means)
    loop.add("networks/", networks)
    loop.add("rulesets/", RuleSets(shared.records))
    loop.add("forwards/", Forwards(shared.records, networks))
    for name, work in (
        ("machines for networks", networks.follow_machines()),
        ("rule sets for networks", networks.follow_rules()),
        ("forwards for networks", networks.follow_forwards()),
    ):
        stack.callback(log.spawn_task(work, name).cancel)
    return networks, Ports(shared.records, networks, addresses)


async def _begin_storage(here: Here, engine: Engines, shared: _Shared, stack: AsyncExitStack) -> Storage:
    """Pools, volumes and their snapshots."""
    loop, records, recorder = shared.loop, shared.records, shared.recorder
    pools = Pools(records, recorder, engine.open_pool, lambda: watch.changed())
    watch = PoolWatch(poolwatch.Parts(records, recorder, pools, here.clock, loop.wake))
    await pools.begin()
    await watch.begin()
    held = Holds(holds.Parts(records, pools, engine.keys, shared.custody.guest, here.facts.boot, loop.wake))
    sources = Sources(records, held, engine.pool, lambda digest: here.paths.image(digest).disk)
    means = volumes.Means(held, sources, here.clock, _wall, watch.changed, loop.wake_after)
    loop.add("pools/", pools)
    loop.add("volumes/", Volumes(records, recorder, means), workers=VOLUME_WORKERS)
    loop.add("volumesnapshots/", VolumeSnapshots(records, recorder, held, watch.changed), workers=VOLUME_WORKERS)
    stack.callback(log.spawn_task(watch.run(), "pools").cancel)
    return Storage(pools, held, watch)


class _Projects:
    """A project that is gone takes its templates along: another of its name must not find them."""

    def __init__(self, store: Store, templates: Warm) -> None:
        self._store = store
        self._templates = templates

    async def reconcile(self, key: str) -> None:
        """Nothing, while the project is there."""
        try:
            await self._store.get(key)
        except NotFound:
            await self._templates.forget_project(key.rpartition("/")[2])


class _Stands:
    """What stands on images besides machines: the layers of their disks, and warm templates, which make way."""

    def __init__(self, layers: Layers, checkpoints: Checkpoints, templates: Warm, pools: Pools) -> None:
        self._layers = layers
        self._pools = pools
        self._checkpoints = checkpoints
        self.forget_image = templates.forget_image

    def images(self) -> set[str]:
        """The digests that a layer, a machine's disk, a snapshot or a volume stands on."""
        kept = self._checkpoints.kept("snapshot").values()
        return self._layers.images() | {one.traits.image for one in kept} | self._pools.images()

    def snapshots(self, digest: str) -> set[str]:
        """The uids of the snapshots that stand on this image."""
        return {uid for uid, kept in self._checkpoints.kept("snapshot").items() if kept.traits.image == digest}


async def _begin_warm(here: Here, engine: Engines, shared: _Shared, house: Housekeeping, stack: AsyncExitStack) -> Warm:
    workshop = Workshop(
        engine.hypervisor,
        engine.layers,
        here.paths,
        here.clock,
        shared.places,
        processes.cpu_seconds,
        engine.fabrics.loose,
    )

    def has_image(digest: str) -> bool:
        return engine.pool.find(digest) is not None

    made = Warm(warm.Parts(shared.checkpoints, workshop, has_image, shared.loop.wake, house.changed))
    shared.checkpoints.count(made.roots)
    await made.begin()
    stack.push_async_callback(made.close)
    return made


def _wall() -> datetime:
    return datetime.now(UTC)
