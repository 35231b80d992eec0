"""The engine of virtual networks: keeps their namespaces, has the worker make them what the plan says, and notices what others change."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

from roost import log
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host import files
from roost.host.failpoints import reach
from roost.host.namespaces import Namespaces
from roost.host.paths import Paths
from roost.model.facts import HostFacts
from roost.model.network import Mode
from roost.network import bridging, flows, names, nft, plan, ruleset
from roost.network.base import Door, Fabric, PortCount, Seen, Wanted
from roost.network.flows import FlowLog
from roost.network.hostside import Applied, HostSide, read_applied, write_applied
from roost.network.monitor import Monitor, Notice, is_foreign
from roost.network.place import Place
from roost.network.requests import (
    Answer,
    Arrange,
    Capture,
    Flows,
    Forwards,
    Host,
    Loose,
    Plug,
    Request,
    Scene,
    Survey,
    Update,
    Watch,
    steps,
)
from roost.network.workerclient import Worker

_SETTLE = 0.1
"""Seconds after a change that somebody else made until we look: it seldom comes alone."""
_REMEMBERED = 4096
_YOUNG = 0.25
_DOOR_SECONDS = 60.0
"""For how long the answer holds whether this host forwards."""


class Served(Protocol):
    """What the services of a network are up to: those that run by name, and what they could not do."""

    @property
    def alive(self) -> Mapping[str, object]: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    @property
    def unpublished(self) -> Mapping[str, RoostError]: ...


class Services(Protocol):
    """What runs in a network's namespaces beside the kernel: names, addresses, published ports, metadata."""

    async def ensure(self, wanted: Wanted, fabric: Fabric, space: Namespaces, account: int) -> Served: ...

    async def stop(self, uid: str) -> None: ...

    async def look(self, uid: str) -> Served: ...

    async def close(self) -> None: ...


