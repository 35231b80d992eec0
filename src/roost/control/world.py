"""Everything that the reconciler of machines acts upon, as one value that the daemon or a test puts together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from roost.control.checkpoints import Checkpoint, Checkpoints
from roost.control.holds import Holds
from roost.control.origins import Origins
from roost.control.pictures import Pictures
from roost.control.poolwatch import PoolWatch
from roost.control.ports import Ports
from roost.control.preparation import Prepared
from roost.control.reservations import Reservations
from roost.control.taking import House, Taker
from roost.control.warmth import Cold
from roost.errors import RoostError
from roost.host.clock import Clock
from roost.host.paths import MachineFiles, Paths
from roost.host.reserve import Reserve
from roost.hypervisor.base import Hypervisor, Launch
from roost.model.facts import HostFacts
from roost.model.machine import Machine
from roost.model.node import Verdict
from roost.storage.layers import Base, Next
from roost.storage.manifest import Manifest


class Pool(Protocol):
    """What the reconciler needs of the image pool."""

    def find(self, digest: str) -> Manifest | None:
        """The manifest of an image that is there."""
        ...


class Layers(Protocol):
    """What the control plane needs of the disks' layers: see storage.layers.Layers."""

    def base_of(self, machine: MachineFiles, image: str) -> Base:
        """What the machine's root disk stands on."""
        ...

    def below(self, base: Base) -> tuple[Path, ...]:
        """The files that a disk on `base` stands on."""
        ...

    def virtual_size(self, base: Base) -> int:
        """Bytes that the guest sees."""
        ...

    async def create_disk(self, base: Base, machine: MachineFiles, size: int | None = None) -> None:
        """A new empty root disk on `base`."""
        ...

    async def prepare(self, machine: MachineFiles, image: str) -> Next:
        """The overlay that is to cover the root disk."""
        ...

    def pending(self, machine: MachineFiles) -> Next | None:
        """The `prepare` that was not settled yet."""
        ...

    async def settle(self, machine: MachineFiles, image: str, *, covered: bool) -> Base:
        """End what `prepare` began."""
        ...

    async def collect(self, roots: Iterable[Base]) -> list[str]:
        """Remove the layers that nobody stands on."""
        ...


class Templates(Protocol):
    """The warm templates: see control.warm.Warm."""

    async def look(
        self, machine: Machine, key: str, launch: Launch, manifest: Manifest
    ) -> Checkpoint | Literal["making"] | Cold:
        """The template that the machine may go on from; "making": its key is woken when it is ready; or why it has to boot."""
        ...

    async def failed(self, checkpoint: Checkpoint, error: RoostError) -> Cold:
        """A machine could not go on from this template: it is forgotten. Returns why the machine has to boot."""
        ...

    def used(self, checkpoint: Checkpoint, launch: Launch) -> None:
        """A machine went on from this template."""
        ...


class World(NamedTuple):
    """Everything the reconciler acts upon."""

    hypervisor: Hypervisor
    images: Pool
    layers: Layers
    house: House
    pictures: Pictures
    origins: Origins
    checkpoints: Checkpoints
    taker: Taker
    templates: Templates
    paths: Paths
    facts: HostFacts
    clock: Clock
    verdict: Callable[[], Awaitable[Verdict]]
    reservations: Reservations
    reserve: Reserve
    prepare: Callable[[Machine, Manifest], Awaitable[Prepared]]
    ports: Ports
    holds: Holds
    watch: PoolWatch
    node: str = ""
