"""Who has which address: durable records of the store, taken by compare-and-swap, so that no address is given to two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeAlias

import msgspec

from roost.errors import Conflict, Invalid, Unavailable
from roost.model import codec
from roost.model.meta import Struct
from roost.model.network import Network, PortSpec, Subnet
from roost.store.base import Entry, Store

LEASE_SECONDS = 3600.0
"""How long an address that was given back is given to nobody else who did not ask for it by name: others may remember whose it was."""

ATTEMPTS = 100
"""Times that somebody else may be quicker before a request for an address is given up."""

IPAddress: TypeAlias = IPv4Address | IPv6Address

Holder: TypeAlias = tuple[str, str]
"""The uid of a machine, and the name of its port."""


class Lease(Struct, frozen=True, kw_only=True):
    """An address of a network: which port of which machine has it, or had it until it was `released` (RFC 3339)."""

    address: str
    machine: str
    port: str
    released: str = ""

    @property
    def holder(self) -> Holder:
        """Who has it, or had it."""
        return self.machine, self.port


class Addresses:
    """The leases of all networks. `wall` is the time of day."""

    def __init__(self, store: Store, wall: Callable[[], datetime]) -> None:
        self._store = store
        self._wall = wall
        self._turn = asyncio.Lock()
        """All want the same address, the first that is free: one by one they find it at once, whoever else writes to the store."""

    async def lease(self, network: Network, holder: Holder, port: PortSpec) -> tuple[str, ...]:
        """The port's addresses, one of each version of IP that the network has, with the length of their prefix: those that it asks for,
        those that it had, or free ones. Raises Conflict (another port has it), Invalid (no address of the network), Unavailable (none is
        free)."""
        found: list[str] = []
        for version in (4, 6):
            subnets = [subnet for subnet in network.status.subnets if ip_network(subnet.cidr).version == version]
            wanted = next((text for text in port.addresses if ip_address(text).version == version), None)
            async with self._turn:
                if wanted is not None:
                    found.append(await self._fixed(network, holder, ip_address(wanted), subnets))
                elif subnets:
                    found.append(await self._leased(network, holder, subnets))
        return tuple(found)

    async def settle(self, network: str, holders: Collection[Holder]) -> None:
        """Give back what was given to anybody but the `holders`, of the network with this uid; forget what was given back long ago."""
        for entry, lease in (await self._all(network)).values():
            try:
                if not lease.released and lease.holder not in holders:
                    await self._put(entry.key, msgspec.structs.replace(lease, released=self._now()), entry.revision)
                elif lease.released and not self._is_kept(lease):
                    await self._store.put(entry.key, None, expect=entry.revision)
            except Conflict:
                continue  # somebody has it again

    async def forget(self, network: str) -> None:
        """The network is no more."""
        for entry, _ in (await self._all(network)).values():
            await self._store.put(entry.key, None)

    async def held(self, network: str) -> Mapping[str, Lease]:
        """The leases of a network, by address."""
        return {address: lease for address, (_, lease) in (await self._all(network)).items() if not lease.released}

    async def _fixed(self, network: Network, holder: Holder, wanted: IPAddress, subnets: list[Subnet]) -> str:
        subnet = next((it for it in subnets if wanted in ip_network(it.cidr)), None)
        what = f"{wanted} can not be given to port {holder[1]!r}"
        if subnet is None:
            ranges = ", ".join(it.cidr for it in network.status.subnets)
            raise Invalid(what, f'network "{network.name}" has {ranges}', "ask for one of those, or for none")
        if not _is_free_for_hosts(wanted, subnet):
            raise Invalid(
                what, f"it is the gateway's, or none of a host, in {subnet.cidr}", "ask for another, or for none"
            )
        for _ in range(ATTEMPTS):
            known = (await self._all(network.meta.uid)).get(str(wanted))
            if known is not None and not known[1].released and known[1].holder != holder:
                raise Conflict(
                    what, f"another machine's port {known[1].port!r} has it", f"roost network show {network.name}"
                )
            if await self._take(network, holder, wanted, known):
                return f"{wanted}/{ip_network(subnet.cidr).prefixlen}"
        raise Unavailable(what, "others ask for it all the time", "try again")

    async def _leased(self, network: Network, holder: Holder, subnets: list[Subnet]) -> str:
        for _ in range(ATTEMPTS):
            known = await self._all(network.meta.uid)
            chosen = _choose(known, holder, subnets, self._is_kept)
            if chosen is None:
                what = f'network "{network.name}" has no free address'
                why = f"of {', '.join(subnet.cidr for subnet in subnets)} all are taken, or were until a moment ago"
                fix = "make one with more, and attach machines to that: roost network create NAME --subnet CIDR"
                raise Unavailable(what, why, fix)
            address, subnet = chosen
            if await self._take(network, holder, address, known.get(str(address))):
                return f"{address}/{ip_network(subnet.cidr).prefixlen}"
        raise Unavailable(f'network "{network.name}" gave no address', "others ask all the time", "try again")

    async def _take(
        self, network: Network, holder: Holder, address: IPAddress, known: tuple[Entry, Lease] | None
    ) -> bool:
        """Whether it is the holder's now; False when somebody was quicker."""
        lease = Lease(address=str(address), machine=holder[0], port=holder[1])
        if known is not None and known[1] == lease:
            return True
        try:
            await self._put(_key(network.meta.uid, str(address)), lease, known[0].revision if known is not None else 0)
        except Conflict:
            return False
        return True

    async def _all(self, network: str) -> dict[str, tuple[Entry, Lease]]:
        entries, _ = await self._store.list(_key(network, ""))
        found = ((entry, codec.stored(entry.value, Lease)) for entry in entries if entry.value is not None)
        return {lease.address: (entry, lease) for entry, lease in found}

    async def _put(self, key: str, lease: Lease, expect: int) -> None:
        await self._store.put(key, codec.encode(lease), expect=expect)

    def _is_kept(self, lease: Lease) -> bool:
        """Whether an address that was given back is still kept for who had it."""
        since = (self._wall() - datetime.fromisoformat(lease.released)).total_seconds()
        return 0 <= since < LEASE_SECONDS

    def _now(self) -> str:
        return self._wall().astimezone(UTC).isoformat(timespec="milliseconds")


