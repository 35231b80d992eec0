"""The one table in the host's own namespace: what comes out of networks reaches the world, and neither the host nor each other. Pure.

Its rules are the same whatever networks there are; a network's own are its elements of the sets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import ip_address

from roost.network import names, nft, ruleset
from roost.network.base import Address, Chain, Outside, Route, Set, Sysctl, Table, Wanted

_DOORS = f'"{names.OUTSIDE_PREFIX}*"'
_NEVER4 = "{ 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4 }"
_NEVER6 = "{ ::/96, ::ffff:0:0/96, fe80::/10, ff00::/8 }"
_VERSIONS = (("ip", 4), ("ip6", 6))
_TUNNEL = "udp dport . @th,96,24"
"""The port and, of a packet of VXLAN (RFC 7348), its network identifier: no port is taken from others that use it with another identifier."""
PROBE = ("rstprobe", "192.0.0.9")
"""The link, and the address behind it, by which it is tried whether this host forwards: see network.forwarding."""
_TUNNEL_SETS = {
    "tunnels": f"typeof {_TUNNEL}",
    **{
        f"tunnel_{end}{version}": f"typeof {ip} saddr . {_TUNNEL}"
        for end in ("here", "there")
        for ip, version in _VERSIONS
    },
}


def of(wanted: Wanted) -> Outside:
    """What a network has in the host's namespace: with a door of the host's kernel its outer end, with a VXLAN who may speak for that."""
    if wanted.door != "kernel":
        return Outside(elements=frozenset(_tunnels(wanted)))
    outer = names.veth(wanted.uid)
    pairs = list(zip(wanted.transfer[::2], wanted.transfer[1::2], strict=True))
    return Outside(
        tuple(Address(outer, f"{there}/{_length(there)}") for _, there in pairs),
        tuple(_routes(wanted, outer, pairs)),
        (
            Sysctl("net/ipv4/ip_forward", "1"),
            Sysctl("net/ipv6/conf/all/forwarding", "1", optional=True, learning=True),
            Sysctl(f"net/ipv4/conf/{outer}/rp_filter", "0"),
            Sysctl(f"net/ipv6/conf/{outer}/accept_ra", "0", optional=True),
        ),
        frozenset((*_elements(wanted, outer, pairs), *_tunnels(wanted))),
    )


def table(elements: Collection[tuple[str, str]]) -> Table:
    """The table with the elements of all networks."""
    held: dict[str, dict[str, str]] = {}
    for name, key in sorted(elements):
        held.setdefault(name, {})[key] = ""
    heads = {
        f"{name}{version}": f"type ifname . ipv{version}_addr{flags}"
        for name, flags in (("doors", ""), ("routed", "; flags interval"))
        for version in (4, 6)
    }
    heads |= {f"reached{version}": f"type ipv{version}_addr; flags interval" for version in (4, 6)}
    tunnels = has_tunnels(elements)
    heads |= _TUNNEL_SETS if tunnels else {}
    sets = {name: Set(head, held.get(name, {})) for name, head in heads.items()}
    return Table(
        "inet", ruleset.TABLE, ("spoofed_door", "host", "between", "forged_tunnel"), sets, _chains(tunnels=tunnels)
    )


def has_tunnels(elements: Collection[tuple[str, str]]) -> bool:
    """Whether any of these elements is of a VXLAN: the table has sets and rules of tunnels only then, which older versions of nft can not read."""
    return any(name in _TUNNEL_SETS for name, _ in elements)


def change(before: Outside, after: Outside) -> str:
    """A transaction that leads from the one's elements to the other's in the table, which must be there (with tunnels, if either has any)."""
    whole = table(before.elements | after.elements)
    return "".join(
        f"{line}\n"
        for verb, keys in (("delete", before.elements - after.elements), ("add", after.elements - before.elements))
        for line in nft.elements(verb, whole, _by_set(keys))
    )


def _by_set(keys: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, key in sorted(keys):
        found.setdefault(name, []).append(key)
    return found


def _length(address: str) -> int:
    return 127 if ":" in address else 31


def _routes(wanted: Wanted, outer: str, pairs: list[tuple[str, str]]) -> Iterable[Route]:
    for here, there in pairs:
        yield Route(f"{here}/{128 if ':' in here else 32}", outer, source=there)
    if wanted.mode == "routed":
        via = {":" in here: here for here, _ in pairs}
        for subnet in wanted.subnets:
            if (":" in subnet.cidr) in via:
                yield Route(subnet.cidr, outer, via=via[":" in subnet.cidr])


def _elements(wanted: Wanted, outer: str, pairs: list[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    for here, _ in pairs:
        yield f"doors{6 if ':' in here else 4}", f"{outer} . {here}"
    if wanted.mode == "routed":
        for subnet in wanted.subnets:
            version = 6 if ":" in subnet.cidr else 4
            yield f"routed{version}", f"{outer} . {subnet.cidr}"
            yield f"reached{version}", subnet.cidr


def _tunnels(wanted: Wanted) -> Iterable[tuple[str, str]]:
    """The VXLAN by port and identifier, and its ends on this host and on the others."""
    if wanted.vxlan is None:
        return
    tunnel = f"{wanted.vxlan.port} . {wanted.vxlan.id:#x}"
    yield "tunnels", tunnel
    ends = (("here", wanted.vxlan.local), *(("there", peer.address) for peer in wanted.vxlan.peers))
    for end, address in ends:
        yield f"tunnel_{end}{6 if ':' in address else 4}", f"{ip_address(address)} . {tunnel}"


def _forged() -> dict[str, tuple[str, ...]]:
    """Packets of our tunnels that are not the kernel's own: from a host that is no peer or to another address of this one (another host's machines
    may reach that behind their host's address); from a process; from whoever is routed through here and is no peer."""
    drop = "counter name forged_tunnel drop"

    def at(ip: str, side: str) -> str:
        return f"{ip} {side} . {_TUNNEL}"

    return {
        "input": tuple(
            f"{_TUNNEL} @tunnels {at(ip, side)} != @tunnel_{end}{version} {drop}"
            for ip, version in _VERSIONS
            for side, end in (("saddr", "there"), ("daddr", "here"))
        ),
        "forward": tuple(
            f"{at(ip, 'daddr')} @tunnel_there{version} {at(ip, 'saddr')} != @tunnel_there{version} {drop}"
            for ip, version in _VERSIONS
        ),
        "output": tuple(
            f"{at(ip, 'daddr')} @tunnel_there{version} meta skuid >= 0 {drop}" for ip, version in _VERSIONS
        ),
    }


