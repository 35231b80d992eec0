"""An API server of its own process for tests that attack it: real sockets, a store in memory, guests that echo; short time limits."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from roost import log
from roost.api import server, wire
from roost.api.app import create_app
from roost.api.services import Services
from roost.errors import Invalid
from roost.host.clock import SystemClock
from roost.host.service import harden
from roost.host.sockets import listen_unix
from roost.model import codec
from roost.model.image import Image
from roost.model.machine import Machine
from roost.model.project import Project, ProjectSpec
from roost.store.memory import MemoryStore
from roost.testing.hypervisor import FakeAgent, FakeConsole
from tests.fake_keepers import FakeKeepers
from tests.fake_networks import FakeNetworks

SECONDS = 1.0
"""Header and body timeouts."""


class Running:
    """A guest that answers."""

    console = FakeConsole()
    answering = FakeAgent()

    async def agent(self) -> Any:
        return self.answering


class Guests:
    """Every machine runs."""

    async def guest(self, machine: Machine) -> Any:
        return Running()

    async def greeted(self, machine: Machine, guest: Any) -> None:
        return None

    def record(self, machine: Machine) -> bytes:
        return b""


class Uploads:
    """Counts what comes and keeps nothing; refuses what begins with "bad"."""

    async def upload(self, image: Image, content: AsyncIterator[bytes]) -> None:
        async for chunk in content:
            if chunk.startswith(b"bad"):
                raise Invalid("the image was refused", "it is not a disk")


async def main(socket: Path) -> None:
    harden()
    log.setup(sys.stderr, debug=True)
    server.HEADER_SECONDS = wire.BODY_IDLE = SECONDS
    store = MemoryStore(SystemClock())
    for name, uid in (("default", 0), ("system", 0), ("alice", 1001), ("bob", 1002)):
        members: Any = {f"uid:{uid}": "owner"}
        await store.put(f"projects/{name}", codec.encode(Project(name=name, spec=ProjectSpec(members=members))))
    services = Services(
        store=store,
        guests=Guests(),
        uploads=Uploads(),
        programs=FakeKeepers(),
        networks=FakeNetworks(),
        now=lambda: "2030",
        owner=os.getuid(),
        node="here",
        build="1.0+x",
    )
    serving = server.make_server(create_app(services), os.getuid())
    with listen_unix(socket, 0o666) as listener:
        listener.listen(1024)
        print("ready", flush=True)
        await serving.serve(sockets=[listener])


asyncio.run(main(Path(sys.argv[1])))