def _key(network: str, address: str) -> str:
    return f"leases/{network}/{address}"


def _choose(
    known: Mapping[str, tuple[Entry, Lease]], holder: Holder, subnets: list[Subnet], is_kept: Callable[[Lease], bool]
) -> tuple[IPAddress, Subnet] | None:
    """The address that the holder has or had, or the first that is nobody's."""
    for subnet in subnets:
        net = ip_network(subnet.cidr)
        for _, lease in known.values():
            if lease.holder == holder and ip_address(lease.address) in net:
                return ip_address(lease.address), subnet
    for subnet in subnets:
        for address in _range(subnet):
            taken = known.get(str(address))
            if taken is None or (taken[1].released and not is_kept(taken[1])):
                return address, subnet
    return None


def _range(subnet: Subnet) -> Iterator[IPAddress]:
    """The addresses that are given to who asks for none of his own."""
    net = ip_network(subnet.cidr)
    first = int(ip_address(subnet.first)) if subnet.first else int(net.network_address) + 1
    last = int(ip_address(subnet.last)) if subnet.last else int(net.broadcast_address)
    make = IPv4Address if net.version == 4 else IPv6Address
    for number in range(first, last + 1):
        if _is_free_for_hosts(make(number), subnet):
            yield make(number)


def _is_free_for_hosts(address: IPAddress, subnet: Subnet) -> bool:
    net = ip_network(subnet.cidr)
    special = {net.network_address, ip_address(subnet.gateway)} if subnet.gateway else {net.network_address}
    return address not in special | ({net.broadcast_address} if net.version == 4 else set())
