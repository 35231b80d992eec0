"""From all objects of a project to what one network is to be, and what of it is used: pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from msgspec.structs import replace

from roost.model.forward import Forward
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.network import Network, PortSpec, PortStatus, Subnet, Vxlan
from roost.model.ruleset import RuleSet
from roost.network.base import Attachment, Door, Published, Wanted
from roost.network.subnets import filled

MTU, VXLAN_OVERHEAD = 1500, {4: 50, 6: 70}
"""Bytes of a packet, and what VXLAN adds to one (RFC 7348) over each version of IP."""


class Neighbours(NamedTuple):
    """What the objects beside a network say: all of its project, but `forwards` of every project, for they share the host's ports."""

    machines: Sequence[Machine]
    forwards: Sequence[Forward]
    rulesets: Sequence[RuleSet]
    underlay: Sequence[str] = ()


def with_gateways(subnets: Iterable[Subnet], vxlan: Vxlan | None) -> tuple[Subnet, ...]:
    """The subnets with their gateways; of a network that goes on on other hosts, with the part that this one gives out."""
    return tuple(_within(filled(subnet), vxlan.subnets if vxlan is not None else ()) for subnet in subnets)


def _within(subnet: Subnet, slices: Sequence[str]) -> Subnet:
    net = ip_network(subnet.cidr)
    part = next((it for it in map(ip_network, slices) if it.version == net.version and it[0] in net), None)
    if part is None or part == net:
        return subnet
    return replace(subnet, first=str(part.network_address), last=str(part.broadcast_address))


def wanted(network: Network, beside: Neighbours, door: Door) -> Wanted:
    """What the network is to be."""
    spec, status = network.spec, network.status
    ports = tuple(_attachments(network, beside.machines))
    return Wanted(
        uid=network.meta.uid,
        project=network.project,
        name=network.name,
        mode=spec.mode,
        subnets=status.subnets,
        mtu=spec.mtu or MTU - (VXLAN_OVERHEAD[ip_address(spec.vxlan.local).version] if spec.vxlan is not None else 0),
        domain=domain_of(network),
        door=door,
        resolvers=spec.resolvers,
        transfer=status.transfer,
        vxlan=spec.vxlan,
        flow_log=spec.flow_log,
        ports=ports,
        published=tuple(_published(network, beside)),
        rulesets={ruleset.name: ruleset.spec for ruleset in beside.rulesets if ruleset.meta.deleting is None},
        underlay=tuple(beside.underlay),
        interface=spec.interface,
        vlan=spec.vlan,
        names=tuple(_names(network, beside.machines)),
    )


def domain_of(network: Network) -> str:
    """What the names of its machines end with."""
    return network.spec.domain or f"{network.project}.internal"


def names_it(machine: Machine, network: str) -> bool:
    """Whether the machine is to have a port of the network called so in its project."""
    return any(port.network == network for port in machine.spec.ports)


def is_plugged(machine: Machine, uid: str) -> bool:
    """Whether a port of the machine is plugged into the network with this uid."""
    return any(port.network_uid == uid for port in machine.status.ports)


def uses(machine: Machine, ruleset: str) -> bool:
    """Whether a port of the machine names the rule set."""
    return any(ruleset in port.rulesets for port in machine.spec.ports)


def networks_of(machine: Machine) -> set[str]:
    """The keys of the networks that the machine has, or is to have, a port of."""
    names = {port.network for port in machine.spec.ports} | {port.network for port in machine.status.ports}
    return {key_of(BY_NAME["network"], machine.project, name) for name in names}


def wiring_of(machine: Machine) -> object:
    """All of a machine that matters to networks: where it does not change, nothing needs to be looked at."""
    spec = machine.spec
    published = spec.publish if spec.network == "none" else ()
    return machine.name, machine.meta.uid, machine.meta.deleting is None, spec.ports, machine.status.ports, published


def _attachments(network: Network, machines: Iterable[Machine]) -> Iterator[Attachment]:
    for machine in machines:
        specs = {port.title: port for port in machine.spec.ports}
        for port in machine.status.ports:
            if port.network_uid == network.meta.uid:
                yield _attachment(machine, port, specs.get(port.name))


def _names(network: Network, machines: Sequence[Machine]) -> Iterator[tuple[str, str]]:
    """Machines of the other networks that a machine here has a port of: whoever asks has one resolver, whichever of its networks it means."""
    own = network.meta.uid
    near = {port.network_uid for it in machines if is_plugged(it, own) for port in it.status.ports} - {own}
    for machine in machines if near else ():
        if not _has_address(machine, own):
            for port in machine.status.ports:
                yield from ((machine.name, _bare(it)) for it in port.addresses if port.network_uid in near)


