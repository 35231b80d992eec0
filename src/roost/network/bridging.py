"""Decides what a bridged network is made of: a bridge in its own namespace, whose uplink joins the host's bridge. Pure.

Machines are on the network of the host's interface as if they had a cable to it: that network gives them addresses, and they reach whom it lets
them, the host too. No connections are followed on a bridge (few kernels can), so rule sets do not hold here; what is dropped at the port is
what no machine has to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from roost.errors import Conflict, Problem, RoostError, Unavailable
from roost.network import guards, names, ruleset
from roost.network.base import Attachment, Chain, Fabric, Limit, Link, Outside, Set, Sysctl, Table, Tap, Wanted

BRIDGE = "br0"
REASONS = (
    "spoofed_mac",
    "spoofed_arp",
    "rogue_dhcp",
    "rogue_ra",
    "rogue_control",
    "flood_broadcast",
    "bandwidth",
    "foreign",
)
"""Why frames are dropped: another sender than the port's (in ARP: within the frame), DHCP servers and routers that guests play, what bridges say
to each other (spanning tree and its like), floods, more than the port's bandwidth, and all that is neither IP nor ARP (tags of VLANs too)."""
_ALONE = ("default",)
_SYSCTLS = (
    *(Sysctl(f"net/ipv6/conf/{which}/disable_ipv6", "1", optional=True) for which in ("all", "default")),
    Sysctl("net/bridge/bridge-nf-call-iptables", "0", optional=True),
    Sysctl("net/bridge/bridge-nf-call-ip6tables", "0", optional=True),
)
"""The namespace itself is silent: it has no address."""


def fabric(wanted: Wanted, limits: Mapping[str, Limit | None]) -> Fabric:
    """What the network should be; `limits` of taps by interface. Raises Unavailable for a VLAN."""
    if wanted.vlan is not None:
        fix = f"bridge the network to a bridge of the host whose port is in VLAN {wanted.vlan} (such as eth0.{wanted.vlan}), without vlan"
        raise Unavailable(
            f"network {names.safe(wanted.name)} is not made", "roost does not tag frames of VLANs itself", fix
        )
    outer = names.veth(wanted.uid)
    return Fabric(
        uid=wanted.uid,
        links=(
            Link(BRIDGE, "bridge", wanted.mtu),
            Link(names.UPLINK, "veth", wanted.mtu, peer=outer, master=BRIDGE),
        ),
        addresses=(), routes=(), neighbours=(), forwarding=(),
        sysctls=_SYSCTLS,
        taps={port.interface: _tap(wanted, port, limits[port.interface]) for port in wanted.ports},
        tables=(_table([port for port in wanted.ports if has_link(port)]),),
        outside=Outside(sysctls=(Sysctl(f"net/ipv6/conf/{outer}/disable_ipv6", "1", optional=True),)),
        resolver=None, published=(), metadata=(),
    )  # fmt: skip


def has_link(port: Attachment) -> bool:
    """Whether frames pass the port: not where a rule set is asked for, as none holds here."""
    return port.link and port.rulesets in (_ALONE, ())


def warnings(wanted: Wanted) -> tuple[str, ...]:
    """What is wished of a bridged network and can not be."""
    if wanted.mode != "bridged":
        return ()
    return tuple(
        f"port {port.port} of machine {port.machine} has no link: rule sets do not hold in a bridged network"
        for port in wanted.ports
        if port.link and not has_link(port)
    )


def unpublished(wanted: Wanted) -> Mapping[str, RoostError]:
    """Nothing is published: the machines are on the network of whoever may ask."""
    if wanted.mode != "bridged":
        return {}
    error = Conflict(
        f"network {wanted.name} publishes nothing",
        "it is bridged: its machines are on the network of whoever may ask",
        "use the machine's own address",
    )
    return {entry.key: error for entry in wanted.published}


def problems(wanted: Wanted) -> Iterator[Problem]:
    """What is wrong with the values."""
    if not wanted.interface or wanted.interface.startswith(names.OUTSIDE_PREFIX):
        yield Problem(
            "interface", f"{wanted.interface[:80]!r} is no interface of the host that a network may be bridged to"
        )


def _tap(wanted: Wanted, port: Attachment, limit: Limit | None) -> Tap:
    # Its own MAC address is none that anybody sends as, and higher than all: a bridge takes the lowest of its ports'.
    return Tap(port.interface, f"fe{port.mac[2:]}", wanted.mtu, has_link(port), (), (), (), (), limit, BRIDGE)


def _table(ports: Sequence[Attachment]) -> Table:
    meters, policing = guards.bandwidth({port.interface: max(1, port.up // 8) for port in ports if port.up})
    policing.pop("port", None)
    held = guards.limits()
    sets = {
        "broadcasts": held["broadcasts"],
        "dropped": held["dropped"],
        "cards": Set("type ifname . ether_addr", {f"{port.interface} . {port.mac}": "" for port in ports}),
        **meters,
    }
    chains = {
        **{f"drop-{reason}": guards.drop(reason) for reason in REASONS},
        **policing,
        "port": Chain(tuple(_port("iifname vmap @limited" if meters else ""))),
        "prerouting": Chain(
            (f'iifname "{names.UPLINK}" accept', 'iifname "tap*" goto port', "drop"),
            "type filter hook prerouting priority filter; policy accept;",
        ),
        "input": Chain(("drop",), "type filter hook input priority filter; policy accept;"),
    }
    return Table("bridge", ruleset.TABLE, REASONS, sets, chains)


def _port(limited: str) -> Iterator[str]:
    yield "iifname . ether saddr != @cards goto drop-spoofed_mac"
    if limited:
        yield limited
    yield "ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 goto drop-rogue_control"
    flood = guards.over(guards.BROADCASTS)
    yield f"ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 add @broadcasts {flood} goto drop-flood_broadcast"
    yield "ether type arp iifname . arp saddr ether != @cards goto drop-spoofed_arp"
    yield "ether type ip udp sport 67 goto drop-rogue_dhcp"
    yield "ether type ip6 udp sport 547 goto drop-rogue_dhcp"
    yield "ether type ip6 icmpv6 type { nd-router-advert, nd-redirect } goto drop-rogue_ra"
    yield "ether type { ip, ip6, arp } accept"
    yield "goto drop-foreign"
