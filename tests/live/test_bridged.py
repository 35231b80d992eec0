"""Bridged networks: machines on the network that a bridge of the host is on, which loses nothing by it; and what no machine says there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from roost.errors import RoostError
from roost.network import names
from roost.network.base import Published, Wanted
from tests import hosts as lab
from tests.fabrics import LAN, OTHER, engine, inside, on_host, port, sh, wanted, woken
from tests.frames import ARP, EVERYBODY, IPV4, IPV6, Guest, arp, ether, icmpv6, udp
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.live, needs_program("ip", "nft"), pytest.mark.timeout(300)]
NEIGHBOUR = "02:00:00:07:00:05"


def lan() -> int:
    """This host has the bridge "wire" with its own addresses (number 1); returns the namespace of its neighbour on it (number 5)."""
    sh("ip link add wire type bridge && ip link set wire up")
    sh("ip addr add 192.0.2.1/24 dev wire; ip -6 addr add 2001:db8:7::1/64 dev wire nodad")
    return lab.joined(5)


def bridged(count: int = 1, **fields: Any) -> Wanted:
    """A network that is part of that, with so many ports, which nobody has given addresses."""
    plain = tuple(port(number, addresses=()) for number in range(count))
    usual = {"mode": "bridged", "door": "bridge", "interface": "wire", "subnets": (), "ports": plain}
    return wanted(0)._replace(**{**usual, **fields})


async def plugged(fabric: Any, network: Wanted) -> list[Guest]:
    """Guests with the addresses 192.0.2.20 and so on, who send to the neighbour."""
    found = []
    for index, one in enumerate(network.ports):
        tap = await fabric.plug(network.uid, one.interface)
        found.append(Guest(tap, one.mac, f"192.0.2.{20 + index}", f"2001:db8:7::{20 + index}", NEIGHBOUR))
    return found


def heard(net: int, *, address: str) -> socket.socket:
    """A socket of whoever is there."""
    with lab.inside(net):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_DGRAM)
        listener.bind((address, 7))
        listener.settimeout(2)
        return listener


def facts_of_bridge() -> str:
    """The MAC address, the MTU and the addresses of the host's bridge."""
    link = sh("ip -o link show wire | sed 's/.*mtu \\([0-9]*\\).*ether \\([0-9a-f:]*\\).*/\\1 \\2/'")
    return link + sh("ip -o addr show wire scope global | awk '{print $4}'")


@needs_root
def test_machines_talk_to_their_neighbours_to_the_host_and_to_each_other() -> None:
    async def main() -> list[Any]:
        neighbour = lan()
        before = facts_of_bridge()
        async with engine() as fabric:
            network = bridged(2)
            seen = await fabric.ensure(network)
            one, two = await plugged(fabric, network)
            found: list[Any] = [seen.door, one.resolves("192.0.2.5"), one.resolves("192.0.2.1") is not None]
            listener, host = heard(neighbour, address="192.0.2.5"), heard(home(), address="192.0.2.1")
            one.send4(udp(one.address4, "192.0.2.5", (9, 7), b"hello"))
            data, source = listener.recvfrom(100)
            found += [data, source[0]]
            with lab.inside(neighbour):
                sh(f"ip neigh replace {one.address4} lladdr {one.card} dev eth0")
            listener.sendto(b"back", source)
            found.append(one.hears(b"back"))
            own = one.resolves("192.0.2.1")
            assert own
            one.send(ether(own, one.card, IPV4, udp(one.address4, "192.0.2.1", (9, 7), b"host")))
            found.append(host.recv(100))
            one.send(ether(two.card, one.card, IPV6, udp(one.address6, two.address6, (9, 7), b"friend")))
            found.append(two.hears(b"friend"))
            one.send(ether(EVERYBODY, one.card, IPV4, udp(one.address4, "192.0.2.255", (9, 9), b"everybody")))
            found += [two.hears(b"everybody"), facts_of_bridge() == before, (await fabric.look(LAN)).differs]
            return found

    assert on_host("root", main) == [
        "bridge", NEIGHBOUR, True, b"hello", "192.0.2.20", True, b"host", True, True, True, (),
    ]  # fmt: skip


def home() -> int:
    """The namespace that this process is in."""
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def asks(guest: Guest) -> str | None:
    """Who answers it for the neighbour; nobody where it has no link."""
    try:
        return guest.resolves("192.0.2.5")
    except OSError:
        return None


def discover(card: str) -> bytes:
    """A question for an address (RFC 2131)."""
    head = (
        struct.pack("!BBBBIHH16x", 1, 1, 6, 0, 0x1234, 0, 0x8000)
        + bytes.fromhex(card.replace(":", ""))
        + bytes(10 + 192)
    )
    packet = udp("255.255.255.255", "255.255.255.255", (68, 67), head + b"\x63\x82\x53\x63\x35\x01\x01\xff")
    source = packet[:12] + ip_address("0.0.0.0").packed + packet[16:26] + b"\0\0" + packet[28:]
    head20 = source[:10] + b"\0\0" + source[12:20]
    total = sum(struct.unpack("!10H", head20))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return ether(EVERYBODY, card, IPV4, source[:10] + struct.pack("!H", total) + source[12:])


