"""The processes of networks: DHCP and names, published ports, the door without privilege, the metadata service.

All are jailed, outlive the daemon, and are started again when they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from roost import log
from roost.errors import NotStarted, RoostError
from roost.host import jail, sockets
from roost.host.filewatch import FileWatch
from roost.host.jail import Entrance, Jail
from roost.host.namespaces import Namespaces
from roost.host.paths import NetworkFiles, Paths
from roost.model.facts import HostFacts
from roost.model.machine import Process
from roost.network import dhcp, door, metadata, relay, resolving
from roost.network.base import Fabric, Resolver, Wanted
from roost.network.kept import Kept
from roost.network.metadata import Instance, Metadata
from roost.network.relay import Relay, Way

_UPSTREAM_ACCOUNT, _METADATA_ACCOUNT = jail.FIRST_UID + 180_000, jail.FIRST_UID + 179_999
_UPSTREAM_PORT = 5353
_NAMES = ("dnsmasq", "relay", "door")


class Served(NamedTuple):
    """A network's processes that live, and what could not be done but keeps nothing else from working."""

    alive: Mapping[str, Process]
    warnings: tuple[str, ...] = ()
    unpublished: Mapping[str, RoostError] = {}


class _Network:
    """One network's processes."""

    def __init__(self, uid: str, files: NetworkFiles, changed: Callable[[str], None]) -> None:
        self.files = files
        self.turn = asyncio.Lock()
        self.kept = {
            name: Kept(f"{name} of network {uid}", files.process(name), lambda: changed(uid)) for name in _NAMES
        }
        self.told = ""


