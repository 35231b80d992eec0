"""The daemon: the only place that names concrete backends; it builds everything, serves it, and stops it in the right order."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from litestar import Litestar

from roost import guest, log
from roost.api.app import create_app
from roost.api.server import Server, make_server
from roost.api.services import Services, no_report
from roost.build import build_id
from roost.config import Config, load
from roost.control import examination, plane
from roost.control.admission import Admission
from roost.control.appliances import Appliances
from roost.control.custody import Custody
from roost.control.events import now
from roost.control.exports import Pool as ExportPool
from roost.control.holds import Keys
from roost.control.images import ImageReconciler
from roost.control.networklooks import NetworkLooks
from roost.control.networks import Residents
from roost.control.nodes import announce, node_name
from roost.control.plane import Here, Plane
from roost.control.plane import Pool as ControlPool
from roost.control.preparation import Prepared, prepare
from roost.control.records import Records
from roost.errors import Conflict, Invalid, NotFound, Problem, RoostError
from roost.host import cgroups, doctor, escapes, failpoints, memory, service
from roost.host import facts as host_facts
from roost.host.clock import SystemClock
from roost.host.jail import program_binds
from roost.host.outputlog import PROGRAM_LIMIT, OutputLog, Tail
from roost.host.paths import Paths
from roost.host.sockets import listen_unix
from roost.hypervisor.accel import Accelerator
from roost.hypervisor.base import DirectBoot, Hypervisor
from roost.hypervisor.console import RECORD
from roost.hypervisor.qemu import Qemu
from roost.model import codec
from roost.model.facts import HostFacts
from roost.model.image import DiskFormat, Image
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Arch, Meta
from roost.model.network import Mode
from roost.model.node import Verdict
from roost.model.pool import Pool as StoragePool
from roost.model.program import RESTING, Program
from roost.model.project import Project
from roost.network.base import Door, Fabrics
from roost.network.fabric import NetworkFabric
from roost.network.services import Services as NetworkServices
from roost.network.usernet import UserNetwork
from roost.storage import fetch, overlays
from roost.storage.directory import DirectoryPool
from roost.storage.images import Images
from roost.storage.keys import KeyStore
from roost.storage.layers import Layers
from roost.storage.manifest import Manifest, Progress
from roost.storage.pool import Pool as Place
from roost.store.base import Store
from roost.store.sqlite import SqliteStore

PIECE = 1 << 20
"""Bytes of a disk read at once."""

FOLLOW_SECONDS = 0.1
"""Between two looks whether a program has printed more."""

BACKLOG = 1024
"""Connections that may wait to be accepted."""
_log = log.get(__name__)


class Pool(ControlPool, ExportPool, Protocol):
    """What machines, images and uploads need of the image pool together."""

    async def ensure_upload(
        self,
        stream: AsyncIterator[bytes],
        limit: int,
        progress: Progress,
        *,
        name: str = "upload",
        sha256: str | None = None,
    ) -> Manifest:
        """The disk that `stream` delivers."""
        ...

    async def export(self, digest: str, format: DiskFormat, name: str) -> AsyncIterator[bytes]:
        """The disk of an image, converted."""
        ...


async def nothing() -> None:
    """What there is to do at the end of engines that hold nothing."""


class Engines(NamedTuple):
    """What really runs machines and makes images on this host; tests bring fakes."""

    hypervisor: Hypervisor
    pool: Pool
    layers: Layers
    verdict: Callable[[], Awaitable[Verdict]]
    prepare: Callable[[Machine, Manifest], Awaitable[Prepared]]
    known: Callable[[str, Arch], bool]
    fabrics: Fabrics
    door: Callable[[Mode], Awaitable[tuple[Door, str]]]
    residents: Residents
    open_pool: Callable[[StoragePool], Awaitable[Place]]
    keys: Keys
    close: Callable[[], Awaitable[None]] = nothing
    doctor: Callable[[str], Awaitable[Mapping[str, Any]]] = no_report


MakeEngines: TypeAlias = Callable[[Paths, HostFacts], Awaitable[Engines]]


class Options(NamedTuple):
    """How `roost serve` was called. `ready` is a descriptor that is told "ready", or the error, in one line."""

    idle_exit: float | None = None
    ready: int | None = None


class Daemon(NamedTuple):
    """The parts of a built daemon, not yet serving."""

    app: Litestar
    store: Store
    control: Plane
    server: Server


class _Guests:
    """The machines that run, as the API sees them."""

    def __init__(self, custody: Custody, paths: Paths) -> None:
        self.guest = custody.guest
        self.greeted = custody.greeted
        self._paths = paths

    def record(self, machine: Machine) -> bytes:
        """What was kept of the machine's console."""
        return OutputLog(self._paths.machine(machine.meta.uid).console_log).tail(2 * RECORD)


