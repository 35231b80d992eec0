"""Machines straight from the hypervisor, without a daemon: the tiny template, started in real jails."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from roost.host import facts, files
from roost.host.paths import Paths
from roost.hypervisor.base import Agent, Command, DirectBoot, Guest, Launch
from roost.hypervisor.qemu import Qemu
from roost.model.facts import HostFacts
from roost.model.meta import Arch, MiB
from roost.network.usernet import UserNetwork
from roost.storage import overlays
from roost.storage.images import Images
from roost.storage.manifest import Manifest
from tests import leftovers, pool


class World(NamedTuple):
    """A host with one hypervisor and the tiny template."""

    paths: Paths
    facts: HostFacts
    hypervisor: Qemu
    boot: DirectBoot
    digest: str

    def launch(self, **changes: object) -> Launch:
        """A tiny machine of its own."""
        uid = str(uuid.uuid4())
        machine = self.paths.machine(uid)
        machine.keep.mkdir(parents=True, mode=0o700)
        plain = Launch(uid, self.facts.arch, 1, 256 * MiB, "tcg", "direct", machine, self.boot, network="none")
        return plain._replace(**changes)

    def left(self) -> list[str]:
        """What is left of all machines."""
        return leftovers.wait_until_none(self.paths.state / "none", self.paths.run, seconds=20)


@contextmanager
def made() -> Iterator[World]:
    """A new world."""
    state = pool.new_state()
    pool.fill(state)
    paths = Paths(state, state / "run")
    here = asyncio.run(facts.gather(paths.emulators))
    images = Images(paths)
    asyncio.run(images.sweep())
    manifest = template(state, images, "tiny", here.arch)
    image = images.files(manifest.digest)
    boot = DirectBoot(image.kernel, image.initramfs, manifest.command_line)
    try:
        yield World(paths, here, Qemu(paths, here, UserNetwork(here), overlays.empty), boot, manifest.digest)
    finally:
        files.remove_tree(state)


def template(state: Path, images: Images, name: str, arch: Arch = "x86_64") -> Manifest:
    """A template in the pool of this state directory, which shares what any test has built."""

    def build() -> Manifest:
        return asyncio.run(images.ensure_template(name, arch, lambda text, done: None))

    pool.provide(state, name, arch, build)
    return build()


@asynccontextmanager
async def started(world: World, launch: Launch, *, run: bool = True) -> AsyncIterator[Guest]:
    """A machine that is killed at the end."""
    guest = await world.hypervisor.start(launch)
    try:
        if run:
            await guest.resume()
        yield guest
    finally:
        await guest.kill()


async def answering(guest: Guest) -> Agent:
    """Its agent."""
    return await asyncio.wait_for(guest.agent(), 60)


async def output(agent: Agent, *argv: str) -> bytes:
    """What a command prints."""
    session = await agent.execute(Command(argv))
    return b"".join([chunk.data async for chunk in session.output()])
