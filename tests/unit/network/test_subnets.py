"""Subnets that meet nothing, and addresses that nobody has or had a moment ago."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.errors import Conflict
from roost.model.network import Subnet
from roost.network import names, subnets

SMALL = Subnet(cidr="10.20.0.0/29")


@settings(max_examples=40, deadline=None)
@given(
    st.uuids().map(str),
    st.lists(
        st.tuples(st.integers(0, 0xFFFF), st.integers(10, 24)).map(
            lambda it: f"10.{it[0] >> 8}.{it[0] & 255}.0/{it[1]}"
        ),
        max_size=20,
    ),
)
def test_a_chosen_subnet_meets_no_route_and_is_chosen_again(uid: str, routes: list[str]) -> None:
    four, six = subnets.choose(uid, routes)
    assert not subnets.overlaps([four.cidr, six.cidr], routes)
    assert (four, six) == subnets.choose(uid, routes)
    assert not list(four.problems())
    assert not list(six.problems())


def test_a_vpn_that_has_all_of_ten_leaves_the_rest() -> None:
    (four,) = subnets.choose("any", ["10.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0"], [4])
    assert ip_network(four.cidr).subnet_of(ip_network("172.16.0.0/12"))  # type: ignore[arg-type]


def test_where_everything_is_taken_the_user_is_told_to_name_one() -> None:
    with pytest.raises(Conflict) as raised:
        subnets.choose("any", ["10.0.0.0/8", "172.16.0.0/12"])
    assert "--subnet" in raised.value.fix


def test_a_door_is_two_neighbours_of_each_version_that_meet_nothing() -> None:
    here, there, here6, there6 = subnets.transfer("any", ["10.0.0.0/9"])
    assert int(ip_address(there)) - int(ip_address(here)) == 1
    assert int(ip_address(there6)) - int(ip_address(here6)) == 1
    assert not subnets.overlaps([f"{here}/31"], ["10.0.0.0/9"])


def test_addresses_are_given_in_order_until_none_is_left() -> None:
    taken: list[str] = []
    for _ in range(5):
        taken.append(subnets.next_address(SMALL, taken, {}, 0.0))
    assert taken == ["10.20.0.2", "10.20.0.3", "10.20.0.4", "10.20.0.5", "10.20.0.6"]
    with pytest.raises(Conflict, match=r"no address of 10\.20\.0\.0/29 is free"):
        subnets.next_address(SMALL, taken, {}, 0.0)


def test_an_address_rests_until_its_lease_has_ended() -> None:
    resting = {"10.20.0.2": 100.0, "10.20.0.3": 50.0}
    assert subnets.next_address(SMALL, [], resting, 49.9) == "10.20.0.4"
    assert subnets.next_address(SMALL, [], resting, 50.0) == "10.20.0.3"
    assert subnets.next_address(SMALL, [], resting, 100.0) == "10.20.0.2"


def test_when_all_rest_the_user_is_told_how_long() -> None:
    with pytest.raises(Conflict) as raised:
        subnets.next_address(Subnet(cidr="10.20.0.0/30"), [], {"10.20.0.2": 40.0}, 10.0)
    assert raised.value.fix == "wait 30 seconds"


def test_a_range_is_kept_and_other_notations_are_the_same_address() -> None:
    pool = Subnet(cidr="fd12::/64", first="fd12::10", last="fd12::11")
    assert subnets.next_address(pool, ["fd12:0:0::0010", "10.20.0.2"], {}, 0.0) == "fd12::11"


def test_a_gateway_in_the_middle_is_never_given_out() -> None:
    assert subnets.next_address(Subnet(cidr="10.20.0.0/29", gateway="10.20.0.2"), [], {}, 0.0) == "10.20.0.3"


def test_names_are_short_and_the_same_for_who_asks_again() -> None:
    assert names.tap("uid", "lan") == names.tap("uid", "lan") != names.tap("uid", "dmz")
    assert names.TAP.fullmatch(names.tap("uid", "lan"))
    assert max(len(names.veth("uid")), len(names.tap("uid", "lan"))) <= 15
    assert int(names.mac("uid", "lan")[:2], 16) & 3 == 2
    assert names.link_local("02:00:00:00:00:01") == "fe80::ff:fe00:1"