class _Programs:
    """The programs' contents and logs as the API sees them."""

    def __init__(self, records: Records, control: Plane, paths: Paths) -> None:
        self._records = records
        self._control = control
        self._paths = paths

    async def upload(self, program: Program, content: AsyncIterator[bytes]) -> None:
        """Take the content, then let the program start. Raises NotFound when it was deleted meanwhile."""
        spec, uid = program.spec, program.meta.uid
        await self._control.contents.store(uid, spec.sha256, spec.file, content)
        await failpoints.reach("program.uploaded")
        key = key_of(BY_NAME["program"], program.project, program.name)
        try:
            now_there = await self._records.program(key)
        except NotFound:
            now_there = None
        if now_there is None or now_there.meta.uid != uid or now_there.meta.deleting is not None:
            await self._control.contents.forget(uid)
            raise NotFound(f'program "{program.name}" does not exist', "it was deleted meanwhile", "roost program list")
        self._control.loop.wake(key)

    def record(self, program: Program) -> bytes:
        """What was kept of what the program printed."""
        return OutputLog(self._paths.program(program.meta.uid).log).tail(2 * PROGRAM_LIMIT)

    async def follow(self, program: Program) -> AsyncIterator[bytes]:
        """The same, and what it prints until it rests."""
        tail = Tail(self._paths.program(program.meta.uid).log)
        key = key_of(BY_NAME["program"], program.project, program.name)
        try:
            while True:
                # Asked before the log is read: what was printed before it came to rest is read after that.
                rests = await self._rests(key, program.meta.uid)
                while data := await asyncio.to_thread(tail.read):
                    yield data
                if rests:
                    return
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            tail.close()

    async def _rests(self, key: str, uid: str) -> bool:
        try:
            program = await self._records.program(key)
        except NotFound:
            return True
        wants = program.spec.power == "running" and program.meta.deleting is None
        return program.meta.uid != uid or (program.status.phase in RESTING and not wants)


class _Here:
    """The node object of this host: what it is, and the accelerator verdict as soon as one is known."""

    def __init__(self, store: Store, facts: HostFacts, ask: Callable[[], Awaitable[Verdict]]) -> None:
        self.name = node_name(socket.gethostname())
        self._store = store
        self._facts = facts
        self._ask = ask
        self._told: Verdict | None = None

    async def announce(self, verdict: Verdict | None = None) -> None:
        """Write the object."""
        await announce(self._store, self.name, self._facts, memory.available(), verdict)

    async def verdict(self) -> Verdict:
        """The verdict; shown in the object when it is a new one."""
        found = await self._ask()
        if found != self._told:
            self._told = found
            await self.announce(found)
        return found


class _Uploads:
    """The pool and the images' reconciler as the API sees them."""

    def __init__(self, pool: Pool, reconciler: ImageReconciler, paths: Paths) -> None:
        self._pool = pool
        self._paths = paths
        self._reconciler = reconciler

    async def upload(self, image: Image, content: AsyncIterator[bytes]) -> None:
        """Take the disk into the pool, then note it in the object."""
        manifest = await self._pool.ensure_upload(
            content, image.spec.limit, lambda text, done: None, name=image.name, sha256=image.spec.sha256
        )
        await self._reconciler.finish_upload(key_of(BY_NAME["image"], image.project, image.name), manifest)

    async def download(self, image: Image, format: DiskFormat) -> AsyncIterator[bytes]:
        """The disk from the pool."""
        manifest = self._pool.find(image.status.digest) if image.status.phase == "ready" else None
        if manifest is None or manifest.format == "none":
            why = "it has no disk, only a kernel" if manifest is not None else f"it is {image.status.phase}"
            raise Conflict(f'image "{image.name}" was not exported', why, "roost image list")
        if format != "qcow2":
            return await self._pool.export(manifest.digest, format, image.name)
        return _pieces(self._paths.image(manifest.digest).disk)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, PIECE):
            yield piece


@asynccontextmanager
async def build(
    config: Config, *, store: Store | None = None, engines: MakeEngines | None = None
) -> AsyncIterator[Daemon]:
    """Everything, wired: the reconcilers run, nothing is served yet. What is not given is the real thing."""
    paths, clock = Paths.of(config), SystemClock()
    async with AsyncExitStack() as stack:
        if store is None:
            store = await SqliteStore.open(paths.database, clock=clock)
            stack.push_async_callback(store.close)
        await failpoints.reach("daemon.store-open")
        facts = await host_facts.gather(paths.emulators)
        engine = await (engines or real_engines)(paths, facts)
        stack.push_async_callback(engine.close)
        await _ensure_projects(store)
        await _ensure_pool(store)
        here = _Here(store, facts, engine.verdict)
        await here.announce()
        control = await plane.begin(Here(store, paths, facts, clock, here.verdict, here.name), engine, stack)
        app = create_app(_services(Here(store, paths, facts, clock, here.verdict, here.name), engine, control))
        yield Daemon(app, store, control, make_server(app, os.getuid()))