class _Network:
    """One network as this daemon knows it."""

    def __init__(self, uid: str) -> None:
        self.uid = uid
        self.lock = asyncio.Lock()
        self.place: Place | None = None
        self.wanted: Wanted | None = None
        self.fabric: Fabric | None = None
        self.monitor: Monitor | None = None
        self.flows: FlowLog | None = None
        self.generation = -1
        self.digest = ""
        self.clean = False
        """Whether nobody but us has changed anything since the last look."""
        self.indexes: dict[str, int] = {}
        self.suspects: set[int] = set()
        self.settling = False
        self.young: dict[int, float] = {}
        """Taps that were plugged in just now, and until when what the kernel tells of them in nobody's name is that they have a carrier."""
        self.busy = False
        """Whether we are changing links: what the kernel tells of them in nobody's name is about us."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        """While we change links."""
        self.busy = True
        try:
            yield
        finally:
            if self.monitor is not None:
                self.monitor.drain()
            self.busy = False

    def expect_carrier(self, taps: Iterable[int]) -> None:
        """These links were just made."""
        now = time.monotonic()
        kept = {index: until for index, until in self.young.items() if until > now}
        self.young = {**kept, **dict.fromkeys(taps, now + _YOUNG)}

    def whose(self, index: int) -> str:
        """The machine whose port the link with this index is, or what else it leads to."""
        name = next((name for name, number in self.indexes.items() if number == index), "")
        ports = self.wanted.ports if self.wanted is not None else ()
        places = {port.interface: port.machine for port in ports}
        return {names.UPLINK: "world", names.TUNNEL: "tunnel", **places}.get(name, "")

    def forget(self) -> None:
        """What is known of a namespace that is no more."""
        if self.flows is not None:
            self.flows.close()
        self.flows = None
        if self.monitor is not None:
            self.monitor.close()
        self.monitor, self.fabric, self.generation, self.digest, self.clean = None, None, -1, "", False
        self.indexes = {}


class NetworkFabric:
    """The engine; see roost.network.base.Fabrics. What it knows is a copy: a new one finds the same in the kernel and in the run directory."""

    def __init__(
        self, paths: Paths, facts: HostFacts, services: Callable[[Callable[[str], None]], Services] | None = None
    ) -> None:
        self._paths = paths
        self._facts = facts
        self._worker = Worker()
        self._services = services(self._woken) if services is not None else None
        self._networks: dict[str, _Network] = {}
        self._wake: Callable[[str], Awaitable[None] | None] = lambda uid: None
        self._own: OrderedDict[int, None] = OrderedDict()
        self._host = HostSide(paths, self._ask, self._is_own, self._host_changed)
        self._forwards: tuple[float, str] | None = None

    def on_change(self, wake: Callable[[str], Awaitable[None] | None]) -> None:
        """Call `wake` with a network's uid when a process of it died or somebody else changed it, or the host's own network."""
        self._wake = wake

    async def close(self) -> None:
        """Let go of everything; networks go on."""
        for network in self._networks.values():
            network.forget()
            if network.place is not None:
                network.place.close()
        self._networks.clear()
        self._host.close()
        if self._services is not None:
            await self._services.close()
        await self._worker.close()

    async def door(self, mode: Mode) -> tuple[Door, str]:
        """How a network of this mode can reach the world from here, and why that is not the kernel ("" where it is, or needs not be)."""
        if mode in ("isolated", "bridged"):
            return ("none" if mode == "isolated" else "bridge"), ""
        if self._forwards is None or time.monotonic() - self._forwards[0] > _DOOR_SECONDS:
            answer, _ = await self._ask(Forwards())
            self._forwards = time.monotonic(), answer.why
        why = self._forwards[1]
        return ("pasta" if why and mode == "nat" else "kernel"), why

    async def host_routes(self) -> Sequence[str]:
        """The networks that the host has routes to, those of our own doors left out."""
        return (await self._ask(Host()))[0].routes

    async def host_addresses(self) -> Sequence[str]:
        """The host's own addresses, without loopback and link-local ones."""
        return (await self._ask(Host()))[0].addresses

    async def ensure(self, wanted: Wanted) -> Seen:
        """Make or adopt the network, set right what differs. See base.Fabrics."""
        fabric = plan.fabric(wanted)
        _check_rights(wanted)
        network = self._networks.setdefault(wanted.uid, _Network(wanted.uid))
        await self._host.watch()
        async with network.lock:
            place = await self._settle_in(network)
            if network.monitor is not None:
                network.monitor.drain()
            network.clean = network.clean and not network.suspects - set(self._own)
            before = network.fabric if network.clean else None
            network.clean = True  # unless told otherwise from here on
            try:
                with network.changing():
                    answer = await self._make(network, before, fabric, wanted)
            except BaseException:
                network.clean = False
                raise
            network.wanted, network.fabric = wanted, fabric
            warnings = await self._log_flows(network, wanted)
            await reach("network.arranged")
            served = None
            if self._services is not None and wanted.mode != "bridged":
                served = await self._services.ensure(wanted, fabric, place.namespaces, place.account)
            await reach("network.served")
            await self._record(network, fabric)
            await reach("network.applied")
        seen = _seen(wanted, answer, served)
        return seen._replace(warnings=(*seen.warnings, *warnings))

    async def plug(self, uid: str, interface: str) -> int:
        """A new tap of a port, as a descriptor. See base.Fabrics."""
        network = self._known(uid)
        async with network.lock:
            tap = network.fabric.taps.get(interface) if network.fabric else None
            if tap is None or network.place is None:
                raise NotFound(f"port {interface} is not there", "no machine has it in this network")
            with network.changing():
                answer, (descriptor,) = await self._ask(Plug(tap=tap), network.place.namespaces)
            network.indexes.update(answer.indexes)
            network.expect_carrier(answer.indexes.values())
            try:
                await reach("network.plugged")
            except BaseException:
                os.close(descriptor)
                raise
        return descriptor

    async def loose(self) -> int:
        """A tap that leads nowhere, as a descriptor. See base.Fabrics."""
        try:
            _, (descriptor,) = await self._ask(Loose())
        except Conflict as error:
            raise Unavailable(error.what, error.why, "see: roost doctor network") from None
        return descriptor

    async def remove(self, uid: str) -> None:
        """Nothing is left of the network. Idempotent."""
        network = self._networks.setdefault(uid, _Network(uid))
        async with network.lock:
            if self._services is not None:
                await self._services.stop(uid)
            await reach("network.stopped")
            network.forget()
            place = network.place or await Place.find(self._paths.network(uid).holder)
            if place is not None and await self._host.has_tunnel(uid):
                # A namespace goes some time after its last process, and so long another network could not have the tunnel's id.
                await self._ask(Arrange(scene=Scene(), rules=""), place.namespaces)
            await self._host.leave(uid)
            await reach("network.shut")
            network.place = None
            if place is not None:
                await place.end()
            await reach("network.released")
            await asyncio.to_thread(files.remove_tree, self._paths.network(uid).directory)
            with suppress(OSError):
                self._paths.networks.rmdir()
        self._networks.pop(uid, None)

    async def look(self, uid: str) -> Seen:
        """What is, without changing it. Raises NotFound."""
        network = self._known(uid)
        async with network.lock:
            if network.place is None or network.fabric is None or network.wanted is None:
                raise NotFound(f"network {uid} is not there")
            request = Survey(scene=Scene.of(network.fabric), generation=network.generation)
            answer, _ = await self._ask(request, network.place.namespaces)
            is_served = self._services is not None and network.wanted.mode != "bridged"
            served = await self._services.look(uid) if self._services is not None and is_served else None
            seen = _seen(network.wanted, answer, served)
        if network.place.is_alive:
            return seen
        return seen._replace(alive=seen.alive - {"holder"}, differs=(*seen.differs, "the holder has ended"))

    async def capture(self, uid: str, interface: str) -> int:
        """A packet socket on a port's tap. Raises NotFound."""
        network = self._known(uid)
        if network.place is None or network.fabric is None or interface not in network.fabric.taps:
            raise NotFound(f"port {interface} is not there", "no machine has it in this network")
        try:
            _, (descriptor,) = await self._ask(Capture(interface=interface), network.place.namespaces)
        except Conflict as error:
            raise NotFound(error.what, error.why) from None
        return descriptor

    async def flows(self, uid: str, *, follow: bool) -> AsyncIterator[bytes]:
        """The flow log, as lines of JSON (flows.Flow). See base.Fabrics."""
        network = self._known(uid)
        if follow and network.flows is not None:
            async for lines in network.flows.follow():
                yield lines
        else:
            yield flows.kept(self._paths.network(uid).flows)

    async def _log_flows(self, network: _Network, wanted: Wanted) -> tuple[str, ...]:
        """Read the flow log where one is wanted, and only there; what keeps us from it is worth a warning."""
        assert network.place is not None
        if not wanted.flow_log:
            if network.flows is not None:
                network.flows.close()
                network.flows = None
        elif network.flows is None:
            try:
                _, (descriptor,) = await self._ask(Flows(group=ruleset.FLOW_GROUP), network.place.namespaces)
            except (Unavailable, Conflict) as error:
                return (f"no flow log: {error.why}",)
            network.flows = FlowLog(descriptor, self._paths.network(network.uid).flows, network.whose)
        return ()

    def _known(self, uid: str) -> _Network:
        network = self._networks.get(uid)
        if network is None:
            raise NotFound(f"network {uid} is not there")
        return network

    async def _ask(self, request: Request, namespaces: Namespaces | None = None) -> tuple[Answer, tuple[int, ...]]:
        answer, descriptors = await self._worker.ask(request, namespaces)
        self._own[answer.pid & 0x3FFFFF] = None
        while len(self._own) > _REMEMBERED:
            self._own.popitem(last=False)
        return answer, descriptors

    async def _settle_in(self, network: _Network) -> Place:
        """The network's namespaces: those that are there, or new ones."""
        if network.place is not None and network.place.is_alive and network.monitor is not None:
            return network.place
        where = self._paths.network(network.uid)
        place, is_new = await Place.enter(network.uid, where, network.place, self._taken())
        if is_new:
            network.forget()
            await self._host.leave(network.uid)
        network.place = place
        place.on_end(lambda: self._woken(network.uid))
        if network.monitor is None:
            _, sockets = await self._ask(Watch(), place.namespaces)
            network.monitor = Monitor(sockets, lambda notice: self._noticed(network, notice))
            applied = None if is_new else await asyncio.to_thread(read_applied, self._paths, network.uid)
            network.generation, network.digest = (applied.generation, applied.digest) if applied else (-1, "")
        return place

    def _taken(self) -> set[int]:
        """The accounts of the other networks."""
        known = {one.place.account for one in self._networks.values() if one.place is not None}
        return known | Place.accounts(self._paths.networks)

    async def _make(self, network: _Network, before: Fabric | None, fabric: Fabric, wanted: Wanted) -> Answer:
        assert network.place is not None
        await self._host.guard(network.uid, fabric.outside)
        await reach("network.guarded")
        answer = await self._update(network, before, fabric) if before is not None else None
        if answer is None:
            digest = _digest(fabric)
            request = Arrange(
                scene=Scene.of(fabric),
                rules=nft.replacing(fabric.tables),
                generation=network.generation if digest == network.digest else -1,
            )
            answer, _ = await self._ask(request, network.place.namespaces)
        network.generation, network.digest = answer.generation, _digest(fabric)
        network.indexes.update(answer.indexes)
        is_same = before is not None and (before.outside, before.links) == (fabric.outside, fabric.links)
        if wanted.door in ("kernel", "bridge") and not is_same:
            differs = await self._host.open(wanted, before, fabric)
            answer.differs += differs
        await reach("network.outside")
        return answer

    async def _update(self, network: _Network, before: Fabric, fabric: Fabric) -> Answer | None:
        """Apply what differs from what we made; None when somebody else has changed the rules meanwhile."""
        assert network.place is not None
        change = plan.change(before, fabric)
        for name in change.unplugged:
            network.indexes.pop(name, None)
        taps = tuple((before.taps.get(tap.interface), tap) for tap in change.taps)
        request = Update(
            rules=change.rules, removed=steps(change.removed), added=steps(change.added), taps=taps,
            unplugged=change.unplugged, generation=network.generation,
        )  # fmt: skip
        try:
            answer, _ = await self._ask(request, network.place.namespaces)
        except Conflict:
            return None  # it was otherwise than we thought; compare everything, and fail then if it must be
        return None if answer.stale else answer

    async def _record(self, network: _Network, fabric: Fabric) -> None:
        applied = Applied(network.generation, network.digest, tuple(sorted(fabric.outside.elements)))
        await asyncio.to_thread(write_applied, self._paths, network.uid, applied)

    def _noticed(self, network: _Network, notice: Notice) -> None:
        # A big change of ours is more than the kernel's buffer holds (pid -1): the number of the ruleset tells whether it was ours alone.
        if notice.pid <= 0 and (network.busy or network.young.get(notice.link, 0.0) > time.monotonic()):
            return
        if is_foreign(notice, network.indexes.values()):
            network.suspects.add(notice.pid)
            if not network.settling:
                network.settling = True
                asyncio.get_running_loop().call_later(_SETTLE, self._judge, network)

    def _judge(self, network: _Network) -> None:
        """By now whoever of ours was at work has told its pid, or is still at work."""
        if network.lock.locked():
            asyncio.get_running_loop().call_later(_SETTLE, self._judge, network)
            return
        network.settling = False
        suspects, network.suspects = network.suspects, set()
        if suspects - set(self._own):
            network.clean = False
            self._woken(network.uid)

    def _is_own(self, pid: int) -> bool:
        return pid in self._own

    def _host_changed(self, uids: frozenset[str] | None) -> None:
        """Something of these networks (None: all) in the host's namespace, or the host's own addresses, are not what they were."""
        self._forwards = None
        for uid, network in list(self._networks.items()):
            if uids is None or uid in uids:
                network.clean = False
                self._woken(uid)

    def _woken(self, uid: str) -> None:
        answer = self._wake(uid)
        if answer is not None:
            log.spawn_task(_await(answer), f"network {uid} changed")


