"""A network as people look at it: who is plugged in, with which addresses and rules, and what passed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from roost.errors import Invalid, NotFound, Problem
from roost.model.machine import Machine
from roost.model.meta import NAME, Trouble
from roost.model.network import Network
from roost.model.ruleset import Transport
from roost.network.base import Attachment, PortCount, Published, Seen, Wanted
from roost.network.trace import Probe, trace

NOTHING: Mapping[str, Trouble | None] = {}


def picture(
    network: Network, wanted: Wanted, seen: Seen | None, unpublished: Mapping[str, Trouble | None]
) -> dict[str, Any]:
    """The network, its ports, and what counts; `seen` None: it is not there. `unpublished` says by key why a published port does not listen."""
    counts = seen.ports if seen is not None else {}
    plugged = seen.plugged if seen is not None else frozenset()
    return {
        "project": network.project,
        "name": network.name,
        "phase": network.status.phase,
        "mode": network.spec.mode,
        "door": network.status.door,
        "mtu": network.status.mtu,
        "domain": wanted.domain,
        "subnets": [{"cidr": it.cidr, "gateway": it.gateway} for it in wanted.subnets],
        "alive": sorted(seen.alive) if seen is not None else [],
        "ports": [_port(port, counts.get(port.interface), port.interface in plugged) for port in wanted.ports],
        "published": [
            {
                "key": it.key, "address": it.address, "host_port": it.host_port, "protocol": it.protocol,
                "target": it.target, "target_port": it.target_port,
                "trouble": _trouble(unpublished.get(it.key)),
            }
            for it in wanted.published
        ],
        "rules": {key: {"packets": packets, "bytes": size} for key, (packets, size) in (seen.rules if seen else {}).items()},
        "drops": dict(seen.drops) if seen is not None else {},
        "differs": list(seen.differs) if seen is not None else [],
        "warnings": list(seen.warnings) if seen is not None else [],
    }  # fmt: skip


def _trouble(why: Trouble | None) -> str:
    return f"does not listen: {why.why or why.what}" if why is not None else ""


def _port(port: Attachment, count: PortCount | None, plugged: bool) -> dict[str, Any]:
    return {
        "machine": port.machine, "port": port.port, "mac": port.mac, "addresses": list(port.addresses),
        "interface": port.interface, "link": port.link, "plugged": plugged, "down": port.down, "up": port.up,
        "rulesets": list(port.rulesets), **(count or PortCount())._asdict(),
    }  # fmt: skip


def traced(
    wanted: Wanted,
    source: str,
    target: str,
    protocol: Transport,
    port: int,
    unpublished: Mapping[str, Trouble | None] = NOTHING,
) -> dict[str, Any]:
    """What decides whether a machine, "host" or "world", reaches another, or an address: `passes`, `why`, the `rule` ("ruleset/NAME/INDEX", or
    "") and the `steps` on the way. `unpublished` is as for `picture`. Raises NotFound for a machine that is not plugged in, Invalid for what is
    no address."""
    source, target = (place.removesuffix(f".{wanted.domain}") for place in (source, target))
    if protocol != "icmp" and not port:
        problem = Problem("port", f"say which port of {protocol} is connected to, or ask for icmp")
        raise Invalid("the request is wrong", problems=[problem])
    version = _version(wanted, source, target)
    hosts = [text for text in wanted.underlay if "/" not in text and _version(wanted, text) == version]
    to = hosts[0] if target == "host" and hosts else _address(wanted, target, version)
    entries = _published(wanted, to, protocol, port) if source == "world" else []
    obstacles = [_obstacle(entry, unpublished.get(entry.key)) for entry in entries]
    if entries and all(obstacles):
        return stopped(obstacles[0])
    found = trace(wanted, Probe(_address(wanted, "host" if entries else source, version), to, protocol, port))
    decided = found.decided
    return {
        "passes": found.allowed,
        "why": f"{decided.where}: {decided.why}",
        "rule": decided.rule,
        "steps": [f"{step.where}: {step.why}" for step in found.steps],
    }


def _published(wanted: Wanted, target: str, protocol: Transport, port: int) -> list[Published]:
    """What leads to that port of that machine; it comes from the gateway then, whoever began it. Not where the world gets there by itself."""
    if wanted.mode == "routed":
        return []
    place = target, protocol, port
    return [it for it in wanted.published if (str(ip_address(it.target)), it.protocol, it.target_port) == place]


def _obstacle(entry: Published, trouble: Trouble | None) -> str:
    """Why the world does not get in there; "" where it does."""
    where = f"door: {entry.address} port {entry.host_port} of the host leads to it"
    if trouble is not None:
        return f"{where}, and {_trouble(trouble)}"
    return f"{where}, which the host alone reaches" if ip_address(entry.address).is_loopback else ""


def stopped(why: str) -> dict[str, Any]:
    """The answer for a connection that does not come to the network at all."""
    return {"passes": False, "why": why, "rule": "", "steps": [why]}


def absent(wanted: Wanted, place: str, machine: Machine | None) -> str:
    """Why what is called `place` has no port in the network; `machine` is the project's one of that name. "" where it has one, or is no machine."""
    name, _, rest = place.removesuffix(f".{wanted.domain}").partition(".")
    if not NAME.fullmatch(name) or name in {port.machine for port in wanted.ports}:
        return ""
    if rest.endswith("internal"):
        return f"{place}: a machine of another project; no way leads from one project's networks to another's"
    if machine is None or rest:
        return ""
    if wanted.name not in {port.network for port in machine.spec.ports}:
        return f"{name}: it has no port in network {wanted.name} (roost network attach {wanted.name} {name})"
    if machine.status.phase == "stopped":
        return f"{name}: it is stopped, so it has no address now (roost start {name})"
    return f"{name}: it is not plugged in while it is {machine.status.phase}"


def _version(wanted: Wanted, *places: str) -> int:
    """The version of IP that the way is asked for: that of an address that is named, else 4 where the machines have it."""
    for place in places:
        if (address := _parsed(place)) is not None:
            return address.version
    own = {ip_address(text).version for port in wanted.ports if port.machine in places for text in port.addresses}
    return 6 if own == {6} else 4


def _address(wanted: Wanted, place: str, version: int) -> str:
    """The address that is meant by a machine's name, an address, or "world"."""
    if (address := _parsed(place)) is not None:
        return str(address)
    ports = [port for port in wanted.ports if port.machine == place]
    own = [text for port in ports for text in port.addresses if ip_address(text).version == version]
    if own:
        return own[0]
    known = _KNOWN.get(place)
    if known is not None:
        return known(wanted, version)
    if not NAME.fullmatch(place):
        what = f"{place[:80]!r} can not be traced"
        raise Invalid(
            what,
            'it is neither a machine\'s name, nor an address, "host" or "world"',
            f"roost network show {wanted.name}",
        )
    what = f'machine "{place}" is not plugged into network "{wanted.name}"'
    raise NotFound(
        what,
        f"project {wanted.project} has no such machine, and those of others are never reached",
        f"roost network show {wanted.name}",
    )


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


WORLD = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Addresses that stand for the world: of documentation (RFC 5737, RFC 3849), which nobody has."""


def _host(wanted: Wanted, version: int) -> str:
    """Where connections of the host to published ports come from."""
    own = [it.gateway for it in wanted.subnets if ip_address(it.gateway).version == version]
    return own[0] if own else WORLD[version]


_KNOWN: Mapping[str, Callable[[Wanted, int], str]] = {"world": lambda wanted, version: WORLD[version], "host": _host}
"""Words for those who are no machine."""
