"""The hand-made networks that bench/network.py compares with: bare QEMU with the same guest, on a bridge with two taps, and on slirp."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.boot import PORT
from roost.host import kernel
from roost.host.paths import ImageFiles
from roost.hypervisor import agent
from roost.hypervisor.base import Command
from roost.hypervisor.boards import BOARDS

_BOARD = BOARDS["x86_64"]
TRAFFIC = "/tmp/traffic"
SERVED = 5001
MEMORY = 192
HOST_ADDRESS, WORLD_ADDRESS = "198.51.100.1", "198.51.100.2"
LAN = "10.99.0"
BRIDGE, SLIRP = "bridge by hand", "slirp"
BRIDGE_PUBLISHED, SLIRP_PUBLISHED = 7001, 7002
_OWN_ADDRESS = "echo '#!/bin/sh' > /etc/udhcpc.script; sleep 0.5; ip addr flush dev eth0; ip link set eth0 up"
"""From then on the guest's DHCP client changes nothing."""
_BRIDGE = f"""
ip link add br0 type bridge
ip addr add {LAN}.1/24 dev br0
ip link set br0 up
for tap in tapa tapb; do ip tuntap add $tap mode tap vnet_hdr; ip link set $tap master br0 up; done
nft -f - <<END
table ip hand {{
    chain out {{ type nat hook postrouting priority 100; ip saddr {LAN}.0/24 oifname w0 masquerade; }}
    chain in {{ type nat hook prerouting priority -100; iifname w0 tcp dport {BRIDGE_PUBLISHED} dnat to {LAN}.12:{SERVED}; }}
}}
END
"""


class Guest(Protocol):
    """A guest in which commands of the shell run."""

    def sh(self, command: str, stdin: bytes | None = None) -> str:
        """What it printed. Ends the benchmark when it failed."""
        ...


class Setting(NamedTuple):
    """Two guests, or one, and how `b` is reached: its own address ("" where none other can), and a port of the host."""

    name: str
    a: Guest
    b: Guest
    address: str
    published: int


def sh(command: str) -> None:
    """A command of the shell that must succeed."""
    subprocess.run(["sh", "-ec", command], check=True)


@contextmanager
def inside(net: int) -> Iterator[None]:
    """In this network namespace meanwhile."""
    with open("/proc/self/ns/net") as home:
        kernel.setns(net, kernel.NEWNET)
        try:
            yield
        finally:
            kernel.setns(home.fileno(), kernel.NEWNET)


def world() -> int:
    """Makes this process's network namespace a new host with one link, and returns the namespace at its other end, which is the world."""
    kernel.unshare(kernel.NEWNET)
    far = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    sh("ip link set lo up")
    kernel.unshare(kernel.NEWNET)
    sh(
        f"ip link set lo up; ip link add w0 type veth peer name w1 netns /proc/{os.getpid()}/fd/{far};"
        f"ip addr add {HOST_ADDRESS}/24 dev w0; ip link set w0 up; echo 1 > /proc/sys/net/ipv4/ip_forward"
    )
    with inside(far):
        sh(f"ip addr add {WORLD_ADDRESS}/24 dev w1; ip link set w1 up")
    sh(f"ip route add default via {WORLD_ADDRESS}")
    return far


class Bare:
    """A guest of bare QEMU with the agent of Roost behind a socket."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def sh(self, command: str, stdin: bytes | None = None) -> str:
        """See `Guest`."""
        return asyncio.run(self._sh(command, stdin))

    async def _sh(self, command: str, stdin: bytes | None) -> str:
        answering = await agent.connect(self._path)
        try:
            await answering.ping(120)
            session = await answering.execute(Command(["sh", "-c", command], stdin=stdin is not None))
            if stdin is not None:
                await session.write(stdin)
                await session.end_input()
            chunks = [chunk async for chunk in session.output()]
        finally:
            await answering.close()
        said = b"".join(chunk.data for chunk in chunks)
        if chunks[-1].code != 0:
            raise SystemExit(f"in a bare guest {command!r} ended with {chunks[-1].code}: {said!r}")
        return said.decode()


@contextmanager
def bare(image: ImageFiles, path: Path, mac: str, netdev: str, addressing: str) -> Iterator[Bare]:
    """A guest that has run the commands that give it its address."""
    command_line = json.loads(image.manifest.read_text())["command_line"]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    qemu = subprocess.Popen(
        [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", f"q35,usb=off,{_BOARD.options}", "-cpu", _BOARD.tcg_cpu, "-accel", "tcg,thread=multi,tb-size=32", "-m", str(MEMORY),
            "-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", command_line,
            "-chardev", f"socket,id=agent,fd={listener.fileno()},server=on,wait=off", *PORT,
            "-netdev", netdev, "-device", f"virtio-net-pci,netdev=net,mac={mac},romfile=",
        ],
        pass_fds=(listener.fileno(),),
    )  # fmt: skip
    try:
        made = Bare(path)
        made.sh(f"{_OWN_ADDRESS}; {addressing}")
        yield made
    finally:
        qemu.kill()
        qemu.wait()
        listener.close()


@contextmanager
def peers(image: ImageFiles, directory: Path) -> Iterator[list[Setting]]:
    """Two guests on a bridge, and one on slirp."""
    sh(_BRIDGE)
    tap = "tap,id=net,script=no,downscript=no,vhost=off,ifname="
    slirp = f"user,id=net,hostfwd=tcp:{HOST_ADDRESS}:{SLIRP_PUBLISHED}-:{SERVED}"
    address, route = "ip addr add {}/24 dev eth0", "; ip route add default via {}"
    on_lan = [address.format(it) + route.format(f"{LAN}.1") for it in (f"{LAN}.11", f"{LAN}.12")]
    on_slirp = address.format("10.0.2.15") + route.format("10.0.2.2")
    with ExitStack() as stack:
        a = stack.enter_context(bare(image, directory / "a", "52:54:00:00:00:0a", tap + "tapa", on_lan[0]))
        b = stack.enter_context(bare(image, directory / "b", "52:54:00:00:00:0b", tap + "tapb", on_lan[1]))
        c = stack.enter_context(bare(image, directory / "c", "52:54:00:00:00:0c", slirp, on_slirp))
        yield [Setting(BRIDGE, a, b, f"{LAN}.12", BRIDGE_PUBLISHED), Setting(SLIRP, c, c, "", SLIRP_PUBLISHED)]