def _chains(*, tunnels: bool) -> dict[str, Chain]:
    """Before the filters of others (priority -10), so that nothing that they accept comes past; what is accepted here they may still drop."""
    sources = (
        f"iifname . {family} saddr @{name}{version} return"
        for family, version in _VERSIONS
        for name in ("doors", "routed")
    )
    reached = (f"oifname {_DOORS} {family} daddr @reached{version} accept" for family, version in _VERSIONS)
    hidden = (
        f"iifname . {family} saddr @doors{version} oifname != {_DOORS} masquerade" for family, version in _VERSIONS
    )
    forged = _forged() if tunnels else {}
    output = Chain(forged.get("output", ()), "type filter hook output priority filter - 10; policy accept;")
    return {
        **({"output": output} if tunnels else {}),
        "checked": Chain(
            (
                *sources,
                f'iifname "{PROBE[0]}" ip saddr {PROBE[1]} return',
                "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } return",
                "counter name spoofed_door",
                "drop",
            )
        ),
        "raw": Chain((f"iifname {_DOORS} jump checked",), "type filter hook prerouting priority raw; policy accept;"),
        "input": Chain(
            (
                *forged.get("input", ()),
                f"iifname != {_DOORS} accept",
                "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
                "ct state established,related accept",
                "counter name host",
                "drop",
            ),
            "type filter hook input priority filter - 10; policy accept;",
        ),
        "forward": Chain(
            (
                *forged.get("forward", ()),
                f"iifname {_DOORS} oifname {_DOORS} counter name between drop",
                f"iifname {_DOORS} ip daddr {_NEVER4} drop",
                f"iifname {_DOORS} ip6 daddr {_NEVER6} drop",
                f"oifname {_DOORS} ct state established,related accept",
                *reached,
                f"oifname {_DOORS} drop",
            ),
            "type filter hook forward priority filter - 10; policy accept;",
        ),
        "postrouting": Chain(tuple(hidden), "type nat hook postrouting priority srcnat; policy accept;"),
    }