@lru_cache(maxsize=1 << 15)
def _bare(address: str) -> str:
    """Without its prefix. Remembered, as a network's addresses are mostly those that it had a moment ago."""
    return str(ip_interface(address).ip)


def _has_address(machine: Machine, uid: str) -> bool:
    return any(port.network_uid == uid and port.addresses for port in machine.status.ports)


def _attachment(machine: Machine, port: PortStatus, spec: PortSpec | None) -> Attachment:
    """A port that the spec has no more is cut off until its machine lets go of it."""
    wish = spec or PortSpec(network=port.network, link=False)
    return Attachment(
        machine=machine.name,
        uid=machine.meta.uid,
        project=machine.project,
        port=port.name,
        mac=port.mac,
        addresses=tuple(map(_bare, port.addresses)),
        interface=port.interface,
        link=port.link and wish.link,
        down=wish.bandwidth.down,
        up=wish.bandwidth.up,
        rulesets=wish.rulesets,
    )


def _published(network: Network, beside: Neighbours) -> Iterator[Published]:
    by_name = {machine.name: machine for machine in beside.machines}
    for forward in beside.forwards:
        machine = by_name.get(forward.spec.machine) if forward.project == network.project else None
        if machine is None or forward.meta.deleting is not None or rival(forward, beside.forwards) is not None:
            continue
        port = port_of(machine, forward.spec.port)
        if port is not None and port.network_uid == network.meta.uid and port.addresses:
            spec = forward.spec
            key, target = forward_key(forward), target_of(port, spec.address)
            yield Published(key, spec.address, spec.host_port, spec.protocol, target, spec.guest_port, port.interface)
    for machine in beside.machines:
        port = port_of(machine, "")
        if (
            machine.spec.network == "none"
            and port is not None
            and port.network_uid == network.meta.uid
            and port.addresses
        ):
            for entry in machine.spec.publish:
                key, target = publish_key(machine, entry.host_port, entry.protocol), target_of(port, entry.host_ip)
                place = entry.host_ip, entry.host_port, entry.protocol
                yield Published(key, *place, target, entry.guest_port, port.interface)


def port_of(machine: Machine, name: str) -> PortStatus | None:
    """The port of a machine that has this name, or the first for ""; None when it is not plugged in."""
    wanted = name or (machine.spec.ports[0].title if machine.spec.ports else "")
    return next((port for port in machine.status.ports if port.name == wanted), None)


def target_of(port: PortStatus, address: str) -> str:
    """The address of the port that what comes to `address` is sent to: one of the same version of IP, where it has one."""
    own = [ip_interface(text).ip for text in port.addresses]
    return str(next((it for it in own if it.version == ip_address(address).version), own[0]))


def rival(forward: Forward, forwards: Sequence[Forward]) -> Forward | None:
    """The older one that has the same place on the host."""

    def place(it: Forward) -> tuple[object, ...]:
        return ip_address(it.spec.address), it.spec.host_port, it.spec.protocol

    def age(it: Forward) -> tuple[str, str]:
        return it.meta.created, it.meta.uid

    others = (it for it in forwards if it.meta.deleting is None and place(it) == place(forward))
    return next((it for it in sorted(others, key=age) if age(it) < age(forward)), None)


def forward_key(forward: Forward) -> str:
    """How a network calls what the forward publishes."""
    return f"forwards/{forward.project}/{forward.name}"


def publish_key(machine: Machine, port: int, protocol: str) -> str:
    """How a network calls a port that the machine's own spec publishes."""
    return f"machines/{machine.meta.uid}/{protocol}/{port}"


def slots_of(machine: Machine) -> Mapping[str, int]:
    """Where each port's card is when the machine starts: the first on the board, unless the user network's is there."""
    first = 1 if machine.spec.network == "user" else 0
    return {port.title: first + index for index, port in enumerate(machine.spec.ports)}


def differs(spec: PortSpec, status: PortStatus) -> bool:
    """Whether the port has to be plugged in anew to be as wished."""
    return status.network != spec.network or bool(spec.mac and spec.mac != status.mac)


def is_wired(machine: Machine) -> bool:
    """Whether a running machine's ports are those of its spec."""
    status = {port.name: port for port in machine.status.ports}
    if set(status) != {port.title for port in machine.spec.ports}:
        return False
    return all(
        not differs(spec, status[spec.title])
        and status[spec.title].link == spec.link
        and _has_its_addresses(spec, status)
        for spec in machine.spec.ports
    )


def _has_its_addresses(spec: PortSpec, status: Mapping[str, PortStatus]) -> bool:
    own = {ip_interface(text).ip for text in status[spec.title].addresses}
    return all(ip_address(text) in own for text in spec.addresses)
