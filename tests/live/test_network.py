"""The network of real machines: what they get, what is published, what they can not reach, and what is left when they end."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from tests import leftovers
from tests.daemon import Daemon
from tests.live.test_usernet import free_port
from tests.needs import needs_program, needs_root

pytestmark = needs_program("passt", "qemu-system-x86_64")

GATEWAY, ADDRESS = "10.0.2.2", "10.0.2.15"


@pytest.fixture(scope="module")
def port() -> int:
    """A free port of the host."""
    return free_port()


@pytest.fixture(scope="module")
def nonce() -> str:
    """What only the machine with the server can say."""
    return secrets.token_hex(16)


@pytest.fixture(scope="module")
def served(shared_daemon: Daemon, port: int, nonce: str) -> Iterator[str]:
    """A machine whose web server is published."""
    shared_daemon.roost("launch", "tiny", "served", "--publish", f"{port}:80", timeout=300)
    inside(shared_daemon, "served", f"{LEASE}; mkdir /srv && echo {nonce} > /srv/nonce && httpd -p 80 -h /srv")
    yield "served"
    shared_daemon.roost("delete", "served", "--yes", check=False)


LEASE = "for i in $(seq 300); do test -s /etc/resolv.conf && break; sleep 0.1; done"
"""Shell: wait for the DHCP client."""


def inside(daemon: Daemon, name: str, script: str) -> str:
    """What a shell script says in a machine."""
    return daemon.roost("exec", name, "--", "sh", "-c", script).stdout


def network_of(daemon: Daemon, name: str) -> list[int]:
    """The processes that are a machine's network, from its record."""
    uid = daemon.json("show", name)["meta"]["uid"]
    record = json.loads((daemon.run / "machines" / uid / "process.json").read_text())
    return [entry["process"]["pid"] for entry in record["beside"]]


