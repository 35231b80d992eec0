"""`roost doctor network` on hosts of their own (network namespaces) with rules as Docker, firewalld, ufw and people write them.

A packet out of a network does not arrive, and the doctor says why; after `--fix` it does; a second `--fix` changes nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 (an ordinary user may not be able to read the interpreter: what it loads later is loaded now)
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.config import load
from roost.host import doctor_network, doctor_network_facts, kernel
from roost.host.doctor import Finding
from tests.checkout import ROOT
from tests.daemon import ROOST
from tests.needs import needs_program, needs_root
from tests.ordinary import run_as

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(180),
    needs_root,
    needs_program("nft", "iptables-nft-restore", "ip6tables-nft-restore", "unshare", "nsenter", "ip", "dnsmasq"),
]

RULES = ROOT / "tests" / "data" / "firewalls"
NETWORK = """
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter
for end in "rst00000000 {guest} 10.251.0 fd00:1:" "eth0 {world} 203.0.113 fd00:2:"; do
    set -- $end
    ip link add $1 type veth peer name up0 netns $2
    ip address add $3.1/24 dev $1; ip -6 address add $4:1/64 dev $1 nodad; ip link set $1 up
    nsenter --target $2 --net sh -ec "
        ip address add $3.2/24 dev up0; ip -6 address add $4:2/64 dev up0 nodad; ip link set up0 up
        ip route add default via $3.1; ip -6 route add default via $4:1"
done
ip route add default via 203.0.113.2; ip -6 route add default via fd00:2::2
"""
WORLD = {socket.AF_INET: "203.0.113.2", socket.AF_INET6: "fd00:2::2"}


class Host:
    """A host between a network of ours and the world. Its own are: links, rules, /etc/sysctl.d, and the programs `ufw` and `firewall-cmd`."""

    def __init__(self, pids: tuple[int, int, int], programs: Path) -> None:
        self.pid, guest, world = pids
        self.programs = programs
        self._asking = {family: _socket(guest, family, "") for family in WORLD}
        self._answering = {family: _socket(world, family, address) for family, address in WORLD.items()}

    def close(self) -> None:
        for door in (*self._asking.values(), *self._answering.values()):
            door.close()

    def run(self, *line: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "PYTHONPATH": str(ROOT / "src"),
        }
        argv = ["nsenter", f"--target={self.pid}", "--net", "--mount", *line]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=check)

    def shell(self, script: str) -> str:
        return self.run("sh", "-ec", script).stdout

    def doctor(self, *options: str) -> subprocess.CompletedProcess[str]:
        return self.run(*ROOST, "doctor", "network", *options, check=False)

    def findings(self, *options: str) -> dict[str, dict[str, Any]]:
        return {each["name"]: each for each in json.loads(self.doctor("-o", "json", *options).stdout)}

    def warned(self) -> list[str]:
        """Findings about this host's network that are not good."""
        found = self.findings()
        return [
            name
            for name in found
            if found[name]["state"] != "ok" and name.startswith(("firewall", "IPv6", "forw", "rp_"))
        ]

    def passes(self, family: socket.AddressFamily = socket.AF_INET) -> bool:
        """Whether a packet gets from the network to the world, and the answer back."""
        asking, answering = self._asking[family], self._answering[family]
        asking.sendto(b"ask", (WORLD[family], 9))
        try:
            data, sender = answering.recvfrom(10)
            answering.sendto(data, sender)
            return asking.recv(10) == b"ask"
        except TimeoutError:
            return False

    def obstacle(self) -> str:
        """Why networks would not go through this host's kernel, as they find out themselves."""
        line = "from roost.network.forwarding import obstacle; print(obstacle())"
        return self.run(sys.executable, "-c", line).stdout.strip()

    def asked(self) -> list[str]:
        """What the stand-ins of firewalls' programs were asked."""
        return (self.programs / "asked").read_text().splitlines()

    def rules(self) -> str:
        """All rules of this host, without what they counted."""
        return self.shell("nft --stateless list ruleset; iptables-nft-save | grep '^-' || true") + self._legacy()

    def _legacy(self) -> str:
        return self.shell("! grep -q filter /proc/net/ip_tables_names || iptables-legacy-save -t filter | grep '^-'")


