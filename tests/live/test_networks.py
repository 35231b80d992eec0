"""Private networks with real machines: names, published ports, rules that change, and a daemon that is killed in between."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.live.test_usernet import free_port
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.timeout(600), needs_root, needs_program("qemu-system-x86_64", "nft", "dnsmasq")]

PAGE = "mkdir -p /w && echo page-of-{0} > /w/index.html && httpd -p 80 -h /w"
LONGEST_WAIT = 15.0


@pytest.fixture(scope="module")
def lan() -> Iterator[Daemon]:
    """A daemon with network "lan" in two projects, of the same addresses: machines a and b in one, c in the other. What is applied comes in
    the worst order: machines first."""
    daemon = Daemon().start()
    try:
        daemon.provide("tiny")
        daemon.roost("project", "create", "other")
        port = free_port()
        document = "\n---\n".join(
            [
                f"kind: forward\nname: page\nspec: {{machine: b, host_port: {port}, guest_port: 80}}",
                _machine("a", "default"),
                _machine("b", "default"),
                _machine("c", "other"),
                *(f"kind: network\nname: lan\nproject: {project}\nspec: {_SPEC}" for project in ("default", "other")),
            ]
        )
        daemon.roost("apply", "-f", "-", stdin=document.encode())
        wait_for(lambda: all(it["status"]["agent"] == "roost" for it in daemon.machines()), "the machines", seconds=90)
        yield daemon
        clear(daemon)
    finally:
        left = daemon.close()
    assert not left, "left behind:\n" + "\n".join(left)


_SPEC = "{mode: isolated, subnets: [{cidr: 10.20.0.0/24}]}"


def _machine(name: str, project: str) -> str:
    spec = "{image: tiny, memory: 128MiB, cold: true, network: none, ports: [{network: lan}]}"
    return f"kind: machine\nname: {name}\nproject: {project}\nspec: {spec}"


def clear(daemon: Daemon) -> None:
    """Delete all machines, forwards and networks; returns when nothing of them is there."""
    daemon.delete_machines()
    for plural in ("forwards", "networks"):
        for item in daemon.request("GET", f"/v1/{plural}?project=all")[1]["items"]:
            daemon.request("DELETE", f"/v1/{plural}/{item['project']}/{item['name']}")
        wait_for(lambda: not daemon.request("GET", f"/v1/{plural}?project=all")[1]["items"], plural)  # noqa: B023


def wait_for(holds: Callable[[], Any], what: str, seconds: float = LONGEST_WAIT) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"after {seconds} s: {what}"
        time.sleep(0.2)


def inside(daemon: Daemon, machine: str, command: str, project: str = "default") -> subprocess.CompletedProcess[str]:
    """A command of the shell in a machine."""
    return daemon.roost("--project", project, "exec", machine, "--", "sh", "-c", command, check=False, timeout=60)


def address_of(daemon: Daemon, machine: str, project: str = "default") -> str:
    """The machine's first address."""
    found = daemon.request("GET", f"/v1/machines/{project}/{machine}")[1]["status"]["ports"][0]["addresses"][0]
    return str(found).partition("/")[0]


def test_two_machines_of_a_network_talk_by_name(lan: Daemon) -> None:
    for name in ("b", "b.default.internal"):
        assert " 0% packet loss" in inside(lan, "a", f"ping -c 2 -W 3 {name}").stdout
    answer = inside(lan, "a", f"nslookup {address_of(lan, 'b')}").stdout
    assert "b.default.internal" in answer


def test_a_machine_of_another_project_is_not_reached(lan: Daemon) -> None:
    own = {address_of(lan, "a"), address_of(lan, "b")}
    assert address_of(lan, "c", "other") in own, "the addresses of both networks are the same"
    free = inside(lan, "c", "for n in 2 3 4 5; do ping -c 1 -W 1 10.20.0.$n; done", "other").stdout
    assert len(re.findall(r"^64 bytes", free, re.M)) == 1, "but for itself nobody answers"
    answer = inside(lan, "c", "nslookup a.default.internal", "other").stdout
    assert "can't find a.default.internal" in answer, answer


def test_a_published_port_answers_on_the_host(lan: Daemon) -> None:
    inside(lan, "b", PAGE.format("b"))
    (forward,) = lan.request("GET", "/v1/forwards")[1]["items"]
    assert forward["status"]["phase"] == "active", forward["status"]
    page = subprocess.run(
        ["curl", "-s", "-m", "10", f"http://127.0.0.1:{forward['spec']['host_port']}/"],
        capture_output=True,
        check=False,
    )
    assert page.stdout == b"page-of-b\n", page


