"""From the request to the first answer of the jailed QEMU's monitor, against the same QEMU started by hand with nothing around it.

    scripts/bench start           20 starts each, interleaved
    python bench/start.py 50      50 starts each

Roost's figure holds all that is ours: the machine's account, the jails of QEMU, passt and the fence, the proof that the network
answers, the greeting, and the record on the disk. The image's kernel and initramfs are loaded on both sides.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import uuid

from bench.figures import median, percentile, promise, row
from roost.host import facts, files
from roost.host.paths import Paths
from roost.hypervisor.base import DirectBoot, Launch
from roost.hypervisor.qemu import Qemu
from roost.model.meta import MiB
from roost.network.usernet import UserNetwork
from roost.storage.images import Images
from tests import pool

STARTS = 20
MEMORY = 512
BARE = "bare QEMU, same kernel"
QEMU = (
    *("-nodefaults", "-no-user-config", "-display", "none", "-S", "-machine", "q35,usb=off", "-m", str(MEMORY)),
    *("-cpu", "Nehalem-v1,vme=off,rdrand=on", "-accel", "tcg,thread=multi,tb-size=32"),
)


def bare(boot: DirectBoot) -> float:
    """Seconds from starting QEMU by hand to its monitor's greeting and first answer, which tells that the machine is there."""
    ours, its = socket.socketpair()
    with ours, its:
        monitor = ("-chardev", f"socket,id=qmp,fd={its.fileno()}", "-mon", "chardev=qmp,mode=control")
        kernel = ("-kernel", str(boot.kernel), "-initrd", str(boot.initramfs), "-append", boot.command_line)
        command = ["qemu-system-x86_64", *QEMU, *kernel, *monitor]
        begin = time.perf_counter()
        qemu = subprocess.Popen(command, pass_fds=(its.fileno(),))
        ours.recv(4096)
        ours.sendall(b'{"execute":"qmp_capabilities"} {"execute":"query-uuid"}')
        while b"UUID" not in ours.recv(4096):
            pass
        seconds = time.perf_counter() - begin
        qemu.kill()
        qemu.wait()
    return seconds


async def jailed(hypervisor: Qemu, paths: Paths, boot: DirectBoot, network: str) -> float:
    """Seconds that one start of a tiny machine takes; it is killed again."""
    uid = str(uuid.uuid4())
    machine = paths.machine(uid)
    machine.keep.mkdir(parents=True, mode=0o700)
    launch = Launch(uid, "x86_64", 1, MEMORY * MiB, "tcg", "direct", machine, boot, network="none")
    begin = time.perf_counter()
    guest = await hypervisor.start(launch._replace(network=network))
    seconds = time.perf_counter() - begin
    await guest.kill()
    return seconds


async def measure(count: int) -> dict[str, list[float]]:
    """Seconds of each start, of the three kinds in turn."""
    state = pool.new_state()
    pool.fill(state)
    paths = Paths(state, state / "run")
    try:
        here = await facts.gather(paths.emulators)
        images = Images(paths)
        await images.sweep()
        manifest = await images.ensure_template("tiny", "x86_64", lambda text, done: None)
        image = images.files(manifest.digest)
        boot = DirectBoot(image.kernel, image.initramfs, manifest.command_line)
        hypervisor = Qemu(paths, here, UserNetwork(here))
        made: dict[str, list[float]] = {"user": [], "none": [], "bare": []}
        for number in range(count + 1):
            for network in ("user", "none"):
                made[network].append(await jailed(hypervisor, paths, boot, network))
            made["bare"].append(bare(boot))
            if number == 0:  # what is read and remembered once per daemon
                made = {name: [] for name in made}
    finally:
        files.remove_tree(state)
    return made


def main(count: int) -> None:
    """Measure and print."""
    made = asyncio.run(measure(count))
    print(f"{count} starts each; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    for name, what in (("user", "start with the user network"), ("none", "start without a network")):
        for kind, figure in (("p50", median), ("min", min), ("p90", lambda values: percentile(values, 0.9))):
            print(row(f"{what}, {kind}", figure(made[name]), figure(made["bare"]), BARE))
        print(promise(what, median(made[name]), 0.12))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else STARTS)
