"""`roost network port`: rule sets, bandwidth, cable and address of a port that is there; and what `trace` says of what is not."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from typing import Any

import pytest

from roost.cli.networkport import bits, rate
from tests.unit.cli.conftest import Roost


@pytest.fixture
def web(roost: Roost) -> str:
    """A machine with a port of each of two networks."""
    roost("network", "create", "lan")
    roost("network", "create", "back")
    roost("ruleset", "create", "strict", "in tcp:80")
    return roost("launch", "tiny", "--network", "lan", "--network", "back", "--no-wait", "-o", "name").out.strip()


def port(roost: Roost, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(roost("-o", "json", "network", "port", *words).out)
    return found


def test_a_port_gets_other_rules_and_another_bandwidth(roost: Roost, web: str) -> None:
    words = ("network", "port", web, "lan", "--rulesets", "default,strict", "--down", "10MiB", "--up", "2Mbit")
    text = f"port lan of {web} is changed: rules default, strict; down 83886080bit, up 2Mbit\n"
    assert (roost(*words).out, roost(*words).out) == (text, f"port lan of {web} is so already\n")
    told = port(roost, web, "lan")
    assert told["rulesets"] == ["default", "strict"]
    assert told["bandwidth"] == {"down": 83_886_080, "up": 2_000_000}
    assert (told["machine"], told["name"], told["network"]) == (web, "lan", "lan")
    assert port(roost, web, "back")["rulesets"] == ["default"]


def test_a_bound_that_is_not_spoken_of_stays(roost: Roost, web: str) -> None:
    roost("network", "port", web, "back", "--down", "1Gbit", "--up", "8k")
    assert port(roost, web, "back", "--down", "none", "--link", "off")["bandwidth"] == {"down": None, "up": 8000}
    said = roost("network", "port", web, "back").out
    assert said == f"port back of {web}: rules default; up 8kbit; link off\n"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("WEB", "wan", "--up", "8k"), 3, 'machine "WEB" has no port "wan"\n  why: it has lan, back'),
        (("WEB", "--up", "8k"), 2, 'why: machine "WEB" has lan, back\n  fix: say which: roost network port WEB lan'),
        (("WEB", "lan", "--ruleset", "lost"), 3, 'ruleset "lost" does not exist'),
        (("WEB", "lan", "--down", "10MB"), 2, "write 100Mbit, 10MiB (a second), or none"),
        (("WEB", "lan", "--down", "1"), 2, "bandwidth.down"),
        (("nobody", "--up", "8k"), 3, 'machine "nobody" does not exist'),
    ],
)
def test_what_can_not_be_changed_is_said(roost: Roost, web: str, words: tuple[str, ...], code: int, text: str) -> None:
    answer = roost("network", "port", *(word.replace("WEB", web) for word in words))
    assert (answer.code, text.replace("WEB", web) in answer.err) == (code, True), answer.err
    assert port(roost, web, "lan")["rulesets"] == ["default"]


def test_its_words_are_completed(roost: Roost, web: str) -> None:
    def offered(*words: str) -> set[str]:
        return set(roost("__complete", "--", "network", *words).out.split())

    assert web in offered("port", "")
    assert {"--ruleset", "--down", "--link"} <= offered("port", web, "--")
    assert "strict" in offered("port", web, "lan", "--ruleset", "")
    assert offered("port", web, "--link", "") == {"on", "off"}


@pytest.mark.parametrize("text", ["", "fast", "10MB", "-1", "1e3"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        rate(text)


@pytest.mark.parametrize("count", [8_000, 1_500, 10**9, 83_886_080, 7])
def test_a_bandwidth_is_told_as_it_is_read(count: int) -> None:
    assert rate(bits(count)) == count


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("NOSUCH",), "fix: say where to: roost network trace NOSUCH MACHINE:80"),
        (("nosuch", "web:80"), 'there is no machine "nosuch" in project "default"\n  why: its machines are '),
        (("lan", "web:80"), "lan is a network: a trace leads from one machine to another"),
        (("world", "nosuch:80"), 'there is no machine "nosuch"'),
    ],
)
def test_a_trace_of_nobody_says_who_there_is(roost: Roost, web: str, words: tuple[str, ...], text: str) -> None:
    assert web
    answer = roost("network", "trace", *words)
    assert (answer.code in (2, 3), text in answer.err) == (True, True), answer.err
