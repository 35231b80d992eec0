"""Looking into networks, and what keeps one from being deleted."""

from __future__ import annotations

from typing import Any

import pytest

from roost.control.admission import Admission
from roost.model.network import Network
from tests.fake_networks import FakeNetworks
from tests.unit.api.world import ALICE, VIEWER, World, machine, world

LAN: dict[str, Any] = {"name": "lan", "project": "alice", "spec": {"mode": "isolated"}}


async def made(w: World) -> None:
    answer = await w.call("POST", "/v1/networks", LAN, uid=ALICE)
    assert answer.status == 201, answer.body


async def test_who_is_plugged_in_is_shown_to_who_may_look() -> None:
    async with world() as w:
        await made(w)
        shown = await w.call("GET", "/v1/networks/alice/lan/picture", uid=VIEWER)
    assert (shown.status, shown.json["ports"][0]["machine"]) == (200, "web")


async def test_a_trace_says_what_decides() -> None:
    async with world() as w:
        await made(w)
        found = await w.call("GET", "/v1/networks/alice/lan/trace?from=web&to=db&port=80", uid=VIEWER)
        wrong = await w.call("GET", "/v1/networks/alice/lan/trace?from=web&to=db&protocol=sctp", uid=VIEWER)
    assert (found.json["passes"], wrong.status) == (False, 400)


async def test_what_passes_is_heard_by_those_only_who_may_act_inside() -> None:
    async with world() as w:
        await made(w)
        path = "/v1/networks/alice/lan/capture?machine=web&frames=2"
        heard, refused = await w.call("GET", path, uid=ALICE), await w.call("GET", path, uid=VIEWER)
    assert (heard.body, heard.headers["content-type"]) == (b"frameframe", "application/vnd.tcpdump.pcap")
    assert refused.status == 403


async def test_the_flow_log_is_shown_where_one_is_kept() -> None:
    async with world() as w:
        await made(w)
        none = await w.call("GET", "/v1/networks/alice/lan/flows", uid=VIEWER)
        await w.call("PATCH", "/v1/networks/alice/lan", {"spec": {"flow_log": True}}, uid=ALICE)
        some = await w.call("GET", "/v1/networks/alice/lan/flows", uid=VIEWER)
    assert (none.status, some.status, some.headers["content-type"]) == (409, 200, "application/x-ndjson")


async def test_what_networks_counted_is_in_the_metrics_and_bounded() -> None:
    async with world() as w:
        networks = w.api.services.networks
        assert isinstance(networks, FakeNetworks)
        one = dict(await networks.picture(Network(name="lan", project="alice")))
        one["rules"] = {"ruleset/web/0": {"packets": 2, "bytes": 128}}
        networks.counted = [one]
        text = (await w.call("GET", "/metrics")).body.decode()
        networks.counted = [{**one, "ports": one["ports"] * 9}] * 300
        many = (await w.call("GET", "/metrics")).body.decode()
    place = 'machine="web",network="lan",port="lan",project="alice"'
    assert f'roost_network_port_bytes_total{{direction="in",{place}}} 2048.0' in text
    assert f"roost_network_port_dropped_packets_total{{{place}}} 3.0" in text
    assert 'roost_network_rule_packets_total{network="lan",project="alice",rule="web/0"} 2.0' in text
    assert 'roost_network_dropped_packets_total{network="lan",project="alice",reason="spoof"} 2.0' in text
    assert many.count("roost_network_port_dropped_packets_total{") == 2000
    assert 'roost_network_left_out{of="ports"} 700.0' in many
    assert 'roost_network_left_out{of="networks"} 100.0' in many


async def test_a_network_that_a_machine_names_is_not_deleted() -> None:
    async with world() as w:
        await made(w)
        wish = machine("web", ports=[{"network": "lan"}], network="none")
        assert (await w.call("POST", "/v1/machines", wish, uid=ALICE)).status == 201
        object.__setattr__(w.api.services, "dismiss", Admission(w.store, "x86_64").dismiss)
        answer = await w.call("DELETE", "/v1/networks/alice/lan", uid=ALICE)
    assert answer.status == 409 and answer.error["fix"] == "roost network detach lan web"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"ports": [{"network": "lan"}, {"network": "lan"}]}, "spec.ports[1].name"),
        ({"ports": [{"network": "lan", "mac": "01:00:00:00:00:00"}]}, "spec.ports[0].mac"),
        ({"ports": [{"network": "lan", "addresses": ["10.0.0.1", "10.0.0.2"]}]}, "spec.ports[0].addresses"),
        ({"ports": [{"network": f"n{number}"} for number in range(9)]}, "spec.ports"),
    ],
)
async def test_ports_that_can_not_be_are_refused_with_the_field(spec: dict[str, Any], path: str) -> None:
    async with world() as w:
        answer = await w.call("POST", "/v1/machines", machine(**spec), uid=ALICE)
    assert answer.status == 400 and path in [problem["path"] for problem in answer.error["problems"]]
