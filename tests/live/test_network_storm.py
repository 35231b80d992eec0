"""Networks in a storm: whatever of them is killed, and whatever becomes of the host's own network, they come back by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from roost.control.addresses import LEASE_SECONDS
from roost.control.records import Records
from roost.errors import RoostError
from roost.host import kernel
from roost.model import codec
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import Meta, MiB
from roost.model.network import Network, NetworkSpec, PortSpec, Subnet
from roost.network import names
from roost.network.base import Seen, Wanted
from roost.network.fabric import NetworkFabric
from tests import attacks
from tests.control_plane import READY, Bench
from tests.fabrics import LAN, on_host, plug, sh, wanted
from tests.frames import Guest, udp
from tests.live.test_fabric_life import left
from tests.needs import needs_program, needs_root, repetitions
from tests.ordinary import WHO
from tests.served import door, pids, served, start

pytestmark = [pytest.mark.live, needs_program("ip", "nft", "dnsmasq"), pytest.mark.timeout(900)]
GATEWAY = "10.20.255.1"
VICTIMS = ("dnsmasq", "relay", "metadata", "upstream", "holder", "worker")
LONGEST = 20.0
"""Seconds in which a network comes back, on a machine that is busy with other tests."""


class Keeper:
    """What the control plane is to an engine: it makes the network again when it is told that something changed, or when that failed."""

    def __init__(self, home: Path, wish: Callable[[NetworkFabric], Any]) -> None:
        self.home, self.wish = home, wish
        self.fabric = start(home)
        self.event = asyncio.Event()
        self.seen: Seen | None = None
        self.troubles: list[str] = []
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        self.fabric.on_change(lambda uid: self.event.set())
        self.event.set()
        while True:
            await self.event.wait()
            self.event.clear()
            try:
                self.seen = await self.fabric.ensure(await self.wish(self.fabric))
            except RoostError as error:
                self.troubles.append(f"{error.what}: {error.why}")
                asyncio.get_running_loop().call_later(0.5, self.event.set)

    async def end(self) -> None:
        """Let go, as a daemon does that is told to."""
        self.task.cancel()
        await asyncio.wait([self.task])
        await self.fabric.close()

    async def until(self, holds: Callable[[], Any], what: str, seconds: float = LONGEST) -> float:
        """Seconds until it holds."""
        began = time.monotonic()
        while not await asyncio.to_thread(holds):
            spent = time.monotonic() - began
            assert spent < seconds, f"{what}: after {spent:.0f} s; {self.troubles[-3:]} {self.task}"
            await asyncio.sleep(0.05)
        return time.monotonic() - began


def _daemon(home: Path, network: Wanted) -> int:
    """A daemon that makes the network, or finds it, and goes on."""
    pid = os.fork()
    if pid == 0:
        asyncio.set_event_loop_policy(None)
        asyncio.events._set_running_loop(None)

        async def live() -> None:
            fabric = start(home)
            await fabric.ensure(network)
            await asyncio.sleep(60)

        try:
            asyncio.run(live())
        finally:
            os._exit(0)
    return pid


class Storm:
    """A network with guests, of which one thing after the other is killed."""

    def __init__(self, home: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.home = home
        self.network = wanted(3, door=door())
        self.guests: list[Guest] = []
        self.known: set[int] = set()
        self.keeper = Keeper(home, self._wish)

    async def _wish(self, fabric: NetworkFabric) -> Wanted:
        del fabric
        return self.network

    async def settle(self) -> float:
        """Seconds until all is as it was: all processes live, nothing differs, and guests are served and talk."""
        keeper = self.keeper
        await keeper.until(lambda: keeper.seen is not None, "the network")
        if not self.guests:
            self.guests = await plug(keeper.fabric, self.network)
        took = await keeper.until(self._is_whole, "the storm's damage")
        await keeper.until(self._is_served, "service")
        assert (await keeper.fabric.look(LAN)).differs == ()
        self.known |= set(pids(keeper.fabric, LAN).values())
        return took

    async def end(self) -> None:
        """Nothing is left, unless something is wrong."""
        for guest in self.guests:
            guest.close()
        self.keeper.task.cancel()
        await asyncio.wait([self.keeper.task])
        await self.keeper.fabric.remove(LAN)
        await self.keeper.fabric.close()

    def _is_whole(self) -> bool:
        return set(pids(self.keeper.fabric, LAN)) >= set(VICTIMS) - ({"upstream"} if door() == "none" else set())

    def _is_served(self) -> bool:
        one, two, _ = self.guests
        list(two.frames())
        one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
        offered, named = attacks.asks(one, 0.3), attacks.names(one, GATEWAY, "m1.default.internal", 0.3)
        return two.hears(b"hello", 0.3) and (offered, named) == (one.address4, two.address4)

    async def strike(self) -> str:
        """Kill one of them."""
        what = self.dice.choice((*VICTIMS, "daemon", "machine"))
        if what == "daemon":
            await self.keeper.end()
            pid = _daemon(self.home, self.network)
            await asyncio.sleep(self.dice.uniform(0.0, 0.6))
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
            self.keeper = Keeper(self.home, self._wish)
        elif what == "machine":
            self.guests.pop().close()
            await asyncio.sleep(0.05)
            self.guests += await plug(self.keeper.fabric, self.network, 2)
        elif victim := pids(self.keeper.fabric, LAN).get(what):
            os.kill(victim, signal.SIGKILL)
            await self.keeper.until(lambda: not _lives(victim), "the end of what was killed")
        return what


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


@pytest.mark.fault(94)
@pytest.mark.parametrize("who", WHO)
def test_whatever_is_killed_in_whatever_order_a_network_comes_back_and_leaves_nothing(who: str) -> None:
    async def main() -> dict[str, Any]:
        mounts, slowest, struck = len(Path("/proc/self/mountinfo").read_text().splitlines()), 0.0, list[str]()
        for seed in range(repetitions(1, 12)):
            with tempfile.TemporaryDirectory() as directory:
                storm = Storm(Path(directory), seed)
                try:
                    await storm.settle()
                    for _ in range(12):
                        struck.append(await storm.strike())
                        slowest = max(slowest, await storm.settle())
                finally:
                    await storm.end()
                rest = left(Path(directory)) + [f"process {pid}" for pid in storm.known if _lives(pid)]
                assert not rest, (seed, rest)
        after = len(Path("/proc/self/mountinfo").read_text().splitlines())
        return {"mounts": after - mounts, "slowest": slowest, "struck": struck}

    found = on_host(who, main)
    assert found["mounts"] == 0
    assert found["slowest"] < LONGEST
    assert len(set(found["struck"])) >= 5


CHANGES = {
    "nothing": "true",
    "another address": "ip addr del 198.51.100.1/24 dev eth9; ip addr add 198.51.100.7/24 dev eth9;"
    "ip route replace default via 198.51.100.2",
    "no way out": "ip route del default",
    "a way out again": "ip route add default via 198.51.100.2",
    "another name": "ip link set eth9 down; ip link set eth9 name wan7; ip link set wan7 up; ip route replace default via 198.51.100.2",
    "no cable": "ip link set wan7 down",
    "a cable again": "ip link set wan7 up; ip route replace default via 198.51.100.2",
}


NOWHERE = ("no way out", "no cable")


@contextlib.asynccontextmanager
async def _world() -> AsyncIterator[socket.socket]:
    """The host's cable, and who is asked at its other end."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.unshare(kernel.NEWNET)
    world = os.open("/proc/self/ns/net", os.O_RDONLY)
    sh("ip link set lo up")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        kernel.setns(home, kernel.NEWNET)
        sh(f"ip link add eth9 type veth peer name eth0 netns /proc/{os.getpid()}/fd/{world}")
        sh("ip addr add 198.51.100.1/24 dev eth9; ip link set eth9 up")
        kernel.setns(world, kernel.NEWNET)
        sh("ip addr add 198.51.100.2/24 dev eth0; ip addr add 203.0.113.5/32 dev lo; ip link set eth0 up")
        far.bind(("203.0.113.5", 53))
        far.setblocking(False)
        kernel.setns(home, kernel.NEWNET)
        sh("ip route add default via 198.51.100.2")
        yield far
    os.close(home)
    os.close(world)


