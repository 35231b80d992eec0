"""Compiles a network's ports and rule sets to the tables of its namespace. Pure.

Every port has a number that stands for its combination of rule sets, and every combination a chain for each direction: two look-ups a
connection, however many ports there are. Which connection is allowed is decided on its first packet's addresses (`ct original`), so the
same rules judge answers, and connections that stand when rules change: see `known` and `settle`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from roost.model.ruleset import DEFAULT, Rule, RuleSetSpec, span
from roost.network import guards, names
from roost.network.base import Attachment, Chain, Set, Table, Wanted

TABLE = "roost"
FLOW_GROUP = 5
"""The nfnetlink_log group of the flow log."""
FLOWS = 100
"""Connections that are logged each second, of those that are allowed and of those that are refused (ten times as many at once)."""

IMPLICIT = RuleSetSpec(rules=(Rule(direction="in", ruleset=DEFAULT),))
"""The rule set "default" of a project that has none of that name."""
NOTHING = RuleSetSpec(rules=(Rule(direction="in", action="deny"), Rule(direction="out", action="deny")))
"""What stands for a rule set that is named and not there."""

_ALLOWED, _DOOR, _TUNNEL, _FIRST = 1, 1, 2, 1 << 8
_REFUSE = "goto drop-refused"
_PROTOCOLS = {
    "any": "",
    "tcp": "meta l4proto tcp ",
    "udp": "meta l4proto udp ",
    "icmp": "meta l4proto { icmp, icmpv6 } ",
}


class Identity(NamedTuple):
    """What the rules say of a port: who it may send as (keys of sets), its addresses by version, and the digest of that and of its rule sets."""

    card: str
    sources: Mapping[int, Mapping[str, str]]
    addresses: Mapping[int, Mapping[str, str]]
    digest: str


class Plugged(NamedTuple):
    """The ports that have a link, what the rules say of each, and the number of each one's combination of rule sets."""

    ports: Sequence[Attachment]
    identities: Sequence[Identity]
    numbers: Mapping[tuple[str, ...], int]


