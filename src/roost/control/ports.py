"""The ports of machines: their addresses and taps before a start, and what changes of them while a machine runs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

from msgspec.structs import replace

from roost.control.addresses import Addresses
from roost.control.networkplan import MTU, differs, domain_of, publish_key, slots_of
from roost.control.networks import Networks
from roost.control.records import Records
from roost.errors import Conflict, NotFound, Unavailable
from roost.hypervisor.base import SLOTS, Card, CardSetup, Guest
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Trouble
from roost.model.network import Network, PortSpec, PortStatus
from roost.network import names


class Rewired(NamedTuple):
    """What the ports of a running machine are to be: those that stay as they are or change in place, those that are new, and the slots whose
    cards go. `stuck` are ports whose card, in slot 0, can be unplugged at a restart only."""

    ports: tuple[PortStatus, ...]
    new: tuple[str, ...]
    gone: tuple[int, ...]
    stuck: tuple[str, ...]


class Waits(NamedTuple):
    """What a machine waits for, in words, "" for nothing; `error` where waiting alone will not do."""

    text: str = ""
    error: Trouble | None = None


class Ports:
    """Plugs machines into networks."""

    def __init__(self, records: Records, networks: Networks, addresses: Addresses) -> None:
        self._records = records
        self._networks = networks
        self._addresses = addresses

    async def missing(self, machine: Machine, key: str) -> Waits:
        """What the machine with this key waits for, and is woken for, before its networks are ready."""
        what = f'machine "{machine.name}" did not start'
        for port in machine.spec.ports:
            where = key_of(BY_NAME["network"], machine.project, port.network)
            self._networks.expect(where, key)  # before it is looked at: else its change may come in between
            try:
                network = await self._records.network(where)
            except NotFound:
                why, fix = f'network "{port.network}" does not exist', f"roost network create {port.network}"
                error = Trouble(what=what, why=why, fix=fix, code=NotFound.code)
                return Waits(f"waiting for network {port.network}, which does not exist yet", error)
            if network.meta.deleting is not None:
                return Waits(f"waiting for network {port.network}, which is being deleted")
            if network.status.phase != "ready":
                trouble = network.status.error
                text = f"waiting for network {port.network}" + (f": {trouble.why}" if trouble is not None else "")
                return Waits(
                    text, replace(trouble, what=what, why=f"{trouble.what}: {trouble.why}") if trouble else None
                )
        return Waits()

    async def take(self, machine: Machine) -> tuple[PortStatus, ...]:
        """The machine's ports as they are to be at its next start. Raises NotFound (no such network), and what `Addresses.lease` raises."""
        slots = slots_of(machine)
        return tuple([await self._port(machine, port, slots[port.title]) for port in machine.spec.ports])

    @asynccontextmanager
    async def plugged(self, machine: Machine, ports: Sequence[PortStatus]) -> AsyncIterator[tuple[Card, ...]]:
        """The cards for ports that are in the machine's status. Their taps are ours until the context ends: by then QEMU has its own."""
        cards: list[Card] = []
        try:
            for port in ports:
                cards.append(Card(port.slot, port.mac, await self._networks.plug(machine, port)))
            yield tuple(cards)
        finally:
            for card in cards:
                assert card.tap is not None
                os.close(card.tap)

    def has_lost(self, machine: Machine) -> bool:
        """Whether a tap of the running machine is gone."""
        return any(port.interface in self._networks.lost for port in machine.status.ports)

    def check_published(self, machine: Machine) -> None:
        """Raises Conflict when a port of the host that the machine publishes by its ports is somebody else's."""
        for entry in machine.spec.publish if machine.spec.network == "none" else ():
            trouble = self._networks.unpublished.get(publish_key(machine, entry.host_port, entry.protocol))
            if trouble is not None:
                what = f'machine "{machine.name}" did not start'
                raise Conflict(what, f"{trouble.what}: {trouble.why}", trouble.fix)

    async def settle(self, machine: Machine) -> None:
        """Return when the networks are as the machine's ports, in the store, say. Raises what `Networks.ensure` raises."""
        for name in sorted({port.network for port in machine.status.ports}):
            await self._networks.ensure(key_of(BY_NAME["network"], machine.project, name))

    async def setups(self, machine: Machine, names: Collection[str] | None = None) -> tuple[CardSetup, ...]:
        """What the guest is told of its ports (those with these names): each with its resolvers, which are the machine's, whatever a lease of the
        card said meanwhile. Nothing of ports of bridged networks: there others give addresses."""
        main = await self.main(machine)
        parts = [(port, await self._network_at(machine, port)) for port in machine.status.ports if port.addresses]
        told = next(
            ((gateways_of(network, port), domain_of(network)) for port, network in parts if port.name == main), ((), "")
        )
        return tuple(
            setup_of_card(network, port, main=port.name == main)._replace(resolvers=told[0], domain=told[1])
            for port, network in parts
            if names is None or port.name in names
        )

    async def _network_at(self, machine: Machine, port: PortStatus) -> Network:
        return await self._records.network(key_of(BY_NAME["network"], machine.project, port.network))

    async def main(self, machine: Machine) -> str:
        """The port that the way to the world and the names are of: the first whose network has a door, else the first; "" where there is none,
        or the user network is that."""
        if machine.spec.network == "user":
            return ""
        ports = [port for port in machine.status.ports if port.addresses]
        for port in ports:
            if (await self._network_at(machine, port)).spec.mode != "isolated":
                return port.name
        return ports[0].name if ports else ""

    async def rewire(self, machine: Machine, guest: Guest) -> Rewired:
        """What the ports of a running machine are to be; addresses that are new are leased."""
        present = await guest.cards()
        status = {port.name: port for port in machine.status.ports if port.slot in present}
        lost = {port.name for port in machine.status.ports if port.interface in self._networks.lost}
        wanted = {port.title: port for port in machine.spec.ports}
        stay = {name for name, port in status.items() if name in wanted and not differs(wanted[name], port)} - lost
        gone = tuple(port.slot for port in status.values() if port.name not in stay and port.slot)
        stuck = tuple(port.name for port in status.values() if port.name not in stay and not port.slot)
        used = set(present) - set(gone)
        ports: list[PortStatus] = []
        for title, spec in wanted.items():
            if title in stay:
                ports.append(await self._changed(machine, spec, status[title]))
            else:
                slot = _free_slot(machine, title, used)
                used.add(slot)
                ports.append(await self._port(machine, spec, slot))
        return Rewired(tuple(ports), tuple(port.name for port in ports if port.name not in stay), gone, stuck)

    async def _changed(self, machine: Machine, spec: PortSpec, port: PortStatus) -> PortStatus:
        """The same port with the wished addresses and link. Its network may have been made anew meanwhile."""
        network = await self._network(machine, spec)
        addresses = await self._addresses.lease(network, (machine.meta.uid, port.name), spec)
        return replace(port, addresses=addresses, link=spec.link, network_uid=network.meta.uid)

    async def _port(self, machine: Machine, spec: PortSpec, slot: int) -> PortStatus:
        network, uid = await self._network(machine, spec), machine.meta.uid
        exact = machine.spec.source is not None and machine.spec.source.keep_identity
        addresses = () if exact else await self._addresses.lease(network, (uid, spec.title), spec)
        return PortStatus(
            name=spec.title,
            network=spec.network,
            mac=spec.mac or names.mac(uid, spec.title),
            addresses=addresses,
            interface=names.tap(uid, spec.title),
            link=spec.link and not exact,
            slot=slot,
            network_uid=network.meta.uid,
        )

    async def _network(self, machine: Machine, spec: PortSpec) -> Network:
        return await self._records.network(key_of(BY_NAME["network"], machine.project, spec.network))


