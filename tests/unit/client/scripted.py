"""A daemon whose reconcilers are a script: the real API on a real socket, and statuses as a name asks for them.

Machines and snapshots become what they were wished to be at once; those with "unlucky" in their name fail, others with "never" in it stay.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import msgspec

from roost import log
from roost.api.app import create_app
from roost.api.server import make_server
from roost.api.services import Services
from roost.build import build_id
from roost.control.events import now
from roost.host.clock import SystemClock
from roost.host.sockets import listen_unix
from roost.log import spawn_task
from roost.model import codec
from roost.model.machine import Machine, MachineStatus, Timing
from roost.model.meta import Meta, MiB, Trouble
from roost.model.project import Project
from roost.model.snapshot import Snapshot, SnapshotStatus
from roost.store.base import Entry
from roost.store.memory import MemoryStore
from tests.fake_networks import FakeNetworks

FAILED = Trouble(what="no luck", why="the script says so", fix="another name", code="unavailable")
STORAGE = [
    {"name": "image debian:12", "state": "ok", "detail": "its digest is right", "fix": ""},
    {"name": "layer 7", "state": "missing", "detail": "its digest is wrong", "fix": "roost delete kid"},
]


class Scripted:
    """The running daemon; `report` is what its doctor says of the storage."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "run" / "api.sock"
        self.store: MemoryStore
        self.report: list[dict[str, str]] = STORAGE
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

    async def _main(self) -> None:
        log.setup(io.StringIO())
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.store = MemoryStore(SystemClock())
        for name in ("default", "system"):
            await self.store.put(f"projects/{name}", codec.encode(Project(name=name, meta=Meta(uid=name))))
        absent = cast("Any", None)
        services = Services(
            store=self.store,
            guests=absent,
            uploads=absent,
            programs=absent,
            networks=FakeNetworks(),
            now=now,
            owner=os.getuid(),
            node="here",
            build=build_id(),
            doctor=self._doctor,
        )
        server = make_server(create_app(services), os.getuid())
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        script = spawn_task(self._follow(), "script")
        with listen_unix(self.socket) as listener:
            serving = spawn_task(server.serve(sockets=[listener]), "server")
            self._listening.set()
            await self._stop.wait()
            server.should_exit = server.force_exit = True
            await asyncio.wait([serving])
        script.cancel()

    async def _doctor(self, area: str) -> dict[str, Any]:
        return {"area": area, "findings": self.report}

    async def _follow(self) -> None:
        async for entry in self.store.watch("", since=0):
            kind = entry.key.partition("/")[0]
            if entry.value is not None and kind in ("machines", "snapshots"):
                await self._play(entry, entry.value, Machine if kind == "machines" else Snapshot)

    async def _play(self, entry: Entry, value: bytes, kind: type[Machine | Snapshot]) -> None:
        thing = codec.stored(value, kind)
        if thing.meta.deleting is not None:
            await self.store.put(entry.key, None, expect=entry.revision)
            return
        if "never" in thing.name or thing.status.generation == thing.meta.generation:
            return
        status = _machine(thing) if isinstance(thing, Machine) else await self._snapshot(thing)
        after = codec.encode(msgspec.structs.replace(thing, status=status))
        await self.store.put(entry.key, after, expect=entry.revision)

    async def _snapshot(self, snapshot: Snapshot) -> SnapshotStatus:
        if "unlucky" in snapshot.name:
            return SnapshotStatus(phase="failed", generation=snapshot.meta.generation, error=FAILED)
        entry = await self.store.get(f"machines/{snapshot.project}/{snapshot.spec.machine}")
        machine = codec.stored(cast("bytes", entry.value), Machine)
        memory = machine.spec.power == "running" and snapshot.spec.memory is not False
        return SnapshotStatus(
            phase="ready",
            generation=snapshot.meta.generation,
            machine_uid=machine.meta.uid,
            machine_spec=machine.spec,
            taken=snapshot.meta.created,
            memory=memory,
            own=96 * MiB,
            pause=0.03 if memory else 0.0,
        )


def _machine(machine: Machine) -> MachineStatus:
    settled: dict[str, Any] = {"generation": machine.meta.generation, "restarts": machine.spec.restarts}
    if "unlucky" in machine.name:
        return MachineStatus(phase="failed", error=FAILED, **settled)
    restored = machine.spec.restore.serial if machine.spec.restore is not None else 0
    copied = machine.spec.source is not None and machine.spec.power == "running"
    return MachineStatus(
        phase=machine.spec.power,
        agent="roost" if machine.spec.power == "running" else "none",
        restored=restored,
        timing=Timing(path="clone", total=0.25, pause=0.021) if copied else Timing(path="warm", total=0.5),
        warnings=machine.status.warnings,
        accelerator="tcg",
        **settled,
    )


@contextmanager
def scripted(directory: Path) -> Iterator[Scripted]:
    """A daemon that serves until the context ends."""
    daemon = Scripted(directory)
    daemon.begin()
    try:
        yield daemon
    finally:
        daemon.end()
