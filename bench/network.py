"""What a network costs real guests: throughput and latency beside a guest on a bridge made by hand and on slirp, and the time until it is on it.

    scripts/bench network              as root: 8 rounds of half a second each; numbers in .cache/bench/network.json
    python bench/network.py 3 1        3 rounds of a second

The guests are of the template tiny, emulated, with 1 CPU. "booted" ones were started cold, "cloned" ones are copies of those, "forked" ones go on
from a warm template. All is in two network namespaces of its own, "the host" and "the world" that the host routes to; on the bridge the host
masquerades and publishes by nftables. Every measurement is of one TCP connection between the two ends of bench/traffic.c; each kind has its
turn in each round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import roost
from bench.boot import image_of
from bench.figures import ROOT, Made, median, promise
from bench.guests import (
    BRIDGE,
    HOST_ADDRESS,
    MEMORY,
    SERVED,
    SLIRP,
    TRAFFIC,
    WORLD_ADDRESS,
    Setting,
    inside,
    peers,
    world,
)
from tests.daemon import Daemon
from tests.live.test_networks import clear

ROUNDS, SECONDS, TRIPS = 8, 0.5, 300
RESULTS = ROOT / ".cache" / "bench"
BOOTED, CLONED, FORKED = OURS = "booted", "cloned", "forked"
PUBLISHED = {BOOTED: 7003, CLONED: 7004, FORKED: 7005}
ENOUGH = 0.95
"""The least share of the bridge's throughput that is promised."""
CLIENT = "udhcpc -n -q -f -i eth0 -t 20 -T 1 -s /etc/udhcpc.script > /dev/null 2>&1"
TICK = 0.002
TIMES = ("network ready", "network removed", "lease: a command", "leased", "clone runs", "clone answers on its network")


class Machine:
    """A machine of Roost as a `guests.Guest`."""

    def __init__(self, machine: roost.MachineHandle) -> None:
        self.handle = machine

    @property
    def address(self) -> str:
        """Its first address."""
        return self.handle.refresh().status.ports[0].addresses[0].partition("/")[0]

    def sh(self, command: str, stdin: bytes | None = None) -> str:
        """See `guests.Guest`."""
        return self.handle.run("sh", "-c", command, input=stdin).check().stdout


def compiled(directory: Path) -> Path:
    """The program of bench/traffic.c."""
    target = directory / "traffic"
    source = ROOT / "bench" / "traffic.c"
    flags = ("-target", "x86_64-linux-musl", "-std=gnu11", "-static", "-O2", "-s", "-Wall", "-Wextra", "-Werror")
    command = [sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(target), str(source)]
    subprocess.run(command, check=True)
    return target


def launched(host: roost.Host, kind: str) -> list[Machine]:
    """Two machines of the network."""
    if kind == CLONED:
        return [cloned(host.machines.handle(f"{BOOTED}-{name}"), f"{kind}-{name}") for name in "ab"]
    spec = {"network": "none", "memory": f"{MEMORY}MiB", "accelerator": "tcg", "cold": kind == BOOTED}
    ports = [{"network": "lan"}]
    return [Machine(host.machines.launch("tiny", name=f"{kind}-{name}", ports=ports, **spec)) for name in "ab"]


def cloned(parent: roost.MachineHandle, name: str) -> Machine:
    """A copy that runs."""
    kid = parent.clone(name)[0]
    if isinstance(kid, roost.RoostError):
        raise kid
    return Machine(kid)


def ours(host: roost.Host) -> Iterator[Setting]:
    """Machines of each kind."""
    for kind in OURS:
        a, b = launched(host, kind)
        forward = {"machine": f"{kind}-b", "host_port": PUBLISHED[kind], "guest_port": SERVED, "address": HOST_ADDRESS}
        host.forwards.create(kind, forward)
        yield Setting(kind, a, b, b.address, PUBLISHED[kind])


@contextmanager
def serving(program: Path, settings: list[Setting], far: int) -> Iterator[None]:
    """The program is everywhere, and answers in every `b` and in the world."""
    for one in settings:
        for guest in dict.fromkeys((one.a, one.b)):
            guest.sh(f"cat > {TRAFFIC} && chmod +x {TRAFFIC}", program.read_bytes())
        one.b.sh(f"{TRAFFIC} serve {SERVED} < /dev/null > /dev/null 2>&1 &")
    with inside(far):
        server = subprocess.Popen([str(program), "serve", str(SERVED)])
    try:
        yield
    finally:
        server.kill()
        server.wait()


def trips(one: Setting, ask: Callable[[str], float], made: Made, way: str, place: str) -> None:
    """There and back, in microseconds, and what passes there, in bits per second."""
    made.setdefault(f"{one.name}: {way}, us", []).append(ask(f"ping {place} {TRIPS}"))
    made.setdefault(f"{one.name}: {way}, bit/s", []).append(ask(f"send {place} {{seconds}}"))
    if way != "to another":
        made.setdefault(f"{one.name}: {way}, back, bit/s", []).append(ask(f"receive {place} {{seconds}}"))