def tables(wanted: Wanted) -> tuple[Table, Table]:
    """The tables `inet roost` and `arp roost` of the network's namespace."""
    ports = [port for port in wanted.ports if port.link]
    plugged = Plugged(ports, list(map(identity, ports)), _numbers({port.rulesets for port in ports}))
    specs = {name: spec_of(wanted.rulesets, name) for combination in plugged.numbers for name in combination}
    meters, policing = guards.bandwidth({port.interface: max(1, port.up // 8) for port in ports if port.up})
    others = {**_places(wanted), **_dispatch(wanted, plugged)}
    sets = {
        **guards.limits(),
        **meters,
        **_identities(plugged.identities),
        **_groups(plugged, specs),
        **others,
    }
    chains = {
        **guards.chains(
            wanted.door, masquerade=wanted.mode == "nat" and wanted.door != "none", tunnel=bool(wanted.vxlan)
        ),
        **policing,
        **dict(_rule_chains(specs, remote=wanted.vxlan is not None)),
        **dict(_combinations(plugged.numbers, specs)),
        **_ways(flow_log=wanted.flow_log),
    }
    del others["numbers"]  # the rule sets of the ports say the same
    mark = _mark(plugged.identities, others, chains)
    inet = Table("inet", TABLE, guards.REASONS, sets, {**chains, **_ends(mark, flow_log=wanted.flow_log)})
    return inet, _arp(sets)


def spec_of(rulesets: Mapping[str, RuleSetSpec], name: str) -> RuleSetSpec:
    """The rule set of that name: the project's, else the implicit "default", else one that lets nothing pass."""
    return rulesets.get(name, IMPLICIT if name == DEFAULT else NOTHING)


def addresses(port: Attachment, version: int) -> Iterator[str]:
    """The port's addresses of one version of IP."""
    return (text for text in port.addresses if (":" in text) == (version == 6))


@lru_cache(maxsize=1 << 13)
def identity(port: Attachment) -> Identity:
    """What the rules say of it. Remembered, as all but a few ports are what they were a moment ago."""
    card = f"{port.interface} . {port.mac}"
    own = {version: dict.fromkeys(addresses(port, version), "") for version in (4, 6)}
    sources = {version: {f"{card} . {text}": "" for text in held} for version, held in own.items()}
    return Identity(card, sources, own, names.digest(f"{card}{port.addresses}{port.rulesets}{port.up}"))


def _identities(held: Sequence[Identity]) -> dict[str, Set]:
    """Who may send as whom."""
    return {
        "cards": Set("type ifname . ether_addr", {one.card: "" for one in held}),
        "sources4": Set("type ifname . ether_addr . ipv4_addr; counter", _joined_keys(one.sources[4] for one in held)),
        "sources6": Set("type ifname . ether_addr . ipv6_addr; counter", _joined_keys(one.sources[6] for one in held)),
    }


def _joined_keys(parts: Iterable[Mapping[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        found.update(part)
    return found


def _places(wanted: Wanted) -> dict[str, Set]:
    """The gateway, the network itself, the hosts, what other hosts of a VXLAN have, and what is published."""
    gateways = [subnet.gateway for subnet in wanted.subnets]
    peers = wanted.vxlan.peers if wanted.vxlan else ()
    hosts = [
        *wanted.underlay,
        *wanted.transfer,
        *(peer.address for peer in peers),
        *([wanted.vxlan.local] if wanted.vxlan else []),
    ]
    published = [f"{entry.target} . {entry.protocol} . {entry.target_port}" for entry in wanted.published]
    ranges = {"inside": [subnet.cidr for subnet in wanted.subnets], "underlay": hosts}
    if wanted.vxlan:
        ranges["remote"] = [cidr for peer in peers for cidr in peer.subnets]
    found: dict[str, Set] = {}
    for version in (4, 6):
        kind = f"type ipv{version}_addr"
        own = gateways if version == 4 else [*gateways, names.GATEWAY_LINK_LOCAL]
        found[f"gateway{version}"] = Set(kind, _keys(own, version))
        found[f"published{version}"] = Set(f"{kind} . inet_proto . inet_service", _keys(published, version))
        for name, nets in ranges.items():
            found[f"{name}{version}"] = Set(f"{kind}; flags interval", _keys(merged(nets, version), version))
    return found


def merged(nets: Iterable[str], version: int) -> list[str]:
    """The networks of one version, none within another."""
    told = [text for text in nets if (":" in text) == (version == 6)]
    if version == 4:
        return [str(net) for net in ipaddress.collapse_addresses(map(ipaddress.IPv4Network, told))]
    return [str(net) for net in ipaddress.collapse_addresses(map(ipaddress.IPv6Network, told))]


def _keys(texts: Iterable[str], version: int) -> dict[str, str]:
    return {text: "" for text in texts if (":" in text) == (version == 6)}


def _groups(plugged: Plugged, specs: Mapping[str, RuleSetSpec]) -> dict[str, Set]:
    """The addresses of the ports of each rule set that a rule speaks of."""
    spoken = sorted({rule.ruleset for spec in specs.values() for rule in spec.rules if rule.ruleset})
    pairs = list(zip(plugged.ports, plugged.identities, strict=True))
    held = {name: [one for port, one in pairs if name in port.rulesets] for name in spoken}
    return {
        f"group{version}-{names.safe(name)}": Set(
            f"type ipv{version}_addr", _joined_keys(one.addresses[version] for one in held[name])
        )
        for name in spoken
        for version in (4, 6)
    }


def _numbers(combinations: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """A number for each, that depends on the others only where two would get the same one."""
    found: dict[tuple[str, ...], int] = {}
    taken: set[int] = set()
    for names_ in sorted(combinations):
        number = _FIRST + int(names.digest("\n".join(names_))[:7], 16)
        while number in taken:
            number += 1
        found[names_] = number
        taken.add(number)
    return found


def _dispatch(wanted: Wanted, plugged: Plugged) -> dict[str, Set]:
    """From interface to number, and from number to chain. Two maps, as the kernel walks all that a verdict map leads to at each change."""
    told = {combination: f" : {number:#x}" for combination, number in plugged.numbers.items()}
    numbers = {port.interface: told[port.rulesets] for port in plugged.ports}
    doors = {_DOOR: names.UPLINK} if wanted.door != "none" else {}
    if wanted.vxlan:
        doors[_TUNNEL] = names.TUNNEL
    numbers |= {f'"{name}"': f" : {number:#x}" for number, name in doors.items()}
    leave = {f"{number:#x}": f" : jump leave-{number:x}" for number in plugged.numbers.values()}
    enter = {f"{number:#x}": f" : jump enter-{number:x}" for number in plugged.numbers.values()}
    comes_in = {_DOOR: wanted.mode == "routed", _TUNNEL: True}
    leave |= {f"{number:#x}": " : continue" if comes_in[number] else f" : {_REFUSE}" for number in doors}
    enter |= {f"{number:#x}": " : continue" for number in doors}
    return {
        "numbers": Set("type ifname : mark", numbers, "map"),
        "leave": Set("type mark : verdict", leave, "map"),
        "enter": Set("type mark : verdict", enter, "map"),
    }


def _combinations(
    numbers: Mapping[tuple[str, ...], int], specs: Mapping[str, RuleSetSpec]
) -> Iterator[tuple[str, Chain]]:
    """What is in no rule goes out where no rule set of the port speaks of "out", and comes in where it is published."""
    for combination, number in numbers.items():
        out = [name for name in combination if _speaks(specs[name], "out")]
        into = [name for name in combination if _speaks(specs[name], "in")]
        yield f"leave-{number:x}", Chain((*_asked(out, "out"), *([_REFUSE] if out else [])))
        yield f"enter-{number:x}", Chain((*_asked(into, "in"), "goto undecided"))


def _asked(asked: Iterable[str], direction: str) -> Iterator[str]:
    for name in dict.fromkeys(asked):
        yield f"jump {direction}-{names.safe(name)}"
        yield f"meta mark {_ALLOWED:#x} return"


def _speaks(spec: RuleSetSpec, direction: str) -> bool:
    return any(rule.direction == direction for rule in spec.rules)


def _rule_chains(specs: Mapping[str, RuleSetSpec], *, remote: bool) -> Iterator[tuple[str, Chain]]:
    for name, spec in sorted(specs.items()):
        lines: dict[str, list[str]] = {"in": [], "out": []}
        for index, rule in enumerate(spec.rules):
            lines[rule.direction] += _lines(rule, f"ruleset/{names.safe(name)}/{index}", remote=remote)
        yield from (
            (f"{direction}-{names.safe(name)}", Chain(tuple(told))) for direction, told in lines.items() if told
        )


def _lines(rule: Rule, label: str, *, remote: bool) -> Iterator[str]:
    verdict = f"meta mark set {_ALLOWED:#x} return" if rule.action == "allow" else _REFUSE
    protocol = _PROTOCOLS[rule.protocol] + _port_match(rule.ports)
    for end in _far_ends(rule, remote=remote):
        yield f'{protocol}{end}counter {verdict} comment "{label}"'


def _port_match(ports: Iterable[str]) -> str:
    spans = list(_joined(filter(None, map(span, ports))))
    told = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    if not told:
        return ""
    return f"ct original proto-dst {told[0] if len(told) == 1 else '{ ' + ', '.join(told) + ' }'} "


def _joined(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans in order, none within or beside another."""
    first, last = 0, -1
    for start, end in sorted(spans):
        if last >= 0 and start > last + 1:
            yield first, last
            first, last = start, end
        else:
            first, last = (first, max(last, end)) if last >= 0 else (start, end)
    if last >= 0:
        yield first, last


def _far_ends(rule: Rule, *, remote: bool) -> Iterator[str]:
    """The other end, in as many rules as it takes. Ports of other hosts of a VXLAN are in "default": what they are else is known there."""
    side = "daddr" if rule.direction == "out" else "saddr"
    if rule.cidr:
        net = ipaddress.ip_network(rule.cidr)
        family, version = ("ip", 4) if net.version == 4 else ("ip6", 6)
        yield f"ct original {family} {side} {net} " if net.prefixlen else f"meta nfproto ipv{version} "
    elif rule.ruleset:
        groups = [
            f"group{{}}-{names.safe(rule.ruleset)}",
            *(["remote{}"] if remote and rule.ruleset == DEFAULT else []),
        ]
        for group in groups:
            yield f"ct original ip {side} @{group.format(4)} "
            yield f"ct original ip6 {side} @{group.format(6)} "
    else:
        yield ""


def _ways(*, flow_log: bool) -> dict[str, Chain]:
    """How a connection is judged: `forth` by its first packets, `back` by answers of one that is not marked, `arrive` from the gateway."""
    left, entered = "meta mark vmap @leave", "meta mark vmap @enter"

    def number(side: str) -> tuple[str, ...]:
        return "meta mark set 0x0", f"meta mark set {side} map @numbers", f"meta mark 0x0 {_REFUSE}"

    published = (
        f"ct original {family} saddr @gateway{version} {family} daddr . meta l4proto . th dport @published{version} return"
        for family, version in (("ip", 4), ("ip6", 6))
    )
    return {
        **({"drop-refused": guards.refuse(_log("refused"))} if flow_log else {}),
        "undecided": Chain((*published, _REFUSE)),
        "forth": Chain(("jump bounds", *number("iifname"), left, "goto arrive")),
        "back": Chain(("jump bounds", *number("oifname"), left, *number("iifname"), entered, "goto settle")),
        "arrive": Chain((*number("oifname"), entered, "goto settle")),
    }


def _log(what: str) -> tuple[str, ...]:
    # The mark is 0 until a connection is judged: one that nobody answers is told once, not packet by packet.
    limit = f"limit rate {FLOWS}/second burst {10 * FLOWS} packets"
    return (f'ct state new ct mark 0x0 {limit} log prefix "{what} " group {FLOW_GROUP} snaplen 96 queue-threshold 16',)


def _mark(ports: Iterable[Identity], sets: Mapping[str, Set], chains: Mapping[str, Chain]) -> int:
    """The mark of connections that the rules allowed: another whenever anything in them is. Never 0, that of a connection not yet judged."""
    told = [one.digest for one in ports]
    told += [f"{title}{key}{value}" for title, held in sets.items() for key, value in held.elements.items()]
    told += [f"{title}{chain.rules}" for title, chain in chains.items()]
    # Sorted, so that the same ports in another order are the same rules.
    return int(names.digest("\n".join(sorted(told)))[:8], 16) | 1


def _ends(mark: int, *, flow_log: bool) -> dict[str, Chain]:
    log = _log("allowed") if flow_log else ()
    return {"known": Chain((f"ct mark {mark:#x} accept",)), "settle": Chain((*log, f"ct mark set {mark:#x}", "accept"))}


def _arp(inet: Mapping[str, Set]) -> Table:
    sets = {
        **guards.arp_limits(),
        "cards": inet["cards"],
        "sources": inet["sources4"]._replace(head="type ifname . ether_addr . ipv4_addr"),
    }
    return Table("arp", TABLE, guards.ARP_REASONS, sets, guards.arp_chains())
