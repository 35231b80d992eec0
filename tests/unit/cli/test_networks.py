"""What the verbs of networks make of words, and how a network is shown."""

from __future__ import annotations

import asyncio
from argparse import ArgumentTypeError
from typing import Any

import pytest

from roost.cli.launch import plugs
from roost.cli.networks import rule, split_target
from roost.cli.networktext import flow_line, tree, verdict
from roost.errors import Invalid
from roost.model import codec
from roost.model.network import Network
from roost.model.ruleset import Rule
from tests.fake_networks import FakeNetworks


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("in", {"direction": "in"}),
        ("in tcp:80,8000-8100", {"direction": "in", "protocol": "tcp", "ports": ["80", "8000-8100"]}),
        ("in tcp:22 from 10.0.0.0/8", {"direction": "in", "protocol": "tcp", "ports": ["22"], "cidr": "10.0.0.0/8"}),
        ("in udp:53 from ruleset web", {"direction": "in", "protocol": "udp", "ports": ["53"], "ruleset": "web"}),
        ("out deny icmp to fd00::/8", {"direction": "out", "action": "deny", "protocol": "icmp", "cidr": "fd00::/8"}),
    ],
)
def test_a_rule_in_words(words: str, wanted: dict[str, Any]) -> None:
    assert rule(words) == wanted
    assert not list(codec.decode(wanted, Rule, "rule").problems())


@pytest.mark.parametrize("words", ["", "sideways", "in tcp 80", "in from 10.0.0.0/8 and more"])
def test_words_that_are_no_rule(words: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a rule"):
        rule(words)


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("db", ("db", None)),
        ("db:5432", ("db", 5432)),
        ("10.20.0.5:80", ("10.20.0.5", 80)),
        ("fd00::5", ("fd00::5", None)),
        ("[fd00::5]:80", ("fd00::5", 80)),
    ],
)
def test_where_a_trace_leads(word: str, wanted: tuple[str, int | None]) -> None:
    assert split_target(word) == wanted


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(Invalid):
        split_target("db:http")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {}),
        (["user"], {"network": "user", "ports": None}),
        (["none"], {"network": "none", "ports": None}),
        (["lan"], {"network": "none", "ports": [{"network": "lan"}]}),
        (["lan:10.20.0.5"], {"network": "none", "ports": [{"network": "lan", "addresses": ["10.20.0.5"]}]}),
        (["lan:fd00::5"], {"network": "none", "ports": [{"network": "lan", "addresses": ["fd00::5"]}]}),
        (["user", "lan"], {"network": "user", "ports": [{"network": "lan"}]}),
    ],
)
def test_what_a_machine_is_plugged_into(words: list[str], wanted: dict[str, Any]) -> None:
    assert plugs(words) == wanted


def test_a_network_is_shown_as_a_tree() -> None:
    lines = list(tree(dict(asyncio.run(FakeNetworks().picture(Network(name="lan"))))))
    assert lines == [
        "lan (nat, ready; through the host; names end with .default.internal)",
        "│ 10.20.0.0/24, gateway 10.20.0.1",
        "└─ web  10.20.0.2  52:54:00:00:00:01",
        "   rules default; in 2KiB, out 1KiB, dropped 3",
        "   127.0.0.1:8080/tcp -> 80",
        "dropped: 2 spoof",
    ]


def test_the_ports_of_a_network_stand_in_columns() -> None:
    found = dict(asyncio.run(FakeNetworks().picture(Network(name="lan"))))
    port = found["ports"][0]
    found["ports"] = [
        port,
        {
            **port,
            "machine": "db",
            "port": "back",
            "addresses": ["10.20.0.30", "fd00::30"],
            "link": False,
            "rulesets": [],
        },
    ]
    found["rules"] = {"ruleset/web/1": {"packets": 1, "bytes": 60}, "ruleset/web/0": {"packets": 0, "bytes": 0}}
    assert list(tree(found))[2:] == [
        "├─ web        10.20.0.2             52:54:00:00:00:01",
        "│  rules default; in 2KiB, out 1KiB, dropped 3",
        "│  127.0.0.1:8080/tcp -> 80",
        "└─ db (back)  10.20.0.30, fd00::30  52:54:00:00:00:01  link off",
        "   no rules: nothing passes; in 2KiB, out 1KiB, dropped 3",
        "dropped: 2 spoof",
        "rule 1 of web: 1 packet, 60B",
        "rule 0 of web: nothing yet",
    ]


def test_a_network_without_ports_says_so() -> None:
    found = {**dict(asyncio.run(FakeNetworks().picture(Network(name="lan")))), "ports": [], "drops": {}}
    assert list(tree(found))[2:] == ["└─ nobody is plugged in"]


def test_a_verdict_says_at_which_step_it_ends() -> None:
    assert list(verdict("tcp from a to b:80", {"passes": False, "steps": ["one", "two"]})) == [
        "tcp from a to b:80 does not pass", "  ok  one", "  no  two",
    ]  # fmt: skip
    assert list(verdict("icmp from a to b", {"passes": True, "steps": ["one"]}))[1:] == ["  ok  one"]


def test_a_connection_of_the_flow_log_is_a_line() -> None:
    flow = {
        "time": "T", "verdict": "refused", "protocol": "tcp", "source": "fd00::2", "source_port": 9, "target": "10.0.0.1", "target_port": 0,
        "from": "a", "to": "",
    }  # fmt: skip
    assert flow_line(flow) == "T  refused  tcp   a [fd00::2]:9 -> ? 10.0.0.1"
    assert flow_line({**flow, "verdict": "lost"}) == "T  lost: more came than could be read"
