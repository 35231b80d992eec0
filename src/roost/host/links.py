"""The one door to links, addresses, routes, neighbours and queues (netlink), in the network namespace of this process.

Only the worker of networks may import it: the library behind it is big. All functions block for about a millisecond.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from roost.errors import Conflict, Unavailable

MOST_RATE = (1 << 32) - 1
"""The highest rate that can be bound, in bytes per second (34 Gbit/s): the field has 32 bits."""
PROTOCOL = 82
"""The origin that our routes carry (rtnetlink(7): below 128 it is free), so that nobody's are taken for ours."""
_PERMANENT, _NOPREFIXROUTE, _NODAD = 0x80, 0x200, 0x02
_SELF = 0x02  # NTF_SELF
_LINK_SCOPE, _HOST_SCOPE = 253, 254
_TUNSETIFF, _TAP, _EXCLUSIVE, _NO_HEADER, _VNET_HEADER = 0x400454CA, 0x0002, 0x8000, 0x1000, 0x4000
_TUN = "/dev/net/tun"
_UNREACHABLE, _ONLINK = 7, 4
_ANY = {socket.AF_INET: "0.0.0.0/0", socket.AF_INET6: "::/0"}
_BITS = {socket.AF_INET: 32, socket.AF_INET6: 128}
_ETH_P_ALL = 3
_SETNEIGHTBL, _NDTA_NAME, _NDTA_PARMS, _NDTPA_IFINDEX, _NDTPA_PROXY_DELAY = 67, 1, 6, 1, 13
"""include/uapi/linux/neighbour.h"""
_SECONDS = 5.0
_WATCHED = (1, 3, 5, 7, 9, 11)
"""RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE."""
_RULES_CHANGED = 7  # NFNLGRP_NFTABLES
_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_LOG_SETTING, _REQUEST_ACK, _LOG_BUFFER = 4 << 8 | 1, 5, 1 << 20
"""NFNL_SUBSYS_ULOG, NFULNL_MSG_CONFIG (include/uapi/linux/netfilter/nfnetlink_log.h)."""


class Vxlan(NamedTuple):
    """What a VXLAN link needs beyond a name (RFC 7348)."""

    id: int
    local: str
    port: int


class LinkFacts(NamedTuple):
    """A link as it is. `bytes` and `packets` are received, sent: by this host, so a machine's are the other way round."""

    number: int
    kind: str
    mtu: int
    mac: str
    up: bool
    packets: tuple[int, int]
    bytes: tuple[int, int]
    vxlan: Vxlan | None = None
    master: str = ""


class RouteFacts(NamedTuple):
    """A route of ours as it is; `interface` is "" for one that refuses."""

    to: str
    interface: str
    via: str
    source: str
    kind: str


