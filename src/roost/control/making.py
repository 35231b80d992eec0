"""Makes a warm template: boots a machine that nobody sees, lets it come to rest, seals it, and keeps the instant."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from roost.control.checkpoints import Checkpoint
from roost.control.custody import AGENT_SECONDS
from roost.control.events import now
from roost.control.plan import ALIVE
from roost.control.reservations import Reservations
from roost.control.warmth import SETTLE_SECONDS, WINDOW, settled
from roost.errors import NotStarted, RoostError
from roost.host import failpoints, files
from roost.host.clock import Clock
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor.base import Agent, Card, Exit, Guest, Hypervisor, Launch, Overlay, Saved
from roost.hypervisor.plan import mac_address
from roost.hypervisor.saved import release
from roost.log import get, spawn_task
from roost.model.machine import Traits
from roost.storage.layers import Base, Next

SEAL_SECONDS = 60.0
"""Longest that a guest may take to remove what tells it from another, and to write everything to disk."""

_VARIABLES = 4 << 20
"""Most bytes of UEFI variables that are read back; they have 540 KiB."""


class Layers(Protocol):
    """What is needed of the layers: see storage.layers.Layers."""

    async def create_disk(self, base: Base, machine: MachineFiles, size: int | None = None) -> None:
        """A new empty root disk on `base`."""
        ...

    async def prepare(self, machine: MachineFiles, image: str) -> Next:
        """The overlay that is to cover the root disk."""
        ...

    async def settle(self, machine: MachineFiles, image: str, *, covered: bool) -> Base:
        """End what `prepare` began."""
        ...

    def below(self, base: Base) -> tuple[Path, ...]:
        """The files that a disk on `base` stands on. Raises Unavailable."""
        ...

    def virtual_size(self, base: Base) -> int:
        """Bytes that the guest sees."""
        ...


class Order(NamedTuple):
    """What is to be made: for whom, from which machine's cold start, and as what. `origin` tells people."""

    project: str
    launch: Launch
    traits: Traits
    origin: str


class Workshop(NamedTuple):
    """What the making acts upon. `cpu_seconds` tells what a process has used by now; `loose` makes a tap that leads nowhere."""

    hypervisor: Hypervisor
    layers: Layers
    paths: Paths
    clock: Clock
    reservations: Reservations
    cpu_seconds: Callable[[int], float]
    loose: Callable[[], Awaitable[int]]


class _Hidden:
    """The machine that becomes a template."""

    def __init__(self, paths: Paths) -> None:
        self.uid = str(uuid.uuid4())
        self.files = paths.spare(self.uid)
        self.guest: Guest | None = None