class Services:
    """Starts, finds again and ends them. `changed` is called with a network's uid when one of its processes ended: then call `ensure`.

    `instances` tells of a machine, by its uid, what the metadata service is to tell it.
    """

    def __init__(
        self,
        paths: Paths,
        facts: HostFacts,
        changed: Callable[[str], None],
        instances: Callable[[str], Instance | None] = lambda uid: None,
    ) -> None:
        self._paths = paths
        self._pasta = _pasta(facts)
        self._changed = changed
        self._instances = instances
        self._networks: dict[str, _Network] = {}
        self._shared_turn = asyncio.Lock()
        self._resolvers: FileWatch | None = None
        self._asked: tuple[str, ...] = ()
        files = paths.services
        self._upstream = Kept("the relay to the host's resolvers", files.process("upstream"), self._all_changed)
        self._metadata = Kept("the metadata service", files.process("metadata"), self._all_changed)

    def _group(self, name: str) -> str:
        """The control group of a process that serves all networks of this daemon; the host may have several."""
        return f"{name}-{_short(str(self._paths.run))}"

    def _watch_resolvers(self) -> None:
        """Notice from now on that the host has other resolvers."""
        if self._resolvers is not None:
            return
        self._asked = resolving.of_host()
        try:
            self._resolvers = FileWatch(resolving.RESOLVERS, self._resolvers_changed)
        except OSError as error:
            log.get(__name__).warning("the host's resolvers are not watched", why=str(error))

    def _resolvers_changed(self) -> None:
        before, self._asked = self._asked, resolving.of_host()
        if before != self._asked:
            for uid in self._networks:
                self._changed(uid)

    def _all_changed(self) -> None:
        for uid, network in self._networks.items():
            network.told = ""
            self._changed(uid)

    def _network(self, uid: str) -> _Network:
        if uid not in self._networks:
            self._networks[uid] = _Network(uid, self._paths.network(uid), self._changed)
        return self._networks[uid]

    async def ensure(self, wanted: Wanted, fabric: Fabric, space: Namespaces, account: int) -> Served:
        """See that all that the network wants runs in its namespaces, which stay the caller's. `account` is its uid where root runs us.

        Raises RoostError when what the network can not be without does not start.
        """
        network = self._network(wanted.uid)
        async with network.turn:
            entrance = Entrance(space.user, space.net)
            place = f"{os.fstat(space.net).st_ino}"
            await self._ensure_relay(wanted.uid, network, entrance, account)
            control = Relay.connect("the network's relay", network.files.relay)
            try:
                await asyncio.gather(
                    self._ensure_resolver(wanted.uid, network, fabric.resolver, entrance, account),
                    self._ensure_door(wanted, network, entrance, account),
                )
                unpublished = await relay.publish(control, {relay.key(one): one for one in fabric.published})
                await self._ensure_upstream(wanted, place, control)
                await self._ensure_metadata(wanted, fabric, place, control)
            finally:
                control.close()
            warnings = tuple(f"{error.what}: {error.why}" for error in unpublished.values())
            return Served(_alive(network), warnings, unpublished)

    async def look(self, uid: str) -> Served:
        """What lives."""
        return Served(_alive(self._network(uid)))

    async def stop(self, uid: str) -> None:
        """End all processes of the network. Idempotent."""
        network = self._network(uid)
        async with network.turn:
            for kept in network.kept.values():
                await kept.stop()
        self._networks.pop(uid, None)
        await self._forget(uid)

    async def close(self) -> None:
        """Let go: all of them go on."""
        if self._resolvers is not None:
            self._resolvers.close()
            self._resolvers = None
        for kept in (
            self._upstream,
            self._metadata,
            *(one for net in self._networks.values() for one in net.kept.values()),
        ):
            await kept.close()

    # ---- in the network

    async def _ensure_relay(self, uid: str, network: _Network, entrance: Entrance, account: int) -> None:
        @contextlib.contextmanager
        def make() -> Iterator[Jail]:
            with sockets.listen_unix(network.files.relay, kind=socket.SOCK_SEQPACKET) as gate:
                yield relay.jail(f"{uid}-relay", gate.fileno(), account, entrance)

        if await network.kept["relay"].ensure(f"relay {os.fstat(entrance.network).st_ino}", make):
            network.told = ""

    async def _ensure_resolver(
        self, uid: str, network: _Network, resolver: Resolver | None, entrance: Entrance, account: int
    ) -> None:
        kept = network.kept["dnsmasq"]
        if resolver is None:
            await kept.stop()
            return
        changed = dhcp.write(network.files.resolver, resolver)

        @contextlib.contextmanager
        def make() -> Iterator[Jail]:
            with _output(network.files.output("dnsmasq")) as errors:
                yield dhcp.make(f"{uid}-dnsmasq", network.files.resolver, account, entrance, errors)

        if await kept.ensure(f"dnsmasq {os.fstat(entrance.network).st_ino}\n{resolver.config}", make):
            await self._await_resolver(network, kept)
        elif changed:
            kept.signal(signal.SIGHUP)

    async def _await_resolver(self, network: _Network, kept: Kept) -> None:
        """Only one that has begun obeys a signal."""
        try:
            await resolving.until_begun(network.files.output("dnsmasq"), kept)
        except TimeoutError as error:
            said = _printable(network.files.output("dnsmasq"))
            raise NotStarted(
                "the network has no DHCP and no names", f"dnsmasq did not begin: {said}", "roost doctor"
            ) from error

    async def _ensure_door(self, wanted: Wanted, network: _Network, entrance: Entrance, account: int) -> None:
        kept = network.kept["door"]
        if wanted.door != "pasta":
            await kept.stop()
            return

        @contextlib.contextmanager
        def make() -> Iterator[Jail]:
            with _output(network.files.output("door")) as errors:
                name = f"{wanted.uid}-door"
                yield door.make(name, self._pasta, account, entrance, errors, wanted.mtu)

        await kept.ensure(f"pasta {wanted.mtu} {os.fstat(entrance.network).st_ino}", make)

    # ---- for all networks

    @contextlib.asynccontextmanager
    async def _shared(self, kept: Kept, gate: Path, make: Callable[[int], Jail]) -> AsyncIterator[None]:
        @contextlib.contextmanager
        def made() -> Iterator[Jail]:
            with sockets.listen_unix(gate, kind=socket.SOCK_SEQPACKET) as listener:
                yield make(listener.fileno())

        async with self._shared_turn:
            gate.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            await kept.ensure(kept.name, made)
            yield

    async def _ensure_upstream(self, wanted: Wanted, place: str, inside: Relay) -> None:
        """Where the network asks for what it does not know, on its own loopback, it is answered by the host's resolvers."""
        needed = wanted.door != "none" and not wanted.resolvers
        if needed:
            self._watch_resolvers()
        servers = resolving.of_host() if needed else ()
        keys = {
            f"{_short(wanted.uid)}-{_short(f'{place} {port} {server} {protocol}')}": (port, Way(protocol, server, 53))
            for port, server in enumerate(servers, _UPSTREAM_PORT)
            for protocol in relay.PROTOCOLS
        }
        gate = self._paths.services.relay
        if not keys and self._upstream.process is None:
            return
        async with self._shared(
            self._upstream, gate, lambda fd: relay.jail(self._group("upstream"), fd, _UPSTREAM_ACCOUNT, None)
        ):
            control = Relay.connect(self._upstream.name, gate)
            try:
                there = {key for key in (await control.keys())[1] if key.startswith(f"{_short(wanted.uid)}-")}
                for key in there - keys.keys():
                    await control.remove(key)
                for key in keys.keys() - there:
                    port, way = keys[key]
                    with await inside.socket(way.protocol, "127.0.0.1", port) as listener:
                        await control.add(key, way, listener)
            finally:
                control.close()

    async def _ensure_metadata(self, wanted: Wanted, fabric: Fabric, place: str, inside: Relay) -> None:
        if not fabric.metadata:
            return
        network = self._network(wanted.uid)
        ports = {port.interface: port for port in wanted.ports}
        told = {
            entry.interface: metadata.documents(
                self._instances(entry.uid) or Instance(entry.uid, ports[entry.interface].machine),
                ports[entry.interface],
                wanted.domain,
            )
            for entry in fabric.metadata
        }
        digest = f"{place} {metadata.digest(told)}"
        if digest == network.told and self._metadata.process is not None:
            return
        gate, name = self._paths.services.metadata, f"{_short(wanted.uid)}-{place}"
        async with self._shared(
            self._metadata, gate, lambda fd: metadata.make(self._group("metadata"), fd, _METADATA_ACCOUNT)
        ):
            control = Metadata.connect(self._metadata.name, gate)
            try:
                await _put(control, name, told, inside)
            finally:
                control.close()
        network.told = digest

    async def _forget(self, uid: str) -> None:
        """The shared processes let go of the network, and end when it was their last."""
        async with self._shared_turn:
            if await self._upstream.find():
                upstream = Relay.connect(self._upstream.name, self._paths.services.relay)
                with contextlib.closing(upstream):
                    there = (await upstream.keys())[1]
                    mine = {key for key in there if key.startswith(f"{_short(uid)}-")}
                    for key in mine:
                        await upstream.remove(key)
                if mine == there:
                    await _end(self._upstream, self._paths.services.relay)
            if await self._metadata.find():
                service = Metadata.connect(self._metadata.name, self._paths.services.metadata)
                with contextlib.closing(service):
                    names = await service.networks()
                    own = {name for name in names if name.startswith(f"{_short(uid)}-")}
                    for name in own:
                        await service.drop(name)
                if own == names:
                    await _end(self._metadata, self._paths.services.metadata)


