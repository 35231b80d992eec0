"""A network: a private segment of its own that machines plug into, and its door to the world."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface, ip_network
from itertools import combinations
from typing import Annotated, Literal, TypeAlias

import msgspec

from roost.errors import Problem
from roost.model.meta import NAME, Meta, Port, Struct, Trouble

Mode: TypeAlias = Literal["nat", "isolated", "routed", "bridged"]
"""nat: out through the host's address; isolated: no way out; routed: the host routes to its addresses, none is hidden; bridged: part of
the network that an interface of the host is on. (The user-mode network of a single machine is `MachineSpec.network`.)"""

_NOBODYS = (IPv4Network("0.0.0.0/8"), IPv4Network("192.0.0.0/24"))
"""Of no host (RFC 6890); the doors of networks use some of the second."""
_DOMAIN = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,14}")
MOST_SUBNETS = 8
MOST_PEERS = 64


class Subnet(Struct, frozen=True, kw_only=True):
    """A range of addresses, such as 10.20.0.0/24 or fd12:3456::/64. The gateway is its first address unless told otherwise; machines that
    ask for no address of their own get one between `first` and `last` (default: all that are left)."""

    cidr: str
    gateway: str = ""
    first: str = ""
    last: str = ""

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        net = parse(self.cidr)
        if net is None:
            yield Problem(
                "cidr",
                f"{self.cidr!r} is not a network such as 10.20.0.0/24 (an address with bits of the host set is none)",
            )
            return
        if not _is_usable(net):
            yield Problem(
                "cidr", f"{self.cidr} is not for private networks of 4 to 65536 IPv4 addresses, or an IPv6 /64"
            )
            return
        for field in ("gateway", "first", "last"):
            text = getattr(self, field)
            if text and not _is_inside(text, net):
                yield Problem(field, f"{text!r} is not an address of {self.cidr}")
                return
        if self.first and self.last and int(ip_address(self.first)) > int(ip_address(self.last)):
            yield Problem("last", f"{self.last} is before {self.first}")


class VxlanPeer(Struct, frozen=True, kw_only=True):
    """Another host of the network: its address on the network between the hosts, and the addresses whose machines it has."""

    address: str
    subnets: tuple[str, ...]


class Vxlan(Struct, frozen=True, kw_only=True):
    """The network goes on on other hosts, over UDP (RFC 7348). `local` is this host's address, `subnets` the addresses it gives out."""

    id: Annotated[int, msgspec.Meta(ge=1, le=(1 << 24) - 1)]
    local: str
    subnets: tuple[str, ...]
    peers: tuple[VxlanPeer, ...] = ()
    port: Port = 4789

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        places = [
            ("local", self.local),
            *((f"peers[{index}].address", peer.address) for index, peer in enumerate(self.peers)),
        ]
        for path, text in places:
            if not _is_address(text):
                yield Problem(path, f"{text!r} is not an IP address")
        if len({text for _, text in places}) < len(places):
            yield Problem("peers", "two hosts have the same address")
        yield from self._slice_problems()

    def _slice_problems(self) -> Iterator[Problem]:
        slices = [
            ("subnets", self.subnets),
            *((f"peers[{index}].subnets", peer.subnets) for index, peer in enumerate(self.peers)),
        ]
        known: list[tuple[str, IPv4Network | IPv6Network]] = []
        for path, subnets in slices:
            for index, text in enumerate(subnets):
                net = parse(text)
                if net is None:
                    yield Problem(f"{path}[{index}]", f"{text!r} is not a network such as 10.20.0.0/25")
                else:
                    known.append((path, net))
        for (path, one), (other, two) in combinations(known, 2):
            if path != other and one.version == two.version and one.overlaps(two):
                yield Problem(path, f"{one} is given out by two hosts")


class NetworkSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. Without `subnets` one is chosen that meets no other of this host. `mtu` in bytes, None: the largest that fits.
    `domain` (default: PROJECT.internal) is what names of machines end with. `resolvers` answer what the network does not know itself
    (default: those of the host). `interface` and `vlan` (802.1Q) say what a bridged network is part of."""

    mode: Mode = "nat"
    subnets: tuple[Subnet, ...] = ()
    mtu: Annotated[int, msgspec.Meta(ge=1280, le=9216)] | None = None
    domain: str = ""
    resolvers: tuple[str, ...] = ()
    interface: str = ""
    vlan: Annotated[int, msgspec.Meta(ge=1, le=4094)] | None = None
    vxlan: Vxlan | None = None
    flow_log: bool = False

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        for index, subnet in enumerate(self.subnets):
            for problem in subnet.problems():
                yield Problem(f"subnets[{index}].{problem.path}", problem.message)
        if len(self.subnets) > MOST_SUBNETS:
            yield Problem("subnets", f"are more than {MOST_SUBNETS}")
        nets = [net for net in map(parse, (subnet.cidr for subnet in self.subnets)) if net is not None]
        if any(one.version == two.version and one.overlaps(two) for one, two in combinations(nets, 2)):
            yield Problem("subnets", "overlap each other")
        if self.domain and (len(self.domain) > 200 or not _DOMAIN.fullmatch(self.domain)):
            yield Problem("domain", f"{self.domain[:80]!r} is not a DNS domain in small letters")
        yield from self._resolver_problems()
        yield from self._mode_problems()

    def _resolver_problems(self) -> Iterator[Problem]:
        for index, resolver in enumerate(self.resolvers):
            if not _is_address(resolver):
                yield Problem(f"resolvers[{index}]", f"{resolver[:80]!r} is not an IP address")
            elif not _is_of_a_host(resolver) or ip_address(resolver) in self._gateways():
                yield Problem(f"resolvers[{index}]", f"{resolver} would be the network itself, or nobody")

    def _gateways(self) -> set[IPv4Address | IPv6Address]:
        nets = ((parse(subnet.cidr), subnet.gateway) for subnet in self.subnets)
        chosen = (str(net[1]) if net is not None and not own else own for net, own in nets)
        return {ip_address(text) for text in chosen if _is_address(text)}

    def _mode_problems(self) -> Iterator[Problem]:
        if self.mode == "bridged":
            yield from self._bridge_problems()
        elif self.interface or self.vlan is not None:
            yield Problem("interface" if self.interface else "vlan", "is for bridged networks only")
        if self.mode == "routed" and not self.subnets:
            yield Problem("subnets", "say which addresses are routed")
        if self.vxlan is None:
            return
        if self.mode == "bridged" or not self.subnets:
            yield Problem("vxlan", "needs subnets that are the same on all hosts")
        for problem in self.vxlan.problems():
            yield Problem(f"vxlan.{problem.path}", problem.message)

    def _bridge_problems(self) -> Iterator[Problem]:
        if not _INTERFACE.fullmatch(self.interface):
            yield Problem(
                "interface", f"{self.interface[:80]!r} is not the name of the host's interface that it is bridged to"
            )
        if self.subnets:
            yield Problem("subnets", "a bridged network has those of the network that it is part of")


class NetworkStatus(Struct, frozen=True, kw_only=True):
    """What is. `subnets` are those in use, gateways and all. `door` is how it reaches the world: "kernel" (the host forwards), "pasta"
    (ordinary sockets of the host, no privilege), "none", "bridge"; `transfer` are the addresses of its two ends. `ports` counts the machines'
    ports that are plugged in."""

    phase: Literal["pending", "starting", "ready", "failed"] = "pending"
    generation: int = 0
    subnets: tuple[Subnet, ...] = ()
    door: Literal["", "none", "kernel", "pasta", "bridge"] = ""
    transfer: tuple[str, ...] = ()
    mtu: int = 0
    ports: int = 0
    warnings: tuple[str, ...] = ()
    error: Trouble | None = None


class Network(Struct, frozen=True, kw_only=True):
    """A private network."""

    kind: Literal["network"] = "network"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: NetworkSpec = NetworkSpec()
    status: NetworkStatus = NetworkStatus()


class Bandwidth(Struct, frozen=True, kw_only=True):
    """The most that a port may carry, in bits per second, to the machine (`down`) and from it (`up`)."""

    down: Annotated[int, msgspec.Meta(ge=8_000, le=10**12)] | None = None
    up: Annotated[int, msgspec.Meta(ge=8_000, le=10**12)] | None = None


_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


class PortSpec(Struct, frozen=True, kw_only=True):
    """One network card of a machine. `name` (default: the network's) tells it from the machine's others. Addresses that are not given are
    leased, one of each subnet's version. Without `link` the cable is out. `rulesets` (default: "default") say what may pass."""

    network: str
    name: str = ""
    mac: str = ""
    addresses: tuple[str, ...] = ()
    link: bool = True
    bandwidth: Bandwidth = Bandwidth()
    rulesets: tuple[str, ...] = ("default",)

    @property
    def title(self) -> str:
        """The port's name."""
        return self.name or self.network

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        rulesets = ((f"rulesets[{index}]", text) for index, text in enumerate(self.rulesets))
        for field, text in (("network", self.network), ("name", self.title), *rulesets):
            if not NAME.fullmatch(text):
                yield Problem(field, f"{text[:80]!r} is not a name")
        if self.mac and (
            not _MAC.fullmatch(self.mac) or int(self.mac[1], 16) & 1 or not int(self.mac.replace(":", ""), 16)
        ):
            yield Problem("mac", f"{self.mac[:80]!r} is not the MAC address of one card, such as 52:54:00:12:34:56")
        for index, text in enumerate(self.addresses):
            if not _is_address(text):
                yield Problem(f"addresses[{index}]", f"{text[:80]!r} is not an IP address")
        if len({ip_address(text).version for text in self.addresses if _is_address(text)}) < len(self.addresses):
            yield Problem("addresses", "are not one of each version of IP")


class PortStatus(Struct, frozen=True, kw_only=True):
    """A port as it is: where it is plugged in, its MAC address, and its addresses with the length of their prefix ("10.20.0.5/24").
    `network_uid` tells the network from a later one of its name. `interface` is its name on the host, `slot` its place in the machine: 0
    is fixed, the others can be unplugged while it runs."""

    name: str
    network: str
    mac: str
    addresses: tuple[str, ...] = ()
    interface: str = ""
    link: bool = True
    slot: int = 0
    network_uid: str = ""


def parse(cidr: str) -> IPv4Network | IPv6Network | None:
    """The network that the text names; None when it names none."""
    try:
        return ip_network(cidr) if "/" in cidr and len(cidr) <= 64 and "%" not in cidr else None
    except ValueError:
        return None


def _is_address(text: str) -> bool:
    try:
        return len(text) <= 45 and "%" not in text and not ip_address(text).is_unspecified
    except ValueError:
        return False


def _is_of_a_host(text: str) -> bool:
    address = ip_address(text)
    return not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_reserved)


def _is_inside(text: str, net: IPv4Network | IPv6Network) -> bool:
    if not _is_address(text):
        return False
    address = ip_interface(text).ip
    ends = (net.network_address, net.broadcast_address) if net.version == 4 else (net.network_address,)
    return address.version == net.version and address in net and address not in ends


def _is_usable(net: IPv4Network | IPv6Network) -> bool:
    special = net.is_loopback or net.is_link_local or net.is_multicast or net.is_unspecified or net.is_reserved
    special = special or any(net.version == it.version and net.overlaps(it) for it in _NOBODYS)
    return not special and (net.prefixlen == 64 if net.version == 6 else 16 <= net.prefixlen <= 30)
