"""Cold boot to the first answer, and the round trip of an exec: Roost against the peer and against bare QEMU with the same kernel.

    scripts/bench boot            3 boots each, interleaved; 200 round trips
    python bench/boot.py 1 debian  also debian:12

All of Roost is measured inside one SDK process, launch to the answer of `true`, with a daemon that is already there. Bare QEMU is the
same binary, kernel and initramfs with nothing around it: no jail, no network, no daemon.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import roost
from bench.figures import PEER_NAME, median, peer, percentile, promise, row
from roost.host.paths import ImageFiles
from roost.hypervisor import agent
from roost.hypervisor.base import Command
from tests.daemon import Daemon

BOOTS = 3
TRIPS = 200
BARE = "bare QEMU, same kernel"
QEMU = (
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-machine",
    "q35,usb=off",
    "-accel",
    "tcg,thread=multi,tb-size=64",
)
PORT = (
    "-device", "virtio-serial-pci",
    "-device", "virtserialport,chardev=agent,name=roost.agent.0",
    "-serial", "null",
)  # fmt: skip


def launch(host: roost.Host, template: str, name: str, memory: str) -> float:
    """Seconds from the launch to the first answer; the machine stays."""
    begin = time.perf_counter()
    host.machines.launch(template, name=name, memory=memory, accelerator="tcg").run("true").check()
    return time.perf_counter() - begin


def greeting() -> float:
    """Seconds from starting QEMU by hand to the greeting of its monitor."""
    ours, its = socket.socketpair()
    with ours, its:
        monitor = ("-chardev", f"socket,id=qmp,fd={its.fileno()}", "-mon", "chardev=qmp,mode=control")
        begin = time.perf_counter()
        qemu = subprocess.Popen(["qemu-system-x86_64", *QEMU, "-S", "-m", "512", *monitor], pass_fds=(its.fileno(),))
        ours.recv(1)
        seconds = time.perf_counter() - begin
        qemu.kill()
        qemu.wait()
    return seconds


def to_greeting(host: roost.Host, name: str) -> float:
    """Seconds from the request to the greeting of the jailed QEMU's monitor, as the machine's status tells."""
    return host.machines.handle(name).timing.process


def round_trips(host: roost.Host, name: str, count: int) -> list[float]:
    """Seconds of each of `count` executions of `true`, one after the other."""
    machine = host.machines.handle(name)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        machine.run("true").check()
        times.append(time.perf_counter() - begin)
    return times


def image_of(daemon: Daemon, template: str) -> ImageFiles:
    """The files of the image that a template became in the daemon's pool."""
    for manifest in (daemon.state / "images").glob("*/manifest.json"):
        if f'"{template}"' in manifest.read_text():
            return ImageFiles(manifest.parent)
    raise SystemExit(f"no image of {template} in {daemon.state}")


async def bare(image: ImageFiles) -> float:
    """Seconds from starting QEMU by hand to the first answer of the same agent in the same initramfs."""
    command_line = json.loads(image.manifest.read_text())["command_line"]
    with tempfile.TemporaryDirectory(prefix="bare-") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "agent"
        listener.bind(str(path))
        listener.listen()
        begin = time.perf_counter()
        qemu = await asyncio.create_subprocess_exec(
            "qemu-system-x86_64", *QEMU, "-cpu", "Nehalem", "-m", "512",
            "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", command_line,
            "-chardev", f"socket,id=agent,fd={listener.fileno()},server=on,wait=off", *PORT,
            pass_fds=(listener.fileno(),),
        )  # fmt: skip
        try:
            answering = await agent.connect(path)
            await answering.ping(120)
            session = await answering.execute(Command(["true"]))
            async for _ in session.output():
                pass
            return time.perf_counter() - begin
        finally:
            qemu.kill()
            await qemu.wait()


class Boots(NamedTuple):
    """Figures of each boot, in seconds: Roost, bare QEMU and the peer; and of Roost and QEMU until the monitor's greeting."""

    ours: list[float]
    alone: list[float]
    theirs: list[dict[str, Any]]
    ours_greeting: list[float]
    alone_greeting: list[float]


def boots(host: roost.Host, daemon: Daemon, count: int) -> Boots:
    """Roost, bare QEMU and the peer in turn, `count` times each, so that a busy host is busy for all of them."""
    made = Boots([], [], [], [], [])
    for number in range(count):
        made.ours.append(launch(host, "tiny", f"boot-{number}", "512MiB"))
        made.ours_greeting.append(to_greeting(host, f"boot-{number}"))
        host.machines.delete(f"boot-{number}")
        made.alone.append(asyncio.run(bare(image_of(daemon, "tiny"))))
        made.alone_greeting.append(greeting())
        made.theirs.append(peer(TRIPS // 4, 0))
    return made


def main(count: int, with_debian: bool) -> None:
    """Measure and print."""
    daemon = Daemon()
    try:
        daemon.start()
        with daemon.host() as host:
            launch(host, "tiny", "first", "512MiB")  # builds the template
            trips = round_trips(host, "first", TRIPS)
            host.machines.delete("first")
            made = boots(host, daemon, count)
            debian = debian_boot(host) if with_debian else None
    finally:
        daemon.close()
    report(made, trips, debian)


def debian_boot(host: roost.Host) -> float:
    """Seconds of a cold boot of debian:12 whose image is there."""
    launch(host, "debian:12", "debian-0", "512MiB")
    host.machines.delete("debian-0")
    return launch(host, "debian:12", "debian-1", "512MiB")


def report(made: Boots, trips: list[float], debian: float | None) -> None:
    """Print the rows."""
    peer_trips = [seconds for run in made.theirs for seconds in run["exec"]]
    peer_boots = [float(run["boot"]) for run in made.theirs]
    print(
        f"medians of {len(made.ours)} boots, {len(trips)} round trips; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    print(row("tiny: launch to first answer", median(made.ours), median(peer_boots), PEER_NAME))
    print(row("tiny: launch to first answer", median(made.ours), median(made.alone), BARE))
    print(row("exec of true, p50", median(trips), median(peer_trips), PEER_NAME))
    print(row("exec of true, p99", percentile(trips, 0.99), percentile(peer_trips, 0.99), PEER_NAME))
    print(row("launch to QEMU's greeting", median(made.ours_greeting), median(made.alone_greeting), BARE))
    print(promise("tiny: launch to first answer", median(made.ours), 4.0))
    print(promise("exec of true, p50", median(trips), median(peer_trips)))
    print(promise("ours before QEMU's greeting", median(made.ours_greeting) - median(made.alone_greeting), 0.12))
    if debian is not None:
        print(promise("debian:12: launch to first answer", debian, 12.0))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else BOOTS, "debian" in sys.argv)