def _socket(pid: int, family: socket.AddressFamily, address: str) -> socket.socket:
    """A socket in the network namespace of a process."""
    home, there = (os.open(f"/proc/{name}/ns/net", os.O_RDONLY | os.O_CLOEXEC) for name in ("self", pid))
    try:
        kernel.setns(there, kernel.NEWNET)
        made = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, 9))
        made.settimeout(0.4)
    finally:
        kernel.setns(home, kernel.NEWNET)
        os.close(home)
        os.close(there)
    return made


@contextlib.contextmanager
def _kept(script: str) -> Iterator[int]:
    """A process in network and mount namespaces of its own, in which the script has been run."""
    line = ["unshare", "--net", "--mount", "sh", "-ec", f"{script}\necho ready; exec sleep 600"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGKILL)


STAND_IN = '#!/bin/sh\necho "$(basename $0) $*" >> {programs}/asked\n{effect}\n'
UFW = """
[ "$*" = "route allow in on rst+" ] || exit 1
iptables-nft -C ufw-user-forward -i rst+ -j ACCEPT 2>/dev/null || iptables-nft -A ufw-user-forward -i rst+ -j ACCEPT
ip6tables-nft -C ufw6-user-forward -i rst+ -j ACCEPT 2>/dev/null || ip6tables-nft -A ufw6-user-forward -i rst+ -j ACCEPT
"""
FIREWALLD = f"""
[ "$1" = --permanent ] && exit 0
[ "$*" = "--zone=trusted --add-interface=rst+" ] || exit 1
nft delete table inet firewalld && nft -f {RULES}/firewalld-trusted.nft
"""
"""What the real one (1.3.3) has made of its table after that."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    for name, effect in (("ufw", UFW), ("firewall-cmd", FIREWALLD)):
        program = tmp_path / name
        program.write_text(STAND_IN.format(programs=tmp_path, effect=effect))
        program.chmod(0o755)
    (tmp_path / "asked").touch()
    with contextlib.ExitStack() as stack:
        guest, world = (stack.enter_context(_kept("ip link set lo up")) for _ in range(2))
        own = "mkdir -p /etc/sysctl.d; mount -t tmpfs none /etc/sysctl.d\n"
        pid = stack.enter_context(_kept(own + NETWORK.format(guest=guest, world=world)))
        made = Host((pid, guest, world), tmp_path)
        stack.callback(made.close)
        assert any(made.passes(socket.AF_INET6) for _ in range(10))  # new links take a second until IPv6 is ready
        yield made


def docker(kind: str) -> str:
    return f"iptables-{kind}-restore < {RULES}/docker4.rules\nip6tables-{kind}-restore < {RULES}/docker6.rules"


CASES = {
    "docker": (docker("nft"), "Docker", []),
    "docker-legacy": (docker("legacy"), "Docker", []),
    "ufw": (
        f"iptables-nft-restore < {RULES}/ufw4.rules; ip6tables-nft-restore < {RULES}/ufw6.rules", "ufw",
        ["ufw route allow in on rst+"],
    ),
    "firewalld": (
        f"nft -f {RULES}/firewalld.nft", "firewalld",
        ["firewall-cmd --permanent --zone=trusted --add-interface=rst+", "firewall-cmd --zone=trusted --add-interface=rst+"],
    ),
    "plain": (f"nft -f {RULES}/plain.nft", "table inet filter", []),
    "of-both": (f"nft -f {RULES}/mixed.nft", "table ip filter", []),
    "iptables": ("iptables-nft -P FORWARD DROP; ip6tables-nft -A FORWARD -j REJECT", "iptables-nft", []),
    "docker-and-plain": (f"{docker('nft')}; nft -f {RULES}/plain.nft", "Docker", []),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_firewall_is_found_opened_in_its_own_way_and_opened_once(host: Host, case: str) -> None:
    if case.endswith("legacy") and shutil.which("iptables-legacy-restore", path="/usr/sbin:/sbin") is None:
        pytest.skip("not installed: iptables-legacy-restore")
    script, owner, asked = CASES[case]
    assert host.passes()
    assert host.passes(socket.AF_INET6)
    host.shell(script)
    before = host.rules()
    assert not host.passes()
    assert not host.passes(socket.AF_INET6)
    assert f"firewall {owner}" in host.warned()
    assert "a firewall drops it" in host.obstacle()
    assert host.doctor("--fix").returncode == 2  # nobody is there to be asked
    assert (host.rules(), host.asked()) == (before, [])

    mended = host.doctor("--fix", "--yes")
    assert mended.returncode == 0, mended.stderr
    assert any(host.obstacle() == "" for _ in range(4))  # it gives new links of its own half a second only
    assert host.passes()
    assert host.passes(socket.AF_INET6)
    assert host.warned() == []
    assert host.asked() == asked
    after = host.rules()
    assert set(filter(_is_iptables, before.splitlines())) <= set(after.splitlines())

    again = host.doctor("--fix")
    assert (again.returncode, "ran " in again.stdout) == (0, False)
    assert (host.rules(), host.asked()) == (after, asked)


def _is_iptables(line: str) -> bool:
    return line.startswith("-A ")


def test_what_is_not_ours_stays_shut(host: Host) -> None:
    """The least change: another link's packets are dropped as before."""
    host.shell(docker("nft"))
    assert host.doctor("--fix", "--yes").returncode == 0
    host.shell("ip link set rst00000000 down; ip link set rst00000000 name lan0; ip link set lan0 up")
    assert not host.passes()


