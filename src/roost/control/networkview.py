"""A network as people look at it: who is plugged in, with which addresses and rules, and what passed. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from roost.errors import Invalid, NotFound, Problem
from roost.model.meta import NAME
from roost.model.network import Network
from roost.model.ruleset import Transport
from roost.network.base import Attachment, PortCount, Seen, Wanted
from roost.network.trace import Probe, trace


def picture(network: Network, wanted: Wanted, seen: Seen | None) -> dict[str, Any]:
    """The network, its ports, and what counts; `seen` None: it is not there."""
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
                "trouble": seen.unpublished.get(it.key, "") if seen is not None else "",
            }
            for it in wanted.published
        ],
        "rules": {key: {"packets": packets, "bytes": size} for key, (packets, size) in (seen.rules if seen else {}).items()},
        "drops": dict(seen.drops) if seen is not None else {},
        "differs": list(seen.differs) if seen is not None else [],
        "warnings": list(seen.warnings) if seen is not None else [],
    }  # fmt: skip


def _port(port: Attachment, count: PortCount | None, plugged: bool) -> dict[str, Any]:
    return {
        "machine": port.machine, "port": port.port, "mac": port.mac, "addresses": list(port.addresses),
        "interface": port.interface, "link": port.link, "plugged": plugged, "down": port.down, "up": port.up,
        "rulesets": list(port.rulesets), **(count or PortCount())._asdict(),
    }  # fmt: skip


def traced(wanted: Wanted, source: str, target: str, protocol: Transport, port: int) -> dict[str, Any]:
    """What decides whether a machine, or "world", reaches another, or an address: `passes`, `why`, the `rule` ("ruleset/NAME/INDEX", or "") and
    the `steps` on the way. Raises NotFound for a machine that is not plugged in, Invalid for what is no address."""
    version = _version(wanted, source, target)
    found = trace(wanted, Probe(_address(wanted, source, version), _address(wanted, target, version), protocol, port))
    decided = found.decided
    return {
        "passes": found.allowed,
        "why": f"{decided.where}: {decided.why}",
        "rule": decided.rule,
        "steps": [f"{step.where}: {step.why}" for step in found.steps],
    }


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
    if place == "world":
        return WORLD[version]
    if not NAME.fullmatch(place):
        problem = Problem("to", f"{place[:80]!r} is neither a machine nor an address")
        raise Invalid("the request is wrong", problems=[problem])
    what = f'machine "{place}" is not plugged into network "{wanted.name}"'
    raise NotFound(what, "it does not run, or has no port there", f"roost network show {wanted.name}")


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(text)
    except ValueError:
        return None


WORLD = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Addresses that stand for the world: of documentation (RFC 5737, RFC 3849), which nobody has."""
