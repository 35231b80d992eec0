"""A guest that sends whatever a card can send: nobody hears what it has no right to say, and everybody else is served as if it were not there."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from statistics import median
from typing import Any, NamedTuple

import pytest

from roost.network import guards
from roost.network.base import Seen, Wanted
from roost.network.fabric import NetworkFabric
from tests import attacks
from tests.fabrics import LAN, OTHER, inside, on_host, plug, wanted
from tests.frames import EVERYBODY, HEADER, IPV4, Guest, ether, icmpv6, mac, syn, udp
from tests.live.test_fabric import _listen, _received
from tests.needs import needs_program, repetitions
from tests.ordinary import WHO
from tests.served import door, served

pytestmark = [pytest.mark.live, needs_program("ip", "nft", "dnsmasq"), pytest.mark.timeout(600)]
both = pytest.mark.parametrize("who", WHO)

GATEWAY, GATEWAY6 = "10.20.255.1", "fd00:20::1"
UNDERLAY = "192.0.2.1"
COUNTED = {
    "jumbo": "spoofed_ipv4", "options": "spoofed_ipv4", "first fragment tiny": "spoofed_ipv4", "extension headers": "rogue_ra",
    "a server's port in the second fragment": "rogue_dhcp", "router in an atomic fragment": "rogue_ra", "routing header": "unasked",
    "redirect of IPv4": "rogue_ra", "redirect of IPv6": "rogue_ra", "DHCP answer": "rogue_dhcp", "DHCPv6 answer": "rogue_dhcp",
    "QinQ": "spoofed_ipv4", "QinQ of IPv6": "spoofed_ipv6", "tunnels": "underlay",
}  # fmt: skip
"""Why what reaches the rules is dropped; of all else the kernel itself thinks that it is no packet for it."""


class Lab:
    """A network with a liar and three others, one of the same addresses, and what the host hears of both."""

    def __init__(self, fabric: NetworkFabric, networks: list[Wanted], guests: list[Guest], others: list[Guest]) -> None:
        self.fabric, self.networks = fabric, networks
        self.liar, self.victim, self.third, self.fourth = guests
        self.listeners = [*guests[1:], *others]
        self.outside = [_listen(network) for network in networks if network.door == "kernel"]

    async def look(self) -> Seen:
        return await self.fabric.look(LAN)

    def heard(self) -> set[str]:
        """Where a forged frame came out."""
        found = {"a machine" for guest in self.listeners for frame in guest.frames() if attacks.WORD in frame}
        return found | {"the host" for one in self.outside for frame in _received(one) if attacks.WORD in frame}

    def served(self, guest: Guest) -> tuple[bool, bool, bool]:
        """Whether another is given its address, finds a name, and reaches a neighbour."""
        offered = attacks.asks(guest) == guest.address4
        named = attacks.names(guest, GATEWAY, "m1.default.internal") == self.victim.address4
        guest.send4(udp(guest.address4, self.victim.address4, (71, 72), b"honest"))
        return offered, named, self.victim.hears(b"honest")


class Report(NamedTuple):
    """What came of one attack: where it was heard, what was counted more often, and how often at the port."""

    heard: set[str]
    drops: dict[str, int]
    dropped: int


async def _report(lab: Lab, frames: Iterable[bytes]) -> Report:
    before = await lab.look()
    heard: set[str] = set()
    for number, frame in enumerate(frames):
        lab.liar.send(frame)
        if number % 64 == 0:
            heard |= lab.heard()
    await asyncio.sleep(0.02)
    heard |= lab.heard()
    list(lab.liar.frames())
    after = await lab.look()
    drops = {name: number - before.drops.get(name, 0) for name, number in after.drops.items()}
    port = lab.networks[0].ports[0].interface
    dropped = after.ports[port].dropped_packets - before.ports[port].dropped_packets
    return Report(heard, {name: number for name, number in drops.items() if number}, dropped)


def _starving(liar: Guest, number: int) -> bytes:
    """A guest that says to be many: by its card, by what it says in its question, and to the gateway alone."""
    card = f"52:54:01:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    question = attacks.dhcp(1, card)
    if number % 3 == 2:
        return ether(liar.gateway, liar.card, IPV4, udp(liar.address4, GATEWAY, (68, 67), question))
    packet = udp("0.0.0.0", "255.255.255.255", (68, 67), question)
    return ether(EVERYBODY, card if number % 3 else liar.card, IPV4, packet)


def _giving_back(liar: Guest, victim: Guest) -> list[bytes]:
    """Another's address, declined and released in its name."""
    server = attacks.option(54, socket.inet_aton(GATEWAY))
    address = attacks.option(50, socket.inet_aton(victim.address4))
    packets = [
        udp(source, to, (68, 67), attacks.dhcp(kind, victim.card, server, address, client=client))
        for kind in (4, 7)
        for client in ("0.0.0.0", victim.address4)
        for source, to in ((liar.address4, GATEWAY), ("0.0.0.0", "255.255.255.255"))
    ]
    return [
        ether(EVERYBODY if packet[16:20] == bytes(4 * [255]) else liar.gateway, liar.card, IPV4, packet)
        for packet in packets
    ]


