"""What can be asked about networks: which connection comes about and what keeps it, over fakes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from roost.control import networklooks
from roost.control.networklooks import NetworkLooks
from roost.control.networkview import absent, traced
from roost.control.records import Records
from roost.errors import Conflict, Invalid, NotFound
from roost.model.machine import Machine, MachineStatus
from roost.model.meta import Meta
from roost.model.network import Network, NetworkSpec, PortSpec
from tests.control_plane import READY, Bench
from tests.network_samples import network as sample
from tests.unit.test_networks import LAN, forward, machine, put

LOGGED = replace(LAN, spec=replace(LAN.spec, flow_log=True))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    await bench.image(READY)
    await put(bench, LAN)
    yield bench
    await bench.end()


def looks(bench: Bench) -> NetworkLooks:
    return NetworkLooks(Records(bench.store), bench.networks)


async def lan(bench: Bench) -> Network:
    return await Records(bench.store).network("networks/default/lan")


def stopped(name: str, *ports: PortSpec) -> Machine:
    return replace(machine(name, *ports), status=MachineStatus(phase="stopped"))


async def test_a_connection_between_two_machines_is_traced(bench: Bench) -> None:
    await put(bench, machine("web"))
    await put(bench, machine("db"))
    for source, target in (("web", "db"), ("web", "db.default.internal"), ("host", "db")):
        found = await looks(bench).trace(await lan(bench), source, target, "tcp", 80)
        assert found["passes"] is (source == "web"), found


async def test_a_machine_without_a_port_there_ends_it(bench: Bench) -> None:
    await put(bench, machine("web"))
    await put(bench, Network(name="back", meta=Meta(uid="n-back"), spec=NetworkSpec(mode="isolated")))
    await put(bench, machine("db", PortSpec(network="back")))
    found = await looks(bench).trace(await lan(bench), "web", "db", "tcp", 80)
    assert (found["passes"], found["why"]) == (False, "db: it has no port in network lan (roost network attach lan db)")


async def test_one_that_there_is_not_is_refused(bench: Bench) -> None:
    await put(bench, machine("web"))
    with pytest.raises(NotFound, match="those of others are never reached"):
        await looks(bench).trace(await lan(bench), "web", "nosuch", "tcp", 80)


@pytest.mark.parametrize(
    ("place", "there", "why"),
    [
        ("db", stopped("db", PortSpec(network="lan")), "db: it is stopped, so it has no address now (roost start db)"),
        ("db", stopped("db", PortSpec(network="back")), "db: it has no port in network lan"),
        ("db", machine("db"), "db: it is not plugged in while it is "),
        ("db.other.internal", None, "db.other.internal: a machine of another project"),
        ("m0", None, ""),
        ("m0.shop.internal", None, ""),
        ("10.20.0.9", None, ""),
        ("nosuch", None, ""),
        ("no such", None, ""),
    ],
)
def test_why_a_machine_is_not_there(place: str, there: Machine | None, why: str) -> None:
    said = absent(sample(), place, there)
    assert said.startswith(why) and bool(said) == bool(why), said


def test_the_host_is_where_published_ports_come_from_and_is_not_reached() -> None:
    assert traced(sample(), "host", "m0", "tcp", 8080)["why"].endswith("127.0.0.1 port 8080 of the host leads to it")
    assert "a host's own address" in traced(sample(), "m0", "host", "tcp", 22)["why"]


def test_a_connection_needs_a_port() -> None:
    with pytest.raises(Invalid) as caught:
        traced(sample(), "m0", "m1", "tcp", 0)
    assert caught.value.problems[0].path == "port"


async def test_pictures_are_taken_anew_only_after_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    some = looks(bench)
    first = await some.pictures()
    assert [it["name"] for it in first] == ["lan"]
    assert (await some.pictures())[0] is first[0]
    monkeypatch.setattr(networklooks, "FRESH", 0.0)
    assert (await some.pictures())[0] is not first[0]


async def test_numbers_cost_so_much_time_and_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(bench, Network(name="back", meta=Meta(uid="n-back"), spec=NetworkSpec(mode="isolated")))
    monkeypatch.setattr(networklooks, "BUDGET", -1.0)
    some = looks(bench)
    assert await some.pictures() == []
    monkeypatch.setattr(networklooks, "BUDGET", 1.0)
    assert [it["name"] for it in await some.pictures()] == ["back", "lan"]


async def test_the_flow_log_is_the_engines(bench: Bench) -> None:
    with pytest.raises(Conflict, match="keeps no flow log"):
        await looks(bench).flows(await lan(bench), follow=False)
    lines = [line async for line in await looks(bench).flows(LOGGED, follow=True)]
    assert lines == [b'{"verdict":"allowed"}\n']


async def test_a_published_port_that_does_not_listen_says_so_in_the_picture(bench: Bench) -> None:
    bench.fabrics.taken = {("127.0.0.1", 8080)}
    await put(bench, machine("web"))
    await put(bench, forward(port=8080))
    await put(bench, forward("other", port=8081))
    told = {it["host_port"]: it["trouble"] for it in (await looks(bench).picture(await lan(bench)))["published"]}
    assert told == {8080: "does not listen: it is taken", 8081: ""}


@pytest.mark.parametrize(("address", "passes"), [("0.0.0.0", True), ("127.0.0.1", False)])
async def test_the_world_reaches_what_is_published_to_it(bench: Bench, address: str, passes: bool) -> None:
    await put(bench, machine("web"))
    await put(bench, forward(port=8080, address=address))
    found = await looks(bench).trace(await lan(bench), "world", "web", "tcp", 80)
    assert found["passes"] is passes
    assert "port 8080 of the host" in found["why"], "where it is published is what decides"


async def test_the_world_does_not_reach_what_is_published_and_does_not_listen(bench: Bench) -> None:
    bench.fabrics.taken = {("0.0.0.0", 8080)}
    await put(bench, machine("web"))
    await put(bench, forward(port=8080, address="0.0.0.0"))
    found = await looks(bench).trace(await lan(bench), "world", "web", "tcp", 80)
    assert (found["passes"], found["why"]) == (
        False,
        "door: 0.0.0.0 port 8080 of the host leads to it, and does not listen: it is taken",
    )
