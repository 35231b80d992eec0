"""What a network is made of: nobody has what is another's, and what nobody checked is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from roost.errors import Invalid, Unavailable
from roost.network import names, nft, outside, plan
from roost.network.base import Change, Route, Wanted
from tests.network_samples import SAMPLES, attached, network

HOSTILE = st.text(st.sampled_from("a-.,;{}\"'\\\n\r\t\0 #/%*@é"), min_size=1, max_size=12) | st.sampled_from(
    [
        'x" accept; #',
        "x\ndhcp-script=/bin/sh",
        "x } ; flush ruleset; table ip a {",
        "a,b=c",
        "../../etc",
        "-x",
        "a" * 300,
    ]
)


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_as_it_should_be_needs_nothing(name: str) -> None:
    fabric = plan.fabric(SAMPLES[name])
    assert plan.change(fabric, plan.fabric(SAMPLES[name])).is_empty


def test_where_nothing_is_known_everything_is_told() -> None:
    fabric = plan.fabric(network())
    change = plan.change(None, fabric)
    assert change.rules == nft.replacing(fabric.tables)
    assert set(change.added) == {*fabric.links, *fabric.addresses, *fabric.routes, *fabric.sysctls}
    assert change.taps == tuple(fabric.taps.values())
    assert change.resolver == "start"


def test_a_port_that_goes_takes_what_it_had() -> None:
    before = network()
    change = plan.change(plan.fabric(before), plan.fabric(before._replace(ports=before.ports[:1])))
    assert change.unplugged == (before.ports[1].interface,)
    assert change.resolver == "reload"
    assert f"delete element inet roost cards {{ {before.ports[1].interface} . {before.ports[1].mac} }}" in change.rules
    assert not change.added


def test_a_bandwidth_changes_one_tap() -> None:
    before = network()
    slow = before.ports[0]._replace(down=8_000_000)
    change = plan.change(plan.fabric(before), plan.fabric(before._replace(ports=(slow, before.ports[1]))))
    assert change == Change("", "", (), (), (), (), change.taps, (), "", published=False, metadata=False)
    assert [(tap.interface, tap.limit and tap.limit.egress) for tap in change.taps] == [(slow.interface, 1_000_000)]


def test_an_address_changes_without_a_new_process() -> None:
    before = network()
    moved = before.ports[0]._replace(addresses=("10.20.0.77", "fd12:3456::77"))
    change = plan.change(plan.fabric(before), plan.fabric(before._replace(ports=(moved, before.ports[1]))))
    assert [tap.routes[0] for tap in change.taps] == [Route("10.20.0.77/32", moved.interface, source="10.20.0.1")]
    assert change.resolver == "reload"


def test_the_name_of_a_machine_elsewhere_changes_nothing_but_what_is_read_again() -> None:
    before = network()
    change = plan.change(plan.fabric(before), plan.fabric(before._replace(names=(("db", "10.30.0.2"),))))
    assert change == Change("", "", (), (), (), (), (), (), "reload", published=False, metadata=False)
    hostile = "-x\nevil"
    after = plan.fabric(before._replace(names=(("db", "10.30.0.2"), (hostile, "10.30.0.3"))))
    assert after.resolver
    told = [f"10.30.0.2 db.{before.domain}", f"10.30.0.3 {names.host(hostile, before.domain)}"]
    assert after.resolver.hosts.splitlines()[-2:] == told


@pytest.mark.fault(73)
def test_a_port_without_link_is_nowhere_in_the_rules() -> None:
    off = attached(0, link=False)
    fabric = plan.fabric(network(ports=(off, attached(1)), published=()))
    assert off.interface not in nft.replacing(fabric.tables)
    assert not fabric.taps[off.interface].up
    assert off.interface not in {port.interface for port in fabric.metadata}


@pytest.mark.fault(74)
def test_nothing_about_who_is_where_is_learned() -> None:
    fabric = plan.fabric(SAMPLES["vxlan"])
    for port in SAMPLES["vxlan"].ports:
        tap = fabric.taps[port.interface]
        assert [(entry.address, entry.mac) for entry in tap.neighbours] == [(text, port.mac) for text in port.addresses]
        assert [route.to.partition("/")[0] for route in tap.routes] == list(port.addresses)
    assert [entry.to for entry in fabric.forwarding] == ["192.0.2.8"]
    assert [entry.mac for entry in fabric.neighbours] == [entry.mac for entry in fabric.forwarding]


@pytest.mark.fault(78)
def test_two_networks_of_the_same_subnet_share_nothing_outside() -> None:
    one, two = plan.fabric(network()), plan.fabric(network(uid="other", transfer=("172.19.4.8", "172.19.4.9")))
    assert not one.outside.elements & two.outside.elements
    assert not set(one.outside.addresses) & set(two.outside.addresses)
    assert not set(one.outside.routes) & set(two.outside.routes)
    assert not [route for route in (*one.outside.routes, *two.outside.routes) if route.to.startswith("10.")]


@pytest.mark.fault(78)
@pytest.mark.parametrize("field", ["interface", "addresses"])
def test_two_ports_never_have_the_same(field: str) -> None:
    twin = attached(1)._replace(**{field: getattr(attached(0), field)})
    with pytest.raises(Invalid, match="another port's"):
        plan.fabric(network(ports=(attached(0), twin)))


def test_the_same_address_in_another_notation_is_the_same() -> None:
    twin = attached(1)._replace(addresses=("10.20.0.9", "fd12:3456:0:0::0002"))
    with pytest.raises(Invalid, match="fd12:3456::2"):
        plan.fabric(network(ports=(attached(0), twin)))


def test_two_ports_may_have_the_same_mac_address() -> None:
    twin = attached(1)._replace(mac=attached(0).mac)
    fabric = plan.fabric(network(ports=(attached(0), twin)))
    assert fabric.resolver is not None
    lines = fabric.resolver.reservations.splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        [f"tag:{port.interface}", attached(0).mac] for port in (attached(0), twin)
    ]


@pytest.mark.fault(58)
@settings(max_examples=40, deadline=None)
@given(HOSTILE, st.sampled_from(["mac", "interface"]))
def test_what_is_no_identity_is_refused(text: str, field: str) -> None:
    with pytest.raises(Invalid):
        plan.fabric(network(ports=(attached(0)._replace(**{field: text}),)))


@pytest.mark.fault(58)
@settings(max_examples=40, deadline=None)
@given(HOSTILE, st.sampled_from(["resolvers", "underlay", "addresses", "target", "names"]))
def test_what_is_no_address_is_refused(text: str, field: str) -> None:
    with pytest.raises(Invalid):
        plan.fabric(_with_address(field, text))


def _with_address(field: str, text: str) -> Wanted:
    wanted = network()
    if field == "addresses":
        return wanted._replace(ports=(attached(0)._replace(addresses=(text,)),))
    if field == "names":
        return wanted._replace(names=(("db", text),))
    if field == "target":
        return wanted._replace(published=(wanted.published[0]._replace(target=text),))
    return wanted._replace(**{field: (text,)})


@pytest.mark.fault(58)
@settings(max_examples=40, deadline=None)
@given(HOSTILE, HOSTILE)
def test_hostile_names_say_nothing_to_dnsmasq_and_nft(machine: str, group: str) -> None:
    plain = network(
        ports=(attached(0, "group", machine="machine"),), rulesets={"group": SAMPLES["nat"].rulesets["web"]}
    )
    hostile = plain._replace(
        ports=(plain.ports[0]._replace(machine=machine, project=machine, port=group, rulesets=(group,)),),
        rulesets={group: plain.rulesets["group"]},
    )
    told, expected = plan.fabric(hostile), plan.fabric(plain)
    assert told.resolver
    assert expected.resolver
    assert told.resolver.hosts == expected.resolver.hosts.replace("machine", names.safe(machine))
    assert told.resolver.reservations == expected.resolver.reservations.replace("machine", names.safe(machine))
    assert told.resolver.config == expected.resolver.config
    assert len(nft.replacing(told.tables).splitlines()) == len(nft.replacing(expected.tables).splitlines())


@pytest.mark.fault(58)
@settings(max_examples=40, deadline=None)
@given(HOSTILE.filter(lambda text: set(text) - set("a-.")))
def test_a_hostile_domain_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        plan.fabric(network(domain=text))


def test_a_bridged_network_tags_no_frames() -> None:
    with pytest.raises(Unavailable):
        plan.fabric(SAMPLES["bridged"]._replace(vlan=5))


@pytest.mark.parametrize("interface", ["", "rst01234567"])
def test_a_bridged_network_is_part_of_an_interface_of_the_host_s(interface: str) -> None:
    with pytest.raises(Invalid):
        plan.fabric(SAMPLES["bridged"]._replace(interface=interface))


def test_what_was_on_a_link_that_is_made_anew_is_told_anew() -> None:
    before = SAMPLES["vxlan"]
    assert before.vxlan is not None
    after = plan.fabric(before._replace(mtu=1400, vxlan=replace(before.vxlan, id=43)))
    told = plan.change(plan.fabric(before), after).added
    on_them = [
        it
        for it in (*after.addresses, *after.neighbours, *after.forwarding, *after.routes)
        if it.interface in (names.TUNNEL, names.UPLINK)
    ]
    assert set(on_them) <= set(told)
    assert len(on_them) > 6


def test_the_host_s_table_speaks_of_tunnels_only_where_there_are_some() -> None:
    none, some = outside.of(SAMPLES["nat"]).elements, outside.of(SAMPLES["vxlan"]).elements
    assert "@th" not in nft.replacing([outside.table(none)])
    assert "192.0.2.8 . 4789 . 0x2a" in nft.replacing([outside.table(none | some)])


def _mark(wanted: Wanted) -> tuple[str, ...]:
    return plan.fabric(wanted).tables[0].chains["known"].rules


@pytest.mark.parametrize(
    "field",
    [{"mac": "52:54:00:00:0a:0b"}, {"addresses": ("10.20.0.77",)}, {"rulesets": ()}, {"up": 8_000}, {"link": False}],
)
def test_connections_are_judged_anew_when_anything_in_the_rules_is_otherwise(field: dict[str, Any]) -> None:
    network = SAMPLES["nat"]
    changed = network.ports[0]._replace(**field)
    assert _mark(network._replace(ports=(changed, *network.ports[1:]))) != _mark(network)
    assert _mark(network._replace(ports=network.ports[::-1])) == _mark(network)


def test_a_port_may_have_the_same_address_in_another_notation_but_no_other_may() -> None:
    network = SAMPLES["nat"]
    one, other = network.ports[0], network.ports[1]
    text = next(text for text in one.addresses if ":" in text)
    again = one._replace(addresses=tuple(it.upper() if it == text else it for it in one.addresses))
    assert plan.fabric(network._replace(ports=(again, *network.ports[1:]))) == plan.fabric(network)
    with pytest.raises(Invalid, match="can not be made"):
        plan.fabric(network._replace(ports=(one, other._replace(addresses=(text.upper(),)))))