def _services(here: Here, engine: Engines, control: Plane) -> Services:
    """What the API is built from."""
    paths, admission = here.paths, Admission(here.store, here.facts.arch)

    async def examine(area: str) -> Mapping[str, Any]:
        if area != "storage":
            return await engine.doctor(area)
        findings = await examination.examine(Records(here.store), control.layers, control.checkpoints, paths)
        findings += await examination.examine_pools(Records(here.store), control.storage.pools)
        return {"area": area, "findings": [finding._asdict() for finding in findings]}

    return Services(
        store=here.store,
        appliances=Appliances(here, engine.hypervisor, engine.pool, control),
        guests=_Guests(control.custody, paths),
        uploads=_Uploads(engine.pool, control.images, paths),
        programs=_Programs(Records(here.store), control, paths),
        networks=NetworkLooks(Records(here.store), control.networks),
        now=now,
        owner=os.getuid(),
        node=here.node,
        build=build_id(),
        admit=admission.admit,
        dismiss=admission.dismiss,
        doctor=examine,
        gauges=(
            ("roost_guests_running", "Guests that this daemon holds", lambda: float(control.custody.running())),
            ("roost_programs_running", "Programs that this daemon holds", lambda: float(control.programs.running())),
            ("roost_reconciles_queued", "Objects that wait for a reconciler", lambda: float(control.loop.queued)),
        ),
    )


async def real_engines(paths: Paths, facts: HostFacts) -> Engines:
    """QEMU in its jail, passt, and the image pool, swept of what an earlier daemon left half made."""
    pool = Images(
        paths,
        allow=fetch.parse_allow(os.environ.get("ROOST_FETCH_ALLOW", "")),
        mirror=os.environ.get("ROOST_DEBIAN_MIRROR", ""),
    )
    await pool.sweep()
    await asyncio.to_thread(_prepare_jails, facts)
    layers = Layers(paths, lambda digest: _disk(pool, digest))
    qemu = Qemu(paths, facts, UserNetwork(facts), overlays.empty)

    async def boot() -> tuple[DirectBoot, str]:
        manifest = await pool.ensure_template("tiny", facts.arch, lambda text, done: None)
        files = pool.files(manifest.digest)
        return DirectBoot(files.kernel, files.initramfs, manifest.command_line), manifest.digest

    async def examine(area: str) -> Mapping[str, Any]:
        return await _examine(area, paths, facts)

    async def open_pool(wanted: StoragePool) -> Place:
        return DirectoryPool(paths, wanted.meta.uid, wanted.spec.path, lambda digest: _disk(pool, digest))

    residents = Residents()
    fabric = NetworkFabric(paths, facts, lambda changed: NetworkServices(paths, facts, changed, residents.instance))
    return Engines(
        hypervisor=qemu,
        pool=pool,
        layers=layers,
        verdict=Accelerator(paths, facts, qemu, boot).verdict,
        prepare=partial(prepare, paths),
        known=pool.offers,
        fabrics=fabric,
        door=fabric.door,
        residents=residents,
        open_pool=open_pool,
        keys=KeyStore(paths.keys),
        close=fabric.close,
        doctor=examine,
    )


def _disk(pool: Images, digest: str) -> Path | None:
    """The file of an image, None when it is not there or has no disk."""
    manifest = pool.find(digest)
    return pool.files(digest).disk if manifest is not None and manifest.format != "none" else None


def _prepare_jails(facts: HostFacts) -> None:
    """Remove control groups of machines that are gone, and read once which libraries the emulators need, so that no launch waits for it."""
    cgroups.remove_stale()
    for emulator in facts.emulators.values():
        program_binds(Path(emulator.path))


async def _examine(area: str, paths: Paths, facts: HostFacts) -> Mapping[str, Any]:
    """The report of `doctor`. Raises Invalid for an area that there is none of."""
    if area == "host":
        seen = await asyncio.to_thread(doctor.look, Config(paths.state, paths.run))
        return {"area": area, "findings": [finding._asdict() for finding in doctor.judge(seen)]}
    if area == "jail":
        emulator = facts.emulators.get(facts.arch)
        binds = program_binds(Path(emulator.path)) if emulator is not None else ()
        report = await escapes.probe(guest.binary(facts.arch, "escape"), binds=binds)
        attempts = [attempt._asdict() for attempt in report.attempts]
        return {"area": area, "attempts": attempts, "layers": report.layers, "missing": report.missing}
    raise Invalid("the request is wrong", problems=[Problem("area", "is not host, jail or storage")])