def test_sysctls_are_set_and_kept_and_set_once(host: Host) -> None:
    host.shell(
        "echo 0 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding\n"
        "ip route add 0.0.0.0/1 via 10.251.0.2; echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter\n"
        "echo 'net/core/somaxconn = 4096' > /etc/sysctl.d/99-roost.conf"
    )
    assert not host.passes()
    assert host.warned() == ["forwarding", "IPv6 forwarding", "rp_filter"]
    told = host.doctor("--fix", "--yes")
    assert "set net/ipv4/ip_forward to 1" in told.stdout
    assert host.passes()
    assert host.passes(socket.AF_INET6)
    assert host.warned() == []
    written = host.shell("cat /etc/sysctl.d/*")
    assert written.splitlines() == [
        "net/core/somaxconn = 4096", "net/ipv4/ip_forward = 1", "net/ipv6/conf/all/forwarding = 1", "net/ipv4/conf/eth0/rp_filter = 2",
    ]  # fmt: skip
    assert "set " not in host.doctor("--fix").stdout
    assert host.shell("cat /etc/sysctl.d/*") == written


def test_a_vpn_and_a_route_over_what_is_chosen_from_are_told(host: Host) -> None:
    host.shell(
        "ip link add wg0 type veth peer name wg1; ip link set wg0 mtu 1420 up; ip link set wg1 up\n"
        "ip route add 10.0.0.0/8 dev wg0; ip route add 172.16.0.0/12 dev wg0"
    )
    found = host.findings()
    assert found["packet size wg0"]["fix"] == "roost network create NAME --mtu 1420"
    assert found["subnets"]["fix"] == "roost network create NAME --subnet 192.168.240.0/24"


def test_an_ordinary_user_is_told_only_what_his_networks_need() -> None:
    async def looked() -> dict[str, Finding]:
        judged = doctor_network.judge(await asyncio.to_thread(doctor_network_facts.look, load()))
        return {each.finding.name: each.finding for each in judged}

    found = run_as("user", looked)
    assert found["forwarding"].state == "ok"
    assert {found[name].state for name in ("user namespace", "network namespace", "nf_tables")} == {"ok"}
    assert not [name for name in found if name.startswith(("firewall", "incoming"))]
