"""Addresses are given out once, kept as long as their port, and rest before somebody else gets them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from roost.control.addresses import LEASE_SECONDS, Addresses
from roost.errors import Conflict, Invalid, Unavailable
from roost.model.meta import Meta
from roost.model.network import Network, NetworkStatus, PortSpec, Subnet
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock

PORT = PortSpec(network="lan")
SMALL = Subnet(cidr="10.20.0.0/29", gateway="10.20.0.1")


class World:
    """A store, and a time of day that a test moves."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)
        self.store = MemoryStore(VirtualClock())

    def daemon(self) -> Addresses:
        """What one daemon has."""
        return Addresses(self.store, lambda: self.now)


def network(*subnets: Subnet) -> Network:
    return Network(name="lan", meta=Meta(uid="n"), status=NetworkStatus(subnets=subnets or (SMALL,)))


def holder(name: str) -> tuple[str, str]:
    return f"uid-{name}", "lan"


async def test_parallel_launches_of_two_daemons_never_get_one_address_twice() -> None:
    world = World()
    wide = network(Subnet(cidr="10.20.0.0/24", gateway="10.20.0.1"))
    one, two = world.daemon(), world.daemon()
    asked = (
        daemon.lease(wide, holder(f"{index}-{n}"), PORT) for n in range(20) for index, daemon in enumerate((one, two))
    )
    given = await asyncio.gather(*asked)
    assert len(set(given)) == 40


async def test_a_port_keeps_its_address() -> None:
    world = World()
    first = await world.daemon().lease(network(), holder("web"), PORT)
    await world.daemon().lease(network(), holder("db"), PORT)
    assert await world.daemon().lease(network(), holder("web"), PORT) == first == ("10.20.0.2/29",)


async def test_an_address_rests_before_somebody_else_gets_it() -> None:
    world = World()
    addresses = world.daemon()
    await addresses.lease(network(), holder("web"), PORT)
    await addresses.settle("n", ())
    assert await addresses.lease(network(), holder("db"), PORT) == ("10.20.0.3/29",)
    world.now += timedelta(seconds=LEASE_SECONDS + 1)
    assert await addresses.lease(network(), holder("third"), PORT) == ("10.20.0.2/29",)


async def test_who_had_an_address_gets_it_again_while_it_rests() -> None:
    addresses = World().daemon()
    before = await addresses.lease(network(), holder("web"), PORT)
    await addresses.settle("n", ())
    assert await addresses.lease(network(), holder("web"), PORT) == before
    assert list(await addresses.held("n")) == ["10.20.0.2"]


async def test_an_address_that_is_asked_for_is_given_or_refused_with_words() -> None:
    addresses = World().daemon()
    wish = replace(PORT, addresses=("10.20.0.5",))
    assert await addresses.lease(network(), holder("web"), wish) == ("10.20.0.5/29",)
    with pytest.raises(Conflict, match=r"10\.20\.0\.5"):
        await addresses.lease(network(), holder("db"), wish)
    with pytest.raises(Invalid, match=r"10\.20\.0\.0/29"):
        await addresses.lease(network(), holder("db"), replace(PORT, addresses=("10.99.0.5",)))
    with pytest.raises(Invalid, match="gateway"):
        await addresses.lease(network(), holder("db"), replace(PORT, addresses=("10.20.0.1",)))


async def test_a_network_without_a_free_address_says_so() -> None:
    addresses = World().daemon()
    for number in range(5):
        await addresses.lease(network(), holder(str(number)), PORT)
    with pytest.raises(Unavailable, match="no free address"):
        await addresses.lease(network(), holder("one too many"), PORT)


async def test_a_port_has_an_address_of_each_version_within_the_range_that_is_given_out() -> None:
    six = Subnet(cidr="fd00::/64", gateway="fd00::1")
    some = Subnet(cidr="10.20.0.0/24", gateway="10.20.0.1", first="10.20.0.100", last="10.20.0.101")
    given = await World().daemon().lease(network(some, six), holder("web"), PORT)
    assert given == ("10.20.0.100/24", "fd00::2/64")


async def test_of_a_network_that_is_gone_nothing_is_kept() -> None:
    world = World()
    await world.daemon().lease(network(), holder("web"), PORT)
    await world.daemon().forget("n")
    assert (await world.store.list("leases/"))[0] == []


async def test_a_hundred_at_once_get_exactly_the_addresses_that_there_are() -> None:
    world = World()
    daemon, small = world.daemon(), network(Subnet(cidr="10.20.0.0/28", gateway="10.20.0.1"))
    asked = (daemon.lease(small, holder(str(n)), PORT) for n in range(100))
    given = await asyncio.gather(*asked, return_exceptions=True)
    refused = {str(it).splitlines()[0] for it in given if isinstance(it, Unavailable)}
    assert sorted(it for it in given if isinstance(it, tuple)) == sorted((f"10.20.0.{n}/28",) for n in range(2, 15))
    assert refused == {'network "lan" has no free address'}
    assert len(await daemon.held("n")) == 13
