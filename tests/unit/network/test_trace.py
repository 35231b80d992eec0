"""Which rule or missing route decides: the answers of `roost network trace`."""

from __future__ import annotations

import pytest

from roost.model.ruleset import Rule, RuleSetSpec
from roost.network.base import Attachment, Wanted
from roost.network.trace import Probe, trace
from tests.network_samples import SAMPLES, WEB, attached, network

RULES = {
    "web": WEB,
    "quiet": RuleSetSpec(rules=(Rule(direction="out", protocol="tcp", ports=("443",)),)),
    "open": RuleSetSpec(rules=(Rule(direction="in"),)),
}
PORTS = (
    attached(0, "default"),
    attached(1, "default", "web"),
    attached(2, "quiet"),
    attached(3, "gone"),
    attached(4, link=False),
    attached(5, "open"),
)
LAN = network(ports=PORTS, rulesets=RULES)


@pytest.mark.parametrize(
    ("probe", "allowed", "why"),
    [
        (Probe("10.20.0.2", "10.20.0.3", "udp", 9), True, "rule 0 of rule set default allows any from rule set default"),
        (Probe("10.20.0.2", "10.20.0.3", "tcp", 81), True, "rule 0 of rule set default"),
        (Probe("fd12:3456::4", "fd12:3456::3", "tcp", 443), True, "rule 1 of rule set web allows tcp 443, 80-90, 85-100, 101"),
        (Probe("10.20.0.4", "10.20.0.3", "tcp", 444), False, "no rule lets it out, and there are rules"),
        (Probe("10.20.0.4", "10.20.0.2", "tcp", 443), False, "no rule of default lets it in"),
        (Probe("10.20.0.7", "10.20.0.3", "tcp", 81), False, "rule 0 of rule set web denies tcp 81 from anybody"),
        (Probe("10.20.0.5", "10.20.0.7", "tcp", 81), False, "rule 1 of rule set gone denies any to anybody"),
        (Probe("10.20.0.2", "10.20.0.6", "icmp"), False, "the port's link is off"),
        (Probe("10.20.0.2", "10.20.0.99", "icmp"), False, "no port has the address 10.20.0.99"),
        (Probe("10.20.0.99", "10.20.0.7", "icmp"), False, "an address of the network that no port has"),
        (Probe("10.20.0.2", "198.51.100.1", "tcp", 80), True, "out into the world, through the host (kernel door)"),
        (Probe("198.51.100.1", "10.20.0.2", "tcp", 80), False, "nobody outside can begin a connection to a nat network"),
        (Probe("10.20.0.2", "192.0.2.7", "tcp", 22), False, "a host's own address"),
        (Probe("10.20.0.2", "172.19.4.7", "tcp", 22), False, "a host's own address"),
        (Probe("10.20.0.2", "127.0.0.1", "tcp", 22), False, "never routed"),
        (Probe("10.20.0.2", "fe80::2", "tcp", 22), False, "never routed"),
        (Probe("10.20.0.2", "10.20.0.1", "udp", 53), True, "the gateway answers DNS"),
        (Probe("10.20.0.2", "10.20.0.1", "tcp", 22), False, "no such service"),
        (Probe("10.20.0.5", "169.254.169.254", "tcp", 80), True, "the gateway answers metadata"),
        (Probe("10.20.0.5", "169.254.169.254", "tcp", 8080), False, "no such service"),
        (Probe("10.20.0.1", "10.20.0.2", "tcp", 8080), True, "the port is published: 127.0.0.1 port 8080 of the host leads to it"),
        (Probe("10.20.0.1", "10.20.0.2", "tcp", 8081), False, "lets it in, and the port is not published (roost forward create 8081:8081 "),
    ],
)  # fmt: skip
def test_what_decides(probe: Probe, allowed: bool, why: str) -> None:
    traced = trace(LAN, probe)
    assert (traced.allowed, why in traced.decided.why) == (allowed, True), traced.decided


def test_a_rule_is_called_as_its_counter_is() -> None:
    assert trace(LAN, Probe("10.20.0.7", "10.20.0.3", "tcp", 81)).decided.rule == "ruleset/web/0"


@pytest.mark.parametrize(
    ("wanted", "probe", "allowed", "why"),
    [
        (SAMPLES["isolated"], Probe("10.20.0.2", "198.51.100.1"), False, "no way out"),
        (SAMPLES["isolated"], Probe("198.51.100.1", "10.20.0.2"), False, "isolated"),
        (network(transfer=("172.19.4.6", "172.19.4.7"), ports=PORTS), Probe("fd12:3456::2", "2001:db8::1"), False, "no IPv6"),
        (network(mode="routed", ports=PORTS, rulesets=RULES), Probe("198.51.100.1", "10.20.0.7"), True, "rule 0 of rule set open"),
        (SAMPLES["vxlan"]._replace(ports=PORTS, rulesets=RULES), Probe("10.20.0.2", "10.20.0.200"), True, "through the VXLAN"),
        (SAMPLES["vxlan"]._replace(ports=PORTS, rulesets=RULES), Probe("10.20.0.200", "10.20.0.2"), True, "rule set default"),
        (SAMPLES["vxlan"]._replace(ports=PORTS, rulesets=RULES), Probe("10.20.0.2", "192.0.2.8", "udp", 4789), False, "host's own"),
    ],
)  # fmt: skip
def test_what_decides_in_other_networks(wanted: Wanted, probe: Probe, allowed: bool, why: str) -> None:
    traced = trace(wanted, probe)
    assert (traced.allowed, why in traced.decided.why) == (allowed, True), traced.decided


def test_several_rule_sets_are_read_as_one_list() -> None:
    first = RuleSetSpec(rules=(Rule(direction="in", action="deny", protocol="tcp", ports=("80",)),))
    held = {"first": first, "open": RULES["open"]}

    def asked(port: Attachment) -> bool:
        return trace(
            network(ports=(attached(0), port), rulesets=held), Probe("10.20.0.2", "10.20.0.3", "tcp", 80)
        ).allowed

    assert not asked(attached(1, "first", "open"))
    assert asked(attached(1, "open", "first"))
