"""The way out to the world: a real daemon in a network namespace of its own, whose world is another one behind a cable."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.host import kernel
from tests.daemon import Daemon
from tests.live.test_networks import clear, inside, wait_for
from tests.needs import needs_program, needs_root

pytestmark = [
    pytest.mark.timeout(600),
    needs_root,
    needs_program("qemu-system-x86_64", "nft", "dnsmasq", "pasta", "ip"),
]

_HOST = """
ip link set lo up
ip link add eth9 type veth peer name w0 netns {world}
ip address add 198.51.100.2/24 dev eth9
ip link set eth9 up
ip route add default via 198.51.100.1
nsenter --net=/proc/{world}/ns/net ip address add 198.51.100.1/24 dev w0
nsenter --net=/proc/{world}/ns/net ip link set w0 up
"""
_FIREWALL = b"table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"
# The client must not close its half first: pasta 2023-03 then sends what it was answered again and again.
_ASK = "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 3) | nc -w 5 {} {}"


@pytest.fixture(params=["kernel", "pasta"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon on a host with one cable, and what is at its end: a server of pages, and one of names."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    (tmp_path / "index.html").write_text("page-of-the-world\n")
    serve = ["python3", "-m", "http.server", "80", "--directory", str(tmp_path)]
    processes: list[subprocess.Popen[bytes]] = []
    names = "dnsmasq -k --conf-file=/dev/null --no-resolv --no-hosts --pid-file= --user=root --address=/far.example/198.51.100.1"
    kernel.unshare(kernel.NEWNET)
    try:
        processes.append(subprocess.Popen(["unshare", "--net", *serve], stderr=subprocess.DEVNULL))
        there = f"/proc/{processes[0].pid}/ns/net"
        own = Path("/proc/self/ns/net").readlink()
        wait_for(lambda: Path(there).readlink() not in (own,), "the world")
        subprocess.run(["sh", "-ec", _HOST.format(world=processes[0].pid)], check=True)
        processes.append(subprocess.Popen(["nsenter", f"--net={there}", *names.split()]))
        processes.append(
            subprocess.Popen(["python3", "-m", "http.server", "2222", "--directory", str(tmp_path)], stderr=-3)
        )
        if request.param == "pasta":
            subprocess.run(["nft", "-f", "-"], input=_FIREWALL, check=True)
        daemon = Daemon().start()
        try:
            yield daemon, request.param
            clear(daemon)
        finally:
            left = daemon.close()
    finally:
        for process in processes:
            process.kill()
            process.wait()
        kernel.setns(home, kernel.NEWNET)
        os.close(home)
    assert not left, "left behind:\n" + "\n".join(left)


def test_a_guest_reaches_the_world_and_its_names_and_not_the_host(world: tuple[Daemon, str]) -> None:
    daemon, door = world
    daemon.roost("network", "create", "lan", "--subnet", "10.77.0.0/24", "--resolver", "198.51.100.1")
    daemon.roost("launch", "tiny", "a", "--network", "lan", "--memory", "128MiB")
    wait_for(lambda: "10.77.0" in inside(daemon, "a", "ip route").stdout, "the guest's address")
    assert daemon.request("GET", "/v1/networks/default/lan")[1]["status"]["door"] == door
    assert "page-of-the-world" in inside(daemon, "a", _ASK.format("far.example", 80)).stdout
    assert "198.51.100.1" in inside(daemon, "a", "nslookup far.example 198.51.100.1").stdout
    for address in ("198.51.100.2", "10.77.0.1", "169.254.169.254"):
        assert "page" not in inside(daemon, "a", _ASK.format(address, 2222).replace("-w 5", "-w 2")).stdout
