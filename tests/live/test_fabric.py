"""The engine of virtual networks, in namespaces that stand for hosts, with raw frames for guests: who reaches whom, and who does not."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from roost.host import kernel, links
from roost.model.ruleset import Rule, RuleSetSpec
from roost.network import guards, names
from roost.network.base import Wanted
from tests.fabrics import LAN, OTHER, engine, on_host, plug, port, sh, wanted
from tests.frames import ARP, EVERYBODY, IPV4, IPV6, Guest, arp, ether, icmpv6, ipv4, syn, udp
from tests.needs import needs_program, needs_root, repetitions
from tests.ordinary import WHO

pytestmark = [pytest.mark.live, needs_program("ip", "nft"), pytest.mark.timeout(600)]
both = pytest.mark.parametrize("who", WHO)
_TUNSETOFFLOAD, _TUNGETDEVNETNS = 0x400454D0, 0x54E3  # include/uapi/linux/if_tun.h
_CHECKSUMS_AND_SEGMENTS = 0x07  # TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6


@both
def test_two_machines_of_a_network_talk_over_both_versions_of_ip(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted()
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            found = [one.resolves(two.address4)]
            one.send4(udp(one.address4, two.address4, (1000, 2000), b"there4"))
            found.append(two.hears(b"there4"))
            two.send4(udp(two.address4, one.address4, (2000, 1000), b"back4"))
            found.append(one.hears(b"back4"))
            one.send6(udp(one.address6, two.address6, (1000, 2000), b"there6"))
            found.append(two.hears(b"there6"))
            two.send6(udp(two.address6, one.address6, (2000, 1000), b"back6"))
            return [*found, one.hears(b"back6")]

    assert on_host(who, main) == [names.GATEWAY_MAC, True, True, True, True]


@both
def test_a_port_without_link_and_one_that_is_taken_away_hear_nothing(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted()
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            found = []
            for ports in ((network.ports[0], network.ports[1]._replace(link=False)), network.ports, network.ports[:1]):
                seen = await fabric.ensure(network._replace(ports=ports))
                one.send4(udp(one.address4, two.address4, (1000, 2000), b"hello"))
                found.append((two.hears(b"hello", 0.3) if len(ports) == 2 else False, len(seen.plugged)))
            return found

    assert on_host(who, main) == [(False, 2), (True, 2), (False, 1)]


@both
def test_taps_that_lead_nowhere_are_each_alone_and_no_link_of_the_host(who: str) -> None:
    """What the guests of warm templates boot with: all that a port's card can leave to the host, it can leave to them."""

    async def main() -> list[Any]:
        async with engine() as fabric:
            taps = [await fabric.loose() for _ in range(2)]
            for tap in taps:
                fcntl.ioctl(tap, _TUNSETOFFLOAD, _CHECKSUMS_AND_SEGMENTS)
            spaces = {os.fstat(fcntl.ioctl(tap, _TUNGETDEVNETNS)).st_ino for tap in taps}
            return [len(spaces - {Path("/proc/self/ns/net").stat().st_ino}), links.exists(names.LOOSE)]

    assert on_host(who, main) == [2, False]


@both
@pytest.mark.fault(78)
def test_networks_with_the_same_addresses_never_meet(who: str) -> None:
    async def main() -> list[bool]:
        async with engine() as fabric:
            here, there = wanted(), wanted(uid=OTHER)
            for network in (here, there):
                await fabric.ensure(network)
            ours, theirs = await plug(fabric, here), await plug(fabric, there)
            ours[0].send4(udp(ours[0].address4, ours[1].address4, (1, 2), b"secret"))
            ours[0].send6(udp(ours[0].address6, ours[1].address6, (1, 2), b"secret"))
            heard = ours[1].hears(b"secret")
            return [heard, *(guest.hears(b"secret", 0.2) for guest in theirs)]

    assert on_host(who, main) == [True, False, False]


