"""Measures what a network costs: two ends through routed ports with all rules, a bridge with br_netfilter and the least rules, and a bare bridge.

Usage (as root): scripts/bench routed, or python bench/routed.py [seconds for each].
The ends are veths in namespaces of their own, so no guest's speed is measured.
Each round measures both, in turn; the medians of five rounds are printed.
"""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from roost.host import kernel
from roost.network import names, nft, plan
from tests.fabrics import wanted

ROUNDS = 5
PINGS = 2000
NETWORK = wanted(2)
PORTS = NETWORK.ports


def sh(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True)


@contextmanager
def inside(net: int) -> Iterator[None]:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.setns(net, kernel.NEWNET)
    try:
        yield
    finally:
        kernel.setns(home, kernel.NEWNET)
        os.close(home)


def namespace() -> int:
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.unshare(kernel.NEWNET)
    sh("ip link set lo up")
    made = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.setns(home, kernel.NEWNET)
    os.close(home)
    return made


def build(middle: Callable[[], None], prefix: int) -> tuple[int, int]:
    """Two ends, and between them what `middle` makes of the interfaces that are called as the ports."""
    router, ends = namespace(), (namespace(), namespace())
    with inside(router):
        for port, end in zip(PORTS, ends, strict=True):
            sh(f"ip link add {port.interface} type veth peer name eth0 netns /proc/{os.getpid()}/fd/{end}")
            sh(f"ip link set {port.interface} address {names.GATEWAY_MAC} up")
        middle()
    for port, end in zip(PORTS, ends, strict=True):
        with inside(end):
            sh(f"ip link set eth0 address {port.mac} up; ip addr add {port.addresses[0]}/{prefix} dev eth0")
    return ends


def routed() -> None:
    """The plan's own rules, routes and neighbours."""
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward")
    for port in PORTS:
        sh(f"echo 1 > /proc/sys/net/ipv4/conf/{port.interface}/proxy_arp")
        sh(f"ip route add {port.addresses[0]}/32 dev {port.interface}")
        sh(f"ip neigh replace {port.addresses[0]} lladdr {port.mac} dev {port.interface} nud permanent")
        sh(f"echo 0 > /proc/sys/net/ipv4/neigh/{port.interface}/proxy_delay")
    subprocess.run(["nft", "-f", "-"], input=nft.replacing(plan.fabric(NETWORK).tables).encode(), check=True)


def bridged() -> None:
    """Sources checked at the port, and the state of connections, as br_netfilter has it."""
    sh("ip link add br0 type bridge nf_call_iptables 1 && ip link set br0 up")
    for number, port in enumerate(PORTS):
        sh(f"ip link set {port.interface} address 02:00:00:00:01:{number:02x}; ip link set {port.interface} master br0")
    sources = ", ".join(f'"{port.interface}" . {port.mac} . {port.addresses[0]}' for port in PORTS)
    rules = f"""
    table bridge roost {{
        set sources {{ type ifname . ether_addr . ipv4_addr; counter; elements = {{ {sources} }} }}
        chain port {{ type filter hook prerouting priority -300; policy drop;
            meta protocol arp accept
            iifname . ether saddr . ip saddr @sources accept; }}
    }}
    table inet roost {{
        chain forward {{ type filter hook forward priority 0; policy drop;
            ct state established,related accept
            ct state new counter accept; }}
    }}"""
    subprocess.run(["nft", "-f", "-"], input=rules.encode(), check=True)


def bare() -> None:
    """A bridge without any rule."""
    sh("ip link add br0 type bridge && ip link set br0 up")
    for number, port in enumerate(PORTS):
        sh(f"ip link set {port.interface} address 02:00:00:00:01:{number:02x}; ip link set {port.interface} master br0")


def throughput(ends: tuple[int, int], seconds: float) -> float:
    """Gbit/s of one TCP connection."""
    with inside(ends[1]):
        server = socket.create_server((PORTS[1].addresses[0], 5001))
    with inside(ends[0]):
        client = socket.create_connection(server.getsockname())
    taken, _ = server.accept()
    stop = time.monotonic() + seconds

    def send() -> None:
        data = bytes(1 << 20)
        while time.monotonic() < stop:
            client.sendall(data)
        client.close()

    sender = threading.Thread(target=send)
    begin, size, room = time.monotonic(), 0, bytearray(1 << 20)
    sender.start()
    while got := taken.recv_into(room):
        size += got
    sender.join()
    spent = time.monotonic() - begin
    taken.close()
    server.close()
    return size * 8 / spent / 1e9


def latency(ends: tuple[int, int]) -> float:
    """Microseconds there and back, by UDP: the median."""
    with inside(ends[1]):
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.bind((PORTS[1].addresses[0], 5002))
    with inside(ends[0]):
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near.connect(far.getsockname())
    found = []
    for _ in range(PINGS):
        begin = time.perf_counter()
        near.send(b"x")
        _, source = far.recvfrom(10)
        far.sendto(b"x", source)
        near.recv(10)
        found.append(time.perf_counter() - begin)
    near.close()
    far.close()
    return statistics.median(found) * 1e6


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    kernel.unshare(kernel.NEWNET)
    kinds = {
        "routed ports, all rules": build(routed, 16),
        "bridge, br_netfilter": build(bridged, 16),
        "bridge, no rules": build(bare, 16),
    }
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    delays: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(ROUNDS):
        for name, ends in kinds.items():
            rates[name].append(throughput(ends, seconds))
            delays[name].append(latency(ends))
    for name in kinds:
        rate, delay = statistics.median(rates[name]), statistics.median(delays[name])
        print(f"{name:26} {rate:6.2f} Gbit/s  {delay:6.1f} us there and back")


if __name__ == "__main__":
    main()