class Traveller:
    """A host whose own network changes, and a guest of a network with this door."""

    def __init__(self, home: Path, way: Any, far: socket.socket) -> None:
        self.way, self.far, self.number = way, far, 5000
        self.keeper = Keeper(home, self._wish)
        self.host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.host.bind(("0.0.0.0", 2222))
        self.host.setblocking(False)

    async def _wish(self, fabric: NetworkFabric) -> Wanted:
        return wanted(1, door=self.way, underlay=tuple(await fabric.host_addresses()))

    async def begin(self) -> None:
        keeper = self.keeper
        await keeper.until(lambda: keeper.seen is not None, "the network")
        (self.guest,) = await plug(keeper.fabric, wanted(1, door=self.way))

    async def end(self) -> None:
        self.guest.close()
        self.host.close()
        self.keeper.task.cancel()
        await asyncio.wait([self.keeper.task])
        await self.keeper.fabric.remove(LAN)
        await self.keeper.fabric.close()

    def is_answered(self, seconds: float = 0.5) -> bool:
        """Whether the world hears a new question, and the guest its answer."""
        self.number += 1
        self.guest.send4(udp(self.guest.address4, "203.0.113.5", (self.number, 53), b"question"))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                data, source = self.far.recvfrom(100)
                self.far.sendto(b"answer to " + data, source)
            if self.guest.hears(b"answer", 0.02):
                return True
        return False

    async def is_shielded(self) -> float:
        """Seconds until the guest does not reach the host, by whatever address that has or had."""
        began = time.monotonic()
        while await self._is_reached():
            spent = time.monotonic() - began
            assert spent < LONGEST, "the guest reaches the host"
        return time.monotonic() - began

    async def _is_reached(self) -> bool:
        for address in ("198.51.100.1", "198.51.100.7"):
            self.guest.send4(udp(self.guest.address4, address, (self.number, 2222), b"attack"))
        await asyncio.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            return bool(self.host.recvfrom(100))
        return False