def forgeries(liar: Guest, victim: Guest, number: int) -> dict[str, bytes]:
    """A frame of every kind that a machine has no right to send, each with the word "forged" where it can have one."""
    strange, somebody, word = f"52:54:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:01", "10.20.9.9", b"forged"
    to, mine, solicited = liar.gateway, liar.card, struct.pack("!I", 0x60000000)
    option = b"\x02\x01" + bytes.fromhex(liar.card.replace(":", ""))
    ends4, ends6 = (liar.address4, victim.address4), (liar.address6, victim.address6)
    router = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + b"\x01\x01" + bytes.fromhex(liar.card.replace(":", ""))

    def neighbour(address: str) -> bytes:
        return solicited + socket.inet_pton(socket.AF_INET6, address) + option

    inner = udp(somebody, victim.address4, (1, 2), word)
    packed = struct.pack("!II", 0x08000000, 7 << 8) + ether(victim.card, strange, IPV4, inner)
    return {
        "mac": ether(to, strange, IPV4, udp(*ends4, (1, 2), word)),
        "mac6": ether(to, strange, IPV6, udp(*ends6, (1, 2), word)),
        "ipv4": ether(to, mine, IPV4, udp(somebody, ends4[1], (1, 2), word)),
        "ipv4 of the victim": ether(to, mine, IPV4, udp(ends4[1], ends4[1], (1, 2), word)),
        "ipv4 of the gateway": ether(to, mine, IPV4, udp("10.20.255.1", ends4[1], (1, 2), word)),
        "ipv4 of loopback": ether(to, mine, IPV4, udp("127.0.0.1", ends4[1], (1, 2), word)),
        "ipv6": ether(to, mine, IPV6, udp("fd00:20::99", ends6[1], (1, 2), word)),
        "ipv6 of the world": ether(to, mine, IPV6, udp("2001:db8::1", ends6[1], (1, 2), word)),
        "arp of the victim": ether(EVERYBODY, mine, ARP, arp(2, (mine, ends4[1]), (EVERYBODY, ends4[1])) + word),
        "arp of the gateway": ether(victim.card, mine, ARP, arp(2, (mine, "10.20.255.1"), (victim.card, ends4[1])) + word),
        "arp with a strange card": ether(EVERYBODY, strange, ARP, arp(1, (strange, ends4[0]), (EVERYBODY, ends4[1])) + word),
        "arp for another card": ether(EVERYBODY, mine, ARP, arp(2, (strange, ends4[0]), (EVERYBODY, ends4[1])) + word),
        "neighbour": ether("33:33:00:00:00:01", mine, IPV6, icmpv6(ends6[0], "ff02::1", 136, neighbour(ends6[1]) + word + b"\0\0")),
        "neighbour of the victim": ether(victim.card, mine, IPV6, icmpv6(ends6[1], ends6[1], 136, neighbour(ends6[1]) + word + b"\0\0")),
        "router": ether("33:33:00:00:00:01", mine, IPV6, icmpv6("fe80::1", "ff02::1", 134, router + word + b"\0\0")),
        "router of its own": ether("33:33:00:00:00:01", mine, IPV6, icmpv6(ends6[0], "ff02::1", 134, router + word + b"\0\0")),
        "dhcp server": ether(EVERYBODY, mine, IPV4, udp(ends4[0], "255.255.255.255", (67, 68), word)),
        "dhcp server, to one": ether(to, mine, IPV4, udp(*ends4, (67, 68), word)),
        "dhcpv6 server": ether(to, mine, IPV6, udp(*ends6, (547, 546), word)),
        "redirect": ether(to, mine, IPV4, ipv4("10.20.255.1", ends4[1], 1, struct.pack("!BBHI", 5, 1, 0, 0) + word)),
        "vlan": ether(to, mine, 0x8100, struct.pack("!HH", 7, IPV4) + udp(*ends4, (1, 2), word)),
        "another protocol": ether(victim.card, mine, 0x88CC, word * 10),
        "straight to the card": ether(victim.card, mine, IPV4, udp(somebody, ends4[1], (1, 2), word)),
        "vxlan": ether(to, mine, IPV4, udp(ends4[0], "192.0.2.1", (4789, 4789), packed)),
    }  # fmt: skip


