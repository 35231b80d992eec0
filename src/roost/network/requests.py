"""What the daemon asks of the worker of networks, and what it answers: see roost.network.worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from roost.errors import BY_CODE, RoostError
from roost.network.base import Address, Fabric, Forwarding, Link, Neighbour, Outside, Route, Sysctl, Tap

Item: TypeAlias = Link | Address | Route | Neighbour | Forwarding | Sysctl
_ITEMS: dict[str, type[Item]] = {kind.__name__: kind for kind in (Link, Address, Route, Neighbour, Forwarding, Sysctl)}


class Step(msgspec.Struct, array_like=True):
    """One value that is to be added or removed: the name of its class, and itself."""

    kind: str
    value: msgspec.Raw

    @classmethod
    def of(cls, item: Item) -> Step:
        """The step for a value."""
        return cls(type(item).__name__, msgspec.Raw(msgspec.json.encode(item)))

    def item(self) -> Item:
        """The value."""
        return msgspec.json.decode(self.value, type=_ITEMS[self.kind])


class Scene(msgspec.Struct, kw_only=True):
    """All that a namespace should hold, rules aside."""

    links: tuple[Link, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    forwarding: tuple[Forwarding, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    taps: dict[str, Tap] = {}

    @classmethod
    def of(cls, fabric: Fabric) -> Scene:
        """That of a network's own namespace."""
        return cls(
            links=fabric.links, addresses=fabric.addresses, routes=fabric.routes, neighbours=fabric.neighbours,
            forwarding=fabric.forwarding, sysctls=fabric.sysctls, taps=dict(fabric.taps),
        )  # fmt: skip

    @classmethod
    def outside(cls, outside: Outside) -> Scene:
        """What a network has in the host's namespace."""
        return cls(addresses=outside.addresses, routes=outside.routes, sysctls=outside.sysctls)


class Arrange(msgspec.Struct, tag=True, kw_only=True):
    """Compare everything, set right what differs. `rules` are applied unless the ruleset is still of `generation`."""

    scene: Scene
    rules: str
    generation: int = -1


class Survey(msgspec.Struct, tag=True, kw_only=True):
    """Compare everything, change nothing, and count."""

    scene: Scene
    generation: int = -1


class Update(msgspec.Struct, tag=True, kw_only=True):
    """Only what differs from an earlier state, unless the ruleset is no longer of `generation`: then nothing is done (`stale`). `taps` are what
    each was, and what it should be."""

    rules: str
    removed: tuple[Step, ...]
    added: tuple[Step, ...]
    taps: tuple[tuple[Tap | None, Tap], ...]
    unplugged: tuple[str, ...]
    generation: int


class Plug(msgspec.Struct, tag=True, kw_only=True):
    """Make a tap; its descriptor comes with the answer."""

    tap: Tap


class Loose(msgspec.Struct, tag=True, kw_only=True):
    """Make a tap that leads nowhere, in namespaces of its own, which go with it; its descriptor comes with the answer."""


class Capture(msgspec.Struct, tag=True, kw_only=True):
    """A packet socket on a link; its descriptor comes with the answer."""

    interface: str


class Flows(msgspec.Struct, tag=True, kw_only=True):
    """A socket on which the kernel tells of packets that rules log to the group; it comes with the answer."""

    group: int


class Watch(msgspec.Struct, tag=True, kw_only=True):
    """The two sockets that tell of changes (links.open_monitors); they come with the answer."""


class Rules(msgspec.Struct, tag=True, kw_only=True):
    """One transaction, in the host's own namespace. `lenient`: that what it speaks of is not there is fine."""

    rules: str
    lenient: bool = False


class Outer(msgspec.Struct, tag=True, kw_only=True):
    """In the host's own namespace, for the network whose door ends there in the link `name`: what is `retired` goes, what is in the scene comes.
    Without a scene the link goes. It becomes part of the host's bridge `master`, if that is given."""

    name: str
    mtu: int = 0
    master: str = ""
    scene: Scene | None = None
    retired: tuple[Step, ...] = ()


class Host(msgspec.Struct, tag=True, kw_only=True):
    """What networks the host's own namespace has routes to, and its addresses."""


class Forwards(msgspec.Struct, tag=True, kw_only=True):
    """Whether the host forwards packets between two links of ours."""


Request: TypeAlias = (
    Arrange | Survey | Update | Plug | Loose | Capture | Flows | Watch | Rules | Outer | Host | Forwards
)


class Counts(msgspec.Struct, kw_only=True):
    """Traffic of every link (packets and bytes received, sent by us), and what the rules counted, by comment or name; `elements` by the first
    word of the key (an interface)."""

    links: dict[str, tuple[int, int, int, int]] = {}
    rules: dict[str, tuple[int, int]] = {}
    named: dict[str, int] = {}
    elements: dict[str, int] = {}


class Answer(msgspec.Struct, kw_only=True):
    """What was done: `pid` is that of whoever did it, `differs` says in words what was not as it should be, `indexes` are the fixed links'.
    `error` are the code, what, why and fix of a RoostError."""

    pid: int = 0
    differs: tuple[str, ...] = ()
    generation: int = -1
    stale: bool = False
    plugged: tuple[str, ...] = ()
    indexes: dict[str, int] = {}
    counts: Counts = msgspec.field(default_factory=Counts)
    routes: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    why: str = ""
    error: tuple[str, str, str, str] | None = None

    def check(self) -> Answer:
        """Itself. Raises the error it tells of."""
        if self.error is not None:
            code, *texts = self.error
            raise BY_CODE.get(code, RoostError)(*texts)
        return self


def steps(items: Sequence[Item]) -> tuple[Step, ...]:
    """The steps for values, in order."""
    return tuple(map(Step.of, items))
