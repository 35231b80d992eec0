"""An engine of networks without a network: it remembers what was asked of it, and fails as told, for tests of everything above it."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from roost.errors import Conflict, NotFound, RoostError
from roost.model.network import Mode
from roost.network.base import Door, PortCount, Seen, Wanted


class FakeFabrics:
    """Makes every network at once. `wanted` are those that are there, as they were last wished; it outlives a "restart" of the control plane
    as namespaces do. A tap is a socket, and is there until its descriptor is closed everywhere."""

    def __init__(self) -> None:
        self.wanted: dict[str, Wanted] = {}
        self.history: list[Wanted] = []
        self.taps: dict[str, socket.socket] = {}
        self.refuse: RoostError | None = None
        self.taken: set[tuple[str, int]] = set()
        self.routes: list[str] = []
        self.wake: Callable[[str], Awaitable[None] | None] = lambda uid: None

    async def ensure(self, wanted: Wanted) -> Seen:
        if self.refuse is not None:
            raise self.refuse
        self.wanted[wanted.uid] = wanted
        self.history.append(wanted)
        known = {port.interface for port in wanted.ports}
        for interface in [name for name in self.taps if name not in known and self._is_of(wanted.uid, name)]:
            self.taps.pop(interface).close()
        return self._seen(wanted)

    async def plug(self, uid: str, interface: str) -> int:
        if interface not in {port.interface for port in self._wanted(uid).ports}:
            raise NotFound(f"port {interface} is not wanted")
        if self._is_plugged(interface):
            raise Conflict(f"port {interface} is plugged in")
        self.taps[interface], theirs = socket.socketpair()
        return theirs.detach()

    async def loose(self) -> int:
        return os.memfd_create("loose", os.MFD_CLOEXEC)

    async def remove(self, uid: str) -> None:
        self.wanted.pop(uid, None)

    async def look(self, uid: str) -> Seen:
        return self._seen(self._wanted(uid))

    async def capture(self, uid: str, interface: str) -> int:
        self._wanted(uid)
        return os.memfd_create("capture", os.MFD_CLOEXEC)

    async def flows(self, uid: str, *, follow: bool) -> AsyncIterator[bytes]:
        self._wanted(uid)
        del follow
        yield b'{"verdict":"allowed"}\n'

    async def host_routes(self) -> Sequence[str]:
        return self.routes

    async def host_addresses(self) -> Sequence[str]:
        return ["192.0.2.7"]

    def on_change(self, wake: Callable[[str], Awaitable[None] | None]) -> None:
        self.wake = wake

    @staticmethod
    async def door(mode: Mode) -> tuple[Door, str]:
        """How a network of the mode reaches the world."""
        return ("none" if mode == "isolated" else "kernel"), ""

    def _is_plugged(self, interface: str) -> bool:
        """Whether somebody has the tap's descriptor."""
        tap = self.taps.get(interface)
        if tap is None:
            return False
        try:
            return tap.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True

    def _is_of(self, uid: str, interface: str) -> bool:
        return any(port.interface == interface for past in self.history if past.uid == uid for port in past.ports)

    def _wanted(self, uid: str) -> Wanted:
        if uid not in self.wanted:
            raise NotFound(f"network {uid} does not exist")
        return self.wanted[uid]

    def _seen(self, wanted: Wanted) -> Seen:
        return Seen(
            ready=True,
            door=wanted.door,
            mtu=wanted.mtu,
            alive=frozenset({"holder", "dnsmasq"}),
            plugged=frozenset(port.interface for port in wanted.ports if self._is_plugged(port.interface)),
            ports={port.interface: PortCount() for port in wanted.ports},
            unpublished={
                entry.key: Conflict(f"port {entry.host_port} is not published", "it is taken", "publish another port")
                for entry in wanted.published
                if (entry.address, entry.host_port) in self.taken
            },
        )
