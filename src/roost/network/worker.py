"""The worker of networks: the process that changes links and rules, so that the daemon needs neither the libraries nor to enter namespaces.

`python -m roost.network.worker FD`: FD is a socket on which each message, one byte, brings descriptors: a stream on which the request comes and
the answer goes, and, unless the host's own namespace is meant, those of the user and the network namespace. Every request is served by a fork
that enters and ends; the worker keeps nothing, and ends when the daemon does.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec

from roost.errors import Conflict, RoostError, Unavailable
from roost.host import kernel, links, nftables
from roost.host.links import LinkFacts, Links
from roost.network import arrange, forwarding, names, nft
from roost.network.requests import (
    Answer,
    Arrange,
    Capture,
    Counts,
    Flows,
    Forwards,
    Host,
    Loose,
    Outer,
    Plug,
    Request,
    Rules,
    Survey,
    Update,
    Watch,
)  # fmt: skip

_SECONDS = 60
"""The longest that a fork may live: the kernel kills it then."""
_REQUEST = msgspec.json.Decoder(Request)
_DROPPED = "dropped"
_SNDBUFFORCE = 32  # asm-generic/socket.h
"""The set in which the rules count what they drop, by port."""
_NETWORK = "/proc/self/ns/net"
_TOLD = 8


def main(number: int) -> None:
    """Serve until the daemon is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    control = socket.socket(fileno=number)
    gc.freeze()
    while True:
        word, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if not word:
            return
        if os.fork() == 0:
            _serve_and_end(control, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _serve_and_end(control: socket.socket, descriptors: list[int]) -> None:
    try:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        nftables.leave_open()
        _serve(socket.socket(fileno=descriptors[0]), descriptors[1:])
    finally:
        os._exit(0)


def _serve(stream: socket.socket, namespaces: list[int]) -> None:
    request = _REQUEST.decode(b"".join(_chunks(stream)))
    given: list[int] = []
    try:
        outer = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
        _enter(namespaces)
        answer = _perform(request, outer, given)
    except RoostError as error:
        answer = Answer(error=(error.code, error.what, error.why, error.fix))
    except Exception as error:
        if not isinstance(error, OSError):
            traceback.print_exc()  # a mistake of ours: into the daemon's log
        answer = Answer(error=(Conflict.code, "the network was not changed", str(error), ""))
    answer.pid = os.getpid()
    with suppress(BrokenPipeError):
        data = msgspec.json.encode(answer)
        sent = socket.send_fds(stream, [data], given) if given else 0
        stream.sendall(data[sent:])
    stream.close()  # before all others: see nftables.leave_open


def _chunks(stream: socket.socket) -> Iterator[bytes]:
    while chunk := stream.recv(1 << 20):
        yield chunk


def _enter(namespaces: list[int]) -> None:
    """Root may enter the network namespace as it is; an ordinary user has no right over it outside of its user namespace."""
    if not namespaces:
        return
    user, net = namespaces
    if os.geteuid() != 0:
        kernel.setns(user, kernel.NEWUSER)
    kernel.setns(net, kernel.NEWNET)


def _apply(rules: str) -> None:
    """In one transaction; in several where this process may not make a socket's buffer as large as a long one takes."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as door:
        try:
            door.setsockopt(socket.SOL_SOCKET, _SNDBUFFORCE, 1 << 16)
            parts: tuple[str, ...] = (rules,)
        except PermissionError:
            parts = nft.portions(rules)
    for part in parts:
        nftables.apply(part)


def _perform(request: Request, outer: int, given: list[int]) -> Answer:
    match request:
        case Watch():
            given.extend(links.open_monitors())
        case Loose():
            kernel.unshare(kernel.NEWNET if os.geteuid() == 0 else kernel.NEWUSER | kernel.NEWNET)
            given.append(links.open_tap(names.LOOSE))
        case Capture():
            given.append(links.open_capture(request.interface))
        case Flows():
            given.append(links.open_flow_log(request.group))
        case Forwards():
            return Answer(why=forwarding.obstacle())
        case Rules():
            with suppress(*((Conflict,) if request.lenient else ())):
                _apply(request.rules)
        case _:
            with Links() as door:
                return _with_links(door, request, outer, given)
    return Answer()


def _with_links(
    door: Links, request: Plug | Host | Outer | Update | Survey | Arrange, outer: int, given: list[int]
) -> Answer:
    match request:
        case Plug():
            given.append(arrange.plug(door, request.tap))
            index = socket.if_nametoindex(request.tap.interface)
            return Answer(plugged=(request.tap.interface,), indexes={request.tap.interface: index})
        case Host():
            return Answer(routes=_routes(door), addresses=_addresses(door))
        case Outer():
            return _outer(door, request)
        case Update():
            return _update(door, request, outer)
        case Survey() | Arrange():
            return _arrange(door, request, outer)


def _arrange(door: Links, request: Arrange | Survey, outer: int) -> Answer:
    repair = isinstance(request, Arrange)
    differences = arrange.Differences(repair=repair)
    arrangement = arrange.Arrangement(door, request.scene, outer)
    # The rules come first: no link may be up for a moment without them.
    if nftables.generation() != request.generation:
        differences.said.append("the rules were not ours")
        if isinstance(request, Arrange) and request.rules:
            _apply(request.rules)
    arrangement.run(differences)
    known = {*request.scene.taps, *(link.name for link in request.scene.links)}
    facts = door.all() if repair and differences.said else arrangement.facts
    return Answer(
        differs=tuple(differences.said),
        generation=nftables.generation(),
        plugged=tuple(name for name in request.scene.taps if name in facts),
        indexes={name: one.number for name, one in facts.items() if name in known},
        counts=Counts() if repair else _counts(facts),
    )


def _update(door: Links, request: Update, outer: int) -> Answer:
    if nftables.generation() != request.generation:
        return Answer(stale=True)
    # What goes away first goes from the links, and rules that let less through come before links that let more.
    for name in request.unplugged:
        door.remove(name)
    for step in request.removed:
        arrange.remove(door, step.item())
    if request.rules:
        _apply(request.rules)
    for step in request.added:
        arrange.add(door, step.item(), outer)
    for before, after in request.taps:
        arrange.change(door, before, after)
    return Answer(generation=nftables.generation(), plugged=links.named("tap"))


def _outer(door: Links, request: Outer) -> Answer:
    for step in request.retired:
        arrange.remove(door, step.item())
    if request.scene is None:
        door.remove(request.name)
        return Answer()
    if not links.exists(request.name):
        raise Conflict(f"{request.name} was not set", "somebody removed it just now", "it is made again at once")
    differences = arrange.Differences(repair=True)
    if request.master:
        _join(door, request)
    else:
        door.set(request.name, mtu=request.mtu, up=True)
    arrange.Arrangement(door, request.scene).run(differences, own=False)
    return Answer(differs=tuple(differences.said), indexes={request.name: socket.if_nametoindex(request.name)})


def _join(door: Links, request: Outer) -> None:
    """Only what is a bridge already: a card that was made part of one would lose the host's own addresses. The bridge keeps its MTU and its MAC
    address, which it takes from its ports: the least of each, unless told otherwise."""
    master = bridge(door.all(), request.master)
    tail = names.digest(request.name)
    mac = "fe:ff:" + ":".join(tail[index : index + 2] for index in range(0, 8, 2))
    door.set(request.name, mtu=master.mtu, mac=mac)
    door.set(request.name, master=request.master)
    door.set(request.name, up=True)


def bridge(there: Mapping[str, LinkFacts], name: str) -> LinkFacts:
    """The host's bridge of that name among its links. Raises Unavailable, with those that it has."""
    found = there.get(name)
    if found is not None and found.kind == "bridge":
        return found
    own = sorted(title for title, link in there.items() if link.kind == "bridge")
    # A macvtap on a plain interface needs no bridge, and so has no port at which the guards could be; nor does the host itself reach what is on it.
    why = (
        f"{name} is no bridge: it must not lose the host's addresses to one, and on it nothing keeps a machine to its own MAC address"
        if found is not None
        else f"this host has no interface {name}"
    )
    fix = (
        f"name a bridge of this host ({', '.join(own[:_TOLD])}): roost network create NAME --mode bridged --interface {own[0]}"
        if own
        else f"let this host's network configuration make a bridge with {name} as its port, and name that; or use --mode routed"
    )
    raise Unavailable("the bridged network is not made", why, fix)


def _routes(door: Links) -> tuple[str, ...]:
    found = {to for to, interface in door.all_routes() if not _is_ours(interface) and not to.endswith("/0")}
    return tuple(sorted(one for one in found if not ip_network(one).is_link_local and not ip_network(one).is_multicast))


def _addresses(door: Links) -> tuple[str, ...]:
    found = {address.partition("/")[0] for interface, address in door.addresses() if not _is_ours(interface)}
    return tuple(sorted(one for one in found if not ip_address(one).is_link_local and not ip_address(one).is_loopback))


def _is_ours(interface: str) -> bool:
    return interface.startswith(names.OUTSIDE_PREFIX)


def _counts(facts: Mapping[str, LinkFacts]) -> Counts:
    counts = Counts(links={name: (*one.packets, *one.bytes) for name, one in facts.items()})
    for entry in msgspec.json.decode(nftables.listing("list ruleset"))["nftables"]:
        for kind, value in entry.items():
            _count(counts, kind, value)
    return counts


def _count(counts: Counts, kind: str, value: Any) -> None:
    if kind == "counter":
        counts.named[value["name"]] = counts.named.get(value["name"], 0) + value["packets"]
    elif kind == "rule" and "comment" in value:
        for counter in (one["counter"] for one in value["expr"] if isinstance(one.get("counter"), dict)):
            packets, octets = counts.rules.get(value["comment"], (0, 0))
            counts.rules[value["comment"]] = (packets + counter["packets"], octets + counter["bytes"])
    elif kind == "set" and value["name"] == _DROPPED:
        for one in (one["elem"] for one in value.get("elem", ()) if isinstance(one, dict)):
            counts.elements[one["val"]] = counts.elements.get(one["val"], 0) + one.get("counter", {}).get("packets", 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
