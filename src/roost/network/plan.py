"""Decides what a network is made of: from everything resolved to links, addresses, routes, rules, names. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Literal, TypeVar

from roost.errors import Invalid, Problem
from roost.network import bridging, names, nft, outside, ruleset
from roost.network.base import (
    Address,
    Attachment,
    Change,
    Fabric,
    Forwarding,
    Limit,
    Link,
    MetadataPort,
    Neighbour,
    Outside,
    Route,
    Sysctl,
    Tap,
    Wanted,
)
from roost.network.resolver import resolver

_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
_DOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,198}[a-z0-9])?")
_LATENCY = 50_000
"""How long a packet may wait for the bandwidth of its port, in microseconds: more is a longer queue, less is less throughput."""

_Item = TypeVar("_Item")

_SYSCTLS = (
    Sysctl("net/ipv4/ip_forward", "1"),
    Sysctl("net/ipv4/ip_unprivileged_port_start", "0"),
    *(Sysctl(f"net/ipv4/conf/{which}/rp_filter", "0") for which in ("all", "default")),
    *(Sysctl(f"net/ipv4/conf/{which}/accept_redirects", "0") for which in ("all", "default")),
    *(Sysctl(f"net/ipv4/conf/{which}/send_redirects", "0") for which in ("all", "default")),
    Sysctl("net/ipv6/conf/all/forwarding", "1", optional=True),
    Sysctl("net/ipv6/conf/default/addr_gen_mode", "1", optional=True),
    *(Sysctl(f"net/ipv6/conf/{which}/accept_ra", "0", optional=True) for which in ("all", "default")),
    *(Sysctl(f"net/ipv6/conf/{which}/accept_redirects", "0", optional=True) for which in ("all", "default")),
)
"""The namespace is a router: it believes nobody about routes. Sources are checked by the rules (reverse paths say less, and IPv4 only)."""


def fabric(wanted: Wanted) -> Fabric:
    """What the network should be. Raises Invalid for values that are none (nothing is passed on unread), Unavailable for a bridged VLAN."""
    wanted = _checked(wanted)
    if wanted.mode == "bridged":
        return bridging.fabric(wanted, {port.interface: _limit(wanted.mtu, port) for port in wanted.ports})
    gateways = tuple(subnet.gateway for subnet in wanted.subnets)
    return Fabric(
        uid=wanted.uid,
        links=tuple(_links(wanted)),
        addresses=tuple(_addresses(wanted)),
        routes=tuple(_routes(wanted)),
        neighbours=tuple(
            Neighbour(names.TUNNEL, names.link_local(mac), mac) for mac in map(names.tunnel_mac, _peers(wanted))
        ),
        forwarding=tuple(Forwarding(names.TUNNEL, names.tunnel_mac(peer), peer) for peer in _peers(wanted)),
        sysctls=_SYSCTLS,
        taps={port.interface: _tap(port, wanted.mtu, gateways) for port in wanted.ports},
        tables=ruleset.tables(wanted),
        outside=outside.of(wanted),
        resolver=resolver(wanted),
        published=wanted.published,
        metadata=tuple(MetadataPort(port.interface, port.uid) for port in wanted.ports if port.link),
    )


def change(before: Fabric | None, after: Fabric) -> Change:
    """What leads from the one to the other. Without `before` (nothing is known) everything is added, and the tables are replaced. Taps are
    not among `added` and `removed`, nor is what is theirs."""
    old = before or _nothing(after)
    taps = tuple(tap for name, tap in after.taps.items() if old.taps.get(name) != tap)
    return Change(
        rules=nft.transaction(old.tables, after.tables),
        outside_rules=outside.change(old.outside, after.outside),
        removed=tuple(_gone(old, after)),
        added=tuple(_new(old, after)),
        outside_removed=tuple(_less(old.outside, after.outside)),
        outside_added=tuple(_more(old.outside, after.outside)),
        taps=taps,
        unplugged=tuple(name for name in old.taps if name not in after.taps),
        resolver=_resolver_step(old, after),
        published=old.published != after.published,
        metadata=old.metadata != after.metadata,
    )


def _nothing(after: Fabric) -> Fabric:
    empty = Fabric(after.uid, (), (), (), (), (), (), {}, (), Outside(), None, (), ())
    return empty._replace(tables=())


def _links(wanted: Wanted) -> Iterator[Link]:
    yield Link(names.GATEWAY, "loopback", 65_536)
    if wanted.door == "kernel":
        yield Link(names.UPLINK, "veth", wanted.mtu, peer=names.veth(wanted.uid))
    if wanted.vxlan:
        mac = names.tunnel_mac(wanted.vxlan.local)
        local = str(ip_address(wanted.vxlan.local))
        yield Link(names.TUNNEL, "vxlan", wanted.mtu, mac, id=wanted.vxlan.id, local=local, port=wanted.vxlan.port)


def _addresses(wanted: Wanted) -> Iterator[Address]:
    yield Address(names.GATEWAY, f"{names.METADATA}/32")
    yield from (Address(names.GATEWAY, _alone(subnet.gateway)) for subnet in wanted.subnets)
    if wanted.door == "kernel":
        yield from (Address(names.UPLINK, f"{here}/{127 if ':' in here else 31}") for here in wanted.transfer[::2])
    if wanted.vxlan:
        yield Address(names.TUNNEL, f"{names.link_local(names.tunnel_mac(wanted.vxlan.local))}/64")


def _routes(wanted: Wanted) -> Iterator[Route]:
    """Who is not there is unreachable, and is not looked for in the world. Other hosts are reached by a link-local address of theirs, IPv4 too."""
    yield from (Route(subnet.cidr, kind="unreachable") for subnet in wanted.subnets)
    if wanted.door == "kernel":
        for there in wanted.transfer[1::2]:
            yield Route("::/0" if ":" in there else "0.0.0.0/0", names.UPLINK, via=there)
    for peer in wanted.vxlan.peers if wanted.vxlan else ():
        via = names.link_local(names.tunnel_mac(peer.address))
        yield from (Route(cidr, names.TUNNEL, via=via) for cidr in peer.subnets)


def _peers(wanted: Wanted) -> list[str]:
    return [str(ip_address(peer.address)) for peer in wanted.vxlan.peers] if wanted.vxlan else []


@lru_cache(maxsize=1 << 13)
def _tap(port: Attachment, mtu: int, gateways: tuple[str, ...]) -> Tap:
    """Every tap bears the gateway's addresses: DHCP and RA then come from it itself, and the tap that a question comes by is known.
    Remembered, as all but a few are what they were a moment ago."""
    name = port.interface
    source = {":" in gateway: gateway for gateway in reversed(gateways)}
    return Tap(
        interface=name,
        mac=names.GATEWAY_MAC,
        mtu=mtu,
        up=port.link,
        addresses=tuple(Address(name, text) for text in (*map(_on_tap, gateways), f"{names.GATEWAY_LINK_LOCAL}/64")),
        routes=tuple(Route(_alone(text), name, source=source.get(":" in text, "")) for text in port.addresses),
        neighbours=tuple(Neighbour(name, text, port.mac) for text in port.addresses),
        sysctls=(Sysctl(f"net/ipv4/conf/{name}/proxy_arp", "1"),),
        limit=_limit(mtu, port),
    )


def _alone(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _on_tap(gateway: str) -> str:
    """With the prefix that dnsmasq looks for: IPv4's is in its configuration, IPv6's must be on the interface."""
    return f"{gateway}/64" if ":" in gateway else f"{gateway}/32"


def _limit(mtu: int, port: Attachment) -> Limit | None:
    """A burst is what comes in 10 ms (two ticks of a kernel with HZ=250), two full packets at least."""
    if port.down is None:
        return None
    rate = max(1, port.down // 8)
    return Limit(egress=rate, burst=max(rate // 100, 2 * (mtu + 18)), latency=_LATENCY)


def _gone(old: Fabric, new: Fabric) -> Iterator[Link | Address | Route | Neighbour | Forwarding]:
    """What needs others first, links last: what is on a link that goes is told all the same."""
    yield from _without(old.forwarding, new.forwarding)
    yield from _without(old.neighbours, new.neighbours)
    yield from _without(old.routes, new.routes)
    yield from _without(old.addresses, new.addresses)
    yield from _without(old.links, new.links)


def _new(old: Fabric, new: Fabric) -> Iterator[Link | Address | Route | Neighbour | Forwarding | Sysctl]:
    """What was on a link that is made anew went with it."""
    yield from _without(new.sysctls, old.sysctls)
    yield from _without(new.links, old.links)
    lasting = {link.name for link in set(old.links) & set(new.links)} | {""}
    yield from _without(new.addresses, [item for item in old.addresses if item.interface in lasting])
    yield from _without(new.neighbours, [item for item in old.neighbours if item.interface in lasting])
    yield from _without(new.forwarding, [item for item in old.forwarding if item.interface in lasting])
    yield from _without(new.routes, [item for item in old.routes if item.interface in lasting])


def _less(old: Outside, new: Outside) -> Iterator[Address | Route]:
    yield from _without(old.routes, new.routes)
    yield from _without(old.addresses, new.addresses)


def _more(old: Outside, new: Outside) -> Iterator[Address | Route | Sysctl]:
    yield from _without(new.addresses, old.addresses)
    yield from _without(new.sysctls, old.sysctls)
    yield from _without(new.routes, old.routes)


def _without(items: Sequence[_Item], others: Collection[_Item]) -> Iterator[_Item]:
    known = set(others)
    return (item for item in items if item not in known)


def _resolver_step(old: Fabric, new: Fabric) -> Literal["", "start", "stop", "reload", "restart"]:
    if old.resolver == new.resolver:
        return ""
    if new.resolver is None or old.resolver is None:
        return "stop" if new.resolver is None else "start"
    return "restart" if old.resolver.config != new.resolver.config else "reload"


def _checked(wanted: Wanted) -> Wanted:
    """The same in one notation. Raises Invalid with all that is wrong."""
    problems = [*_problems(wanted), *_rule_problems(wanted), *_port_problems(wanted)]
    problems += bridging.problems(wanted) if wanted.mode == "bridged" else ()
    if problems:
        raise Invalid(f"network {names.safe(wanted.name)} can not be made", problems=problems)
    return wanted._replace(
        subnets=tuple(
            subnet.__class__(cidr=str(ip_network(subnet.cidr)), gateway=_address(subnet.gateway))
            for subnet in wanted.subnets
        ),
        transfer=tuple(map(_address, wanted.transfer)),
        resolvers=tuple(map(_address, wanted.resolvers)),
        underlay=tuple(str(ip_network(text, strict=False)) for text in wanted.underlay),
        ports=tuple(map(_port, wanted.ports)),
        published=tuple(entry._replace(target=_address(entry.target)) for entry in wanted.published),
        names=tuple((machine, _address(text)) for machine, text in wanted.names),
    )


def _problems(wanted: Wanted) -> Iterator[Problem]:
    if not _DOMAIN.fullmatch(wanted.domain):
        yield Problem("domain", f"{wanted.domain[:80]!r} is not a DNS domain in small letters")
    if len(wanted.transfer) % 2 or (wanted.door == "kernel") != bool(wanted.transfer):
        yield Problem("transfer", "is a pair of addresses for each version of IP, for the door of the kernel")
    texts = {
        "resolvers": wanted.resolvers,
        "transfer": wanted.transfer,
        "subnets.gateway": tuple(subnet.gateway for subnet in wanted.subnets),
        "published.target": tuple(entry.target for entry in wanted.published),
        "names": tuple(text for _, text in wanted.names),
    }
    for path, held in texts.items():
        yield from (Problem(path, f"{text[:80]!r} is not an IP address") for text in held if not _address(text))
    nets = {"underlay": wanted.underlay, "subnets.cidr": tuple(subnet.cidr for subnet in wanted.subnets)}
    for path, held in nets.items():
        yield from (Problem(path, f"{text[:80]!r} is not a network") for text in held if not _is_network(text))


def _rule_problems(wanted: Wanted) -> Iterator[Problem]:
    for name, spec in wanted.rulesets.items():
        yield from (Problem(f"rulesets.{names.safe(name)}.{path}", message) for path, message in spec.problems())
    if wanted.vxlan:
        yield from (Problem(f"vxlan.{path}", message) for path, message in wanted.vxlan.problems())


def _port_problems(wanted: Wanted) -> Iterator[Problem]:
    told = [(port.interface, *port.addresses) for port in map(_port, wanted.ports)]
    if len({text for texts in told for text in texts}) == sum(map(len, told)) and not any(map(_wrong, wanted.ports)):
        return
    seen: set[str] = set()
    for index, (port, own) in enumerate(zip(wanted.ports, told, strict=True)):
        yield from (Problem(f"ports[{index}].{field}", message) for field, message in _wrong(port))
        there = [text for text in own if text in seen and text]
        yield from (Problem(f"ports[{index}]", f"{text[:80]!r} is another port's") for text in there)
        seen.update(own)


@lru_cache(maxsize=1 << 13)
def _port(port: Attachment) -> Attachment:
    """The port with its addresses in the usual notation. Remembered as `_tap` is, and the same object each time: what is asked of it next is found
    without comparing it."""
    return port._replace(addresses=tuple(map(_address, port.addresses)))


@lru_cache(maxsize=1 << 13)
def _wrong(port: Attachment) -> tuple[tuple[str, str], ...]:
    """The fields of a port that are none, and why."""
    found = [("addresses", f"{text[:80]!r} is not an IP address") for text in port.addresses if not _address(text)]
    if not names.TAP.fullmatch(port.interface):
        found.append(("interface", f"{port.interface[:80]!r} is not the name of a tap"))
    if not _MAC.fullmatch(port.mac):
        found.append(("mac", f"{port.mac[:80]!r} is not a MAC address"))
    return tuple(found)


@lru_cache(maxsize=1 << 15)
def _address(text: str) -> str:
    """The address in the usual notation; "" for what is none. Remembered, as a network's are mostly those that it had a moment ago."""
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    return "" if "%" in text or address.is_unspecified else str(address)


def _is_network(text: str) -> bool:
    try:
        return "%" not in text and ip_network(text, strict=False) is not None
    except ValueError:
        return False