def gateways_of(network: Network, port: PortStatus) -> tuple[str, ...]:
    """The network's own addresses in the subnets that the port has one of: its routers, and its resolvers."""
    own = [ip_interface(text).ip for text in port.addresses]
    return tuple(it.gateway for it in network.status.subnets if any(address in ip_network(it.cidr) for address in own))


def setup_of_card(network: Network, port: PortStatus, *, main: bool) -> CardSetup:
    """The addresses of a port; the way to the world is by the `main` one."""
    gateways = gateways_of(network, port) if main else ()
    return CardSetup(port.mac, port.addresses, gateways, mtu=network.status.mtu or MTU)


def linked_slots(machine: Machine) -> tuple[int, ...]:
    """The slots of the cards whose cable is to be in."""
    own = (0,) if machine.spec.network == "user" else ()
    return (*own, *(port.slot for port in machine.status.ports if port.link))


def blank_cards(machine: Machine) -> tuple[Card, ...]:
    """The cards that the machine is started with, leading nowhere yet."""
    slots = slots_of(machine)
    uid = machine.meta.uid
    return tuple(Card(slots[port.title], port.mac or names.mac(uid, port.title)) for port in machine.spec.ports)


def with_macs(ports: Iterable[PortStatus], cards: Mapping[int, str]) -> tuple[PortStatus, ...]:
    """The ports with the MAC addresses that their cards really have: what goes on from a saved state has those of then."""
    return tuple(replace(port, mac=cards.get(port.slot, port.mac)) for port in ports)


def shown(addresses: Sequence[str], ports: Iterable[PortStatus]) -> tuple[str, ...]:
    """All addresses of a machine: those of its user network, then those of its ports."""
    own = [text.partition("/")[0] for port in ports for text in port.addresses]
    return tuple(dict.fromkeys((*addresses, *own)))


def _free_slot(machine: Machine, title: str, used: set[int]) -> int:
    """Where the card would be after a restart, if nothing is there now."""
    best = slots_of(machine)[title]
    if best and best not in used:
        return best
    free = next((slot for slot in range(1, SLOTS + 1) if slot not in used), None)
    if free is None:
        what = f'port "{title}" of machine "{machine.name}" was not plugged in'
        raise Unavailable(what, "its board has no free slot", f"roost restart {machine.name}")
    return free
