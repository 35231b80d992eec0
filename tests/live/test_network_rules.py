"""The rules in a kernel: nft takes whatever is planned, a transaction leads where a whole ruleset leads, and packets meet what `trace` says."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from roost.model.ruleset import Rule, RuleSetSpec
from roost.network import nft, outside, plan
from roost.network.base import Attachment, Wanted
from tests.needs import needs_program, repetitions
from tests.network_samples import SAMPLES, SPANNED, TRANSFER, attached, network

pytestmark = [pytest.mark.live, needs_program("nft", "dnsmasq", "unshare"), pytest.mark.timeout(300)]

APART = ("unshare", "--net") if os.getuid() == 0 else ("unshare", "--map-root-user", "--net")
ORDINARY = (
    *(("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups") if os.getuid() == 0 else ()),
    "unshare",
    "--map-root-user",
    "--net",
)
OTHER = """
table ip theirs {
    chain input {
        type filter hook input priority 0; policy accept;
        tcp dport 1 counter comment "theirs"
    }
}
"""

NAMES = ("default", "web", "db", "x" * 63, "9-lives")
CIDRS = ("", "0.0.0.0/0", "::/0", "10.20.0.0/24", "198.51.100.7/32", "2001:db8::/32")
PORTS = ("1", "65535", "80", "80-90", "85-100", "91", "1-65535")


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    protocol = draw(st.sampled_from(["any", "tcp", "udp", "icmp"]))
    cidr = draw(st.sampled_from(CIDRS))
    return Rule(
        direction=draw(st.sampled_from(["in", "out"])),
        action=draw(st.sampled_from(["allow", "deny"])),
        protocol=protocol,
        ports=tuple(draw(st.lists(st.sampled_from(PORTS), max_size=4))) if protocol in ("tcp", "udp") else (),
        cidr=cidr,
        ruleset="" if cidr else draw(st.sampled_from(["", *NAMES])),
    )


RULESETS = st.dictionaries(
    st.sampled_from(NAMES), st.lists(rules(), max_size=4).map(lambda held: RuleSetSpec(rules=tuple(held)))
)


@st.composite
def ports(draw: st.DrawFn) -> tuple[Attachment, ...]:
    numbers = draw(st.lists(st.integers(0, 5), unique=True, max_size=5))
    return tuple(
        attached(
            number,
            *draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)),
            link=draw(st.booleans()),
            up=draw(st.sampled_from([None, None, 8_000, 10**12])),
        )
        for number in numbers
    )


@st.composite
def networks(draw: st.DrawFn) -> Wanted:
    door = draw(st.sampled_from(["none", "kernel", "pasta"]))
    return network(
        ports=draw(ports()),
        rulesets=draw(RULESETS),
        mode=draw(st.sampled_from(["nat", "routed"])),
        door=door,
        transfer=TRANSFER if door == "kernel" else (),
        vxlan=draw(st.sampled_from([None, SPANNED])),
        flow_log=draw(st.booleans()),
        underlay=tuple(draw(st.lists(st.sampled_from(["192.0.2.7", "192.0.2.0/28", "2001:db8::7", "192.0.2.128/25"])))),
    )


def lists(*transactions: str, apart: tuple[str, ...] = APART) -> list[str]:
    """What the kernel holds after one transaction after the other, in a namespace of its own."""
    script = 'for text; do printf "%s" "$text" | nft -f - || exit 1; done; nft -j list ruleset'
    assert max(map(len, transactions), default=0) < 1 << 17, "longer than an argument may be"
    done = subprocess.run(
        [*apart, "sh", "-c", script, "sh", OTHER, *transactions],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr}\n{transactions[-1]}"
    held = json.loads(done.stdout)["nftables"]
    chains: dict[str, list[str]] = {}
    for rule in (item["rule"] for item in held if "rule" in item):
        chains.setdefault(f"{rule['family']} {rule['table']} {rule['chain']}", []).append(_plain(rule))
    return sorted([*(_plain(item) for item in held if "rule" not in item), *map(str, chains.items())])


def _plain(item: dict[str, Any]) -> str:
    """Without the numbers that the kernel gives."""
    for value in (item, *(value for value in item.values() if isinstance(value, dict))):
        value.pop("handle", None)
        value.update({"elem": sorted(map(json.dumps, value["elem"]))} if "elem" in value else {})
    return json.dumps(item, sort_keys=True)


def rule_order(transaction: str) -> list[str]:
    """The rules chain by chain, in order."""
    script = 'printf "%s" "$1" | nft -f - && nft -s list ruleset'
    done = subprocess.run(
        [*APART, "sh", "-c", script, "sh", transaction], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.fault(58)
@settings(
    max_examples=repetitions(15, 300), deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(networks(), networks())
def test_a_transaction_leads_where_the_whole_ruleset_leads(before: Wanted, after: Wanted) -> None:
    old, new = plan.fabric(before), plan.fabric(after)
    changed = lists(nft.replacing(old.tables), plan.change(old, new).rules)
    assert changed == lists(nft.replacing(new.tables))
    assert set(lists()) <= set(changed)
    assert {name for item in changed for name in re.findall(r'"table": "(\w+)"', item)} <= {"roost", "theirs"}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_way_between_two_networks_is_a_transaction(name: str) -> None:
    after = plan.fabric(SAMPLES[name])
    for other in SAMPLES.values():
        before = plan.fabric(other)
        found = lists(nft.replacing(before.tables), plan.change(before, after).rules)
        assert found == lists(nft.replacing(after.tables))


def test_the_rules_of_a_chain_are_in_the_order_of_the_rule_set() -> None:
    listed = rule_order(nft.replacing(plan.fabric(SAMPLES["nat"]).tables))
    marks = [line.rpartition("comment ")[2].strip('"') for line in listed if "ruleset/web" in line]
    assert marks == ["ruleset/web/0", "ruleset/web/1", "ruleset/web/2", "ruleset/web/3", "ruleset/web/3"]


@pytest.mark.fault(78)
def test_the_table_of_the_host_takes_networks_one_by_one_and_gives_them_back() -> None:
    one, two = (outside.of(SAMPLES["routed"]._replace(uid=uid)) for uid in ("one", "two"))
    two = two._replace(
        elements=frozenset(
            (name, key.replace("10.20.0", "10.21.0").replace("3456", "3457")) for name, key in two.elements
        )
    )
    none = outside.of(SAMPLES["isolated"])
    steps = [nft.replacing([outside.table(one.elements)]), outside.change(none, two), outside.change(one, none)]
    assert lists(*steps) == lists(nft.replacing([outside.table(two.elements)]))


@needs_program("setpriv")
def test_a_thousand_ports_in_portions_are_the_same_without_root() -> None:
    before, after = plan.fabric(network(ports=crowd(1000))).tables, plan.fabric(network(ports=crowd(500, 1500))).tables
    whole, step = nft.portions(nft.replacing(before)), nft.portions(nft.transaction(before, after))
    assert min(len(whole), len(step)) > 1
    assert lists(*whole, *step, apart=ORDINARY) == lists(*nft.portions(nft.replacing(after)))


def crowd(*numbers: int) -> tuple[Attachment, ...]:
    """So many ports, each with addresses of its own."""
    return tuple(
        attached(number)._replace(addresses=(f"10.20.{number >> 8}.{number & 255}", f"fd12:3456::1:{number:x}"))
        for number in range(*numbers)
    )


def test_nothing_is_left_of_a_network_that_goes() -> None:
    tables = plan.fabric(SAMPLES["nat"]).tables
    assert lists(nft.replacing(tables), nft.removing(tables)) == lists()


@pytest.mark.parametrize("name", [name for name, wanted in SAMPLES.items() if wanted.subnets])
def test_dnsmasq_takes_what_it_is_told(name: str) -> None:
    resolver = plan.fabric(SAMPLES[name]).resolver
    assert resolver is not None
    reserved = "".join(f"dhcp-host={line}\n" for line in resolver.reservations.splitlines())
    done = subprocess.run(
        ["dnsmasq", "--test", "--conf-file=/dev/stdin"],
        input=resolver.config + reserved,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
