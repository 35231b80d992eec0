"""Networks that span hosts: guests talk across two and three of them, nobody else gets in, and hosts come and go."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import msgspec
import pytest

from roost.errors import Conflict, Unavailable
from roost.model.ruleset import Rule, RuleSetSpec
from roost.network import names
from tests import hosts as lab
from tests.fabrics import engine, inside, on_host, plug, sh, wanted
from tests.frames import Guest, udp
from tests.hosts import Host, hosts, network, on_wire
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.live, needs_program("ip", "nft"), pytest.mark.timeout(300)]
VXLAN = 4789


async def made(places: Sequence[Host], **fields: Any) -> list[Guest]:
    """A guest on each host, all in one network."""
    numbers = [host.number for host in places]
    return [await joins(host, [one for one in numbers if one != host.number], **fields) for host in places]


async def joins(host: Host, peers: Sequence[int], **fields: Any) -> Guest:
    wish = network(host.number, peers, **fields)
    await host.fabric.ensure(wish)
    return (await plug(host.fabric, wish))[0]


def says(one: Guest, other: Guest, *, word: bytes = b"hello", seconds: float = 2.0) -> tuple[bool, bool]:
    """Whether the other hears the one, over both versions of IP."""
    return says4(one, other, word, seconds), says6(one, other, word, seconds)


def says4(one: Guest, other: Guest, word: bytes, seconds: float = 2.0) -> bool:
    one.send4(udp(one.address4, other.address4, (1000, 2000), b"4" + word))
    return other.hears(b"4" + word, seconds)


def says6(one: Guest, other: Guest, word: bytes, seconds: float = 2.0) -> bool:
    one.send6(udp(one.address6, other.address6, (1000, 2000), b"6" + word))
    return other.hears(b"6" + word, seconds)


def dropped(host: Host) -> int:
    """What the host dropped of forged tunnels."""
    with host.here():
        listing = msgspec.json.decode(sh("nft -j list counter inet roost forged_tunnel"))["nftables"]
    return int(next(one["counter"]["packets"] for one in listing if "counter" in one))


@needs_root
@pytest.mark.parametrize(("count", "version"), [(2, 4), (3, 4), (3, 6)])
def test_guests_on_several_hosts_talk_over_both_versions_of_ip(count: int, version: int) -> None:
    async def main() -> list[Any]:
        async with hosts(count) as places:
            guests = await made(places, version=version)
            found = [says(one, other) for one, other in permutations(guests, 2)]
            looks = [await host.fabric.look(network(host.number, []).uid) for host in places]
            return [set(found), {look.differs for look in looks}]

    assert on_host("root", main) == [{(True, True)}, {()}]


@needs_root
def test_the_largest_packet_crosses_in_one_piece_and_nothing_is_flooded() -> None:
    async def main() -> list[Any]:
        async with hosts(3) as places:
            guests = await made(places)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as third:
                third.bind(("w3", 0))
                third.settimeout(0.3)
                whole = says4(guests[0], guests[1], b"x" * (1450 - 28 - 1))
                guests[0].send4(udp(guests[0].address4, "10.20.2.77", (1, 2), b"nobody"))
                says6(guests[0], guests[1], b"small")
                seen = []
                with contextlib.suppress(TimeoutError):
                    while True:
                        seen.append(third.recv(3000))
            with places[1].here():
                pieces = sh("awk '/^Ip: [0-9]/ {print $15}' /proc/net/snmp").strip()
            tunnelled = [frame for frame in seen if struct.pack("!H", VXLAN) in frame[20:60]]
            return [whole, tunnelled, pieces]

    assert on_host("root", main) == [True, [], "0"]


@needs_root
def test_rule_sets_hold_between_hosts_and_change_while_the_network_is_in_use() -> None:
    web = RuleSetSpec(rules=(Rule(direction="in", protocol="udp", ports=("2000",), cidr="10.20.1.0/24"),))

    async def main() -> list[Any]:
        async with hosts(2) as (here, there):
            one = await joins(here, [2])
            closed = RuleSetSpec(rules=(Rule(direction="in", action="deny"),))
            guarded = tuple(it._replace(rulesets=("web",)) for it in lab.ports(2, uid=network(2, []).uid))
            wish = network(2, [1], ports=guarded, rulesets={"web": closed})
            await there.fabric.ensure(wish)
            (two,) = await plug(there.fabric, wish)
            found: list[Any] = [says(one, two, seconds=0.3)]
            await there.fabric.ensure(wish._replace(rulesets={"web": web}))
            found.append(says(one, two, seconds=0.5))
            one.send4(udp(one.address4, two.address4, (1000, 2001), b"another"))
            found.append(two.hears(b"another", 0.3))
            await there.fabric.ensure(wish)
            found.append(says(one, two, seconds=0.3))
            found.append((await there.fabric.look(wish.uid)).drops["refused"] > 0)
            return found

    assert on_host("root", main) == [(False, False), (True, False), False, (False, False), True]


def forgeries(victim: Guest, *, id: int = lab.ID) -> dict[str, bytes]:
    """Tunnelled frames for host 2 that pretend to come from machines of hosts and of strangers."""
    card = names.tunnel_mac(on_wire(2))
    sources = ("10.20.1.2", "10.20.1.99", "10.20.2.9", "203.0.113.1")
    cards = {"tunnel": card, "victim": victim.card, "everybody": "ff:ff:ff:ff:ff:ff"}
    return {
        f"{source} to {which}": lab.packed(lab.carried(to, "02:00:00:00:00:01", source, victim, b"forged"), id=id)
        for source in sources
        for which, to in cards.items()
    }


@needs_root
@pytest.mark.fault(75)
def test_neither_guests_nor_processes_of_a_host_forge_tunnels_to_the_hosts() -> None:
    async def main() -> list[Any]:
        async with hosts(2) as (here, there):
            victim = await joins(there, [1], door="kernel")
            with there.here():
                sh("ip addr add 192.0.2.222/24 dev eth0")  # it has another address, which is in no list
            inner, outer = network(1, [2], door="kernel"), wanted(1, door="kernel")
            guests = []
            for one in (inner, outer):
                await here.fabric.ensure(one)
                guests += await plug(here.fabric, one)
            with here.here():
                process = lab.sender()
                unreachable = []
                for text in forgeries(victim).values():
                    for address in (on_wire(2), "192.0.2.222", on_wire(1), "192.0.2.255"):
                        for guest in guests:
                            guest.send4(udp(guest.address4, address, (VXLAN, VXLAN), text))
                        try:
                            process.sendto(text, (address, VXLAN))
                        except OSError as error:
                            unreachable.append(error.errno)
            forged = victim.hears(b"forged", 1.0)
            return [forged, dropped(here) > 0, dropped(there) > 0, says(guests[0], victim)]

    assert on_host("root", main) == [False, True, True, (True, True)]


@needs_root
@pytest.mark.fault(75)
def test_a_stranger_on_the_wire_does_not_get_in_until_it_is_a_peer() -> None:
    async def main() -> list[Any]:
        async with hosts(2) as places:
            guests = await made(places)
            stranger = lab.joined(9)

            def attack(source: str) -> bool:
                inner = lab.carried(
                    names.tunnel_mac(on_wire(2)), names.tunnel_mac(on_wire(9)), source, guests[1], b"forged"
                )
                with lab.inside(stranger), lab.sender() as process:
                    process.sendto(lab.packed(inner), (on_wire(2), VXLAN))
                return guests[1].hears(b"forged", 0.5)

            found: list[Any] = [attack("10.20.1.2"), attack("10.20.9.2"), dropped(places[1])]
            await places[1].fabric.ensure(network(2, [1, 9]))
            found += [attack("10.20.9.2"), attack("203.0.113.1"), attack("10.20.2.2")]
            await places[1].fabric.ensure(network(2, [1]))
            found += [attack("10.20.9.2"), says(*guests)]
            os.close(stranger)
            return found

    assert on_host("root", main) == [False, False, 2, True, False, False, False, (True, True)]


@needs_root
@pytest.mark.fault(78)
def test_networks_with_different_ids_and_the_same_addresses_never_meet() -> None:
    async def main() -> list[Any]:
        async with hosts(2) as places:
            ours, theirs = await made(places), await made(places, id=43)
            found: list[Any] = [says(*ours, word=b"ours"), says(*theirs, word=b"theirs")]
            heard = [guest.hears(word, 0.2) for guest, word in ((ours[1], b"theirs"), (theirs[1], b"ours"))]
            return [*found, heard]

    assert on_host("root", main) == [(True, True), (True, True), [False, False]]


@needs_root
def test_peers_come_move_and_go_while_the_others_talk() -> None:
    async def main() -> list[Any]:
        async with hosts(3) as places:
            one, two = await made(places[:2])
            found: list[Any] = [says(one, two)]
            three = await joins(places[2], [1, 2])
            found.append(says(one, three, seconds=0.3))
            for host in places[:2]:
                await host.fabric.ensure(network(host.number, [it for it in (1, 2, 3) if it != host.number]))
            found += [says(one, three), says(three, two), says(one, two)]
            await places[0].fabric.ensure(network(1, [2]))
            found += [says(one, three, seconds=0.3), says(one, two), says(three, two)]
            return found

    yes, no = (True, True), (False, False)
    assert on_host("root", main) == [yes, no, yes, yes, yes, no, yes, yes]


@needs_root
def test_the_identity_and_the_size_of_the_tunnel_change_in_place() -> None:
    async def main() -> list[Any]:
        async with hosts(2) as places:
            guests = await made(places)
            found: list[Any] = []
            for id, mtu in ((42, 1400), (77, 1400), (42, 1450)):
                for host in places:
                    wish = network(host.number, [3 - host.number])
                    vxlan = lab.spanned(host.number, [3 - host.number], id=id)
                    await host.fabric.ensure(wish._replace(vxlan=vxlan, mtu=mtu))
                found.append(says(*guests))
                found += [(await host.fabric.look(network(host.number, []).uid)).differs for host in places]
            return found

    assert on_host("root", main) == [(True, True), (), ()] * 3


@needs_root
@pytest.mark.parametrize(
    "command",
    ["ip link del vx0", "ip link set vx0 down", "bridge fdb flush dev vx0; ip neigh flush nud permanent dev vx0"],
)
def test_what_a_foreign_tool_does_to_the_tunnel_is_set_right(command: str) -> None:
    async def main() -> list[Any]:
        async with hosts(2) as places:
            guests = await made(places)
            wish = network(1, [2])
            inside(places[0].fabric, wish.uid, command)
            places[0].fabric._networks[wish.uid].clean = False
            repaired = await places[0].fabric.ensure(wish)
            return [bool(repaired.differs), says(*guests), (await places[0].fabric.look(wish.uid)).differs]

    assert on_host("root", main) == [True, (True, True), ()]


@needs_root
def test_a_host_that_is_killed_comes_back() -> None:
    async def main() -> list[Any]:
        async with hosts(1) as (here,), contextlib.AsyncExitStack() as stack:
            one = await joins(here, [2])
            first = await lab.added(stack, 2)
            two = await joins(first, [1])
            found: list[Any] = [says(one, two)]
            place = first.fabric._networks[network(2, []).uid].place
            assert place is not None
            os.kill(place._record.process.pid, signal.SIGKILL)
            two.close()
            sh("ip link del w2")
            found.append(says4(one, one, b"itself", 0.1))
            second = await lab.added(stack, 2)
            again = await joins(second, [1])
            return [*found, says(one, again), says(again, one)]

    assert on_host("root", main)[::2] == [(True, True), (True, True)]


@needs_root
def test_nothing_is_left_on_the_host_when_the_network_goes() -> None:
    async def main() -> list[Any]:
        async with hosts(2) as places:
            await made(places)
            wish = network(1, [2])
            with places[0].here():
                before = "4789" in sh("ss -uln")
                await places[0].fabric.remove(wish.uid)
                return [
                    before,
                    "4789" in sh("ss -uln"),
                    sh("nft list ruleset"),
                    sh("ip -o link | grep -c vx || true").strip(),
                ]

    assert on_host("root", main) == [True, False, "", "0"]


@needs_root
def test_the_tables_of_other_tunnels_of_the_host_are_left_alone() -> None:
    async def main() -> list[Any]:
        async with hosts(2) as places:
            await made(places)
            for host, other in ((places[0], places[1]), (places[1], places[0])):
                with host.here():
                    sh(
                        f"ip link add foreign type vxlan id 9 local {on_wire(host.number)} dstport {VXLAN} "
                        f"remote {on_wire(other.number)}; ip addr add 10.9.9.{host.number}/24 dev foreign; ip link set foreign up"
                    )
            with places[1].here():
                listener = lab.sender("10.9.9.2")
                listener.settimeout(3)
            with places[0].here():
                lab.sender("10.9.9.1").sendto(b"foreign", listener.getsockname())
            return [listener.recv(100)]

    assert on_host("root", main) == [b"foreign"]


@needs_root
def test_an_id_that_another_network_of_the_host_has_is_refused() -> None:
    async def main() -> list[Any]:
        async with hosts(1) as (here,):
            await joins(here, [2])
            rival = network(7, [2])._replace(vxlan=lab.spanned(1, [2]))
            with pytest.raises(Conflict, match="another network"):
                await here.fabric.ensure(rival)
            await here.fabric.remove(rival.uid)
            with here.here():
                kept = [sh(f"nft list set inet roost {name}") for name in ("tunnels", "tunnel_here4", "tunnel_there4")]
            return ["0x2a" in text or "42" in text for text in kept]

    assert on_host("root", main) == [True, True, True]


def test_an_ordinary_user_is_told_that_spanning_hosts_is_roots() -> None:
    async def main() -> str:
        async with engine() as fabric:
            try:
                await fabric.ensure(network(1, [2]))
            except Unavailable as error:
                return f"{error.why} / {error.fix}"
            return ""

    assert "root" in on_host("user", main)