async def _forge(frames: int) -> dict[str, Any]:
    """Send forged frames of all kinds, as many as that, and say where any came out, and what was counted."""
    async with engine() as fabric:
        door = "kernel" if os.geteuid() == 0 else "none"
        network, another = wanted(3, door=door, underlay=("192.0.2.1",)), wanted(uid=OTHER, door=door)
        for one in (network, another):
            await fabric.ensure(one)
        liar, *listeners = [*await plug(fabric, network), *await plug(fabric, another)]
        outside = [_listen(one) for one in (network, another) if door == "kernel"]
        heard: dict[str, int] = {}
        kinds = list(forgeries(liar, listeners[0], 0))
        for start in range(0, frames, 20 * len(kinds)):
            for number in range(start, start + 20 * len(kinds), len(kinds)):
                for frame in forgeries(liar, listeners[0], number).values():
                    liar.send(frame)
            for guest in listeners:
                _note(heard, guest.frames(), "a machine")
            for listener in outside:
                _note(heard, _received(listener), "the host")
            list(liar.frames())
        await asyncio.sleep(1.5)  # it has used up the connections of this second
        liar.send4(udp(liar.address4, listeners[0].address4, (7, 8), b"honest"))
        honest = listeners[0].hears(b"honest")
        seen = await fabric.look(LAN)
        return {
            "heard": heard, "honest": honest, "drops": dict(seen.drops),
            "of the port": seen.ports[network.ports[0].interface].dropped_packets,
        }  # fmt: skip


def _listen(network: Wanted) -> socket.socket:
    listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
    listener.bind((names.veth(network.uid), 0))
    return listener


def _received(listener: socket.socket) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(listener.recv(70_000))
    except BlockingIOError:
        return found


def _note(heard: dict[str, int], frames: Any, where: str) -> None:
    for frame in frames:
        if b"forged" in frame:
            heard[where] = heard.get(where, 0) + 1


@both
@pytest.mark.fault(73)
@pytest.mark.fault(75)
def test_forged_frames_of_every_kind_come_out_nowhere_and_are_counted(who: str) -> None:
    sent = repetitions(10_000, 1_000_000)
    found = on_host(who, lambda: _forge(sent))
    assert found["heard"] == {}
    assert found["honest"]
    counted = {name for name, number in found["drops"].items() if number}
    assert {"spoofed_mac", "spoofed_ipv4", "spoofed_ipv6", "spoofed_arp", "rogue_dhcp", "rogue_ra"} <= counted
    assert found["of the port"] > sent / 4
    assert set(found["drops"]) >= {*guards.REASONS, *guards.ARP_REASONS} - {"unasked"}


@needs_root
@pytest.mark.fault(77)
def test_a_machine_reaches_the_world_but_neither_the_host_nor_what_is_beside_it() -> None:
    async def main() -> list[Any]:
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        kernel.unshare(kernel.NEWNET)
        sh("ip link set lo up")
        world = os.open("/proc/self/ns/net", os.O_RDONLY)
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.settimeout(2)
        kernel.setns(home, kernel.NEWNET)
        sh(f"ip link add eth9 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{world}")
        sh("ip addr add 198.51.100.1/24 dev eth9; ip link set eth9 up")
        kernel.setns(world, kernel.NEWNET)
        sh("ip addr add 198.51.100.2/24 dev eth0; ip addr add 203.0.113.5/32 dev lo; ip link set eth0 up")
        sh("ip route add default via 198.51.100.1")
        far.bind(("203.0.113.5", 53))
        kernel.setns(home, kernel.NEWNET)
        sh("ip route add default via 198.51.100.2")
        served = []
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            served.append(socket.socket(socket.AF_INET, kind))
            served[-1].bind(("0.0.0.0", 2222))
            served[-1].settimeout(0.2)
        served[1].listen()
        async with engine() as fabric:
            network = wanted(1, door="kernel", underlay=tuple(await fabric.host_addresses()))
            await fabric.ensure(network)
            (guest,) = await plug(fabric, network)
            guest.send4(udp(guest.address4, "203.0.113.5", (5000, 53), b"question"))
            data, source = await asyncio.to_thread(far.recvfrom, 100)
            far.sendto(b"answer", source)
            found = [data, source[0], guest.hears(b"answer")]
            targets = (
                "198.51.100.1",
                network.transfer[1],
                network.transfer[0],
                "10.20.255.1",
                "127.0.0.1",
                "169.254.169.254",
            )
            for address in targets:
                guest.send4(udp(guest.address4, address, (5000, 2222), b"attack"))
                guest.send4(syn(guest.address4, address, (5001, 2222)))
            heard = guest.wait(lambda frame: frame[23] == 6 and frame[47] & 0x12 == 0x12, 0.5)
            found.append(heard)
            for one in served:
                try:
                    one.recvfrom(100) if one.type == socket.SOCK_DGRAM else one.accept()
                    found.append("reached")
                except TimeoutError:
                    found.append("silent")
            return found

    assert on_host("root", main) == [b"question", "198.51.100.1", True, None, "silent", "silent"]


