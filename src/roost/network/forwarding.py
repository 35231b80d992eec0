"""Finds out by a packet whether this host forwards for networks of ours: what firewalls and other products set is not guessed."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from roost.errors import RoostError
from roost.host import kernel
from roost.host.links import Links, RouteFacts
from roost.network.outside import PROBE

_NETWORK = "/proc/self/ns/net"
_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
_TRIES, _SECONDS = 12, 0.15
_PORT = 9  # "discard", RFC 863


class _Side(NamedTuple):
    """A probe's veth: the outer end's name and address, the inner end's address."""

    name: str
    outer: str
    inner: str


# 192.0.0.8 to .11 are for no host's use (RFC 6890: 192.0.0.0/24 is the IETF's), so no route of the host is in the way.
_NETWORKS, _WORLD = _Side(PROBE[0], "192.0.0.8", PROBE[1]), _Side("rpwprobe", "192.0.0.10", "192.0.0.11")


def obstacle() -> str:
    """Why packets do not get from a network's link through this host to another link; "" when they do. Takes up to two seconds.

    For a process of its own: it changes its network namespace.
    """
    if os.geteuid() != 0:
        return "only root can make the host forward"
    home = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with ExitStack() as undo:
            undo.callback(_forget, _FORWARD.read_text())
            undo.callback(kernel.setns, home, kernel.NEWNET)
            sender, receiver = (undo.enter_context(_make(side, home)) for side in (_NETWORKS, _WORLD))
            kernel.setns(home, kernel.NEWNET)
            return "" if _passes(sender, receiver) else "a packet through this host did not arrive: a firewall drops it"
    except (OSError, RoostError) as error:
        return f"this host does not let us try: {error}"
    finally:
        os.close(home)


def _make(side: _Side, home: int) -> socket.socket:
    """A socket in a new namespace that is one hop from the host."""
    kernel.unshare(kernel.NEWNET)
    inside = os.open(_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        kernel.setns(home, kernel.NEWNET)
        with Links() as door:
            door.make(side.name, "veth", peer=("up0", inside))
            _address(door, side.name, side.outer, side.inner)
        kernel.setns(inside, kernel.NEWNET)
    finally:
        os.close(inside)
    with Links() as door:  # second, so that it has a carrier at once
        _address(door, "up0", side.inner, side.outer)
        door.add_route(RouteFacts("0.0.0.0/0", "up0", side.outer, "", "unicast"))
    ours = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ours.bind((side.inner, _PORT))
    ours.settimeout(_SECONDS)
    return ours


def _address(door: Links, name: str, own: str, other: str) -> None:
    door.set(name, up=True)
    door.add_address(name, f"{own}/32")
    door.add_route(RouteFacts(f"{other}/32", name, "", "", "unicast"))


def _passes(sender: socket.socket, receiver: socket.socket) -> bool:
    if _FORWARD.read_text().strip() != "1":
        _FORWARD.write_text("1")
    for _ in range(_TRIES):
        sender.sendto(b"?", (_WORLD.inner, _PORT))
        with suppress(TimeoutError):
            return bool(receiver.recv(1))
    return False


def _forget(forwarded: str) -> None:
    with Links() as door:
        for side in (_NETWORKS, _WORLD):
            door.remove(side.name)
    if forwarded != _FORWARD.read_text():
        _FORWARD.write_text(forwarded)