def turn(one: Setting, made: Made, seconds: float, far: int, program: Path) -> None:
    """All ways of one setting."""

    def in_guest(words: str) -> float:
        return float(one.a.sh(f"{TRAFFIC} {words.format(seconds=seconds)}"))

    def in_world(words: str) -> float:
        with inside(far):
            command = [str(program), *words.format(seconds=seconds).split()]
            return float(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)

    if one.address:
        trips(one, in_guest, made, "to another", f"{one.address} {SERVED}")
    trips(one, in_guest, made, "to the world", f"{WORLD_ADDRESS} {SERVED}")
    trips(one, in_world, made, "published", f"{HOST_ADDRESS} {one.published}")


def timed(act: Callable[[], object]) -> float:
    """Seconds."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def starts(host: roost.Host, made: Made, rounds: int) -> None:
    """From the request for a network until it is ready."""
    for _ in range(rounds):
        begin = time.perf_counter()
        host.networks.create("other", {})
        while (status := host.networks.get("other").status).phase != "ready":
            if status.error is not None:
                raise SystemExit(f"a network did not start: {status.error}")
            time.sleep(TICK)
        made.setdefault("network ready", []).append(time.perf_counter() - begin)
        made.setdefault("network removed", []).append(timed(lambda: host.networks.delete("other")))


def leases(one: Setting, made: Made, rounds: int) -> None:
    """A guest asks for an address, and then for its own name. What it takes to run a command in it is told beside that."""
    name = one.a.sh("rm -f /run/roost/card-eth0; hostname").strip()
    for _ in range(rounds):
        made.setdefault("lease: a command", []).append(timed(lambda: one.a.sh("true")))
        made.setdefault("leased", []).append(timed(lambda: one.a.sh(CLIENT)))
        resolved = timed(lambda: one.a.sh(f"{CLIENT} && nslookup {name}.default.internal > /dev/null"))
        made.setdefault("leased and resolvable", []).append(resolved)


def clones(host: roost.Host, one: Setting, made: Made, rounds: int) -> None:
    """From the request for a clone of a running machine until its server answers another machine of the network."""
    for number in range(rounds):
        begin = time.perf_counter()
        kid = cloned(host.machines.handle(f"{BOOTED}-b"), f"kid{number}")
        made.setdefault("clone runs", []).append(time.perf_counter() - begin)
        one.a.sh(f"{TRAFFIC} ping {kid.address} {SERVED} 1")
        made.setdefault("clone answers on its network", []).append(time.perf_counter() - begin)
        kid.handle.delete()


def measure(rounds: int, seconds: float) -> Made:
    """All figures."""
    made: Made = {}
    far = world()
    daemon = Daemon().start()
    try:
        daemon.provide("tiny")
        with tempfile.TemporaryDirectory(prefix="bench-") as name, daemon.host() as host:
            program = compiled(Path(name))
            host.networks.create("lan", {"mode": "nat"})
            with peers(image_of(daemon, "tiny"), Path(name)) as settings:
                settings = [*ours(host), *settings]
                print(f"the door of the network: {host.networks.get('lan').status.door}")
                with serving(program, settings, far):
                    for _ in range(rounds):
                        for one in settings:
                            turn(one, made, seconds, far, program)
            leases(settings[0], made, rounds)
            clones(host, settings[0], made, rounds)
            starts(host, made, rounds)
        return made
    finally:
        clear(daemon)
        for left in daemon.close():
            print(f"left: {left}")


def report(made: Made) -> None:
    """A table of all ways and kinds, what is promised, and the times."""
    print(f"medians; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    kinds = (*OURS, BRIDGE, SLIRP)
    ways = dict.fromkeys(name.partition(": ")[2] for name in made if name.startswith(BRIDGE))
    print(f"{'':<26}" + "".join(f"{kind:>16}" for kind in kinds))
    for way in ways:
        figures = [made.get(f"{kind}: {way}") for kind in kinds]
        divisor = 1.0 if way.endswith("us") else 1e6
        cells = "".join(f"{median(it) / divisor:16.0f}" if it else f"{'-':>16}" for it in figures)
        print(f"{way.replace('bit/s', 'Mbit/s'):<26}{cells}")
    for way in (it for it in ways if it.endswith("bit/s")):
        share_of_bridge(made, way)
    for name in TIMES:
        print(f"{name:<34} {median(made[name]):9.3f} s")
    print(promise("leased and resolvable", median(made["leased and resolvable"]), 0.3))


def share_of_bridge(made: Made, way: str) -> None:
    """What is promised of throughput, by the best of each kind's rounds: whatever disturbs makes it only less."""
    for kind in OURS:
        share = max(made[f"{kind}: {way}"]) / max(made[f"{BRIDGE}: {way}"])
        place = f"{way.rpartition(', ')[0]}, {kind}"
        held = "held" if share >= ENOUGH else "NOT HELD"
        print(f"{place:<28} {share:5.2f} of the bridge, promised: at least {ENOUGH}  {held}")


def main() -> None:
    """Measure, print, and write the numbers."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    made = measure(rounds, float(sys.argv[2]) if len(sys.argv) > 2 else SECONDS)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "network.json").write_text(json.dumps(made, indent=1))
    report(made)
    print(f"numbers: {RESULTS / 'network.json'}")


if __name__ == "__main__":
    main()
