"""Networks outlive the daemon, the worker, the holder and foreign tools, and leave nothing when they go."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host import failpoints, links, processes
from roost.host.namespaces import identity
from roost.network import names
from roost.network.fabric import NetworkFabric
from roost.network.place import Place
from tests.fabrics import LAN, OTHER, engine, inside, on_host, paths, plug, sh, wanted, woken
from tests.frames import udp
from tests.needs import needs_program, needs_root, repetitions
from tests.ordinary import WHO

pytestmark = [pytest.mark.live, needs_program("ip", "nft"), pytest.mark.timeout(600)]
both = pytest.mark.parametrize("who", WHO)
STEPS = "held recorded guarded arranged outside served applied plugged stopped shut released"
POINTS = [f"network.{step}" for step in STEPS.split()]


def door() -> Any:
    return "kernel" if os.geteuid() == 0 else "none"


def left(home: Path) -> list[str]:
    """What of networks is still there: files, links, our tables, processes that hold a namespace."""
    found = [str(path) for path in (home / "run").rglob("*")]
    found += [name for name in (names.veth(LAN), names.veth(OTHER)) if links.exists(name)]
    if os.geteuid() == 0:
        found += [line for line in sh("nft list tables").splitlines() if "roost" in line]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        found += [
            f"{entry.name} {words}"
            for word in words[1:2]
            if word in (f"network {LAN}".encode(), f"network {OTHER}".encode())
        ]
    return found


@both
@pytest.mark.parametrize(
    "command",
    [
        "ip address flush dev lo", "ip route flush proto 82", "nft flush ruleset", "nft delete table arp roost",
        "nft add rule inet roost forward accept", "ip link set {tap} down", "ip neigh flush nud permanent dev {tap}",
        "ip link set {tap} address 02:00:00:00:00:99", "echo 0 > /proc/sys/net/ipv4/ip_forward; ip link set lo mtu 60000",
        "ip link del up0 || ip addr flush dev lo",
    ],
)  # fmt: skip
def test_what_a_foreign_tool_destroys_is_noticed_and_set_right(who: str, command: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(door=door())
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            await asyncio.sleep(0.3)
            told = await woken(fabric, lambda: inside(fabric, LAN, command.format(tap=network.ports[1].interface)))
            repaired = await fabric.ensure(network)
            again = await fabric.look(LAN)
            one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
            return [told[:1], bool(repaired.differs), again.differs, two.hears(b"hello")]

    assert on_host(who, main) == [[LAN], True, (), True]


@needs_root
@pytest.mark.parametrize("command", ["ip link del {veth}", "nft delete table inet roost", "ip addr flush dev {veth}"])
def test_what_a_foreign_tool_destroys_on_the_host_is_noticed_and_set_right(command: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(door="kernel")
            await fabric.ensure(network)
            await asyncio.sleep(0.3)
            veth = links.named("rst")[0]
            told = await woken(fabric, lambda: sh(command.format(veth=veth)))
            await fabric.ensure(network)
            found = [told[:1], "inet roost" in sh("nft list tables"), len(sh("ip -br addr show " + veth).split()) > 3]
            return [*found, "doors4" in sh("nft list table inet roost"), veth in sh("nft list set inet roost doors4")]

    assert on_host("root", main) == [[LAN], True, True, True, True]


@needs_root
def test_the_tables_of_others_are_never_touched() -> None:
    async def main() -> list[bool]:
        sh("nft add table ip theirs; nft add chain ip theirs f '{ type filter hook forward priority 5; policy drop; }'")
        sh("nft add table inet filter; nft add set inet filter roost '{ type ipv4_addr; }'")
        before = sh("nft list table ip theirs; nft list table inet filter")
        async with engine() as fabric:
            for _ in range(2):
                await fabric.ensure(wanted(door="kernel"))
            await fabric.remove(LAN)
        return [
            before == sh("nft list table ip theirs; nft list table inet filter"),
            "inet roost" in sh("nft list tables"),
        ]

    assert on_host("root", main) == [True, False]


@needs_root
def test_a_host_that_begins_to_forward_still_learns_its_own_router() -> None:
    async def main() -> list[str]:
        sh("ip link add up9 type veth peer name far9; ip link add up8 type veth peer name far8")
        sh("echo 0 > /proc/sys/net/ipv6/conf/up8/accept_ra; echo 1 > /proc/sys/net/ipv6/conf/up9/accept_ra")
        async with engine() as fabric:
            await fabric.ensure(wanted(door="kernel"))
            await fabric.remove(LAN)
        return sh("cd /proc/sys/net/ipv6/conf; cat all/forwarding up9/accept_ra up8/accept_ra").split()

    assert on_host("root", main) == ["1", "2", "0"]


@both
def test_a_killed_holder_is_replaced_and_the_namespace_and_its_taps_stay(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(door=door())
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            place = fabric._networks[LAN].place
            assert place is not None
            before, pid = identity(place.namespaces), place._record.process.pid
            told = await woken(fabric, lambda: os.kill(pid, signal.SIGKILL))
            await processes.wait_exit(place._pidfd)
            seen = await fabric.ensure(network)
            after = fabric._networks[LAN].place
            assert after is not None
            one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
            return [told[:1], before == identity(after.namespaces), after.is_alive, seen.differs, two.hears(b"hello")]

    assert on_host(who, main) == [[LAN], True, True, (), True]


@both
def test_a_killed_worker_is_replaced(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted()
            await fabric.ensure(network)
            child = fabric._worker._child
            assert child is not None
            os.kill(child.pid, signal.SIGKILL)
            one, two = await plug(fabric, network)
            one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
            return [two.hears(b"hello"), (await fabric.ensure(network)).differs]

    assert on_host(who, main) == [True, ()]


async def _life(home: Path, point: str, action: str, uid: str = LAN) -> int:
    """A daemon that makes, plugs, removes; and dies at a failpoint, with its worker. Its exit code."""
    pid = os.fork()
    if pid == 0:
        failpoints._armed = (point, action)
        asyncio.set_event_loop_policy(None)
        asyncio.events._set_running_loop(None)
        try:
            asyncio.run(_lead(home, uid))
        finally:
            os._exit(0)
    return await asyncio.to_thread(lambda: os.waitpid(pid, 0)[1])


async def _lead(home: Path, uid: str = LAN) -> None:
    fabric = NetworkFabric(paths(home), None)  # type: ignore[arg-type]
    network = wanted(uid=uid, door=door())
    await fabric.ensure(network)
    tap = await fabric.plug(uid, network.ports[0].interface)
    os.close(tap)
    await fabric.remove(uid)


@both
@pytest.mark.fault(94)
@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_killed_between_any_two_steps_leaves_what_the_next_one_finishes_or_removes(
    who: str, point: str
) -> None:
    async def main() -> list[Any]:
        found: list[Any] = []
        for finish in (True, False):
            with tempfile.TemporaryDirectory() as directory:
                home = Path(directory)
                found.append(os.WTERMSIG(await _life(home, point, "kill")))
                async with engine(home) as fabric:
                    network = wanted(door=door())
                    if finish:
                        await fabric.ensure(network)
                        one, two = await plug(fabric, network)
                        one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
                        found.append(two.hears(b"hello"))
                        one.close()
                        two.close()
                    await fabric.remove(LAN)
                    await fabric.remove(LAN)
                found.append(left(home))
        return found

    assert on_host(who, main) == [signal.SIGKILL, True, [], signal.SIGKILL, []]


@needs_root
@pytest.mark.fault(94)
@pytest.mark.parametrize("point", ["network.announced", "network.guarded"])
def test_what_a_killed_daemon_put_into_the_hosts_table_goes_with_its_network_while_another_stays(point: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory)
            async with engine(home) as fabric:
                await fabric.ensure(wanted(door="kernel"))
            died = os.WTERMSIG(await _life(home, point, "kill", OTHER))
            async with engine(home) as fabric:
                await fabric.remove(OTHER)
                table = sh("nft list table inet roost")
                await fabric.remove(LAN)
            return [died, names.veth(OTHER) in table, names.veth(LAN) in table, left(home)]

    assert on_host("root", main) == [signal.SIGKILL, False, True, []]


@both
@pytest.mark.parametrize("point", POINTS)
def test_a_step_that_fails_can_be_tried_again(who: str, point: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory)
            failpoints._armed = (point, "eio")
            with contextlib.suppress(OSError, RoostError):
                await _lead(home)
            failpoints._armed = None
            async with engine(home) as fabric:
                await fabric.ensure(wanted(door=door()))
                differs = (await fabric.look(LAN)).differs
                await fabric.remove(LAN)
            return [differs, left(home)]

    assert on_host(who, main) == [(), []]


@both
def test_the_next_daemon_adopts_the_network_with_its_taps_counters_and_rules(who: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home, network = Path(directory), wanted(door=door())
            async with engine(home) as first:
                await first.ensure(network)
                one, two = await plug(first, network)
                one.send4(udp("10.20.77.77", two.address4, (1, 2), b"forged"))
                counted = (await first.look(LAN)).drops["spoofed_ipv4"]
            async with engine(home) as second:
                seen = await second.ensure(network)
                same = (await second.look(LAN)).drops["spoofed_ipv4"]
                one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
                found = [counted, same, seen.differs, len(seen.plugged), two.hears(b"hello")]
                await second.remove(LAN)
            one.close()
            two.close()
            return [*found, left(home)]

    assert on_host(who, main) == [1, 1, (), 2, True, []]


@both
def test_a_network_whose_holder_and_daemon_were_killed_is_made_anew(who: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home, network = Path(directory), wanted(door=door())
            async with engine(home) as first:
                await first.ensure(network)
                taps = await plug(first, network)
                place = first._networks[LAN].place
                assert place is not None
                pid = place._record.process.pid
            os.kill(pid, signal.SIGKILL)
            for guest in taps:
                os.close(guest.tap)
            async with engine(home) as second:
                await second.ensure(network)
                one, two = await plug(second, network)
                one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
                found = two.hears(b"hello")
                await second.remove(LAN)
            return [found]

    assert on_host(who, main) == [True]


@both
def test_a_namespace_that_only_taps_keep_is_found_again_with_them(who: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home, network = Path(directory), wanted(door=door())
            async with engine(home) as first:
                await first.ensure(network)
                one, two = await plug(first, network)
                place = first._networks[LAN].place
                assert place is not None
                before, pid = identity(place.namespaces), place._record.process.pid
            os.kill(pid, signal.SIGKILL)
            async with engine(home) as second:
                seen = await second.ensure(network)
                found = second._networks[LAN].place
                assert found is not None
                one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
                heard = two.hears(b"hello")
                after = identity(found.namespaces)
                await second.remove(LAN)
            return [before == after, len(seen.plugged), heard]

    assert on_host(who, main) == [True, 2, True]


async def _step(fabric: NetworkFabric, chance: random.Random, taps: list[int]) -> None:
    """Something that a control plane may ask; what is refused is refused."""
    network = wanted(chance.randrange(4), uid=chance.choice((LAN, OTHER)), door=door())
    with contextlib.suppress(NotFound, Conflict):
        match chance.randrange(4):
            case 0:
                await fabric.remove(network.uid)
            case 1 if taps:
                os.close(taps.pop())
            case 2 if network.ports:
                taps.append(await fabric.plug(network.uid, chance.choice(network.ports).interface))
            case _:
                await fabric.ensure(network)


@both
@pytest.mark.fault(94)
def test_whatever_is_asked_at_once_in_whatever_order_leaves_a_whole_network_or_none(who: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home, chance = Path(directory), random.Random(94)
            taps: list[int] = []

            async with engine(home) as fabric:
                for _ in range(repetitions(6, 100)):
                    await asyncio.gather(*(_step(fabric, chance, taps) for _ in range(6)))
                for tap in taps:
                    os.close(tap)
                whole = []
                for uid in (LAN, OTHER):
                    await fabric.ensure(wanted(2, uid=uid, door=door()))
                    whole.append((await fabric.look(uid)).differs)
                    await asyncio.gather(fabric.remove(uid), fabric.remove(uid))
            return [*whole, left(home)]

    assert on_host(who, main) == [(), (), []]


@both
@pytest.mark.fault(95)
def test_networks_made_and_removed_leave_nothing(who: str) -> None:
    async def main() -> list[Any]:
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory)
            async with engine(home) as fabric:
                counts = []
                for number in range(repetitions(24, 200)):
                    uid = f"{number:08x}-0000-4000-8000-000000000000"
                    network = wanted(1, uid=uid, door=door())
                    await fabric.ensure(network)
                    os.close(await fabric.plug(uid, network.ports[0].interface))
                    await fabric.remove(uid)
                    counts.append(len(list(Path("/proc/self/fd").iterdir())))
                found = [counts[-1] - counts[1], len(fabric._networks), Place.accounts(paths(home).networks)]
            return [*found, left(home)]

    assert on_host(who, main) == [0, 0, set(), []]


@both
def test_a_port_is_plugged_in_once_and_only_where_it_is_wanted(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted()
            await fabric.ensure(network)
            (one,) = await plug(fabric, network, 0)
            found = []
            for uid, interface in ((LAN, network.ports[0].interface), (LAN, "tap99999999"), (OTHER, "tap99999999")):
                try:
                    await fabric.plug(uid, interface)
                except RoostError as error:
                    found.append(error.code)
            one.close()
            await plug(fabric, network, 0)
            return found

    assert on_host(who, main) == ["conflict", "not-found", "not-found"]


def test_a_host_without_namespaces_says_so() -> None:
    async def main() -> tuple[str, str]:
        async with engine() as fabric:
            try:
                await fabric.ensure(wanted())
            except Unavailable as error:
                return error.what, error.fix
        return "", ""

    what, fix = on_host(WHO[-1], main, namespaces=False)
    assert what == "the network has no namespaces"
    assert fix.startswith("sudo sysctl ")


@needs_root
def test_the_door_is_the_kernel_where_a_packet_gets_through_and_pasta_where_a_firewall_drops_it() -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            found = [await fabric.door("nat"), await fabric.door("isolated")]
            sh("nft add table ip d; nft add chain ip d f '{ type filter hook forward priority 0; policy drop; }'")
        async with engine() as fabric:
            kind, why = await fabric.door("nat")
            return [*found, kind, "firewall" in why, sh("ip -br link").split()[0::9]]

    assert on_host("root", main) == [("kernel", ""), ("none", ""), "pasta", True, ["lo"]]


@both
def test_changes_of_ours_are_never_taken_for_those_of_others_and_each_is_a_small_one(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(40)
            told: list[str] = []
            fabric.on_change(told.append)
            await fabric.ensure(network)
            asked: list[str] = []
            ask = fabric._worker.ask

            async def noted(request: Any, *namespaces: Any) -> Any:
                asked.append(type(request).__name__)
                return await ask(request, *namespaces)

            fabric._worker.ask = noted
            await fabric.ensure(network._replace(ports=network.ports[1:]))
            await fabric.ensure(network)
            await asyncio.sleep(0.4)
            return [told, list(asked), (await fabric.look(LAN)).differs]

    assert on_host(who, main) == [[], ["Update", "Update"], ()]