def _many(liar: Guest, number: int) -> bytes:
    """A neighbour that has as many link-local addresses as it likes: the kernel is to remember each."""
    source = f"fe80::{number + 0x1000:x}"
    packet = icmpv6(
        source, "fe80::1", 135, bytes(4) + socket.inet_pton(socket.AF_INET6, "fe80::1") + b"\1\1" + mac(liar.card)
    )
    return ether(liar.gateway, liar.card, 0x86DD, packet)


def _flood(liar: Guest, frames: list[bytes], seconds: float) -> int:
    """The process that sends these again and again for so long."""
    pid = os.fork()
    if pid == 0:
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                for frame in frames:
                    os.write(liar.tap, bytes(HEADER) + frame)
        finally:
            os._exit(0)
    return pid


def _connect(one: Guest, two: Guest, count: int, first: int) -> list[float]:
    """Seconds until the other hears of each new connection."""
    found = []
    for port in range(first, first + count):
        began = time.perf_counter()
        one.send4(syn(one.address4, two.address4, (port, 443)))
        assert two.wait(lambda frame, port=port: frame[34:38] == struct.pack("!HH", port, 443)) is not None
        found.append(time.perf_counter() - began)
    return found


async def _connections(lab: Lab, count: int) -> dict[str, Any]:
    liar, victim = lab.liar, lab.victim
    list(lab.fourth.frames())
    idle = _connect(lab.third, lab.fourth, 200, 2000)
    frames = [syn(liar.address4, victim.address4, (1024 + n % 60_000, 80 + n // 60_000)) for n in range(count)]
    pid = _flood(liar, [ether(liar.gateway, liar.card, IPV4, frame) for frame in frames], 0.5)
    try:
        busy = _connect(lab.third, lab.fourth, 200, 3000)
    finally:
        await asyncio.to_thread(os.waitpid, pid, 0)
    arrived = sum(len(list(guest.frames())) for guest in lab.listeners)
    return {"idle": median(idle), "busy": median(busy), "arrived": arrived, "drops": dict((await lab.look()).drops)}


async def _questions(lab: Lab) -> list[str]:
    """What a third one is answered while a guest asks as fast as it can."""
    query = struct.pack("!6H", 9, 0x100, 1, 0, 0, 0) + b"\2m1\7default\10internal\0\0\1\0\1"
    ports = (5353, *range(2000, 3000))
    frames = [ether(lab.liar.gateway, lab.liar.card, IPV4, udp(lab.liar.address4, GATEWAY, (port, 53), query)) for port in ports]  # fmt: skip
    pid = _flood(lab.liar, frames, 1.5)
    try:
        await asyncio.sleep(0.2)
        found = []
        for _ in range(20):
            found.append(attacks.names(lab.third, GATEWAY, "m1.default.internal", 0.5))
            await asyncio.sleep(0.03)
        return found
    finally:
        await asyncio.to_thread(os.waitpid, pid, 0)
        list(lab.liar.frames())


def _neighbours(lab: Lab) -> int:
    """How many the kernel remembers without having been told."""
    with tempfile.NamedTemporaryFile("r") as file:
        inside(lab.fabric, LAN, f"ip -6 neigh show nud all | grep -vc PERMANENT > {file.name} || true")
        return int(file.read())


async def _attack() -> dict[str, Any]:
    """All attacks, one after the other, on one network."""
    async with served() as fabric:
        networks = [wanted(4, door=door(), underlay=(UNDERLAY,)), wanted(2, uid=OTHER, door=door())]
        for network in networks:
            await fabric.ensure(network)
        lab = Lab(fabric, networks, await plug(fabric, networks[0]), await plug(fabric, networks[1]))
        lab.victim.send4(udp(lab.victim.address4, lab.liar.address4, (41, 42), b"a flow that a redirect may speak of"))
        found: dict[str, Any] = {"malformed": {}}
        for name, frames in attacks.malformed(lab.liar, lab.victim).items():
            found["malformed"][name] = await _report(lab, frames)
        found["served after malformed"] = lab.served(lab.third)
        found["starved"] = await _report(lab, (_starving(lab.liar, number) for number in range(10_000)))
        found["served after starved"] = lab.served(lab.third)
        found["given back"] = await _report(lab, _giving_back(lab.liar, lab.victim))
        found["served after given back"] = lab.served(lab.victim), lab.served(lab.third)
        before = _neighbours(lab)
        found["many"] = await _report(lab, (_many(lab.liar, number) for number in range(500)))
        found["remembered"] = _neighbours(lab) - before
        count = repetitions(20_000, 1_000_000)
        found["spoofed"] = count, await _report(lab, (attacks.spoofed(lab.liar, lab.victim, n) for n in range(count)))
        found["answers"] = await _questions(lab)
        found["connections"] = await _connections(lab, repetitions(20_000, 100_000))
        found["served at last"] = lab.served(lab.third)
        found["alive"] = set((await lab.look()).alive)
        return found


@cache
def attacked(who: str) -> dict[str, Any]:
    """What came of the attacks, which are made once."""
    found: dict[str, Any] = on_host(who, _attack)
    return found


@both
@pytest.mark.fault(73)
def test_what_is_malformed_tagged_or_in_fragments_comes_out_nowhere_and_is_counted(who: str) -> None:
    found = attacked(who)
    reports = found["malformed"]
    assert {name: report.heard for name, report in reports.items() if report.heard} == {}
    asked = set(COUNTED) - ({"tunnels"} if who == "user" else set())  # whose network has no way to the hosts
    wrong = {name: reports[name] for name in asked if COUNTED[name] not in reports[name].drops}
    assert wrong == {}
    assert all(report.dropped >= sum(report.drops.values()) for name, report in reports.items() if name in COUNTED)
    assert found["served after malformed"] == (True, True, True)


@both
@pytest.mark.fault(71)
def test_a_guest_that_says_to_be_ten_thousand_takes_no_address_from_anybody(who: str) -> None:
    found = attacked(who)
    assert found["starved"].heard == set()
    assert found["starved"].drops["spoofed_mac"] == 3333
    assert {"flood_broadcast", "flood_questions"} <= set(found["starved"].drops)
    assert found["served after starved"] == (True, True, True)


@both
@pytest.mark.fault(73)
def test_a_guest_gives_nobody_else_s_address_back(who: str) -> None:
    found = attacked(who)
    assert found["given back"].heard == set()
    assert found["served after given back"] == ((True, True, True), (True, True, True))


@both
@pytest.mark.fault(74)
def test_a_guest_fills_the_kernel_s_memory_of_neighbours_no_more_than_a_little(who: str) -> None:
    found = attacked(who)
    assert 0 < found["remembered"] <= guards.LINK_LOCALS
    assert found["many"].drops["flood_neighbours"] >= 500 - 2 * guards.LINK_LOCALS


@both
@pytest.mark.fault(73)
def test_who_says_to_be_somebody_else_is_dropped_at_the_port_every_time(who: str) -> None:
    count, report = attacked(who)["spoofed"]
    assert report.heard == set()
    assert report.dropped == sum(report.drops.values()) == count
    assert set(report.drops) == {"spoofed_mac", "spoofed_ipv4", "spoofed_ipv6"}


@both
@pytest.mark.fault(71)
def test_a_guest_that_asks_for_names_without_end_keeps_nobody_from_an_answer(who: str) -> None:
    found = attacked(who)
    assert found["answers"] == ["10.20.0.3"] * 20
    assert found["connections"]["drops"]["flood_questions"] > 10_000


@both
@pytest.mark.fault(71)
def test_connections_without_end_leave_a_neighbour_s_as_fast_as_they_were(who: str) -> None:
    found = attacked(who)
    took = found["connections"]
    assert took["busy"] <= 2 * took["idle"] + 0.0002, took
    assert took["drops"]["flood_new"] > took["arrived"]
    assert took["arrived"] < 3 * guards.NEW_FLOWS
    assert found["served at last"] == (True, True, True)
    assert found["alive"] >= {"holder", "dnsmasq", "relay"}