class Maker:
    """Makes templates; whatever happens, nothing of the hidden machine is left."""

    def __init__(self, workshop: Workshop) -> None:
        self._world = workshop
        self._covering: dict[str, str] = {}

    def roots(self) -> list[Base]:
        """Layers that are there already and that no template names yet."""
        there = (layer for layer in self._covering.values() if self._world.paths.layer(layer).manifest.exists())
        return [Base(layer=layer) for layer in there]

    async def make(self, order: Order) -> Checkpoint:
        """The template; the caller owns it. The hidden machine is gone then, and what it was promised of the memory is free.

        Raises Unavailable (no memory, disk full), NotStarted (it did not answer), Conflict (it can not be saved), CommandFailed.
        """
        hidden = _Hidden(self._world.paths)
        saved: Saved | None = None
        try:
            try:
                await self._boot(order, hidden)
                checkpoint = await self._take(order, hidden)
                saved = checkpoint.saved
            finally:
                await asyncio.shield(spawn_task(self._remove(hidden), f"end of template {hidden.uid}"))
            return checkpoint
        except BaseException:
            if saved is not None:
                release(saved)
            raise
        finally:
            self._covering.pop(hidden.uid, None)

    async def _boot(self, order: Order, hidden: _Hidden) -> None:
        """Boot it, let it come to rest, and take from it what tells it from another."""
        places = self._world.reservations
        await places.take(hidden.uid, places.forecast("cold", order.launch.memory))
        for directory in hidden.files:
            directory.mkdir(parents=True, mode=0o700)
        if order.launch.disks:
            await self._world.layers.create_disk(Base(image=order.traits.image), hidden.files)
        async with self._cards(order.launch, hidden) as cards:
            hidden.guest = await self._world.hypervisor.start(_anonymous(order.launch, hidden, cards))
        guest = hidden.guest
        await failpoints.reach("warm.started")
        await guest.resume()
        agent = await _answer(guest)
        if agent.kind != "roost":
            raise NotStarted("it can not be sealed", f"{agent.kind} answers in it instead of Roost's agent")
        await self._settle(guest)
        await _seal(agent)
        await failpoints.reach("warm.sealed")

    @asynccontextmanager
    async def _cards(self, launch: Launch, hidden: _Hidden) -> AsyncIterator[tuple[Card, ...]]:
        """The cards of its ports, each on a tap: what a guest leaves to its card at boot it leaves to it for life, through every fork, and only
        a tap takes checksums and segmentation. Where a host makes no tap they are on none. The taps are ours until the context ends."""
        cards: list[Card] = []
        try:
            for card in launch.cards:
                mac = card.mac if card.slot else mac_address(hidden.uid)
                try:
                    cards.append(Card(card.slot, mac, await self._world.loose()))
                except RoostError as error:
                    get(__name__).warning("a template has a card without offloads", slot=card.slot, error=str(error))
                    cards.append(Card(card.slot, mac))
            yield tuple(cards)
        finally:
            for card in cards:
                if card.tap is not None:
                    os.close(card.tap)

    async def _settle(self, guest: Guest) -> None:
        samples = [self._world.cpu_seconds(guest.process.pid)]
        for _ in range(round(SETTLE_SECONDS / WINDOW)):
            await self._world.clock.sleep(WINDOW)
            samples.append(self._world.cpu_seconds(guest.process.pid))
            if settled(samples):
                return
        get(__name__).warning("a template is sealed before it came to rest", seconds=SETTLE_SECONDS)

    async def _take(self, order: Order, hidden: _Hidden) -> Checkpoint:
        """The instant, with what its disk has become."""
        assert hidden.guest is not None
        variables = hidden.files.variables
        copies = [(variables, _beside(variables))] if variables.exists() else []
        overlays: tuple[Overlay, ...] = ()
        if order.launch.disks:
            cover = await self._world.layers.prepare(hidden.files, order.traits.image)
            self._covering[hidden.uid] = cover.layer
            overlays = (Overlay(cover.file, cover.node),)
        saved = await hidden.guest.checkpoint(overlays, copies)
        try:
            await failpoints.reach("warm.taken")
            base = None
            if overlays:
                base = await self._world.layers.settle(hidden.files, order.traits.image, covered=True)
            return self._checkpoint(order, hidden, saved, base)
        except BaseException:
            release(saved)
            raise

    def _checkpoint(self, order: Order, hidden: _Hidden, saved: Saved, base: Base | None) -> Checkpoint:
        copy = _beside(hidden.files.variables)
        return Checkpoint(
            id=str(uuid.uuid4()),
            project=order.project,
            shape=order.traits.shape,
            traits=order.traits,
            base=base,
            virtual_size=self._world.layers.virtual_size(base) if base is not None else 0,
            saved=saved,
            variables=files.read_bounded(copy, _VARIABLES) if copy.exists() else None,
            origin=order.origin,
            taken=now(),
            pause=saved.pause,
        )

    async def _remove(self, hidden: _Hidden) -> None:
        if hidden.guest is not None:
            await hidden.guest.kill()
        for directory in hidden.files:
            await asyncio.to_thread(files.remove_tree, directory)
        self._world.reservations.release(hidden.uid)


def _anonymous(launch: Launch, hidden: _Hidden, cards: tuple[Card, ...]) -> Launch:
    """The same machine under an identity of its own, with no way in from outside."""
    where = hidden.files
    disks = tuple(disk._replace(file=where.disk) for disk in launch.disks)
    return launch._replace(
        uid=hidden.uid,
        files=where,
        disks=disks,
        cards=cards,
        publish=(),
        hostname="template",
        spare="",
    )


async def _seal(agent: Agent) -> None:
    try:
        async with asyncio.timeout(SEAL_SECONDS):
            await agent.seal()
    except TimeoutError:
        raise NotStarted("it could not be sealed", f"that took longer than {SEAL_SECONDS:.0f} s") from None
    await agent.close()


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".checkpoint")


async def _answer(guest: Guest) -> Agent:
    """The agent, as soon as it answers. Raises NotStarted when it never will."""
    asking: asyncio.Task[Agent] = spawn_task(guest.agent(), "agent of a template")
    ending: asyncio.Task[str] = spawn_task(_end(guest), "end of a template")
    try:
        await asyncio.wait([asking, ending], timeout=AGENT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            return asking.result()
        why = ending.result() if ending.done() else f"nothing inside it answered within {AGENT_SECONDS:.0f} s"
        raise NotStarted("it did not come up", why)
    finally:
        asking.cancel()
        ending.cancel()


async def _end(guest: Guest) -> str:
    """Returns why, when the guest ends or can not go on."""
    changed = asyncio.Event()
    guest.on_change = changed.set
    waiting: asyncio.Task[Exit] = spawn_task(guest.wait(), "exit of a template")
    waiting.add_done_callback(lambda _: changed.set())
    try:
        while not waiting.done():
            state = await guest.state()
            if state not in ALIVE:
                return f"the guest is {state}"
            await changed.wait()
            changed.clear()
        return waiting.result().reason
    finally:
        waiting.cancel()
