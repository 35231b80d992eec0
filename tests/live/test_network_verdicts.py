"""What passes between the ports of a network is what `trace` says, when rules change under connections that stand as well."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import permutations

import pytest

from roost.model.ruleset import Rule, RuleSetSpec
from roost.network.base import Attachment, Published, Wanted
from roost.network.trace import Probe, trace
from tests.fabrics import engine, inside, on_host, plug, port, wanted
from tests.frames import ACK, RST, SYN, Guest, syn, tcp, udp
from tests.needs import needs_program, repetitions
from tests.ordinary import WHO

pytestmark = [pytest.mark.live, needs_program("ip", "nft"), pytest.mark.timeout(300)]

SETS = ("default", "web", "db", "gone")
PORTS = ("80", "81-85", "443", "1-65535")
CIDRS = ("", "10.20.0.0/30", "10.20.0.4/30", "fd00:20::2/127", "0.0.0.0/0", "::/0")
FIRST = 20_000
"""The source port of the first probe: every other has the next, by which it is known again."""


def some_rules(dice: random.Random) -> RuleSetSpec:
    def one() -> Rule:
        protocol = dice.choice(["any", "tcp", "udp"])
        cidr = dice.choice(CIDRS)
        return Rule(
            direction=dice.choice(["in", "out"]),
            action=dice.choice(["allow", "allow", "deny"]),
            protocol=protocol,
            ports=tuple(dice.sample(PORTS, dice.randrange(3))) if protocol != "any" else (),
            cidr=cidr,
            ruleset="" if cidr else dice.choice(["", "", *SETS]),
        )

    return RuleSetSpec(rules=tuple(one() for _ in range(dice.randrange(5))))


def some_network(dice: random.Random) -> Wanted:
    ports = tuple(port(number, rulesets=tuple(dice.sample(SETS, dice.randrange(1, 3)))) for number in range(6))
    return wanted(ports=0)._replace(ports=ports, rulesets={name: some_rules(dice) for name in ("web", "db")})


def probes(ports: Iterable[Attachment]) -> list[Probe]:
    return [
        Probe(one.addresses[version], two.addresses[version], protocol, number)
        for one, two in permutations(ports, 2)
        for version in (0, 1)
        for protocol, number in (("udp", 80), ("udp", 7), ("tcp", 80), ("tcp", 83), ("tcp", 443))
    ]


def send(guests: dict[str, Guest], numbered: Iterable[tuple[int, Probe]], *, answers: bool = False) -> None:
    for number, probe in numbered:
        source, target, ports = probe.source, probe.target, (FIRST + number, probe.port)
        if answers:
            source, target, ports = target, source, (probe.port, FIRST + number)
        packet = (syn if probe.protocol == "tcp" else udp)(source, target, ports)
        (guests[source].send6 if ":" in source else guests[source].send4)(packet)


def heard(guests: Iterable[Guest], at: int) -> set[int]:
    """The numbers of the probes that came; `at` is where their port is in UDP's and TCP's header: 0, or 2 in an answer."""
    return {number for guest in guests for frame in guest.frames(0.05) for number in _number(frame, at)}


def _number(frame: bytes, at: int) -> Iterator[int]:
    starts = {b"\x08\x00": (34, frame[23]), b"\x86\xdd": (54, frame[20])}
    start, protocol = starts.get(frame[12:14], (0, 0))
    if protocol in (6, 17) and not (protocol == 6 and frame[start + 13] & 4):
        yield int.from_bytes(frame[start + at : start + at + 2], "big") - FIRST


@pytest.mark.fault(73)
@pytest.mark.parametrize("who", WHO)
def test_what_comes_is_what_trace_says_and_what_stands_is_judged_anew(who: str) -> None:
    dice = random.Random(7)
    rounds = [some_network(dice) for _ in range(repetitions(5, 60))]
    asked = list(enumerate(probes(rounds[0].ports)))

    def allowed(network: Wanted) -> set[int]:
        return {number for number, probe in asked if trace(network, probe).allowed}

    async def main() -> list[tuple[set[int], set[int]]]:
        found = []
        async with engine() as fabric:
            await fabric.ensure(rounds[0])
            held = await plug(fabric, rounds[0])
            guests = {address: guest for guest in held for address in (guest.address4, guest.address6)}
            standing: set[int] = set()
            for network in rounds:
                await fabric.ensure(network)
                # Answers first: a connection that was allowed once stands, and is not what it was.
                send(guests, [(number, probe) for number, probe in asked if number in standing], answers=True)
                answered = heard(held, 2)
                send(guests, asked)
                came = heard(held, 0)
                found.append((answered & standing, came))
                standing |= {number for number in came if asked[number][1].protocol == "udp"}
        return found

    standing: set[int] = set()
    for network, (answered, came) in zip(rounds, on_host(who, main), strict=True):
        assert came == allowed(network)
        assert answered == allowed(network) & standing
        standing |= {number for number in came if asked[number][1].protocol == "udp"}


def has_flags(frame: bytes, flags: int) -> bool:
    """Whether it is of TCP, to or from port 80, with these flags and perhaps ACK."""
    start = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], len(frame))
    return (
        b"\x00\x50" in (frame[start : start + 2], frame[start + 2 : start + 4])
        and frame[start + 13] | ACK == flags | ACK
    )


@pytest.mark.parametrize("who", WHO)
def test_a_connection_that_is_no_longer_allowed_is_reset_at_both_ends(who: str) -> None:
    async def main() -> list[list[bool]]:
        found = []
        for version in (0, 1):
            async with engine() as fabric:
                network = wanted(ports=2)
                await fabric.ensure(network)
                one, two = await plug(fabric, network)
                ends = [one.addresses[version] for one in network.ports]
                there = partial(tcp, *ends, (FIRST, 80))
                back = partial(tcp, *reversed(ends), (80, FIRST))
                send_one, send_two = (guest.send6 if version else guest.send4 for guest in (one, two))
                send_one(there(SYN))
                opened = two.wait(lambda frame: has_flags(frame, SYN)) is not None
                send_two(back(SYN | ACK, acknowledged=2))
                opened &= one.wait(lambda frame: has_flags(frame, SYN | ACK)) is not None
                send_one(there(ACK, sequence=2, acknowledged=2))
                opened &= two.wait(lambda frame: has_flags(frame, ACK)) is not None
                closed = RuleSetSpec(rules=(Rule(direction="in", action="deny"),))
                await fabric.ensure(network._replace(rulesets={"default": closed}))
                send_one(there(ACK, sequence=2, acknowledged=2))
                told = one.wait(lambda frame: has_flags(frame, RST)) is not None
                send_two(back(ACK, sequence=2, acknowledged=2))
                found.append([opened, told, two.wait(lambda frame: has_flags(frame, RST)) is not None])
        return found

    assert on_host(who, main) == [[True, True, True]] * 2


@pytest.mark.parametrize("who", WHO)
def test_what_is_published_comes_from_the_gateway_and_nothing_else_does(who: str) -> None:
    ports = (port(0), port(1, rulesets=("closed",)))
    closed = RuleSetSpec(rules=(Rule(direction="in", action="deny", protocol="tcp", ports=("80",)),))
    published = tuple(
        Published(f"{one.machine}-{number}", "127.0.0.1", 8080, "tcp", one.addresses[version], number, one.interface)
        for one in ports
        for version in (0, 1)
        for number in (80, 81)
    )
    network = wanted(ports=0)._replace(ports=ports, published=published, rulesets={"closed": closed})
    tried = [(one.addresses[version], number) for one in ports for version in (0, 1) for number in (80, 81, 82)]
    script = "".join(
        f"(echo | timeout 0.2 bash -c 'cat > /dev/tcp/{to}/{number}') 2>/dev/null & " for to, number in tried
    )

    async def main() -> list[bool]:
        async with engine() as fabric:
            await fabric.ensure(network)
            guests = await plug(fabric, network)
            inside(fabric, network.uid, f"{script} wait; true")
            came = {_end(frame) for guest in guests for frame in guest.frames(0.2)}
            return [end in came for end in tried]

    def _end(frame: bytes) -> tuple[str, int]:
        if frame[12:14] == b"\x08\x00":
            return ".".join(map(str, frame[30:34])), int.from_bytes(frame[36:38], "big")
        return f"fd00:20::{frame[53]:x}", int.from_bytes(frame[56:58], "big")

    expected = [
        trace(network, Probe("fd00:20::1" if ":" in to else "10.20.255.1", to, "tcp", number)).allowed
        for to, number in tried
    ]
    assert on_host(who, main) == expected
    assert expected == [True, True, False] * 2 + [False, True, False] * 2


@pytest.mark.parametrize("who", WHO)
def test_a_thousand_ports(who: str) -> None:
    network = wanted(1000)

    async def main() -> list[bool]:
        async with engine() as fabric:
            found = [(await fabric.ensure(network)).ready]
            first, last = await plug(fabric, network, 0, 999)
            first.send4(udp(first.address4, last.address4, (1, 2), b"to the last"))
            found.append(last.hears(b"to the last"))
            await fabric.ensure(network._replace(ports=network.ports[:1]))
            await fabric.ensure(network)
            (last,) = await plug(fabric, network, 999)
            first.send6(udp(first.address6, last.address6, (1, 2), b"once more"))
            return [*found, last.hears(b"once more")]

    assert on_host(who, main) == [True, True, True]