@both
@pytest.mark.fault(71)
@pytest.mark.fault(74)
def test_floods_of_connections_and_of_cards_are_bounded_and_leave_the_others_their_network(who: str) -> None:
    frames = repetitions(20_000, 100_000)

    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(3)
            await fabric.ensure(network)
            flooder, victim, other = await plug(fabric, network)
            arrived = 0
            for number in range(frames):
                ports = (1024 + number % 60_000, 80 + number // 60_000)
                flooder.send4(syn(flooder.address4, victim.address4, ports))
                card = f"52:54:{number >> 24 & 255:02x}:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
                flooder.send(ether(EVERYBODY, card, ARP, arp(1, (card, "10.20.1.1"), (EVERYBODY, "10.20.1.2"))))
                if number % 200 == 0:
                    arrived += len(list(victim.frames()))
            arrived += len(list(victim.frames(0.1)))
            other.send4(udp(other.address4, victim.address4, (1, 2), b"still here"))
            seen = await fabric.look(LAN)
            return [arrived < frames / 2, victim.hears(b"still here"), seen.drops["flood_new"] > frames / 3]

    assert on_host(who, main) == [True, True, True]


@both
def test_the_bandwidth_of_a_port_is_bounded_and_can_be_changed(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(2)
            network = network._replace(ports=(network.ports[0], port(1, down=8_000_000)))
            await fabric.ensure(network)
            await plug(fabric, network)
            found = [(await fabric.look(LAN)).differs]
            for down in (16_000_000, None):
                changed = network._replace(ports=(network.ports[0], port(1, down=down)))
                await fabric.ensure(changed)
                found.append((await fabric.look(LAN)).differs)
            return found

    assert on_host(who, main) == [(), (), ()]


@both
def test_a_port_with_other_rules_and_bandwidth_keeps_the_connections_that_these_allow(who: str) -> None:
    async def main() -> list[bool]:
        async with engine() as fabric:
            network = wanted(
                2, rulesets={"web": RuleSetSpec(rules=(Rule(direction="in", protocol="udp", ports=("2",)),))}
            )
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            one.send4(udp(one.address4, two.address4, (1, 2), b"first"))
            found = [two.hears(b"first")]
            for rulesets, down in ((("web",), 8_000_000), (("default",), None), ((), None)):
                changed = port(1, rulesets=rulesets, down=down)
                await fabric.ensure(network._replace(ports=(network.ports[0], changed)))
                back, there = (f"{way} {rulesets}".encode() for way in ("back", "there"))
                two.send4(udp(two.address4, one.address4, (2, 1), back))
                one.send4(udp(one.address4, two.address4, (1, 2), there))
                found += [one.hears(back, 0.5), two.hears(there, 0.5)]
            return found

    assert on_host(who, main) == [True, True, True, True, True, False, False]