@needs_root
@needs_program("pasta")
@pytest.mark.parametrize("way", ["kernel", "pasta"])
def test_the_world_is_reached_again_after_each_change_of_the_host_s_own_network(way: Any) -> None:
    async def main() -> list[Any]:
        async with _world() as far:
            with tempfile.TemporaryDirectory() as directory:
                one, found, slowest = Traveller(Path(directory), way, far), list[Any](), 0.0
                try:
                    await one.begin()
                    for what, command in CHANGES.items():
                        sh(command)
                        if what in NOWHERE:
                            found.append((what, one.is_answered(0.3)))
                        else:
                            await one.keeper.until(one.is_answered, what)
                            found.append((what, True))
                        slowest = max(slowest, await one.is_shielded())
                finally:
                    await one.end()
                return [slowest, *found, left(Path(directory))]

    slowest, *found = on_host("root", main)
    assert found == [*((what, what not in NOWHERE) for what in CHANGES), []]
    # The kernel's rules know the host by what it is; those that are in the way of pasta know its addresses, and hear of a new one a moment later.
    assert slowest < {"kernel": 0.5, "pasta": 5.0}[way], slowest


@needs_root
@needs_program("pasta")
def test_a_network_is_made_and_its_machines_talk_on_a_host_that_has_no_way_out() -> None:
    async def main() -> list[Any]:
        async with _world(), served() as fabric:
            sh("ip route del default")
            network = wanted(2, door="pasta")
            found = [(await fabric.ensure(network)).ready]
            one, two = await plug(fabric, network)
            one.send4(udp(one.address4, two.address4, (1, 2), b"hello"))
            return [*found, two.hears(b"hello"), one.gateway == names.GATEWAY_MAC]

    assert on_host("root", main) == [True, True, True]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    bench.memory_free = 1 << 40
    await bench.image(READY)
    yield bench
    await bench.end()


async def test_of_a_hundred_launches_at_once_as_many_start_as_the_network_has_addresses(bench: Bench) -> None:
    small = NetworkSpec(mode="isolated", subnets=(Subnet(cidr="10.20.0.0/28"),))
    await bench.store.put("networks/default/lan", codec.encode(Network(name="lan", meta=Meta(uid="n"), spec=small)))
    await bench.settle()
    for number in range(100):
        wish = MachineSpec(image="disk", memory=64 * MiB, network="none", ports=(PortSpec(network="lan"),))
        machine = Machine(name=f"m{number}", meta=Meta(uid=f"uid-m{number}"), spec=wish)
        await bench.store.put(f"machines/default/m{number}", codec.encode(machine))
    await bench.settle()
    machines = await Records(bench.store).all(Machine, "default")
    running = [it for it in machines if it.status.phase == "running"]
    whys = {it.status.error.why for it in machines if it.status.error is not None}
    assert len({it.status.ports[0].addresses for it in running}) == len(running) == 13
    assert len(whys) == 1 and "no free address" in str(
        next(iter(it.status.error for it in machines if it.status.error))
    )
    assert len(await bench.addresses.held("n")) == 13
    for machine in running[:5]:
        gone = replace(machine, meta=replace(machine.meta, deleting="now"))
        await bench.store.put(f"machines/default/{machine.name}", codec.encode(gone))
    await bench.settle()
    await bench.clock.advance(LEASE_SECONDS + 120)
    await bench.settle()
    machines = await Records(bench.store).all(Machine, "default")
    running = [it for it in machines if it.status.phase == "running"]
    assert len({it.status.ports[0].addresses for it in running}) == len(running)
    assert {it.address.partition("/")[0] for it in (await bench.addresses.held("n")).values()} == {
        it.status.ports[0].addresses[0].partition("/")[0] for it in running
    }
    assert len(running) == 8, "who was refused was told so, and starts when he is asked to again"
