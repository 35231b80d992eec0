"""The same private networks without root: the daemon of an ordinary user makes them of what the kernel gives everybody."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.test_ordinary_daemon import somebody
from tests.live.test_usernet import free_port
from tests.needs import needs_program, needs_root
from tests.somebody import Ordinary

__all__ = ["somebody"]

pytestmark = [
    pytest.mark.timeout(600),
    needs_root,
    needs_program("qemu-system-x86_64", "nft", "dnsmasq", "pasta"),
    pytest.mark.skipif(
        not os.access("/dev/net/tun", os.F_OK) or not Path("/dev/net/tun").stat().st_mode & 0o006,
        reason="/dev/net/tun is not open to users here: sudo chmod 0666 /dev/net/tun",
    ),
]


@pytest.fixture(scope="module")
def lan(somebody: Ordinary) -> Iterator[Ordinary]:
    """Two machines in a network of the user's, and one in another project's of the same addresses."""
    somebody.roost("project", "create", "other")
    for project in ("default", "other"):
        somebody.roost("--project", project, "network", "create", "lan", "--subnet", "10.20.0.0/24")
    for name, project in (("a", "default"), ("b", "default"), ("c", "other")):
        somebody.roost("--project", project, "launch", "tiny", name, "--network", "lan", "--cold", "--memory", "128MiB")
    yield somebody
    for project in ("default", "other"):
        somebody.roost("--project", project, "delete", "--all", "--yes", check=False)
        somebody.roost("--project", project, "network", "delete", "lan", check=False)


def inside(who: Ordinary, machine: str, command: str, project: str = "default") -> str:
    """What a command of the shell prints in a machine."""
    return who.roost("--project", project, "exec", machine, "--", "sh", "-c", command, check=False).stdout


def status(who: Ordinary, kind: str, name: str) -> dict[str, Any]:
    """An object's status."""
    return dict(json.loads(who.roost("get", kind, name, "-o", "json").stdout)["status"])


def test_machines_talk_by_name_and_not_across_projects(lan: Ordinary) -> None:
    assert " 0% packet loss" in inside(lan, "a", "ping -c 2 -W 3 b")
    assert "64 bytes from 10.20.0.3" not in inside(lan, "c", "ping -c 1 -W 1 10.20.0.3", "other")
    assert status(lan, "network", "lan")["door"] == "pasta"


def test_a_machine_from_a_warm_template_has_a_card_like_one_that_booted(lan: Ordinary) -> None:
    for name in ("w0", "w1"):
        lan.roost("launch", "tiny", name, "--network", "lan", "--memory", "128MiB")
    try:
        assert status(lan, "machine", "w1")["timing"]["path"] == "warm"
        assert " 0% packet loss" in inside(lan, "w1", "ping -c 2 -W 3 b")
        booted, warm = (inside(lan, name, "cat /sys/class/net/eth0/device/features") for name in ("b", "w1"))
        assert warm == booted
        assert booted[:2] == "11", "checksums are left to it"
    finally:
        lan.roost("delete", "w0", "w1", check=False)


def test_a_published_port_answers_and_all_of_it_outlives_the_daemon(lan: Ordinary) -> None:
    port = free_port()
    inside(lan, "b", "mkdir -p /w && echo page-of-b > /w/index.html && httpd -p 80 -h /w")
    lan.roost("forward", "create", f"{port}:80", "b", "--name", "page")
    assert _page(port) == b"page-of-b\n"
    pid = status(lan, "machine", "b")["pid"]
    os.kill(json.loads(lan.roost("version", "-o", "json").stdout)["daemon"]["pid"], 9)
    assert " 0% packet loss" in inside(lan, "a", "ping -c 2 -W 3 b")
    assert (_page(port), status(lan, "machine", "b")["pid"]) == (b"page-of-b\n", pid)
    lan.roost("forward", "delete", "page")


def _page(port: int) -> bytes:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        done = subprocess.run(["curl", "-s", "-m", "5", f"http://127.0.0.1:{port}/"], capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout
        time.sleep(0.3)
    return b""


def test_a_published_port_that_does_not_listen_says_so_wherever_it_is_shown(lan: Ordinary) -> None:
    first = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip()
    lan.roost("forward", "create", "81:80", "b", "--name", "low", check=False)
    why = f"ports below {first} are for root alone"
    assert f"127.0.0.1:81/tcp -> 80: does not listen: {why}" in lan.roost("network", "show", "lan").stdout
    error = status(lan, "forward", "low")["error"]
    assert error["why"] == f"port 81 of 127.0.0.1 can not be published: {why}"
    assert error["fix"].startswith(f"publish a port from {first} on, or: sudo sysctl ")
    lan.roost("forward", "delete", "low")