class Links:
    """An open door; a context manager. Everything that changes something raises Conflict when the kernel refuses it."""

    def __init__(self) -> None:
        self._door = IPRoute(groups=0)
        self._names: dict[int, str] = {}

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()

    def all(self) -> dict[str, LinkFacts]:
        """Every link by its name."""
        found = {}
        for message in self._door.get_links():
            name = message.get("ifname")
            self._names[message["index"]] = name
            master = message.get("master")
            found[name] = _link(message)._replace(master=self._name(master) if master else "")
        return found

    def addresses(self) -> set[tuple[str, str]]:
        """(interface, "10.20.0.1/24"), without those of the loopback itself."""
        found = set()
        for message in self._door.get_addr():
            text = message.get("local") or message.get("address")
            if message["scope"] != _HOST_SCOPE:
                found.add((self._name(message["index"]), f"{text}/{message['prefixlen']}"))
        return found

    def routes(self) -> set[RouteFacts]:
        """The routes of the main table that are ours."""
        return {_route(message, self._name) for message in self._door.get_routes(table=254, proto=PROTOCOL)}

    def all_routes(self) -> Iterator[tuple[str, str]]:
        """(destination, interface) of every unicast route of the main table, whoever made it."""
        for message in self._door.get_routes(table=254, type=1):
            route = _route(message, self._name)
            yield route.to, route.interface

    def neighbours(self) -> set[tuple[str, str, str]]:
        """(interface, address, MAC) of every permanent neighbour."""
        found = set()
        for message in self._door.get_neighbours():
            if message["state"] & _PERMANENT and message.get("lladdr"):
                found.add((self._name(message["ifindex"]), message.get("dst"), message.get("lladdr")))
        return found

    def forwarding(self) -> set[tuple[str, str, str]]:
        """(interface, MAC, host) of every permanent entry of a VXLAN's table that names a host."""
        found = set()
        for message in self._door.get_neighbours(family=socket.AF_BRIDGE):
            if message.get("dst") and message["state"] & _PERMANENT:
                found.add((self._name(message["ifindex"]), message.get("lladdr"), message.get("dst")))
        return found

    def rates(self) -> dict[str, int]:
        """The bound of each interface that has one (tbf), in bytes per second."""
        found = {}
        for message in self._door.get_qdiscs():
            if message.get("kind") == "tbf":
                parameters = message.get("options").get("TCA_TBF_PARMS")
                found[self._name(message["index"])] = int(parameters["rate"])
        return found

    def make(
        self, name: str, kind: str, *, peer: tuple[str, int] = ("", -1), vxlan: Vxlan | None = None, home: int = -1
    ) -> None:
        """A new link. `peer` are the name of a veth's other end, and a descriptor of the network namespace in which that is to be. `home` is one
        of the namespace in which a VXLAN is to be: its packets are this one's."""
        more: dict[str, Any] = {}
        if kind == "veth":
            more["peer"] = {"ifname": peer[0], "net_ns_fd": peer[1]} if peer[1] >= 0 else {"ifname": peer[0]}
        if vxlan is not None:
            more = {
                "vxlan_id": vxlan.id, "vxlan_local" if "." in vxlan.local else "vxlan_local6": vxlan.local,
                "vxlan_port": vxlan.port, "vxlan_learning": False, **({"net_ns_fd": home} if home >= 0 else {}),
            }  # fmt: skip
        with _told(f"the link {name} ({kind}) was not made"):
            try:
                self._door.link("add", ifname=name, kind=kind, **more)
            except NetlinkError as error:
                if vxlan is None or error.code != errno.EEXIST:
                    raise
                why = f"another network of this host has the VXLAN {vxlan.id} at UDP port {vxlan.port}"
                raise Conflict(f"the link {name} ({kind}) was not made", why, "give one of them another id") from None

    def set(self, name: str, *, mtu: int = 0, mac: str = "", up: bool | None = None, master: str = "") -> None:
        """Change what is given of a link. `master` is the bridge that it becomes part of."""
        more: dict[str, Any] = {"mtu": mtu} if mtu else {}
        if master:
            more["master"] = _index(master)
        if mac:
            more["address"] = mac
        if up is not None:
            more["state"] = "up" if up else "down"
        with _told(f"the link {name} was not set"):
            self._door.link("set", index=_index(name), **more)

    def remove(self, name: str) -> None:
        """A link that is gone is fine."""
        with _told(f"the link {name} was not removed"), contextlib.suppress(_Gone):
            self._door.link("del", index=_index(name))

    def add_address(self, interface: str, address: str) -> None:
        """An address that is usable at once, without a route of its own; a link-local one has its route, as each link needs that."""
        text, _, length = address.partition("/")
        flags = _NODAD | _PERMANENT | (0 if text.startswith("fe80:") else _NOPREFIXROUTE)
        more = {"local": text} if "." in text else {}
        with _told(f"the address {address} was not given to {interface}"), _unless(errno.EEXIST):
            self._door.addr(
                "add", index=_index(interface), address=text, prefixlen=int(length),
                flags=flags, **more,
            )  # fmt: skip

    def remove_address(self, interface: str, address: str) -> None:
        """An address that is gone is fine."""
        text, _, length = address.partition("/")
        with _told(f"the address {address} was not removed"), contextlib.suppress(_Gone), _unless(errno.EADDRNOTAVAIL):
            self._door.addr("del", index=_index(interface), address=text, prefixlen=int(length))

    def add_route(self, route: RouteFacts) -> None:
        """A route of ours; one to the same destination is replaced."""
        with _told(f"the route to {route.to} was not made"):
            self._door.route("replace", **_request(route))

    def remove_route(self, route: RouteFacts) -> None:
        """A route that is gone is fine."""
        with _told(f"the route to {route.to} was not removed"), contextlib.suppress(_Gone), _unless(errno.ESRCH):
            self._door.route("del", **_request(route))

    def add_neighbour(self, interface: str, address: str, mac: str) -> None:
        """A permanent neighbour."""
        with _told(f"the neighbour {address} was not made"):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._door.neigh(
                "replace", dst=address, lladdr=mac, ifindex=_index(interface), state=_PERMANENT, family=family
            )

    def remove_neighbour(self, interface: str, address: str) -> None:
        """A neighbour that is gone is fine."""
        with _told(f"the neighbour {address} was not removed"), contextlib.suppress(_Gone), _unless(errno.ENOENT):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._door.neigh("del", dst=address, ifindex=_index(interface), family=family)

    def add_forwarding(self, interface: str, mac: str, to: str) -> None:
        """Frames of a VXLAN to `mac` go to the host `to`."""
        with _told(f"the way to {mac} was not made"):
            self._door.fdb("replace", ifindex=_index(interface), lladdr=mac, dst=to, state=_PERMANENT, flags=_SELF)

    def remove_forwarding(self, interface: str, mac: str, to: str) -> None:
        """An entry that is gone is fine."""
        with _told(f"the way to {mac} was not removed"), contextlib.suppress(_Gone), _unless(errno.ENOENT):
            self._door.fdb("del", ifindex=_index(interface), lladdr=mac, dst=to, flags=_SELF)

    def limit(self, name: str, rate: int, burst: int, latency: int) -> None:
        """Bound what goes out through a link: bytes per second, bytes, microseconds. A rate of 0 takes the bound away."""
        rate = min(rate, MOST_RATE)
        with _told(f"the bandwidth of {name} was not set"):
            if rate:
                room = burst + rate * latency // 1_000_000
                self._door.tc("replace", "tbf", _index(name), 0x10000, rate=rate, burst=burst, limit=room)
            else:
                with _unless(errno.ENOENT), _unless(errno.EINVAL):
                    self._door.tc("del", index=_index(name), root=True)

    def answer_at_once(self, name: str) -> None:
        """Do not delay proxied ARP answers of a link (proxy_delay, 0.8 s at first).

        By message, for a namespace that an ordinary user owns has no file of it (/proc/sys/net/ipv4/neigh).
        """
        index = struct.pack("=HHI", 8, _NDTPA_IFINDEX, _index(name))
        delay = struct.pack("=HHQ", 12, _NDTPA_PROXY_DELAY, 0)
        table = struct.pack("=HH", 14, _NDTA_NAME) + b"arp_cache\0\0\0"
        nested = struct.pack("=HH", 4 + len(index + delay), _NDTA_PARMS) + index + delay
        body = struct.pack("=BxH", socket.AF_INET, 0) + table + nested
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as door:
            door.settimeout(_SECONDS)
            door.send(struct.pack("=IHHII", 16 + len(body), _SETNEIGHTBL, 5, 1, 0) + body)
            number = -int(struct.unpack_from("=i", door.recv(4096), 16)[0])
        if number:
            raise Conflict(f"the link {name} was not set", os.strerror(number))

    def _name(self, index: int) -> str:
        name = self._names.get(index)
        if name is None:
            with contextlib.suppress(OSError):
                name = self._names[index] = socket.if_indextoname(index)
        return name or ""


