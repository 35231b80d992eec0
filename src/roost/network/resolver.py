"""What dnsmasq is told of a network: DHCP, router advertisements, names. Pure.

Addresses are decided elsewhere; every one that dnsmasq gives out is reserved for the MAC address *and* the tap that asks (two ports may have
the same MAC address).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network

from roost.model.network import Subnet
from roost.network import names, ruleset
from roost.network.base import Attachment, Resolver, Wanted

HOSTS = "/run/network/hosts"
RESERVATIONS = "/run/network/reservations"
"""Where dnsmasq sees the two files that it reads again on SIGHUP."""

UPSTREAMS = ("127.0.0.1#5353", "127.0.0.1#5354", "127.0.0.1#5355")
"""Where it asks for what the network does not know, unless the network names resolvers: the relay to those of the host, of which resolv.conf has
three at most. A port that nobody listens on refuses at once."""

LEASE_SECONDS = 3600
LEASE6_SECONDS = 120
"""The least that dnsmasq knows: so long a reserved IPv6 address stays with a DUID that the guest has no more (it was installed anew, or went back to
a snapshot)."""
RA_SECONDS, ROUTER_SECONDS = 60, 1800
"""Between two router advertisements that nobody asked for, and how long one holds (RFC 4861)."""


def resolver(wanted: Wanted) -> Resolver | None:
    """The texts; None for a network without subnets, whose DHCP is somebody else's."""
    if not wanted.subnets:
        return None
    return Resolver(_text(_config(wanted)), "".join(_hosts(wanted)), "".join(map(_reserved, wanted.ports)))


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _config(wanted: Wanted) -> Iterator[str]:
    yield from (
        "interface=tap*",
        "except-interface=lo",
        "no-hosts",
        "no-resolv",
        "no-ping",
    )
    yield from (f"addn-hosts={HOSTS}", f"dhcp-hostsfile={RESERVATIONS}", "leasefile-ro", "dhcp-authoritative")
    yield from (
        "dhcp-ignore=tag:!known",
        "dhcp-rapid-commit",
        "dhcp-lease-max=10000",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
    )
    yield from (
        "domain-needed",
        "bogus-priv",
        "cache-size=2000",
        "dns-forward-max=500",
        "edns-packet-max=1232",
    )
    yield from (f"domain={wanted.domain}", f"local=/{wanted.domain}/")
    if wanted.door != "none":
        yield from (f"server={server}" for server in wanted.resolvers or UPSTREAMS)
    versions = {ip_network(subnet.cidr).version for subnet in wanted.subnets}
    for subnet in wanted.subnets:
        net = ip_network(subnet.cidr)
        yield from _dhcp4(wanted, subnet, net) if isinstance(net, IPv4Network) else _dhcp6(subnet, net)
    if 4 in versions:
        yield f"dhcp-option=option:mtu,{wanted.mtu}"
        yield f"dhcp-option=option:domain-search,{wanted.domain}"
    if 6 in versions:
        yield from ("enable-ra", f"ra-param=tap*,mtu:{wanted.mtu},{RA_SECONDS},{ROUTER_SECONDS}")
        yield f"dhcp-option=option6:domain-search,{wanted.domain}"


def _dhcp4(wanted: Wanted, subnet: Subnet, net: IPv4Network) -> Iterator[str]:
    """Option 121 (RFC 3442) hides option 3, so it says all: the metadata service, the network's other subnets, and the world."""
    tag = f"net{int(net[0]):08x}"
    others = [other.cidr for other in wanted.subnets if ":" not in other.cidr and other.cidr != subnet.cidr]
    world = [] if wanted.door == "none" else ["0.0.0.0/0"]
    routes = ",".join(f"{to},{subnet.gateway}" for to in (f"{names.METADATA}/32", *others, *world))
    yield f"dhcp-range=set:{tag},{net[0]},static,{net.netmask},{LEASE_SECONDS}"
    yield f"dhcp-option=tag:{tag},option:dns-server,{subnet.gateway}"
    yield f"dhcp-option=tag:{tag},option:classless-static-route,{routes}"
    # Without an own value dnsmasq names itself; a network without a door has no router.
    yield f"dhcp-option=tag:{tag},option:router{f',{subnet.gateway}' if world else ''}"


def _dhcp6(subnet: Subnet, net: IPv6Network) -> Iterator[str]:
    """Off-link: a guest asks the router for everybody, its neighbours too."""
    tag = f"net{names.digest(str(net))[:8]}"
    yield f"dhcp-range=set:{tag},{net[0]},static,off-link,{net.prefixlen},{LEASE6_SECONDS}"
    yield f"dhcp-option=tag:{tag},option6:dns-server,[{subnet.gateway}]"


def _hosts(wanted: Wanted) -> Iterator[str]:
    yield from (_named(port, wanted.domain) for port in wanted.ports)
    yield from (f"{address} {names.host(machine, wanted.domain)}\n" for machine, address in wanted.names)


@lru_cache(maxsize=1 << 13)
def _named(port: Attachment, domain: str) -> str:
    """The lines of a port's name. Remembered, as all but a few ports are what they were a moment ago."""
    return _text(f"{address} {names.host(port.machine, domain)}" for address in port.addresses)


@lru_cache(maxsize=1 << 13)
def _reserved(port: Attachment) -> str:
    """The line that reserves a port's addresses, or nothing."""
    if not port.link or not port.addresses:
        return ""
    four = list(ruleset.addresses(port, 4))
    six = [f"[{address}]" for address in ruleset.addresses(port, 6)]
    return ",".join((f"tag:{port.interface}", port.mac, *four, *six, names.safe(port.machine))) + "\n"
