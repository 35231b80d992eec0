"""Makes one namespace what it should be, by comparing it with what is there; runs in that namespace, in the worker of networks."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from roost.errors import Conflict
from roost.host import kernel, links
from roost.host.links import LinkFacts, Links, RouteFacts, Vxlan
from roost.network.base import Address, Forwarding, Link, Neighbour, Route, Sysctl, Tap
from roost.network.requests import Item, Scene

_TAP = "tap"
_OURS = ("veth", "vxlan", "bridge")
_PROC = Path("/proc/sys")


class Differences:
    """What is not as it should be, in words; each is set right at once unless this only looks."""

    def __init__(self, *, repair: bool) -> None:
        self.said: list[str] = []
        self._repair = repair

    def found(self, what: str, repair: Callable[..., object], *arguments: Any) -> None:
        """Something differs, and `repair(*arguments)` sets it right."""
        self.said.append(what)
        if self._repair:
            repair(*arguments)


class Arrangement:
    """One comparison of a namespace with its scene. `outer` is a descriptor of the host's network namespace, for the outer ends of veths."""

    def __init__(self, door: Links, scene: Scene, outer: int = -1) -> None:
        self._door, self._scene, self._outer = door, scene, outer
        self.facts: Mapping[str, LinkFacts] = {}

    @property
    def taps(self) -> dict[str, Tap]:
        """The wanted taps that are plugged in."""
        return {name: tap for name, tap in self._scene.taps.items() if name in self.facts}

    def run(self, differences: Differences, *, own: bool = True) -> None:
        """Compare everything. `own`: the namespace is the network's, so what is not wanted there goes."""
        self.facts = self._door.all()
        taps = self.taps
        self._sysctls(differences, self._scene.sysctls)
        for link in self._scene.links:
            self._link(differences, link)
        if own:
            self._strange_links(differences)
        for tap in taps.values():
            self._tap(differences, tap)
        self._sysctls(differences, [*self._scene.sysctls, *(one for tap in taps.values() for one in tap.sysctls)])
        up = [tap for tap in taps.values() if tap.up]
        self._addresses(differences, [*self._scene.addresses, *(one for tap in up for one in tap.addresses)], own=own)
        self._routes(differences, [*self._scene.routes, *(one for tap in up for one in tap.routes)], own=own)
        if own:
            self._neighbours(differences, [*self._scene.neighbours, *(one for tap in up for one in tap.neighbours)])
            self._forwarding(differences)

    def _link(self, differences: Differences, link: Link) -> None:
        found = self.facts.get(link.name)
        if found is not None and (found.kind, found.vxlan) != (link.kind, _vxlan(link)):
            differences.found(f"{link.name} was a {found.kind or 'foreign'} link", self._door.remove, link.name)
            found = None
        if found is None:
            differences.found(f"{link.name} was not there", make, self._door, link, self._outer)
        elif (found.mtu, found.up, found.master) != (link.mtu, True, link.master) or (
            link.mac and found.mac != link.mac
        ):
            differences.found(f"{link.name} was set otherwise", set_link, self._door, link)

    def _strange_links(self, differences: Differences) -> None:
        wanted = {link.name for link in self._scene.links} | set(self._scene.taps)
        for name, found in self.facts.items():
            if name not in wanted and (found.kind in _OURS or (found.kind == "tun" and name.startswith(_TAP))):
                differences.found(f"{name} is wanted no more", self._door.remove, name)

    def _tap(self, differences: Differences, tap: Tap) -> None:
        found = self.facts[tap.interface]
        if (found.mtu, found.mac, found.up, found.master) != (tap.mtu, tap.mac, tap.up, tap.master):
            differences.found(f"{tap.interface} was set otherwise", set_tap, self._door, tap)
        rate = self._rates.get(tap.interface, 0)
        wanted = min(tap.limit.egress, links.MOST_RATE) if tap.limit else 0
        if rate != wanted:
            differences.found(f"{tap.interface} had another bandwidth", limit, self._door, tap)

    @functools.cached_property
    def _rates(self) -> dict[str, int]:
        return self._door.rates()

    def _sysctls(self, differences: Differences, wanted: Iterable[Sysctl]) -> None:
        for sysctl in wanted:
            with contextlib.suppress(FileNotFoundError):
                if (_PROC / sysctl.path).read_text().split() != sysctl.value.split():
                    differences.found(f"{sysctl.path} was not {sysctl.value}", write, sysctl)

    def _addresses(self, differences: Differences, wanted: Iterable[Address], *, own: bool) -> None:
        should = {(one.interface, one.address) for one in wanted}
        mine = self._mine() if own else {one[0] for one in should}
        found = {one for one in self._door.addresses() if one[0] in mine}
        for interface, address in sorted(found - should):
            if not address.startswith("fe80:"):  # one that the kernel made
                what = f"{interface} had the address {address}"
                differences.found(what, self._door.remove_address, interface, address)
        for interface, address in sorted(should - found):
            what = f"{interface} had not the address {address}"
            differences.found(what, self._door.add_address, interface, address)

    def _mine(self) -> set[str]:
        return {link.name for link in self._scene.links} | set(self.taps)

    def _routes(self, differences: Differences, wanted: Iterable[Route], *, own: bool) -> None:
        ordered = [route_facts(route) for route in wanted]
        places = {route.interface for route in ordered}
        found = {route for route in self._door.routes() if own or route.interface in places}
        for route in sorted(found - set(ordered)):
            differences.found(f"there was a route to {route.to}", self._door.remove_route, route)
        for route in ordered:  # in order: one may be needed to reach the gateway of the next
            if route not in found:
                differences.found(f"there was no route to {route.to}", self._door.add_route, route)

    def _neighbours(self, differences: Differences, wanted: Iterable[Neighbour]) -> None:
        should, found = set(map(tuple, wanted)), self._door.neighbours()
        for interface, address, _ in sorted(found - should):
            if interface in self._mine() and not any((interface, address) == one[:2] for one in should):
                what = f"{address} was a neighbour at {interface}"
                differences.found(what, self._door.remove_neighbour, interface, address)
        for missing in sorted(should - found):
            differences.found(f"{missing[1]} was no neighbour at {missing[0]}", self._door.add_neighbour, *missing)

    def _forwarding(self, differences: Differences) -> None:
        should = set(map(tuple, self._scene.forwarding))
        if not should and not any(link.kind == "vxlan" for link in self._scene.links):
            return
        found = self._door.forwarding()
        for one in sorted(found - should):
            differences.found(f"{one[1]} was at {one[2]}", self._door.remove_forwarding, *one)
        for missing in sorted(should - found):
            differences.found(f"{missing[1]} was not at {missing[2]}", self._door.add_forwarding, *missing)


