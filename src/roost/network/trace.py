"""Says what becomes of a connection and what decides it: the rules of network.ruleset and the routes of network.plan, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_network
from typing import Literal, NamedTuple

from roost.model.ruleset import DEFAULT, Rule, span
from roost.network import names, ruleset
from roost.network.base import Attachment, Published, Wanted

Direction = Literal["in", "out"]
_NEVER = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
)
_SERVICES = {("udp", 53): "DNS", ("tcp", 53): "DNS", ("udp", 67): "DHCP", ("udp", 547): "DHCP"}


_DOORS = {
    "kernel": "through the host (kernel door)",
    "pasta": "through sockets of the host (pasta door)",
    "bridge": "by the bridge",
}


class Probe(NamedTuple):
    """A connection: from an address to an address, with the port that is connected to (0 for icmp)."""

    source: str
    target: str
    protocol: Literal["tcp", "udp", "icmp"] = "tcp"
    port: int = 0


class Step(NamedTuple):
    """A decision on the way: `rule` is "ruleset/NAME/INDEX" where a rule decided, as the counters call it."""

    where: str
    allowed: bool
    why: str
    rule: str = ""


class Traced(NamedTuple):
    """The decisions in order; the last is the one that says whether the connection comes about."""

    steps: tuple[Step, ...]

    @property
    def allowed(self) -> bool:
        """Whether it comes about, as far as the network goes."""
        return self.steps[-1].allowed

    @property
    def decided(self) -> Step:
        """What decides."""
        return self.steps[-1]


def trace(wanted: Wanted, probe: Probe) -> Traced:
    """What becomes of the connection. The source is a port's address, the gateway's (a published port), or one of the world. Raises ValueError
    for what is no address."""
    plain = probe._replace(source=str(ip_address(probe.source)), target=str(ip_address(probe.target)))
    steps: list[Step] = []
    for step in _steps(wanted, plain):
        steps.append(step)
        if not step.allowed:
            break
    return Traced(tuple(steps))


def port_of(wanted: Wanted, address: str) -> Attachment | None:
    """Whose address it is."""
    plain = str(ip_address(address))
    return next((port for port in wanted.ports if plain in {str(ip_address(text)) for text in port.addresses}), None)


def _steps(wanted: Wanted, probe: Probe) -> Iterator[Step]:
    sender, receiver = port_of(wanted, probe.source), port_of(wanted, probe.target)
    gateways = {str(ip_address(subnet.gateway)) for subnet in wanted.subnets}
    for port in (sender, receiver):
        if port is not None and not port.link:
            yield Step(_title(port), False, "the port's link is off (link: false in spec.ports of the machine)")
    if sender is None and probe.source not in gateways:
        yield from _from_world(wanted, probe)
    if probe.target in {*gateways, names.GATEWAY_LINK_LOCAL, names.METADATA}:
        yield _to_gateway(probe)
        return
    if sender is not None:
        yield from _bounds(wanted, probe)
        yield _judged(wanted, sender, probe, "out")
    yield from _routed(wanted, probe, receiver)
    if receiver is not None:
        yield _judged(wanted, receiver, probe, "in", published=probe.source in gateways)


def _title(port: Attachment) -> str:
    return f"port {port.port} of {port.machine}"


def _from_world(wanted: Wanted, probe: Probe) -> Iterator[Step]:
    if _inside(probe.source, [subnet.cidr for subnet in wanted.subnets]):
        if not _inside(probe.source, _remote(wanted)):
            yield Step("source", False, f"{probe.source} is an address of the network that no port has")
    elif wanted.mode == "nat":
        yield Step(
            "door",
            False,
            "nobody outside can begin a connection to a nat network: publish the port (roost forward create)",
        )
    elif wanted.door == "none":
        yield Step("door", False, "the network is isolated: nothing comes in from outside")


def _to_gateway(probe: Probe) -> Step:
    service = _SERVICES.get((probe.protocol, probe.port))
    if probe.target == names.METADATA:
        service = "metadata" if (probe.protocol, probe.port) == ("tcp", 80) else None
    if probe.protocol == "icmp":
        service = "echo"
    return Step(
        "gateway",
        service is not None,
        f"the gateway answers {service}" if service else "the gateway has no such service",
    )


def _bounds(wanted: Wanted, probe: Probe) -> Iterator[Step]:
    """What guests never reach: see guards."""
    hosts = [*wanted.underlay, *wanted.transfer]
    if wanted.vxlan:
        hosts += [wanted.vxlan.local, *(peer.address for peer in wanted.vxlan.peers)]
    if _inside(probe.target, hosts):
        yield Step("underlay", False, f"{probe.target} is a host's own address, which guests do not reach")
    elif _inside(probe.target, _NEVER):
        yield Step("underlay", False, f"{probe.target} is of a kind that is never routed")


def _routed(wanted: Wanted, probe: Probe, receiver: Attachment | None) -> Iterator[Step]:
    if receiver is not None:
        return
    if _inside(probe.target, _remote(wanted)):
        yield Step("route", True, "through the VXLAN; the other host's rules decide there")
    elif _inside(probe.target, [subnet.cidr for subnet in wanted.subnets]):
        yield Step("route", False, f"no port has the address {probe.target}")
    elif wanted.door == "none":
        yield Step("route", False, f"the network has no way out, so no route to {probe.target}")
    elif wanted.door == "kernel" and not any((":" in here) == (":" in probe.target) for here in wanted.transfer):
        yield Step("route", False, f"the network's door has no IPv{6 if ':' in probe.target else 4}")
    else:
        yield Step("route", True, f"out into the world, {_DOORS.get(wanted.door, wanted.door)}")


def _remote(wanted: Wanted) -> list[str]:
    return [cidr for peer in wanted.vxlan.peers for cidr in peer.subnets] if wanted.vxlan else []


def _judged(wanted: Wanted, port: Attachment, probe: Probe, direction: Direction, *, published: bool = False) -> Step:
    """The rule sets of a port in order; the first rule that fits decides."""
    where, spoken = _title(port), False
    for name in port.rulesets:
        for index, rule in enumerate(ruleset.spec_of(wanted.rulesets, name).rules):
            spoken |= rule.direction == direction
            if rule.direction == direction and _fits(wanted, rule, probe):
                label = f"ruleset/{name}/{index}"
                return Step(where, rule.action == "allow", f"rule {index} of rule set {name} {_told(rule)}", label)
    if direction == "out":
        why = (
            "no rule lets it out, and there are rules about what goes out"
            if spoken
            else "no rule is about what goes out, so it may"
        )
        return Step(where, not spoken, why)
    if published and (entry := _publication(wanted, probe)) is not None:
        return Step(
            where, True, f"the port is published: {entry.address} port {entry.host_port} of the host leads to it"
        )
    why = (
        f"no rule of {', '.join(port.rulesets)} lets it in"
        if port.rulesets
        else "it has no rule set, so nothing comes in"
    )
    if published:
        why += f", and the port is not published (roost forward create {probe.port}:{probe.port} {port.machine})"
    return Step(where, False, why)


def _publication(wanted: Wanted, probe: Probe) -> Published | None:
    wished = (probe.target, probe.protocol, probe.port)
    told = ((entry, (str(ip_address(entry.target)), entry.protocol, entry.target_port)) for entry in wanted.published)
    return next((entry for entry, place in told if place == wished), None)


def _fits(wanted: Wanted, rule: Rule, probe: Probe) -> bool:
    if rule.protocol not in ("any", probe.protocol):
        return False
    spans = [found for found in map(span, rule.ports) if found]
    if spans and not any(first <= probe.port <= last for first, last in spans):
        return False
    other = probe.target if rule.direction == "out" else probe.source
    if rule.cidr:
        return _inside(other, [rule.cidr])
    return not rule.ruleset or _is_member(wanted, rule.ruleset, other)


def _is_member(wanted: Wanted, group: str, address: str) -> bool:
    """As the rules know it, by address; what other hosts of a VXLAN have is in "default"."""
    port = port_of(wanted, address)
    if port is not None:
        return port.link and group in port.rulesets
    return group == DEFAULT and _inside(address, _remote(wanted))


def _told(rule: Rule) -> str:
    ports = f" {', '.join(rule.ports)}" if rule.ports else ""
    end = rule.cidr or (f"rule set {rule.ruleset}" if rule.ruleset else "anybody")
    side = "from" if rule.direction == "in" else "to"
    return f"{'allows' if rule.action == 'allow' else 'denies'} {rule.protocol}{ports} {side} {end}"


def _inside(address: str, nets: Iterable[str]) -> bool:
    place = ip_address(address)
    return any(place in ip_network(net, strict=False) for net in nets if (":" in net) == (place.version == 6))
