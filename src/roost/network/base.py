"""The seam to virtual networks: what control asks of the engine, what a network should be, and what is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

from roost.errors import RoostError
from roost.model.network import Mode, Subnet, Vxlan
from roost.model.ruleset import RuleSetSpec

Door: TypeAlias = Literal["none", "kernel", "pasta", "bridge"]
"""How a network reaches the world: see NetworkStatus.door."""


class Attachment(NamedTuple):
    """A port, resolved: who is where. `machine` is a name, `uid` the machine's identity; `addresses` without prefix ("10.20.0.5"), at most one
    a subnet; `interface` as names.tap gives it; `down` and `up` in bits per second, to and from the machine. Without `link` nothing passes."""

    machine: str
    uid: str
    project: str
    port: str
    mac: str
    addresses: tuple[str, ...]
    interface: str
    link: bool = True
    down: int | None = None
    up: int | None = None
    rulesets: tuple[str, ...] = ("default",)


class Published(NamedTuple):
    """A published port, resolved: what comes to `address`:`host_port` of the host goes to `target`:`target_port`, an address of the port
    `interface`. `key` names it among the network's."""

    key: str
    address: str
    host_port: int
    protocol: Literal["tcp", "udp"]
    target: str
    target_port: int
    interface: str


class Wanted(NamedTuple):
    """One network, everything resolved. `subnets` have their gateways filled in. `mtu` in bytes. `transfer` are the two IPv4 addresses and, with
    IPv6, the two IPv6 addresses between network and host (inside, outside, inside, outside) of the kernel's door. `underlay` are the host's own
    addresses, and those of the hosts beside it ("192.0.2.7" or "192.0.2.0/28"): guests do not reach them. `resolvers` are asked what the
    network does not know; () for the host's. A rule set that a port names and `rulesets` has not (but "default") lets nothing pass.
    `names` are machines of other networks that somebody here is plugged into, too, each with an address; those of `ports` are known anyway."""

    uid: str
    project: str
    name: str
    mode: Mode
    subnets: tuple[Subnet, ...]
    mtu: int
    domain: str
    door: Door
    resolvers: tuple[str, ...] = ()
    transfer: tuple[str, ...] = ()
    vxlan: Vxlan | None = None
    flow_log: bool = False
    ports: tuple[Attachment, ...] = ()
    published: tuple[Published, ...] = ()
    rulesets: Mapping[str, RuleSetSpec] = {}
    underlay: tuple[str, ...] = ()
    interface: str = ""
    vlan: int | None = None
    names: tuple[tuple[str, str], ...] = ()


class Link(NamedTuple):
    """A network interface that is not a port's. `peer` is the other end of a veth, in the host's namespace; `master` the bridge that it is part
    of. `id`, `local`, `port` are a VXLAN's, which has no learning and no default destination."""

    name: str
    kind: Literal["loopback", "veth", "vxlan", "bridge"]
    mtu: int
    mac: str = ""
    peer: str = ""
    id: int = 0
    local: str = ""
    port: int = 0
    master: str = ""


class Address(NamedTuple):
    """An address with its prefix ("10.20.0.1/24"), without a route of its own (noprefixroute) unless it is link-local (fe80::/10, which without
    one reaches nobody), and without detection of duplicates (nodad)."""

    interface: str
    address: str


class Route(NamedTuple):
    """A route to `to` ("10.20.0.5/32", "0.0.0.0/0"). "unreachable" has no interface. `source` is the preferred source address."""

    to: str
    interface: str = ""
    via: str = ""
    source: str = ""
    kind: Literal["unicast", "unreachable"] = "unicast"


class Neighbour(NamedTuple):
    """A permanent neighbour."""

    interface: str
    address: str
    mac: str


class Forwarding(NamedTuple):
    """An entry of a VXLAN's forwarding table: frames to `mac` go to the host `to`."""

    interface: str
    mac: str
    to: str


class Sysctl(NamedTuple):
    """A file below /proc/sys ("net/ipv4/ip_forward"), in the network's namespace, and what it holds. One whose file does not exist is skipped
    when `optional`. One that makes a router of the host is `learning`: links that learn their own router from its advertisements go on doing so."""

    path: str
    value: str
    optional: bool = False
    learning: bool = False


class Limit(NamedTuple):
    """The bandwidth of a tap, in bytes per second: `egress` (to the machine) by a queue discipline tbf, whose burst in bytes and latency
    in microseconds are given; `ingress` (from it) is in the ruleset."""

    egress: int
    burst: int
    latency: int


class Tap(NamedTuple):
    """A port's interface and all that comes with it when it is made. It is made when it is plugged in; addresses of its own are fe80::1 alone.
    `mac` is the tap's own, the same on all, so that a clone keeps its gateway. With `up` False it exists and is down."""

    interface: str
    mac: str
    mtu: int
    up: bool
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]
    sysctls: tuple[Sysctl, ...]
    limit: Limit | None = None
    master: str = ""


class Outside(NamedTuple):
    """What a network has in the host's namespace: the addresses of its end of the door, the routes to it, the sysctls it needs, and its
    elements of the sets of the one table there (ruleset.outside is that table's text), as (set, element)."""

    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: tuple[Sysctl, ...] = ()
    elements: frozenset[tuple[str, str]] = frozenset()


class Chain(NamedTuple):
    """A chain of our table: its rules as lines of nft, in order; a base chain has a `hook` line."""

    rules: tuple[str, ...]
    hook: str = ""


class Set(NamedTuple):
    """A set or map of our table: `head` are its properties as a line of nft, `elements` key to the rest of the element (": jump x", or "")."""

    head: str
    elements: Mapping[str, str]
    kind: Literal["set", "map"] = "set"