def _vxlan(link: Link) -> Vxlan | None:
    return Vxlan(link.id, link.local, link.port) if link.kind == "vxlan" else None


def make(door: Links, link: Link, outer: int) -> None:
    """A new link, set and up; the outer end of a veth first, for then the inner one has a carrier at once."""
    vxlan = _vxlan(link)
    if vxlan is not None:
        _make_tunnel(link.name, vxlan, outer)
    elif link.kind != "loopback":
        door.make(link.name, link.kind, peer=(link.peer, outer))
    if link.kind == "veth" and outer >= 0:
        with _inside(outer), Links() as out:
            out.set(link.peer, mtu=link.mtu, up=True)
    set_link(door, link)


def _make_tunnel(name: str, vxlan: Vxlan, outer: int) -> None:
    """Made by the host for this namespace: frames are in and out here, and their packets leave from, and come to, the host's own network."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _inside(outer), Links() as out:
            out.make(name, "vxlan", vxlan=vxlan, home=home)
    finally:
        os.close(home)


@contextlib.contextmanager
def _inside(net: int) -> Iterator[None]:
    """Another network namespace meanwhile; for root only."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(net, kernel.NEWNET)
        try:
            yield
        finally:
            kernel.setns(home, kernel.NEWNET)
    finally:
        os.close(home)