def test_rules_change_while_traffic_flows(lan: Daemon) -> None:
    lan.roost("ruleset", "create", "shut", "in icmp")
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan", "rulesets": ["shut"]}]}})
    heard: list[str] = []
    flow = threading.Thread(target=lambda: heard.append(inside(lan, "a", "ping -c 60 -i 0.2 b").stdout))
    flow.start()
    time.sleep(4)
    lan.roost("ruleset", "set", "shut")
    time.sleep(4)
    lan.roost("ruleset", "set", "shut", "in icmp")
    flow.join()
    got = [int(number) for number in re.findall(r"seq=(\d+)", heard[0])]
    assert 5 <= 60 - len(got) <= 45 and got[0] == 0 and got[-1] == 59, got
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan"}]}})
    lan.roost("ruleset", "delete", "shut")


def test_trace_says_which_rule_decides(lan: Daemon) -> None:
    lan.roost("ruleset", "create", "web", "in tcp:80")
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan", "rulesets": ["web"]}]}})
    assert "rule 0 of rule set web" in lan.roost("network", "trace", "a", "b:80").stdout
    refused = lan.roost("network", "trace", "a", "b:81", check=False)
    assert refused.returncode == 1 and "does not pass" in refused.stdout
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan"}]}})
    lan.roost("ruleset", "delete", "web")


def test_a_network_in_use_is_not_deleted(lan: Daemon) -> None:
    refused = lan.roost("network", "delete", "lan", check=False)
    assert refused.returncode == 4 and "roost network detach lan a" in refused.stderr


def test_what_passes_is_captured(lan: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.pcap"
    flow = threading.Thread(target=lambda: inside(lan, "a", "ping -c 8 -i 0.5 b"))
    flow.start()
    lan.roost("network", "capture", "a", str(file), "--frames", "4", timeout=60)
    flow.join()
    data = file.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1" and len(data) > 24 + 4 * 16


def test_ports_are_plugged_in_and_out_while_a_machine_runs(lan: Daemon) -> None:
    lan.roost("network", "create", "back", "--mode", "isolated")
    for name in ("a", "b"):
        lan.roost("network", "attach", "back", name)
    wait_for(lambda: len(lan.machine("a")["status"]["ports"]) == 2, "the port")
    target = lan.machine("b")["status"]["ports"][1]["addresses"][0].partition("/")[0]
    wait_for(lambda: " 0% packet loss" in inside(lan, "a", f"ping -c 1 -W 2 {target}").stdout, "the way through back")
    for name in ("a", "b"):
        lan.roost("network", "detach", "back", name)
    wait_for(lambda: len(lan.machine("a")["status"]["ports"]) == 1, "the port to be gone")
    assert "eth1" not in inside(lan, "a", "ls /sys/class/net").stdout
    lan.roost("network", "delete", "back")


def test_a_clone_has_an_address_of_its_own_before_its_first_word(lan: Daemon) -> None:
    lan.roost("clone", "a", "kid")
    own = address_of(lan, "kid")
    assert own not in {address_of(lan, "a"), address_of(lan, "b")}
    shown = inside(lan, "kid", "ip -4 addr show eth0").stdout
    assert f"inet {own}/24" in shown and f"inet {address_of(lan, 'a')}/24" not in shown
    assert " 0% packet loss" in inside(lan, "kid", "ping -c 1 -W 3 b").stdout
    assert " 0% packet loss" in inside(lan, "a", "ping -c 1 -W 3 kid").stdout
    lan.roost("delete", "kid")


def test_networks_and_machines_outlive_a_killed_daemon(lan: Daemon) -> None:
    before = [address_of(lan, name) for name in ("a", "b")]
    pids = [lan.machine(name)["status"]["pid"] for name in ("a", "b")]
    lan.kill()
    lan.start()
    wait_for(lambda: lan.request("GET", "/v1/networks/default/lan")[1]["status"]["phase"] == "ready", "the network")
    assert " 0% packet loss" in inside(lan, "a", "ping -c 2 -W 3 b").stdout
    assert [lan.machine(name)["status"]["pid"] for name in ("a", "b")] == pids
    assert [address_of(lan, name) for name in ("a", "b")] == before
    test_a_published_port_answers_on_the_host(lan)


def test_a_machine_from_a_warm_template_has_its_port(lan: Daemon) -> None:
    lan.cold = False
    try:
        lan.roost("launch", "tiny", "w0", "--network", "lan", timeout=120)
        lan.roost("launch", "tiny", "w1", "--network", "lan", timeout=120)
        assert lan.machine("w1")["status"]["timing"]["path"] == "warm"
        assert " 0% packet loss" in inside(lan, "w1", "ping -c 1 -W 3 b").stdout
        assert " 0% packet loss" in inside(lan, "w0", "ping -c 1 -W 3 w1").stdout
    finally:
        lan.cold = True
        lan.roost("delete", "w0", "w1", check=False)