async def _await(answer: Awaitable[None]) -> None:
    await answer


def _digest(fabric: Fabric) -> str:
    return hashlib.sha256(nft.replacing(fabric.tables).encode()).hexdigest()


def _check_rights(wanted: Wanted) -> None:
    """Raises Unavailable for an ordinary user's network that is part of the host's own."""
    if os.geteuid() == 0 or (wanted.vxlan is None and wanted.mode not in ("bridged", "routed")):
        return
    what = "span hosts" if wanted.vxlan is not None else f"be {wanted.mode}"
    why = "that takes links and routes in the host's own network, which is root's"
    raise Unavailable(f"network {wanted.name} can not {what}", why, "run the daemon as root: sudo roost serve")


def _seen(wanted: Wanted, answer: Answer, served: Served | None) -> Seen:
    counts, own = answer.counts, {port.interface for port in wanted.ports}
    ports = {
        name: PortCount(sent, sent_bytes, received, received_bytes, counts.elements.get(name, 0))
        for name, (received, sent, received_bytes, sent_bytes) in counts.links.items()
        if name in own
    }
    return Seen(
        ready=True,
        door=wanted.door,
        mtu=wanted.mtu,
        alive=frozenset({"holder", *(served.alive if served else ())}),
        plugged=frozenset(answer.plugged),
        ports=ports,
        rules=counts.rules,
        drops=counts.named,
        differs=answer.differs,
        warnings=served.warnings if served else bridging.warnings(wanted),
        unpublished=served.unpublished if served else bridging.unpublished(wanted),
    )