class Table(NamedTuple):
    """A table of nftables that is ours whole: `family` and `name`, named counters, sets, and chains."""

    family: Literal["inet", "arp", "bridge"]
    name: str
    counters: tuple[str, ...]
    sets: Mapping[str, Set]
    chains: Mapping[str, Chain]


class Resolver(NamedTuple):
    """What dnsmasq is told: its configuration file, the hosts files (names), and the reservations (dhcp-hostsfile). The last two are read again
    on SIGHUP; a new `config` needs a new process. File names are relative to the network's directory, as the service maps it."""

    config: str
    hosts: str
    reservations: str


class MetadataPort(NamedTuple):
    """The port whose questions to the metadata service are those of `uid`: identity is the interface, never an address."""

    interface: str
    uid: str


class Fabric(NamedTuple):
    """What one network should be, in plain values: made by plan.fabric, compared by plan.change."""

    uid: str
    links: tuple[Link, ...]
    addresses: tuple[Address, ...]
    routes: tuple[Route, ...]
    neighbours: tuple[Neighbour, ...]
    forwarding: tuple[Forwarding, ...]
    sysctls: tuple[Sysctl, ...]
    taps: Mapping[str, Tap]
    tables: tuple[Table, ...]
    outside: Outside
    resolver: Resolver | None
    published: tuple[Published, ...]
    metadata: tuple[MetadataPort, ...]


class Change(NamedTuple):
    """What leads from one fabric to another. `rules` is a transaction for `nft -f -` in the network's namespace, `outside_rules` one for the
    host's, "" where nothing differs. `added` and `removed` are Link, Address, Route, Neighbour and Forwarding values and Sysctl ones, in the
    order in which they are to be taken. `taps` differ or are new (a plugged one is set right in place), `unplugged` are gone. `resolver`:
    "reload" is SIGHUP after writing the files."""

    rules: str
    outside_rules: str
    removed: tuple[Link | Address | Route | Neighbour | Forwarding, ...]
    added: tuple[Link | Address | Route | Neighbour | Forwarding | Sysctl, ...]
    outside_removed: tuple[Address | Route, ...]
    outside_added: tuple[Address | Route | Sysctl, ...]
    taps: tuple[Tap, ...]
    unplugged: tuple[str, ...]
    resolver: Literal["", "start", "stop", "reload", "restart"]
    published: bool
    metadata: bool

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not any(self)


class PortCount(NamedTuple):
    """What passed a port since it was plugged in, and what was dropped at it, in packets and bytes; "in" is to the machine."""

    in_packets: int = 0
    in_bytes: int = 0
    out_packets: int = 0
    out_bytes: int = 0
    dropped_packets: int = 0


class Seen(NamedTuple):
    """What is. `alive` has the network's processes ("holder", "dnsmasq", "relay", "metadata", "pasta") that run; `plugged` the interfaces that
    exist; `rules` counts packets and bytes by rule ("ruleset/NAME/INDEX"); `drops` packets by reason (ruleset.REASONS); `differs` says in
    words what was not as it should be and was set right (ensure) or is not (look). `unpublished` says by Published.key why a port does not
    listen."""

    ready: bool
    door: Door
    mtu: int
    alive: frozenset[str] = frozenset()
    plugged: frozenset[str] = frozenset()
    ports: Mapping[str, PortCount] = {}
    rules: Mapping[str, tuple[int, int]] = {}
    drops: Mapping[str, int] = {}
    differs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unpublished: Mapping[str, RoostError] = {}


class Fabrics(Protocol):
    """The engine: makes networks what they should be. All truth is in the kernel and in what is given; nothing here is polled."""

    async def ensure(self, wanted: Wanted) -> Seen:
        """Make or adopt the network, set right what a foreign tool destroyed, apply what differs in one transaction. Idempotent.
        Raises RoostError."""
        ...

    async def plug(self, uid: str, interface: str) -> int:
        """A new tap of the port `interface` (of the last ensure) of network `uid`, up, as a descriptor (IFF_VNET_HDR, one queue). The caller
        owns it; the tap goes when it is closed. Raises NotFound for a port that is not wanted, Conflict for one that is plugged in."""
        ...

    async def loose(self) -> int:
        """A tap like those of `plug` that leads nowhere, in a namespace of its own, which goes with it. The caller owns the descriptor.
        Raises Unavailable (this host makes none), NotStarted."""
        ...

    async def remove(self, uid: str) -> None:
        """Nothing is left of the network. Idempotent."""
        ...

    async def look(self, uid: str) -> Seen:
        """What is, without changing it. Raises NotFound."""
        ...

    async def capture(self, uid: str, interface: str) -> int:
        """An AF_PACKET socket bound to the port's tap, as a descriptor that the caller owns. Raises NotFound."""
        ...

    def flows(self, uid: str, *, follow: bool) -> AsyncIterator[bytes]:
        """The flow log, as lines of JSON (flows.Flow): what is kept, and, with `follow`, what comes until it is off. Raises NotFound."""
        ...

    async def host_routes(self) -> Sequence[str]:
        """The networks that the host has routes to or addresses of, which no subnet may meet ("192.0.2.0/24")."""
        ...

    async def host_addresses(self) -> Sequence[str]:
        """The host's own addresses, loopback and link-local ones left out: Wanted.underlay."""
        ...

    def on_change(self, wake: Callable[[str], Awaitable[None] | None]) -> None:
        """Call `wake` with a network's uid when a process of it died or somebody else changed it."""
        ...