def exists(name: str) -> bool:
    """Whether there is such a link."""
    try:
        return socket.if_nametoindex(name) > 0
    except OSError:
        return False


def named(prefix: str) -> tuple[str, ...]:
    """The links whose names begin like this."""
    return tuple(name for _, name in socket.if_nameindex() if name.startswith(prefix))


class _Gone(Exception):
    """There is no such link."""


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise _Gone(f"{name} does not exist") from None


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code == errno.EOPNOTSUPP:
            raise Unavailable(what, "the kernel has no such links or queues", "see: roost doctor network") from None
        raise Conflict(what, os.strerror(error.code)) from None
    except _Gone as error:
        raise Conflict(what, str(error)) from None


@contextlib.contextmanager
def _unless(*codes: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in (*codes, errno.ENODEV):
            raise


def _link(message: Any) -> LinkFacts:
    info = message.get("linkinfo")
    kind = (info.get("kind") if info else None) or ("loopback" if message["flags"] & 8 else "")
    stats = message.get("stats64") or {}
    return LinkFacts(
        message["index"], kind, message.get("mtu"), message.get("address") or "", bool(message["flags"] & 1),
        (stats.get("rx_packets", 0), stats.get("tx_packets", 0)), (stats.get("rx_bytes", 0), stats.get("tx_bytes", 0)),
        _vxlan(info.get("data")) if kind == "vxlan" else None,
    )  # fmt: skip


def _vxlan(data: Any) -> Vxlan:
    local = data.get("vxlan_local") or data.get("vxlan_local6") or ""
    return Vxlan(data.get("vxlan_id"), local, data.get("vxlan_port"))


def _route(message: Any, name: Any) -> RouteFacts:
    target = message.get("dst")
    to = f"{target}/{message['dst_len']}" if target else _ANY[message["family"]]
    if message["type"] == _UNREACHABLE:
        return RouteFacts(to, "", "", "", "unreachable")
    interface = name(message.get("oif")) if message.get("oif") else ""
    via = message.get("gateway") or (message.get("via") or {}).get("addr") or ""
    return RouteFacts(to, interface, via, message.get("prefsrc") or "", "unicast")


def _request(route: RouteFacts) -> dict[str, Any]:
    family = socket.AF_INET6 if ":" in route.to else socket.AF_INET
    request: dict[str, Any] = {"dst": route.to, "family": family, "proto": PROTOCOL, "table": 254}
    if route.kind == "unreachable":
        return {**request, "type": "unreachable"}
    request["oif"] = _index(route.interface)
    if route.via:
        request["flags"] = _ONLINK  # no address brings a route to the gateway
    if ":" in route.via and family == socket.AF_INET:
        request["via"] = {"family": socket.AF_INET6, "addr": route.via}  # RFC 5549
    elif route.via:
        request["gateway"] = route.via
    elif family == socket.AF_INET:
        request["scope"] = _LINK_SCOPE
    if route.source:
        request["prefsrc"] = route.source
    return request


def open_tap(name: str) -> int:
    """A new tap (one queue, IFF_VNET_HDR) as a descriptor; the link goes when it is closed. Raises Conflict (it is there), Unavailable."""
    what = f"the port {name} was not plugged in"
    try:
        tap = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise Unavailable(what, f"this host has no {_TUN}", "sudo modprobe tun") from None
    except OSError as error:
        raise Unavailable(what, f"{_TUN}: {error.strerror}", f"sudo chmod 0666 {_TUN}") from None
    flags = _TAP | _NO_HEADER | _VNET_HEADER | _EXCLUSIVE
    try:
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(tap)
        if error.errno in (errno.EBUSY, errno.EEXIST):
            raise Conflict(what, "it is plugged in") from None
        raise Unavailable(what, f"{_TUN}: {error.strerror}", "see: roost doctor network") from None
    return tap


def open_capture(name: str) -> int:
    """A packet socket on a link, as a descriptor. Raises Conflict where there is no such link, Unavailable."""
    what = f"{name} can not be captured"
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as capture:
            capture.bind((name, _ETH_P_ALL))
            return capture.detach()
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise Conflict(what, "no machine is plugged in there") from None
        raise Unavailable(what, str(error.strerror), "see: roost doctor network") from None


def open_flow_log(group: int) -> int:
    """A netlink socket on which the kernel tells of packets that rules log to `group`, 96 bytes of each. Raises Unavailable."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER) as log:
        log.bind((0, 0))
        log.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LOG_BUFFER)
        # Bind the group to this socket, and nobody else's; copy so much of a packet; tell after 0.1 s at the latest.
        for kind, value in ((1, b"\1"), (2, struct.pack("!IBx", 96, 2)), (4, struct.pack("!I", 10))):
            attribute = struct.pack("=HH", 4 + len(value), kind) + value
            attribute += bytes(-len(attribute) % 4)
            body = struct.pack("!BBH", 0, 0, group) + attribute
            log.send(struct.pack("=IHHII", 16 + len(body), _LOG_SETTING, _REQUEST_ACK, 0, 0) + body)
            log.settimeout(_SECONDS)
            error = -struct.unpack_from("=i", log.recv(4096), 16)[0]
            log.setblocking(False)
            if error:
                raise Unavailable("flows can not be logged", os.strerror(error), "see: roost doctor network")
        return log.detach()


def open_monitors() -> tuple[int, int]:
    """Two netlink sockets on which the kernel tells of every change of links, addresses, routes, neighbours; and of rules. Raises OSError."""
    with (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as routes,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER) as rules,
    ):
        for monitor in (routes, rules):
            monitor.bind((0, 0))
        for group in _WATCHED:
            routes.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        with contextlib.suppress(PermissionError):  # an ordinary user in the host's own namespace
            rules.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _RULES_CHANGED)
        return routes.detach(), rules.detach()