def set_link(door: Links, link: Link) -> None:
    """MTU, MAC, and up."""
    door.set(link.name, mtu=link.mtu, mac=link.mac, master=link.master)
    door.set(link.name, up=True)


def plug(door: Links, tap: Tap) -> int:
    """A new tap, complete, as a descriptor. Raises Conflict when it is there."""
    descriptor = links.open_tap(tap.interface)
    try:
        dress(door, tap)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def dress(door: Links, tap: Tap) -> None:
    """Give a tap all that comes with it: sysctls first, for they decide what the kernel does when the link comes up."""
    for sysctl in tap.sysctls:
        write(sysctl)
    set_tap(door, tap)
    door.answer_at_once(tap.interface)
    for item in belongings(tap):
        add(door, item)
    if tap.limit is not None:
        limit(door, tap)


def change(door: Links, before: Tap | None, after: Tap) -> None:
    """Make a plugged tap what it should be now; one that is not plugged in will be when it is."""
    if not links.exists(after.interface):
        return
    wanted = set(belongings(after))
    for item in reversed(belongings(before) if before is not None else ()):
        if item not in wanted:
            remove(door, item)
    dress(door, after)
    if after.limit is None and before is not None and before.limit is not None:
        limit(door, after)


def belongings(tap: Tap) -> tuple[Address | Route | Neighbour, ...]:
    """What a tap has while it is up: the kernel takes it away from one that is down."""
    return (*tap.addresses, *tap.routes, *tap.neighbours) if tap.up else ()


def set_tap(door: Links, tap: Tap) -> None:
    """MTU, MAC, and whether it is up."""
    door.set(tap.interface, mtu=tap.mtu, mac=tap.mac, master=tap.master)
    door.set(tap.interface, up=tap.up)


def add(door: Links, item: Item, outer: int = -1) -> None:
    """Add a value; one that is there is fine. Raises Conflict."""
    match item:
        case Link():
            make(door, item, outer)
        case Address():
            door.add_address(*item)
        case Route():
            door.add_route(route_facts(item))
        case Neighbour():
            door.add_neighbour(*item)
        case Forwarding():
            door.add_forwarding(*item)
        case Sysctl():
            write(item)


def remove(door: Links, item: Item) -> None:
    """Remove a value; one that is gone is fine. Raises Conflict."""
    match item:
        case Link():
            door.remove(item.name)
        case Address():
            door.remove_address(*item)
        case Route():
            door.remove_route(route_facts(item))
        case Neighbour():
            door.remove_neighbour(item.interface, item.address)
        case Forwarding():
            door.remove_forwarding(*item)
        case Sysctl():
            pass  # it has no state without a value


def limit(door: Links, tap: Tap) -> None:
    """The bandwidth of a tap, or none."""
    if tap.limit is None:
        door.limit(tap.interface, 0, 0, 0)
    else:
        door.limit(tap.interface, tap.limit.egress, tap.limit.burst, tap.limit.latency)


def write(sysctl: Sysctl) -> None:
    """Set a sysctl of this namespace. Raises Conflict."""
    if sysctl.learning:
        _go_on_learning()
    try:
        (_PROC / sysctl.path).write_text(sysctl.value)
    except OSError as error:
        if not (sysctl.optional and isinstance(error, FileNotFoundError)):
            raise Conflict(f"{sysctl.path} was not set", str(error.strerror)) from None


def _go_on_learning() -> None:
    """A link with accept_ra 1 forgets its router as soon as the host forwards; with 2 it does not (Documentation/networking/ip-sysctl.rst)."""
    for setting in (_PROC / "net/ipv6/conf").glob("*/accept_ra"):
        if setting.parent.name not in ("all", "default"):
            with contextlib.suppress(OSError):
                if setting.read_text().strip() == "1":
                    setting.write_text("2")


def route_facts(route: Route) -> RouteFacts:
    """A wanted route as the kernel tells it."""
    return RouteFacts(route.to, route.interface, route.via, route.source, route.kind)
