"""What the API needs of the rest of the daemon, as small protocols; the daemon fills them in, tests bring fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from roost.control.exports import ExportFormat
from roost.errors import NotFound, Unavailable
from roost.hypervisor.base import Guest
from roost.model.image import DiskFormat, Image
from roost.model.kinds import Object
from roost.model.machine import Machine
from roost.model.network import Network
from roost.model.program import Program
from roost.model.ruleset import Transport
from roost.store.base import Store


class Guests(Protocol):
    """The machines whose processes the daemon holds."""

    async def guest(self, machine: Machine) -> Guest:
        """The running guest of `machine`. Raises Conflict when it does not run."""
        ...

    async def greeted(self, machine: Machine, guest: Guest) -> None:
        """Returns once an answering guest is set up: it has its name and users. Raises NotStarted when that takes too long, Conflict when it ends."""
        ...

    def record(self, machine: Machine) -> bytes:
        """The last of what the machine printed on its console, as kept on disk; empty when there is nothing. Called in a thread."""
        ...


class Uploads(Protocol):
    """Where the bytes of an image that a client brings go, and where those that it takes come from."""

    async def upload(self, image: Image, content: AsyncIterator[bytes]) -> None:
        """Take the whole disk, check it and make it the image's. Raises Invalid, Conflict, Unavailable; then nothing of it stays."""
        ...

    async def download(self, image: Image, format: DiskFormat) -> AsyncIterator[bytes]:
        """The image's disk: as stored (qcow2), or converted. Raises Conflict when there is none, Unavailable."""
        ...


class Programs(Protocol):
    """The contents of programs that clients bring, and what programs printed."""

    async def upload(self, program: Program, content: AsyncIterator[bytes]) -> None:
        """Take the whole content and check it against the spec's digest. Raises Invalid, NotFound, Unavailable; then nothing of it stays."""
        ...

    def record(self, program: Program) -> bytes:
        """The last of what the program printed, as kept on disk; empty when there is nothing. Called in a thread."""
        ...

    def follow(self, program: Program) -> AsyncIterator[bytes]:
        """The same, and what it prints until it comes to rest."""
        ...


class Networks(Protocol):
    """What can be seen of networks."""

    async def picture(self, network: Network) -> Mapping[str, Any]:
        """Who is plugged in, and what passed: see control.networkview.picture."""
        ...

    async def trace(
        self, network: Network, source: str, target: str, protocol: Transport, port: int
    ) -> Mapping[str, Any]:
        """What decides whether `source` (a machine) reaches `target` (a machine or an address). Raises NotFound."""
        ...

    async def capture(self, network: Network, machine: str, port: str, frames: int | None) -> AsyncIterator[bytes]:
        """What passes a machine's port (the first of this network for ""), as a pcap file. Raises NotFound."""
        ...

    async def flows(self, network: Network, *, follow: bool) -> AsyncIterator[bytes]:
        """The flow log, as lines of JSON: network.flows.Flow. Raises Conflict when none is kept."""
        ...

    async def pictures(self) -> Sequence[Mapping[str, Any]]:
        """Those of all networks that are ready, some seconds old: for who collects numbers."""
        ...


class Appliances(Protocol):
    """Machines that come in from elsewhere, and go there."""

    async def export(self, machine: Machine, format: ExportFormat) -> AsyncIterator[bytes]:
        """The disk of a stopped machine in one format, or all of it as an OVA. Raises Conflict, Invalid, Unavailable."""
        ...

    async def prove(self, image: Image) -> Image:
        """Boot a copy of the image without any network; what came of it is in the status. Raises Conflict, NotFound, Unavailable."""
        ...

    async def screen(self, image: Image) -> bytes:
        """The picture (PNG) of that boot. Raises NotFound."""
        ...


class NoAppliances:
    """Those of a daemon that has no machines."""

    async def export(self, machine: Machine, format: ExportFormat) -> AsyncIterator[bytes]:
        """None."""
        raise Unavailable(f'machine "{machine.name}" was not exported', f"there is nothing that could write {format}")

    async def prove(self, image: Image) -> Image:
        """None."""
        raise Unavailable(f'image "{image.name}" was not proved', "there is nothing that could boot it")

    async def screen(self, image: Image) -> bytes:
        """None."""
        raise NotFound(f'image "{image.name}" has no picture')


class Gauge(Protocol):
    """A number read when somebody asks for `/metrics`."""

    def __call__(self) -> float: ...


class Admit(Protocol):
    """The kind-specific rules of the daemon."""

    async def __call__(self, after: Object, before: Object | None, besides: Sequence[Object] = ()) -> Object:
        """The object to store; see Services."""
        ...


async def admit_all(after: Object, before: Object | None, besides: Sequence[Object] = ()) -> Object:
    """The hook of a daemon without kind-specific rules: everything that decodes is admitted."""
    del before, besides
    return after


async def dismiss_all(thing: Object) -> None:
    """The hook of a daemon without kind-specific rules: everything may be deleted."""
    del thing


async def no_report(area: str) -> Mapping[str, Any]:
    """The report of a daemon that has nothing to examine."""
    return {"area": area, "checks": []}


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything the API is built from.

    `admit(after, before, besides)` is asked before every commit of a create (`before` None) or change; `besides` are further objects of
    the same commit. It returns the object to store or raises Invalid, Conflict, QuotaExceeded. `dismiss` is asked before a
    deletion. `owner` is the daemon's uid. `now` is
    the time as objects write it.
    """

    store: Store
    guests: Guests
    uploads: Uploads
    programs: Programs
    networks: Networks
    now: Callable[[], str]
    owner: int
    node: str
    build: str
    admit: Admit = admit_all
    dismiss: Callable[[Object], Awaitable[None]] = dismiss_all
    doctor: Callable[[str], Awaitable[Mapping[str, Any]]] = no_report
    appliances: Appliances = field(default_factory=NoAppliances)
    gauges: Iterable[tuple[str, str, Gauge]] = ()
