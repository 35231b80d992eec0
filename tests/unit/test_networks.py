"""Networks, rule sets, forwards and the ports of machines, over fakes and a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from roost.control.admission import Admission
from roost.control.records import Records
from roost.errors import Conflict, Invalid, QuotaExceeded, Unavailable
from roost.model import codec
from roost.model.forward import Forward, ForwardSpec
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine, MachineSpec, Publish, Source
from roost.model.meta import Meta, MiB
from roost.model.network import Bandwidth, Network, NetworkSpec, PortSpec, Subnet
from roost.model.project import Project, ProjectSpec, Quota
from roost.model.ruleset import Rule, RuleSet, RuleSetSpec
from roost.network import names
from roost.network.base import Wanted
from tests.control_plane import READY, Bench, spec

LAN = Network(name="lan", meta=Meta(uid="n-lan"), spec=NetworkSpec(subnets=(Subnet(cidr="10.20.0.0/24"),)))
LAN_PORT = PortSpec(network="lan")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.image(READY)
    yield bench
    await bench.end()


def machine(name: str = "web", *ports: PortSpec, network: str = "none", **changes: Any) -> Machine:
    wish = MachineSpec(image="disk", memory=256 * MiB, network=network, ports=ports or (LAN_PORT,), **changes)
    return Machine(name=name, meta=Meta(uid=f"uid-{name}"), spec=wish)


async def put(bench: Bench, thing: Any) -> None:
    key = key_of(BY_NAME[thing.kind], thing.project, thing.name)
    await bench.store.put(key, codec.encode(thing))
    await bench.settle()


async def network(bench: Bench, name: str = "lan") -> Network:
    return await Records(bench.store).network(f"networks/default/{name}")


def fabric(bench: Bench, uid: str = "n-lan") -> Wanted:
    return bench.fabrics.wanted[uid]


def port(bench: Bench, name: str = "web") -> Any:
    return next(it for it in fabric(bench).ports if it.machine == name)


# networks


async def test_a_network_becomes_ready(bench: Bench) -> None:
    await put(bench, LAN)
    status = (await network(bench)).status
    assert (status.phase, status.door, status.generation) == ("ready", "kernel", 1)
    assert status.subnets[0].gateway == "10.20.0.1"


async def test_subnets_that_nobody_asked_for_meet_no_others(bench: Bench) -> None:
    for name in ("one", "two", "three"):
        await put(bench, Network(name=name, meta=Meta(uid=f"n-{name}")))
    chosen = [it.cidr for name in ("one", "two", "three") for it in (await network(bench, name)).status.subnets]
    assert len(set(chosen)) == len(chosen) == 6


async def test_the_ends_of_two_doors_are_four_addresses(bench: Bench) -> None:
    for name in ("one", "two"):
        await put(bench, Network(name=name, meta=Meta(uid=f"n-{name}")))
    ends = [it for name in ("one", "two") for it in (await network(bench, name)).status.transfer]
    assert len(set(ends)) == len(ends) == 8


async def test_what_keeps_a_network_from_being_made_is_said_and_tried_again(bench: Bench) -> None:
    bench.fabrics.refuse = Unavailable(
        "no namespace was made", "the host has too many", "sysctl user.max_net_namespaces"
    )
    await put(bench, LAN)
    status = (await network(bench)).status
    assert status.phase == "failed" and status.error is not None and "too many" in status.error.why
    bench.fabrics.refuse = None
    await bench.clock.advance(1)
    await bench.settle()
    status = (await network(bench)).status
    assert status.phase == "ready" and status.error is None


async def test_a_network_that_somebody_else_changed_is_set_right(bench: Bench) -> None:
    await put(bench, LAN)
    before = len(bench.fabrics.history)
    bench.fabrics.wake("n-lan")
    await bench.settle()
    assert len(bench.fabrics.history) == before + 1


async def test_of_a_deleted_network_nothing_is_left(bench: Bench) -> None:
    await put(bench, LAN)
    await put(bench, replace(await network(bench), meta=replace(LAN.meta, deleting="now")))
    entries, _ = await bench.store.list("networks/")
    leases, _ = await bench.store.list("leases/")
    assert (entries, leases, bench.fabrics.wanted) == ([], [], {})


async def test_a_restarted_daemon_finds_networks_as_they_were(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    before, wish = (await network(bench)).status, fabric(bench)
    await bench.end()
    bench.begin()
    await bench.settle()
    assert (await network(bench)).status == before and fabric(bench) == wish
    assert bench.hypervisor.doubles == 0


async def test_a_routed_network_takes_no_packets_away_from_the_host_or_from_another(bench: Bench) -> None:
    def routed(name: str, cidr: str) -> Network:
        wish = NetworkSpec(mode="routed", subnets=(Subnet(cidr=cidr),))
        return Network(name=name, project=name, meta=Meta(uid=f"n-{name}"), spec=wish)

    bench.fabrics.routes = ["192.0.2.0/24"]
    for one in (routed("home", "192.0.2.0/25"), routed("first", "10.30.0.0/16"), routed("second", "10.30.7.0/24")):
        await put(bench, one)
    found = [await Records(bench.store).network(f"networks/{name}/{name}") for name in ("home", "first", "second")]
    assert [it.status.phase for it in found] == ["failed", "ready", "failed"]
    assert "n-home" not in bench.fabrics.wanted and "n-second" not in bench.fabrics.wanted


# machines


async def test_a_machine_is_plugged_in_before_it_starts(bench: Bench) -> None:
    await put(bench, LAN)
    web = await bench.put(machine())
    status = web.status.ports[0]
    assert (web.status.phase, status.addresses, status.slot) == ("running", ("10.20.0.2/24",), 0)
    assert web.status.addresses == ("10.20.0.2",)
    launch = bench.hypervisor.launches[0]
    assert [(card.slot, card.mac) for card in launch.cards] == [(0, status.mac)] and launch.network == "none"
    assert port(bench).interface == names.tap("uid-web", "lan") and port(bench).addresses == ("10.20.0.2",)
    assert status.interface in (await bench.fabrics.look("n-lan")).plugged


async def test_a_machine_waits_for_its_network_whichever_was_made_first(bench: Bench) -> None:
    web = await bench.put(machine())
    assert web.status.phase == "pending" and "waiting for network lan" in web.status.progress
    assert web.status.error is not None and web.status.error.fix == "roost network create lan"
    assert bench.hypervisor.launches == []
    await put(bench, LAN)
    assert (await bench.get()).status.phase == "running"


async def test_a_machine_waits_for_a_network_that_failed(bench: Bench) -> None:
    bench.fabrics.refuse = Unavailable("no namespace was made", "the host has too many")
    await put(bench, LAN)
    web = await bench.put(machine())
    assert "too many" in web.status.progress
    assert web.status.error is not None and "too many" in web.status.error.why
    assert web.status.generation == web.meta.generation
    bench.fabrics.refuse = None
    await bench.clock.advance(2)
    await bench.settle()
    web = await bench.get()
    assert (web.status.phase, web.status.error) == ("running", None)


async def test_a_network_that_fails_is_not_tried_more_often_than_any_other(bench: Bench) -> None:
    bench.fabrics.refuse = Unavailable("no namespace was made", "the host has too many")
    await put(bench, replace(LAN, spec=NetworkSpec(mode="bridged", interface="eth7")))
    for _ in range(100):
        await bench.clock.advance(0.2)
        await bench.settle()
    assert bench.loop.failures < 20


async def test_a_machine_that_waits_learns_that_its_network_failed(bench: Bench) -> None:
    await bench.put(machine())
    bench.fabrics.refuse = Unavailable("no namespace was made", "the host has too many")
    await put(bench, LAN)
    error = (await bench.get()).status.error
    assert error is not None and "too many" in error.why


async def test_the_guest_is_told_of_its_addresses(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    (setup,) = bench.hypervisor.guests["uid-web"].answering.setups
    (card,) = setup.cards
    assert (card.addresses, card.gateways, card.domain) == (("10.20.0.2/24",), ("10.20.0.1",), "default.internal")


async def test_a_stopped_machine_is_plugged_into_nothing_and_keeps_its_address(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    web = await bench.wish(spec(power="stopped"))
    assert (web.status.ports, fabric(bench).ports) == ((), ())
    await bench.put(machine("db"))
    web = await bench.wish(spec(power="running"))
    assert web.status.ports[0].addresses == ("10.20.0.2/24",)
    assert port(bench, "db").addresses == ("10.20.0.3",)


async def test_a_user_network_and_ports_stand_beside_each_other(bench: Bench) -> None:
    await put(bench, LAN)
    web = await bench.put(machine(network="user"))
    assert [it.slot for it in web.status.ports] == [1] and web.status.addresses == ("10.0.0.2", "10.20.0.2")


async def test_an_address_that_is_none_of_the_network_ends_the_start_with_words(bench: Bench) -> None:
    await put(bench, LAN)
    web = await bench.put(machine("web", PortSpec(network="lan", addresses=("10.99.0.1",))))
    assert web.status.phase == "failed" and web.status.error is not None
    assert "10.20.0.0/24" in web.status.error.why


async def test_a_port_that_is_plugged_in_while_it_runs(bench: Bench) -> None:
    await put(bench, LAN)
    await put(bench, Network(name="back", meta=Meta(uid="n-back")))
    await bench.put(machine())
    web = await bench.wish(spec(ports=(LAN_PORT, PortSpec(network="back"))))
    guest = bench.hypervisor.guests["uid-web"]
    assert sorted(guest.plugged) == [0, 1] and [it.slot for it in web.status.ports] == [0, 1]
    assert guest.answering.setups[-1].cards[0].mac == web.status.ports[1].mac
    assert len(bench.hypervisor.launches) == 1
    web = await bench.wish(spec(ports=(LAN_PORT,)))
    assert sorted(guest.plugged) == [0] and len(web.status.ports) == 1
    assert fabric(bench, "n-back").ports == ()


async def test_a_memory_with_a_card_that_was_plugged_in_fits_a_machine_that_is_started_with_it(bench: Bench) -> None:
    await put(bench, LAN)
    await put(bench, Network(name="back", meta=Meta(uid="n-back")))
    await bench.put(machine())
    web = await bench.wish(spec(ports=(LAN_PORT, PortSpec(network="back"))))
    other = await bench.put(machine("other", LAN_PORT, PortSpec(network="back")))
    assert web.status.started_as is not None and web.status.started_as == other.status.started_as


async def test_the_first_card_stays_until_a_restart_but_leads_nowhere(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    web = await bench.wish(spec(ports=()))
    guest = bench.hypervisor.guests["uid-web"]
    assert (web.status.ports, guest.links[0], fabric(bench).ports) == ((), False, ())
    assert any("roost restart web" in text for text in web.status.warnings)


async def test_a_cable_is_pulled_and_plugged_in_again(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    await bench.wish(spec(ports=(PortSpec(network="lan", link=False),)))
    guest = bench.hypervisor.guests["uid-web"]
    assert (guest.links[0], port(bench).link) == (False, False)
    await bench.wish(spec(ports=(LAN_PORT,)))
    assert (guest.links[0], port(bench).link) == (True, True)


async def test_another_address_needs_no_restart(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    web = await bench.wish(spec(ports=(PortSpec(network="lan", addresses=("10.20.0.77",)),)))
    assert web.status.ports[0].addresses == ("10.20.0.77/24",) and port(bench).addresses == ("10.20.0.77",)
    assert bench.hypervisor.guests["uid-web"].answering.setups[-1].cards[0].addresses == ("10.20.0.77/24",)


async def test_bandwidth_and_rule_sets_change_without_touching_the_machine(bench: Bench) -> None:
    await put(bench, LAN)
    before = await bench.put(machine())
    changed = PortSpec(network="lan", bandwidth=Bandwidth(down=8_000_000), rulesets=("web",))
    web = await bench.wish(spec(ports=(changed,)))
    assert (port(bench).down, port(bench).rulesets) == (8_000_000, ("web",))
    assert web.status.ports == before.status.ports


async def test_a_daemon_that_died_while_it_plugged_a_card_in_does_it_again(bench: Bench) -> None:
    await put(bench, LAN)
    await put(bench, Network(name="back", meta=Meta(uid="n-back")))
    await bench.put(machine())
    web = await bench.wish(spec(ports=(LAN_PORT, PortSpec(network="back"))))
    guest = bench.hypervisor.guests["uid-web"]
    await guest.unplug(1)
    await bench.end()
    bench.begin()
    await bench.settle()
    assert sorted(guest.plugged) == [0, 1]
    assert (await bench.get()).status.ports == web.status.ports


async def test_a_machine_whose_taps_went_with_a_namespace_is_plugged_in_again(bench: Bench) -> None:
    await put(bench, LAN)
    await put(bench, Network(name="back", meta=Meta(uid="n-back")))
    web = await bench.put(machine("web", LAN_PORT, PortSpec(network="back")))
    for interface in list(bench.fabrics.taps):
        bench.fabrics.taps.pop(interface).close()
    for uid in ("n-lan", "n-back"):
        bench.fabrics.wake(uid)
    await bench.settle()
    after = await bench.get()
    assert [it.addresses for it in after.status.ports] == [it.addresses for it in web.status.ports]
    assert {it.interface for it in after.status.ports} == set(bench.fabrics.taps)
    assert [it.slot for it in after.status.ports] == [1, 2] and len(bench.hypervisor.launches) == 1


# rule sets


async def test_rules_of_a_project_reach_its_networks(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    await put(
        bench, RuleSet(name="web", spec=RuleSetSpec(rules=(Rule(direction="in", protocol="tcp", ports=("80",)),)))
    )
    assert fabric(bench).rulesets["web"].rules[0].ports == ("80",)
    await put(bench, RuleSet(name="web", spec=RuleSetSpec()))
    assert fabric(bench).rulesets["web"].rules == ()


# forwards


def forward(name: str = "http", port: int = 8080, **changes: Any) -> Forward:
    meta = Meta(uid=f"f-{name}", created=f"2030-01-01T00:00:0{len(name)}")
    wish = {"machine": "web", "host_port": port, "guest_port": 80, **changes}
    return Forward(name=name, meta=meta, spec=ForwardSpec(**wish))


async def forwarded(bench: Bench, name: str = "http") -> Any:
    entry = await bench.store.get(f"forwards/default/{name}")
    assert entry.value is not None
    return codec.stored(entry.value, Forward).status


async def test_a_forward_waits_for_its_machine_and_then_leads_there(bench: Bench) -> None:
    await put(bench, forward())
    assert (await forwarded(bench)).phase == "waiting"
    await put(bench, LAN)
    await bench.put(machine())
    status = await forwarded(bench)
    assert (status.phase, status.target) == ("active", "10.20.0.2:80")
    assert fabric(bench).published[0].host_port == 8080


async def test_a_forward_whose_port_is_taken_says_so(bench: Bench) -> None:
    bench.fabrics.taken = {("127.0.0.1", 8080)}
    await put(bench, LAN)
    await bench.put(machine())
    await put(bench, forward())
    status = await forwarded(bench)
    assert status.phase == "failed" and status.error.why == "port 8080 is not published: it is taken"
    assert status.error.fix == "publish another port"


async def test_of_two_forwards_of_one_port_the_older_one_leads(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    await put(bench, forward("a"))
    await put(bench, forward("bb"))
    assert [(await forwarded(bench, name)).phase for name in ("a", "bb")] == ["active", "failed"]


async def test_a_deleted_forward_leads_nowhere(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    await put(bench, forward())
    await put(bench, replace(forward(), meta=replace(forward().meta, deleting="now")))
    entries, _ = await bench.store.list("forwards/")
    assert (entries, fabric(bench).published) == ([], ())


async def test_what_a_machine_with_ports_publishes_leads_to_its_first(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine(publish=(Publish(host_port=9090, guest_port=90),)))
    (entry,) = fabric(bench).published
    assert (entry.host_port, entry.target, entry.target_port) == (9090, "10.20.0.2", 90)
    assert list(bench.hypervisor.launches[0].publish) == []


async def test_a_machine_whose_published_port_is_taken_does_not_start(bench: Bench) -> None:
    bench.fabrics.taken = {("127.0.0.1", 9090)}
    await put(bench, LAN)
    web = await bench.put(machine(publish=(Publish(host_port=9090, guest_port=90),)))
    assert web.status.phase == "failed" and web.status.error is not None and "9090" in web.status.error.why
    assert bench.hypervisor.launches == [] and web.status.ports == ()


async def test_an_exact_copy_is_plugged_into_nothing(bench: Bench) -> None:
    await put(bench, LAN)
    await bench.put(machine())
    exact = Source(machine="web", keep_identity=True, memory=False)
    await bench.put(machine("twin", source=exact))
    assert (port(bench, "twin").link, port(bench, "twin").addresses) == (False, ())
    assert bench.hypervisor.guests["uid-twin"].links[0] is False


async def test_a_clone_has_a_card_like_its_source_and_an_address_of_its_own(bench: Bench) -> None:
    await put(bench, LAN)
    web = await bench.put(machine())
    kid = await bench.put(machine("kid", source=Source(machine="web")))
    guest = bench.hypervisor.guests["uid-kid"]
    assert kid.status.timing.path == "clone" and guest.launch.saved is not None
    assert kid.status.ports[0].addresses != web.status.ports[0].addresses
    assert port(bench, "kid").mac == kid.status.ports[0].mac == guest.answering.setups[0].cards[0].mac
    assert guest.links[0] is True


# admission


async def admission(bench: Bench, quota: Quota = Quota()) -> Admission:  # noqa: B008 - immutable
    project = Project(name="default", spec=ProjectSpec(quota=quota))
    await bench.store.put("projects/default", codec.encode(project))
    return Admission(bench.store, "x86_64")


async def test_a_network_that_machines_are_plugged_into_is_not_deleted(bench: Bench) -> None:
    gate = await admission(bench)
    await put(bench, LAN)
    await bench.put(machine())
    with pytest.raises(Conflict, match="web"):
        await gate.dismiss(LAN)
    await bench.wish(spec(ports=()))
    await gate.dismiss(LAN)


async def test_a_rule_set_that_ports_name_is_not_deleted(bench: Bench) -> None:
    gate = await admission(bench)
    await bench.put(machine("web", PortSpec(network="lan", rulesets=("web",))))
    with pytest.raises(Conflict, match="web"):
        await gate.dismiss(RuleSet(name="web"))


async def test_a_project_has_no_more_networks_than_its_quota(bench: Bench) -> None:
    gate = await admission(bench, Quota(networks=1))
    await gate.admit(LAN, None)
    await put(bench, LAN)
    with pytest.raises(QuotaExceeded):
        await gate.admit(replace(LAN, name="other", meta=Meta(uid="n-other")), None)


async def test_the_subnets_of_a_network_do_not_change(bench: Bench) -> None:
    gate = await admission(bench)
    other = replace(LAN, spec=NetworkSpec(subnets=(Subnet(cidr="10.30.0.0/24"),)))
    with pytest.raises(Invalid):
        await gate.admit(other, LAN)


async def test_a_network_names_the_machines_of_those_that_somebody_in_it_is_plugged_into_too(bench: Bench) -> None:
    back = NetworkSpec(mode="isolated", subnets=(Subnet(cidr="10.30.0.0/24"),))
    for thing in (LAN, Network(name="back", meta=Meta(uid="n-back"), spec=back)):
        await put(bench, thing)
    await put(bench, machine("db", PortSpec(network="back")))
    await put(bench, machine("alone"))
    assert fabric(bench).names == (), "nobody who asks there could reach it"
    await put(bench, machine("web", LAN_PORT, PortSpec(network="back")))
    db = port_in(bench, "n-back", "db")
    assert fabric(bench).names == (("db", db.addresses[0]),)
    assert [name for name, _ in fabric(bench, "n-back").names] == ["alone"]
    await put(bench, machine("late", PortSpec(network="back", addresses=("10.30.0.77",))))
    assert ("late", "10.30.0.77") in fabric(bench).names, "it learns of what changes in the other network"


def port_in(bench: Bench, uid: str, name: str) -> Any:
    return next(it for it in fabric(bench, uid).ports if it.machine == name)


async def test_whoever_wants_into_a_machine_that_waits_for_a_network_is_told_so(bench: Bench) -> None:
    waiting = await bench.put(machine())
    with pytest.raises(Conflict) as caught:
        await bench.custody.guest(waiting)
    assert caught.value.why == 'it is pending: machine "web" did not start: network "lan" does not exist'
    assert caught.value.fix == "roost network create lan"