async def _ensure_projects(store: Store) -> None:
    """The two projects that always exist: `default` for users, `system` for what belongs to the host."""
    kind = BY_NAME["project"]
    for name in ("default", "system"):
        project = Project(name=name, meta=Meta(uid=str(uuid.uuid4()), created=now(), creator="roost"))
        try:
            await store.put(key_of(kind, "", name), codec.encode(project), expect=0)
        except Conflict:
            continue


async def _ensure_pool(store: Store) -> None:
    """The pool that always exists: a directory below the daemon's own."""
    pool = StoragePool(name="default", meta=Meta(uid=str(uuid.uuid4()), created=now(), creator="roost"))
    with suppress(Conflict):
        await store.put(key_of(BY_NAME["pool"], "", pool.name), codec.encode(pool), expect=0)


async def serve(
    config: Config,
    options: Options = Options(),  # noqa: B008 - immutable
    *,
    engines: MakeEngines | None = None,
) -> None:
    """Serve until SIGTERM, SIGINT or idleness; guests go on running. Raises Conflict when another daemon runs, Unavailable, Forbidden."""
    paths, group = Paths.of(config), service.group_id()
    service.private_directory(config.state)
    service.private_directory(config.run, group)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with service.only_one(paths.lock):
        await failpoints.reach("daemon.locked")
        async with build(config, engines=engines) as daemon:
            with listen_unix(config.socket, 0o600 if group is None else 0o660) as listener:
                listener.listen(BACKLOG)
                if group is not None:
                    os.chown(config.socket, -1, group)
                await failpoints.reach("daemon.before-serve")
                await _run(daemon, listener, stop, options)
                config.socket.unlink(missing_ok=True)


async def _run(daemon: Daemon, listener: socket.socket, stop: asyncio.Event, options: Options) -> None:
    """Serve until `stop`, then let requests under way finish."""
    serving = log.spawn_task(daemon.server.serve(sockets=[listener]), "HTTP server")
    serving.add_done_callback(lambda _: stop.set())
    idle = log.spawn_task(_stop_when_idle(daemon, stop, options.idle_exit), "idle watch")
    try:
        _tell(options.ready, "ready")
        service.tell_systemd("READY=1")
        _log.info("serving", pid=os.getpid(), build=build_id())
        await stop.wait()
        _log.info("stopping")
        service.tell_systemd("STOPPING=1")
        await failpoints.reach("daemon.stopping")
    finally:
        idle.cancel()
        daemon.server.should_exit = True
        await asyncio.wait([serving])


async def _stop_when_idle(daemon: Daemon, stop: asyncio.Event, seconds: float | None) -> None:
    """Set `stop` once nothing ran, nothing was done and nobody was connected for `seconds`; never without a bound."""
    if seconds is None:
        return
    loop = asyncio.get_running_loop()
    since = loop.time()
    while loop.time() - since < seconds:
        await asyncio.sleep(min(1.0, seconds / 4))
        if daemon.server.connections or daemon.control.running() or not daemon.control.idle():
            since = loop.time()
    stop.set()


def _tell(descriptor: int | None, line: str) -> None:
    """Tell whoever started us, once; they may be gone."""
    if descriptor is None:
        return
    try:
        os.write(descriptor, line.encode() + b"\n")
        os.close(descriptor)
    except OSError:
        return


def main(argv: Sequence[str] | None = None, *, engines: MakeEngines | None = None) -> int:
    """`roost serve`: run the daemon in the foreground. Returns the exit code (4: another one runs, 6: the host lacks something)."""
    parser = argparse.ArgumentParser(prog="roost serve", description="run the daemon in the foreground")
    parser.add_argument("--idle-exit", type=float, metavar="SECONDS", help="end when idle for so long")
    parser.add_argument("--ready-fd", type=int, metavar="FD", help="descriptor to write one line to when it listens")
    given = parser.parse_args(argv)
    config = load()
    service.harden()
    log.setup(debug=config.debug)
    try:
        asyncio.run(serve(config, Options(given.idle_exit, given.ready_fd), engines=engines))
    except RoostError as error:
        words = {"code": error.code, "what": error.what, "why": error.why, "fix": error.fix, "problems": []}
        _tell(given.ready_fd, json.dumps({"error": words}))
        sys.stderr.write(f"error: {error}\n")
        return {"conflict": 4, "forbidden": 5, "unavailable": 6}.get(error.code, 1)
    return 0