def wait_gone(*pids: int, seconds: float = 30) -> list[int]:
    """Which of the processes are still there after at most this time."""
    deadline = time.monotonic() + seconds
    while (there := [pid for pid in pids if _lives(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return there


def _lives(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def own_address() -> str:
    """The host's address towards the world (nothing is sent); skips where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this host has no address but its loopback")
        return str(probe.getsockname()[0])


def test_dhcp_gives_address_route_and_resolver(daemon: Daemon, served: str) -> None:
    said = inside(daemon, served, "ip -4 -o addr show dev eth0; ip route; cat /etc/resolv.conf")
    assert f"inet {ADDRESS}/24" in said
    assert f"default via {GATEWAY} dev eth0" in said
    lines = Path("/etc/resolv.conf").read_text().splitlines()
    of_host = {line.split()[1] for line in lines if line.startswith("nameserver ")}
    of_guest = {line.split()[1] for line in said.splitlines() if line.startswith("nameserver ")}
    assert of_guest
    assert of_guest <= of_host | {"10.0.2.3"}
    assert not {name for name in of_guest if name.startswith("127.")}
    assert daemon.json("show", served)["status"]["addresses"] == [ADDRESS]


def test_a_published_port_leads_to_the_server_inside(served: str, port: int, nonce: str) -> None:
    with urlopen(f"http://127.0.0.1:{port}/nonce", timeout=10) as answer:
        assert answer.read().decode().strip() == nonce


def test_it_listens_on_the_loopback_alone(served: str, port: int) -> None:
    addresses = [own_address(), "127.0.0.2"]
    reached = []
    for address in addresses:
        with socket.socket() as client:
            client.settimeout(2)
            reached.append(client.connect_ex((address, port)) == 0)
    assert reached == [False, False]


def test_a_taken_port_is_a_conflict_and_leaves_nothing(daemon: Daemon, served: str, port: int) -> None:
    done = daemon.roost("launch", "tiny", "second", "--publish", f"{port}:80", check=False)
    assert done.returncode == 4
    assert str(port) in done.stderr
    assert "fix:" in done.stderr
    shown = daemon.json("show", "second")
    daemon.roost("delete", "second", "--yes")
    uid = shown["meta"]["uid"]
    assert not (daemon.run / "machines" / uid).exists()
    assert leftovers.wait_until_none(Path("/nonexistent/state"), Path("/nonexistent/run"), [uid]) == []
    with urlopen(f"http://127.0.0.1:{port}/nonce", timeout=10) as answer:
        assert answer.status == 200


class Service:
    """A listener of the host that says a nonce to whoever connects, and counts them."""

    def __init__(self, address: str) -> None:
        self.nonce = secrets.token_hex(16)
        self.reached = 0
        self._listener = socket.create_server((address, 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer:
                self.reached += 1
                peer.sendall(self.nonce.encode() + b"\n")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def service() -> Iterator[Service]:
    """A service on the host's loopback."""
    made = Service("127.0.0.1")
    yield made
    made.close()


RAW = "ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.1 via 10.0.2.2 dev eth0; sysctl -w net.ipv4.conf.all.route_localnet=1"
"""Shell: send packets for 127.0.0.1 out of the network card."""


@pytest.mark.parametrize("to", [GATEWAY, "127.0.0.1", "10.0.2.3", "0.0.0.0"])
def test_the_hosts_loopback_is_out_of_reach(daemon: Daemon, served: str, service: Service, to: str) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as client:
        assert client.makefile().readline().strip() == service.nonce
    before = service.reached
    assert service.nonce not in inside(daemon, served, f"nc -w 2 {to} {service.port} </dev/null 2>&1; true")
    assert service.reached == before


def test_nor_by_packets_for_the_loopback_that_leave_the_guest(daemon: Daemon, service: Service) -> None:
    daemon.roost("launch", "tiny", "raw")
    script = f"{LEASE}; ({RAW}) >&2; ip route get 127.0.0.1; nc -w 2 127.0.0.1 {service.port} </dev/null 2>&1; true"
    said = inside(daemon, "raw", script)
    assert "dev eth0" in said, "the packets did not leave"
    assert service.nonce not in said
    assert service.reached == 0


def test_a_machine_without_network_has_only_lo(daemon: Daemon) -> None:
    daemon.roost("launch", "tiny", "alone", "--network", "none")
    assert inside(daemon, "alone", "ls /sys/class/net").split() == ["lo"]
    shown = daemon.json("show", "alone")
    assert shown["status"]["addresses"] == []
    assert network_of(daemon, "alone") == []


def test_machines_with_the_same_address_do_not_see_each_other(
    daemon: Daemon, served: str, port: int, nonce: str
) -> None:
    daemon.roost("launch", "tiny", "other")
    assert nonce in inside(daemon, served, _ask(ADDRESS, 80))
    places = [(ADDRESS, 80), (GATEWAY, port), (GATEWAY, 80)]
    there = inside(daemon, "other", ";".join([LEASE, "ip -4 -o addr", *(_ask(*place) for place in places)]))
    assert f"inet {ADDRESS}/24" in there
    assert nonce not in there


def _ask(address: str, port: int) -> str:
    """Shell: ask a web server for the nonce. With nc, for the wget of Debian 12's busybox-static ends with SIGSEGV."""
    return f"{{ printf 'GET /nonce HTTP/1.0\\r\\n\\r\\n'; sleep 1; }} | nc -w 3 {address} {port} 2>&1; true"


@needs_root
def test_its_processes_have_no_privilege(daemon: Daemon, served: str) -> None:
    pids = network_of(daemon, served)
    assert len(pids) == 2
    qemu = daemon.json("show", served)["status"]["pid"]
    states = [_status(pid) for pid in pids]
    uids = {uid for state in states for uid in state["Uid"].split()}
    assert min(map(int, uids)) >= 300_000
    assert not uids & set(_status(qemu)["Uid"].split()), "QEMU and its network must not be able to harm each other"
    caps = {int(state[name], 16) for state in states for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")}
    assert caps == {0}
    assert {(state["NoNewPrivs"], state["Seccomp"]) for state in states} == {("1", "2")}
    spaces = [(name, Path(f"/proc/{pid}/ns/{name}").readlink()) for pid in pids for name in ("user", "mnt", "pid")]
    assert [name for name, target in spaces if target == Path(f"/proc/self/ns/{name}").readlink()] == []


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _stop(daemon: Daemon) -> None:
    daemon.roost("stop", "mortal", "--force")


def _kill(daemon: Daemon) -> None:
    os.kill(daemon.json("show", "mortal")["status"]["pid"], 9)


@pytest.mark.parametrize("end", [_stop, _kill])
def test_its_processes_end_with_the_machine(daemon: Daemon, end: Callable[[Daemon], None]) -> None:
    published = free_port()
    daemon.roost("launch", "tiny", "mortal", "--publish", f"{published}:80")
    pids = network_of(daemon, "mortal")
    end(daemon)
    assert wait_gone(*pids) == []
    with socket.create_server(("127.0.0.1", published)):
        pass


def test_the_network_of_a_machine_that_ended_without_a_daemon_is_swept(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    daemon.environ["ROOST_HOST"] = f"unix:{daemon.socket}"
    daemon.start()
    daemon.roost("launch", "tiny", "orphan", timeout=300)
    shown: dict[str, Any] = daemon.json("show", "orphan")
    pids, uid = network_of(daemon, "orphan"), shown["meta"]["uid"]
    daemon.kill()
    os.kill(shown["status"]["pid"], 9)
    assert wait_gone(*pids) == [], "they end without the daemon too"
    daemon.start()
    deadline = time.monotonic() + 60
    while daemon.machine("orphan")["status"]["phase"] != "crashed":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    left = subprocess.run(
        ["find", "/sys/fs/cgroup", "-type", "d", "-name", f"{uid}*"], capture_output=True, text=True, check=True
    )
    assert left.stdout == ""
    daemon.roost("start", "orphan")
    assert f"inet {ADDRESS}/24" in inside(daemon, "orphan", f"{LEASE}; ip -4 -o addr")