@contextlib.contextmanager
def server(net: int) -> Iterator[None]:
    """A DHCP server on the neighbour."""
    with lab.inside(net):
        line = "dnsmasq -k -p 0 --dhcp-range=192.0.2.100,192.0.2.120 --dhcp-leasefile=/dev/null --no-ping -i eth0 --user=root --conf-file=/dev/null"
        process = subprocess.Popen(line.split(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(5)


@needs_root
@needs_program("dnsmasq")
def test_addresses_come_from_the_network_s_own_dhcp_server() -> None:
    async def main() -> list[bool]:
        neighbour = lan()
        async with engine() as fabric:
            network = bridged()
            await fabric.ensure(network)
            (guest,) = await plugged(fabric, network)
            with server(neighbour):
                for _ in range(20):
                    guest.send(discover(guest.card))
                    if offer := guest.wait(lambda frame: frame[34:38] == struct.pack("!HH", 67, 68), 0.3):
                        return [offer[58:61] == ip_address("192.0.2.100").packed[:3]]
            return [False]

    assert on_host("root", main) == [True]


def forgeries(liar: Guest) -> dict[str, bytes]:
    """What no machine has to say on its host's network, each with the word "forged" in it."""
    strange, mine, word = "52:54:00:99:99:99", liar.card, b"forged" * 4
    router = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + word
    return {
        "mac": ether(EVERYBODY, strange, IPV4, udp(liar.address4, "192.0.2.5", (1, 7), word)),
        "arp of another": ether(EVERYBODY, mine, ARP, arp(2, (strange, "192.0.2.1"), (EVERYBODY, "192.0.2.5")) + word),
        "dhcp": ether(EVERYBODY, mine, IPV4, udp(liar.address4, "255.255.255.255", (67, 68), word)),
        "dhcpv6": ether("33:33:00:00:00:01", mine, IPV6, udp(liar.address6, "ff02::1", (547, 546), word)),
        "router": ether("33:33:00:00:00:01", mine, IPV6, icmpv6("fe80::99", "ff02::1", 134, router)),
        "redirect": ether("33:33:00:00:00:01", mine, IPV6, icmpv6("fe80::99", "ff02::1", 137, router)),
        "spanning tree": ether("01:80:c2:00:00:00", mine, 0x0027, b"\x42\x42\x03" + word),
        "of bridges alone, which no bridge forwards": ether(
            "01:80:c2:00:00:0e", mine, IPV4, udp(liar.address4, "192.0.2.5", (1, 7), word)
        ),
        "vlan": ether(
            EVERYBODY, mine, 0x8100, struct.pack("!HH", 5, IPV4) + udp(liar.address4, "192.0.2.5", (1, 7), word)
        ),
        "double vlan": ether(EVERYBODY, mine, 0x88A8, struct.pack("!HH", 5, IPV4) + word),
        "another protocol": ether(NEIGHBOUR, mine, 0x88CC, word),
    }


@needs_root
@pytest.mark.fault(73)
def test_what_no_machine_has_to_say_comes_out_nowhere_and_is_counted() -> None:
    async def main() -> list[Any]:
        neighbour = lan()
        async with engine() as fabric:
            network = bridged(2)
            await fabric.ensure(network)
            liar, other = await plugged(fabric, network)
            with lab.inside(neighbour), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as listener:
                listener.bind(("eth0", 3))
                listener.settimeout(0.5)
                for _ in range(10):
                    for frame in forgeries(liar).values():
                        liar.send(frame)
                liar.send4(udp(liar.address4, "192.0.2.5", (1, 7), b"honest"))
                seen = []
                with contextlib.suppress(TimeoutError):
                    while True:
                        seen.append(listener.recv(3000))
            found = [
                any(b"forged" in one for one in seen),
                any(b"honest" in one for one in seen),
                other.hears(b"forged", 0.3),
            ]
            drops = (await fabric.look(LAN)).drops
            return [*found, {name: drops[name] for name in sorted(drops) if drops[name]}]

    counted = {
        "foreign": 30,
        "rogue_control": 10,
        "rogue_dhcp": 20,
        "rogue_ra": 20,
        "spoofed_arp": 10,
        "spoofed_mac": 10,
    }
    assert on_host("root", main) == [False, True, False, counted]


@needs_root
@pytest.mark.fault(71)
def test_a_flood_to_everybody_is_bounded() -> None:
    async def main() -> bool:
        lan()
        async with engine() as fabric:
            network = bridged(2)
            await fabric.ensure(network)
            liar, other = await plugged(fabric, network)
            for _ in range(5000):
                liar.send(
                    ether(EVERYBODY, liar.card, ARP, arp(1, (liar.card, liar.address4), (EVERYBODY, "192.0.2.77")))
                )
            return len(list(other.frames(0.1))) < 2500 and (await fabric.look(LAN)).drops["flood_broadcast"] > 2000

    assert on_host("root", main)


async def refusal(network: Wanted) -> str:
    async with engine() as fabric:
        try:
            await fabric.ensure(network)
        except RoostError as error:
            return f"{error.why} / {error.fix}"
    return ""


@needs_root
def test_a_card_of_the_host_is_never_taken_and_keeps_its_addresses() -> None:
    async def main() -> list[Any]:
        neighbour = lan()
        with lab.inside(neighbour):
            before = sh("ip -o addr show eth0")
            why = await refusal(bridged(interface="eth0"))
            return [why, sh("ip -o addr show eth0") == before, sh("ip -o link").count("rst")]

    why, *rest = on_host("root", main)
    assert "eth0 is no bridge" in why
    assert rest == [True, 0]


@needs_root
@pytest.mark.parametrize(
    ("fields", "word"),
    [({"interface": "nowhere"}, "no interface nowhere"), ({"vlan": 5}, "eth0.5"), ({"interface": ""}, "")],
)
def test_what_can_not_be_bridged_is_refused(fields: dict[str, Any], word: str) -> None:
    async def main() -> str:
        lan()
        return await refusal(bridged(**fields))

    answer = on_host("root", main)
    assert answer and word in answer


def test_an_ordinary_user_is_told_that_the_bridges_are_roots() -> None:
    async def main() -> str:
        return await refusal(bridged())

    assert "root" in on_host("user", main)


@needs_root
@pytest.mark.parametrize("command", ["ip link set {outer} nomaster", "ip link del {outer}", "ip link set {outer} down"])
def test_a_foreign_tool_s_change_is_noticed_and_set_right(command: str) -> None:
    async def main() -> list[Any]:
        lan()
        async with engine() as fabric:
            network = bridged()
            await fabric.ensure(network)
            (guest,) = await plugged(fabric, network)
            await asyncio.sleep(0.3)
            told = await woken(fabric, lambda: sh(command.format(outer=names.veth(LAN))))
            await fabric.ensure(network)
            return [LAN in told, guest.resolves("192.0.2.5")]

    assert on_host("root", main) == [True, NEIGHBOUR]


@needs_root
@pytest.mark.parametrize(
    "command", ["nft flush ruleset", "ip link set {tap} nomaster", "ip link del br0", "ip link set up0 nomaster"]
)
def test_what_is_destroyed_within_is_set_right(command: str) -> None:
    async def main() -> list[Any]:
        lan()
        async with engine() as fabric:
            network = bridged()
            await fabric.ensure(network)
            (guest,) = await plugged(fabric, network)
            await asyncio.sleep(0.3)
            line = command.format(tap=network.ports[0].interface)
            told = await woken(fabric, lambda: inside(fabric, LAN, line))
            repaired = await fabric.ensure(network)
            return [LAN in told, bool(repaired.differs), guest.resolves("192.0.2.5"), (await fabric.look(LAN)).differs]

    assert on_host("root", main) == [True, True, NEIGHBOUR, ()]


@needs_root
def test_links_ports_and_rule_sets_that_can_not_hold() -> None:
    async def main() -> list[Any]:
        lan()
        async with engine() as fabric:
            network = bridged(2)
            first, second = network.ports
            guarded = network._replace(ports=(first, second._replace(rulesets=("web",))))
            published = (Published("forwards/x", "127.0.0.1", 80, "tcp", "192.0.2.21", 80, first.interface),)
            seen = await fabric.ensure(guarded._replace(published=published))
            one, two = await plugged(fabric, guarded)
            found: list[Any] = [
                bool(seen.warnings),
                set(seen.unpublished),
                asks(two),
                asks(one),
            ]
            await fabric.ensure(network)
            found.append(asks(two))
            await fabric.ensure(network._replace(ports=(first._replace(link=False), second)))
            found.append(asks(one))
            limited = second._replace(down=8_000_000, up=8_000_000)
            await fabric.ensure(network._replace(ports=(first, limited)))
            found += [asks(two), (await fabric.look(LAN)).differs]
            return found

    assert on_host("root", main) == [True, {"forwards/x"}, None, NEIGHBOUR, NEIGHBOUR, None, NEIGHBOUR, ()]


@needs_root
def test_the_rules_for_the_doors_of_other_networks_do_not_stop_it() -> None:
    async def main() -> list[Any]:
        neighbour = lan()
        async with engine() as fabric:
            await fabric.ensure(wanted(1, OTHER, "kernel"))
            await fabric.ensure(bridged())
            (guest,) = await plugged(fabric, bridged())
            listener = heard(neighbour, address="192.0.2.5")
            guest.send4(udp(guest.address4, "192.0.2.5", (9, 7), b"hello"))
            return [
                listener.recv(100),
                sh("cat /proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || echo 0").strip(),
            ]

    assert on_host("root", main)[0] == b"hello"


@needs_root
def test_nothing_is_left_when_it_goes() -> None:
    async def main() -> list[Any]:
        lan()
        before = facts_of_bridge(), sh("ip -o link | wc -l")
        async with engine() as fabric:
            await fabric.ensure(bridged())
            await plugged(fabric, bridged())
            await fabric.remove(LAN)
            return [(facts_of_bridge(), sh("ip -o link | wc -l")) == before, sh("nft list tables")]

    assert on_host("root", main) == [True, ""]
