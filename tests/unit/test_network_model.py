"""Which networks may be asked for."""

from __future__ import annotations

import pytest

from roost.model.forward import ForwardSpec
from roost.model.network import NetworkSpec, PortSpec, Subnet


def paths(spec: NetworkSpec) -> list[str]:
    return [problem.path for problem in spec.problems()]


@pytest.mark.parametrize(
    "cidr", ["0.0.0.0/24", "0.1.0.0/16", "240.0.0.0/24", "255.255.255.0/24", "192.0.0.0/24", "::/64", "64:ff9b::/64"]
)
def test_addresses_of_no_host_are_no_subnet(cidr: str) -> None:
    assert paths(NetworkSpec(subnets=(Subnet(cidr=cidr),))) == ["subnets[0].cidr"]


@pytest.mark.parametrize("cidr", ["10.20.0.0/24", "172.16.0.0/16", "192.168.4.0/30", "192.0.2.0/24", "fd12:3456::/64"])
def test_addresses_of_hosts_are(cidr: str) -> None:
    assert paths(NetworkSpec(subnets=(Subnet(cidr=cidr),))) == []


def test_a_range_that_ends_before_it_begins_gives_out_nothing() -> None:
    subnet = Subnet(cidr="10.20.0.0/24", first="10.20.0.100", last="10.20.0.20")
    assert paths(NetworkSpec(subnets=(subnet,))) == ["subnets[0].last"]


@pytest.mark.parametrize(
    "resolver", ["127.0.0.1", "::1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "10.20.0.1"]
)
def test_a_network_does_not_ask_itself_for_names(resolver: str) -> None:
    spec = NetworkSpec(subnets=(Subnet(cidr="10.20.0.0/24"),), resolvers=(resolver,))
    assert paths(spec) == ["resolvers[0]"]


@pytest.mark.parametrize("resolver", ["10.20.0.53", "192.0.2.53", "2001:db8::53"])
def test_it_asks_any_host(resolver: str) -> None:
    assert paths(NetworkSpec(subnets=(Subnet(cidr="10.20.0.0/24"),), resolvers=(resolver,))) == []


@pytest.mark.parametrize("mac", ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "52:54:00:12:34"])
def test_a_card_has_an_address_of_its_own(mac: str) -> None:
    assert [problem.path for problem in PortSpec(network="lan", mac=mac).problems()] == ["mac"]


@pytest.mark.parametrize("address", ["224.0.0.1", "ff02::1", "lo", "127.0.0.1\n"])
def test_a_port_is_published_on_an_address_of_a_host(address: str) -> None:
    spec = ForwardSpec(machine="web", host_port=8080, guest_port=80, address=address)
    assert [problem.path for problem in spec.problems()] == ["address"]