async def _end(kept: Kept, gate: Path) -> None:
    await kept.stop()
    gate.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        gate.parent.rmdir()  # the last one turns out the light


async def _put(control: Metadata, name: str, told: Mapping[str, Mapping[str, str]], inside: Relay) -> None:
    names = await control.networks()
    for old in names:
        if old.startswith(name.partition("-")[0]) and old != name:
            await control.drop(old)
    if name in names:
        await control.put(name, told, None)
        return
    with await inside.socket("tcp", metadata.ADDRESS, metadata.PORT) as listener:
        await control.put(name, told, listener)


def _pasta(facts: HostFacts) -> str | None:
    """Beside passt, of which it is another name."""
    if facts.passt is None:
        return None
    path = Path(facts.passt).with_name("pasta")
    return str(path) if path.exists() else None


def _alive(network: _Network) -> dict[str, Process]:
    found = {name: kept.process for name, kept in network.kept.items()}
    return {name: process for name, process in found.items() if process is not None}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@contextlib.contextmanager
def _output(path: Path) -> Iterator[int]:
    """A new file for what a process says; its jail bounds it."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _printable(path: Path) -> str:
    with contextlib.suppress(OSError):
        text = path.read_bytes()[-500:].decode(errors="replace")
        return "".join(char if char.isprintable() else " " for char in text).strip() or "it said nothing"
    return "it said nothing"
