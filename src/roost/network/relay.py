"""The daemon's side of guest/relay.c: which sockets it serves, and sockets of the network it lives in."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from roost import guest
from roost.errors import Conflict, NotStarted, RoostError, Unavailable
from roost.host.jail import Bind, Entrance, Jail, Limits
from roost.model.meta import MiB
from roost.network.base import Published
from roost.network.controlled import Controlled

_GATE = 3
_FILES = 65536
_UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


PROTOCOLS: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")


class Way(NamedTuple):
    """What arrives at a socket goes to `target`:`port`."""

    protocol: Literal["tcp", "udp"]
    target: str
    port: int


class Count(NamedTuple):
    """What a relay carries now, and how often it refused since it began."""

    connections: int
    sessions: int
    refused: int


def jail(name: str, gate: int, account: int, entrance: Entrance | None) -> Jail:
    """A relay in the entered network, or in the host's, that is controlled over `gate`."""
    return Jail(
        name=name,
        argv=("/relay",),
        binds=(Bind(guest.binary(os.uname().machine, "relay"), "/relay"),),
        fds={_GATE: gate},
        limits=Limits(memory=256 * MiB, processes=4, files=_FILES, file_size=0),
        network="none" if entrance else "host",
        uid=account,
        entrance=entrance,
    )


class Relay(Controlled):
    """A control connection to a relay."""

    async def keys(self) -> tuple[Count, frozenset[str]]:
        """What it carries, and the keys of the sockets that it serves. Raises NotStarted."""
        first, *keys = (await self.ask("list"))[0].splitlines()
        return Count(*map(int, first.split()[1::2])), frozenset(keys)

    async def add(self, key: str, way: Way, listener: socket.socket) -> None:
        """Serve this socket. The caller still owns its copy. Raises NotStarted."""
        await self.ask(f"add {key} {way.protocol} {way.target} {way.port}", listener.fileno())

    async def remove(self, key: str) -> None:
        """Close this socket; connections that stand go on. Raises NotStarted."""
        await self.ask(f"remove {key}")

    async def socket(self, protocol: Literal["tcp", "udp"], address: str, port: int) -> socket.socket:
        """A bound (TCP: listening) socket of the network that the relay lives in. Raises NotStarted."""
        _, descriptor = await self.ask(f"socket {protocol} {address} {port}")
        if descriptor < 0:
            raise NotStarted("the relay gave no socket", "none came with its answer", "try again")
        return socket.socket(fileno=descriptor)


def key(entry: Published) -> str:
    """What names exactly this in a relay: of anything else the key is another."""
    return hashlib.sha256(repr(tuple(entry)).encode()).hexdigest()[:40]


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@contextlib.contextmanager
def listen(entry: Published) -> Iterator[socket.socket]:
    """A socket of the host for what is published. Raises Conflict when the port is taken, Unavailable when it may not be used."""
    what = f"port {entry.host_port} of {entry.address} can not be published"
    kind = socket.SOCK_STREAM if entry.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(_family(entry.address), kind) as listener:
        if entry.protocol == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in entry.address:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            listener.bind((entry.address, entry.host_port))
            if entry.protocol == "tcp":
                listener.listen(1024)
        except OSError as error:
            raise _refused(what, entry, error) from None
        yield listener


def _refused(what: str, entry: Published, error: OSError) -> RoostError:
    if error.errno == errno.EADDRINUSE:
        fix = f"publish another port, or end what uses it: ss -ltnup 'sport = :{entry.host_port}'"
        return Conflict(what, "another process uses it", fix)
    if error.errno in (errno.EACCES, errno.EPERM):
        first = _UNPRIVILEGED.read_text().strip()
        fix = f"publish a port from {first} on, or: sudo sysctl net.ipv4.ip_unprivileged_port_start={entry.host_port}"
        return Unavailable(what, f"ports below {first} are for root alone", fix)
    return Unavailable(what, str(error.strerror), "publish on an address of this host: ip -brief address")


async def publish(relay: Relay, published: Mapping[str, Published]) -> dict[str, RoostError]:
    """See that the relay serves exactly these (by `key`); what could not be published, by its own key of the network.

    A socket that goes is closed before others are made, so a port may change its target. Raises NotStarted.
    """
    _, there = await relay.keys()
    for old in there - published.keys():
        await relay.remove(old)
    refused: dict[str, RoostError] = {}
    for name in published.keys() - there:
        entry = published[name]
        try:
            with listen(entry) as listener:
                await relay.add(name, Way(entry.protocol, entry.target, entry.target_port), listener)
        except (Conflict, Unavailable) as error:
            refused[entry.key] = error
    return refused
