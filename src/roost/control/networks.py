"""The reconciler of networks: what all objects say of one becomes one wish, which the engine makes so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import NamedTuple, NoReturn

from msgspec.structs import replace

from roost.control.addresses import Addresses
from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.networkplan import (
    Neighbours,
    is_plugged,
    networks_of,
    wanted,
    wiring_of,
    with_gateways,
)
from roost.control.records import Records, read
from roost.errors import Conflict, NotFound, RoostError
from roost.host import failpoints
from roost.log import bind, get, spawn_task
from roost.model.forward import Forward
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Trouble
from roost.model.network import Mode, Network, NetworkStatus, PortStatus, Subnet
from roost.model.ruleset import RuleSet
from roost.network import subnets
from roost.network.base import Door, Fabrics, Seen, Wanted
from roost.network.metadata import Instance
from roost.store.base import Entry

AGAIN = 1.0
"""Seconds between two looks at a network whose machines have not let go of it yet."""


class Residents:
    """The machines that networks were last made for: what the metadata service may tell each of itself."""

    def __init__(self) -> None:
        self._machines: dict[str, Machine] = {}

    def note(self, machines: Iterable[Machine]) -> None:
        """These are plugged in, or about to be."""
        self._machines |= {machine.meta.uid: machine for machine in machines}

    def forget(self, uid: str) -> None:
        """That one is gone."""
        self._machines.pop(uid, None)

    def instance(self, uid: str) -> Instance | None:
        """What the machine with this uid is told."""
        machine = self._machines.get(uid)
        if machine is None:
            return None
        spec = machine.spec
        return Instance(uid, spec.hostname or machine.name, spec.ssh_keys, spec.user_data or "")


class Means(NamedTuple):
    """What the reconciler acts with. `door` chooses how a network of a mode reaches the world, and says what is wrong with that.
    `wake` is told the key of an object about
    which something changed."""

    fabrics: Fabrics
    addresses: Addresses
    door: Callable[[Mode], Awaitable[tuple[Door, str]]]
    wake: Callable[[str], None]
    residents: Residents


class Networks:
    """Brings networks from what is to what is wanted."""

    def __init__(self, records: Records, recorder: Recorder, means: Means) -> None:
        self._records = records
        self._recorder = recorder
        self._means = means
        self._locks: dict[str, asyncio.Lock] = {}
        self._next: dict[str, asyncio.Task[Seen | RoostError]] = {}
        self._choosing = asyncio.Lock()
        self._waiting: dict[str, set[str]] = {}
        self._known: dict[str, tuple[object, set[str], str]] = {}
        self._keys: dict[str, str] = {}
        self.unpublished: dict[str, Trouble | None] = {}
        """Why something is not published, or None: by what networkplan calls it."""
        self.lost: set[str] = set()
        """The interfaces of running machines whose taps went with a namespace that had to be made anew."""
        means.fabrics.on_change(self._changed)

    async def reconcile(self, key: str) -> None:
        """Observe, plan, act for the network at `key`. Raises Retry."""
        try:
            network = await self._records.network(key)
        except NotFound:
            return
        with bind(network=network.name, project=network.project):
            try:
                if network.meta.deleting is not None:
                    await self._remove(key, network)
                else:
                    await self.ensure(key)
            except RoostError as error:
                raise Retry(str(error)) from error

    # ------------------------------------------------------------------ for machines and forwards

    def expect(self, network: str, machine: str) -> None:
        """Wake the machine with this key when the network with that one is ready."""
        self._waiting.setdefault(network, set()).add(machine)

    async def ensure(self, key: str) -> Seen:
        """Make the network at `key` as all objects say by now, and write down how it is. Those who ask at once are answered together.
        Raises NotFound, and what keeps it from being so."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = spawn_task(self._run(key), f"network {key}")
        answer = await asyncio.shield(task)
        if isinstance(answer, RoostError):
            raise answer
        return answer

    async def plug(self, machine: Machine, port: PortStatus) -> int:
        """The descriptor of a new tap of a port that is in the machine's status; the caller's. Raises what `ensure` raises."""
        await self.ensure(key_of(BY_NAME["network"], machine.project, port.network))
        tap = await self._means.fabrics.plug(port.network_uid, port.interface)
        self.lost.discard(port.interface)
        return tap

    async def wanted(self, network: Network) -> Wanted:
        """What the network is to be by now."""
        return wanted(network, await self._beside(network), network.status.door or "none")

    async def look(self, network: Network) -> Seen:
        """What is, but for what does not listen: that is in `unpublished`. Raises NotFound."""
        return await self._means.fabrics.look(network.meta.uid)

    async def capture(self, network: Network, interface: str) -> int:
        """A socket that hears all that passes a port, as a descriptor of the caller's. Raises NotFound."""
        return await self._means.fabrics.capture(network.meta.uid, interface)

    def flows(self, network: Network, *, follow: bool) -> AsyncIterator[bytes]:
        """The flow log, as lines of JSON. Raises NotFound."""
        return self._means.fabrics.flows(network.meta.uid, follow=follow)

    # ------------------------------------------------------------------ towards ready

    async def _run(self, key: str) -> Seen | RoostError:
        """One turn for all who have asked by now; an error is an answer, too."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            self._next.pop(key, None)  # who asks from now on may know more than this turn reads
            try:
                return await self._bring(key)
            except RoostError as error:
                return error

    async def _bring(self, key: str) -> Seen:
        network = await self._records.network(key)
        self._keys[network.meta.uid] = key
        try:
            network = await self._resolve(key, network)
            await failpoints.reach("network.resolved")
            beside = await self._beside(network)
            self._means.residents.note(it for it in beside.machines if is_plugged(it, network.meta.uid))
            wish = wanted(network, beside, network.status.door or "none")
            seen = await self._means.fabrics.ensure(wish)
        except RoostError as error:
            trouble = Trouble(
                what=f'network "{network.name}" is not ready',
                why=f"{error.what}: {error.why}" if error.why else error.what,
                fix=error.fix,
                code=error.code,
            )
            if await self._show(key, phase="failed", error=trouble, generation=network.meta.generation):
                await self._recorder.record(network, "Failed", f"{trouble.what}: {trouble.why}", level="error")
                self._wake_waiting(key)
            raise
        await failpoints.reach("network.ensured")
        self._note_published(wish, seen)
        self._note_lost(beside.machines, wish, seen)
        await self._settle_leases(network)
        changes = {"door": seen.door, "mtu": seen.mtu, "ports": len(wish.ports), "warnings": seen.warnings}
        if await self._show(key, phase="ready", error=None, generation=network.meta.generation, **changes):
            await self._recorder.record(network, "Ready", f"the network is ready ({_ranges(network)})")
        for repaired in seen.differs if network.status.phase == "ready" else ():
            get(__name__).info("network repaired", what=repaired)
        self._wake_waiting(key)
        return seen

    def _wake_waiting(self, key: str) -> None:
        for machine in self._waiting.pop(key, set()):
            self._means.wake(machine)

    async def _resolve(self, key: str, network: Network) -> Network:
        """With subnets, a door, and the addresses of its ends: chosen once, and kept from then on."""
        if network.status.door and (network.status.subnets or network.spec.mode == "bridged"):
            return network
        async with self._choosing:
            door, warning = await self._means.door(network.spec.mode)
            others = [it for it in await self._records.all(Network) if it.meta.uid != network.meta.uid]
            hosts = list(await self._means.fabrics.host_routes())
            taken = [subnet.cidr for it in others for subnet in it.status.subnets]
            chosen = network.spec.subnets
            if not chosen and network.spec.mode != "bridged":
                chosen = subnets.choose(network.meta.uid, [*hosts, *taken])
            if network.spec.mode == "routed":
                _check_routes(network, [*hosts, *(it.cidr for other in others for it in _routed(other))])
            transfer: tuple[str, ...] = ()
            if door == "kernel":
                ends = [address for it in others for address in it.status.transfer]
                transfer = subnets.transfer(network.meta.uid, [*ends, *hosts, *taken, *(it.cidr for it in chosen)])
            if warning:
                await self._recorder.record(network, "Door", warning, level="warning")
            await self._show(
                key, subnets=with_gateways(chosen, network.spec.vxlan), door=door, transfer=transfer, phase="starting"
            )
            return await self._records.network(key)

    async def _beside(self, network: Network) -> Neighbours:
        return Neighbours(
            await self._records.all(Machine, network.project),
            await self._records.all(Forward),
            await self._records.all(RuleSet, network.project),
            await self._means.fabrics.host_addresses(),
        )

    async def _settle_leases(self, network: Network) -> None:
        """An address belongs to a port as long as a machine is to have that, running or not."""
        machines = await self._records.all(Machine, network.project)
        holders = {
            (machine.meta.uid, port.title)
            for machine in machines
            for port in machine.spec.ports
            if port.network == network.name
        }
        plugged = {
            (machine.meta.uid, port.name)
            for machine in machines
            for port in machine.status.ports
            if port.network_uid == network.meta.uid
        }
        await self._means.addresses.settle(network.meta.uid, holders | plugged)

    def _note_published(self, wish: Wanted, seen: Seen) -> None:
        for entry in wish.published:
            error = seen.unpublished.get(entry.key)
            trouble = Trouble(what=error.what, why=error.why, fix=error.fix, code=error.code) if error else None
            is_news = entry.key not in self.unpublished or self.unpublished[entry.key] != trouble
            self.unpublished[entry.key] = trouble
            if is_news and entry.key.startswith("forwards/"):
                self._means.wake(entry.key)

    def _note_lost(self, machines: Iterable[Machine], wish: Wanted, seen: Seen) -> None:
        """Machines that run without the taps that they are to have are woken to be plugged in again."""
        self.lost -= {port.interface for port in wish.ports}
        running = {it.meta.uid: it for it in machines if it.status.process is not None and it.status.phase == "running"}
        for port in wish.ports:
            machine = running.get(port.uid)
            if machine is not None and port.interface not in seen.plugged:
                self.lost.add(port.interface)
                self._means.wake(key_of(BY_NAME["machine"], machine.project, machine.name))

    # ------------------------------------------------------------------ towards nothing

    async def _remove(self, key: str, network: Network) -> None:
        uid = network.meta.uid
        machines = await self._records.all(Machine, network.project)
        if any(is_plugged(machine, uid) for machine in machines):
            raise Retry("machines are plugged in", after=AGAIN)
        async with self._locks.setdefault(key, asyncio.Lock()):
            await self._means.fabrics.remove(uid)
            await failpoints.reach("network.removed")
            await self._means.addresses.forget(uid)
            await self._records.remove(key, network.meta.revision)
        self._keys.pop(uid, None)
        self._locks.pop(key, None)
        await self._recorder.record(network, "Deleted", "the network is gone")

    # ------------------------------------------------------------------ what wakes it

    async def follow_machines(self) -> NoReturn:
        """Watch machines for ever, and wake the networks that a change of one matters to."""
        await self._follow("machines/", self._see_machine)

    async def follow_rules(self) -> NoReturn:
        """Watch rule sets for ever, and wake the networks of their projects."""
        await self._follow("rulesets/", self._see_ruleset)

    async def follow_forwards(self) -> NoReturn:
        """Watch forwards for ever, and wake the networks of the machines that they lead to."""
        await self._follow("forwards/", self._see_forward)

    async def _follow(self, prefix: str, see: Callable[[Entry], None]) -> NoReturn:
        store = self._records.store
        while True:
            entries, revision = await store.list(prefix)
            for entry in entries:
                see(entry)
            with suppress(Conflict):
                async for entry in store.watch(prefix, since=revision):
                    see(entry)

    def _see_machine(self, entry: Entry) -> None:
        before = self._known.pop(entry.key, (None, set[str](), ""))
        now: tuple[object, set[str], str] = (None, set(), "")
        if entry.value is not None:
            machine = read(entry, Machine)
            now = wiring_of(machine), networks_of(machine), machine.meta.uid
            if now[1]:
                self._known[entry.key] = now
        if entry.value is None and before[0] is not None:
            self._means.residents.forget(before[2])
        if before[0] != now[0]:
            self._wake_all(self._named_in(before[1] | now[1]))

    def _named_in(self, networks: set[str]) -> set[str]:
        """These, and those whose resolvers name the machines of these: some machine is in both."""
        shared = (keys for _, keys, _ in self._known.values() if len(keys) > 1 and keys & networks)
        return networks.union(*shared)

    def _see_ruleset(self, entry: Entry) -> None:
        self._wake_all(self._in_project(entry.key.split("/")[1]))

    def _see_forward(self, entry: Entry) -> None:
        self._wake_all(self._in_project(entry.key.split("/")[1]))

    def _in_project(self, project: str) -> set[str]:
        prefix = f"networks/{project}/"
        return {key for _, keys, _ in self._known.values() for key in keys if key.startswith(prefix)}

    def _wake_all(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            self._means.wake(key)

    def _changed(self, uid: str) -> None:
        """The engine saw that something of a network changed without us."""
        key = self._keys.get(uid)
        if key is not None:
            self._means.wake(key)

    # ------------------------------------------------------------------ shared

    async def _show(self, key: str, **changes: object) -> bool:
        """Write the status; whether its phase is another now."""
        before = (await self._records.network(key)).status.phase

        def change(network: Network) -> Network:
            status: NetworkStatus = replace(network.status, **changes)
            return replace(network, status=status)

        after = await self._records.change(key, Network, change)
        return after.status.phase != before


class RuleSets:
    """Counts who uses rule sets, and removes those that are to go; what they say is part of networks."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def reconcile(self, key: str) -> None:
        """Bring the rule set at `key` to what is wanted."""
        try:
            ruleset = read(await self._records.store.get(key), RuleSet)
        except NotFound:
            return
        if ruleset.meta.deleting is not None:
            await self._records.remove(key, ruleset.meta.revision)
            return
        machines = await self._records.all(Machine, ruleset.project)
        ports = sum(ruleset.name in port.rulesets for machine in machines for port in machine.spec.ports)

        def change(now: RuleSet) -> RuleSet:
            return replace(now, status=replace(now.status, generation=now.meta.generation, ports=ports))

        await self._records.change(key, RuleSet, change)


def _routed(network: Network) -> tuple[Subnet, ...]:
    return network.status.subnets if network.spec.mode == "routed" else ()


def _check_routes(network: Network, taken: Iterable[str]) -> None:
    """Raises Conflict where a route to the network would take others' packets away from them, of the host or of a network."""
    met = subnets.overlaps([it.cidr for it in network.spec.subnets], taken)
    if met:
        what, why = (
            f'network "{network.name}" is not routed',
            f"{met[0][0]} meets {met[0][1]}, which has a route already",
        )
        raise Conflict(
            what, why, "make one with other addresses: roost network create NAME --mode routed --subnet CIDR"
        )


def _ranges(network: Network) -> str:
    return ", ".join(subnet.cidr for subnet in network.status.subnets) or network.spec.mode
