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
    lan.roost("network", "port", "b", "--rulesets", "shut", "--down", "1Gbit")
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
    lan.roost("network", "port", "b", "--rulesets", "default", "--down", "none")
    lan.roost("ruleset", "delete", "shut")


def test_trace_says_what_decides(lan: Daemon) -> None:
    lan.roost("ruleset", "create", "web", "in deny tcp:22", "in tcp:80")
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan", "rulesets": ["web"]}]}})
    wait_for(lambda: "rule 1 of rule set web allows" in traced(lan, "a", "b:80"), "the rules")
    assert "rule 0 of rule set web denies tcp 22" in traced(lan, "a", "b:22", 1)
    assert "no rule of web lets it in" in traced(lan, "a", "b:81", 1)
    assert "rule 1 of rule set web" in traced(lan, "host", "b:80")
    assert "roost forward create 81:81 b" in traced(lan, "host", "b:81", 1)
    assert "a machine of another project" in traced(lan, "a", "c.other.internal:80", 1)
    assert "project default has no such machine" in traced(lan, "a", "c:80", 3)
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan", "link": False}]}})
    wait_for(lambda: "the port's link is off" in traced(lan, "a", "b", None), "the link")
    lan.request("PATCH", "/v1/machines/default/b", {"spec": {"ports": [{"network": "lan"}]}})
    wait_for(lambda: "127.0.0.1 port" in traced(lan, "host", "b:80", None), "the way it was")
    lan.roost("ruleset", "delete", "web")


def traced(daemon: Daemon, source: str, target: str, code: int | None = 0) -> str:
    """What is said of a connection; `code` is what the command returns (None: whatever)."""
    done = daemon.roost("network", "trace", source, target, check=False)
    assert code in (None, done.returncode), done
    return done.stdout + done.stderr


def test_a_network_in_use_is_not_deleted(lan: Daemon) -> None:
    refused = lan.roost("network", "delete", "lan", check=False)
    assert refused.returncode == 4 and "roost network detach lan a" in refused.stderr


@needs_program("tcpdump")
def test_what_passes_is_captured_as_a_reader_of_others_reads_it(lan: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.pcap"
    b = address_of(lan, "b")
    flow = threading.Thread(target=lambda: inside(lan, "a", f"ping -c 8 -i 0.5 {b}"))
    flow.start()
    lan.roost("network", "capture", "a", str(file), "--frames", "4", timeout=60)
    flow.join()
    read = subprocess.run(["tcpdump", "-nr", str(file), "icmp"], capture_output=True, text=True, check=True).stdout
    assert f"IP {address_of(lan, 'a')} > {b}: ICMP echo request" in read, read
    assert f"IP {b} > {address_of(lan, 'a')}: ICMP echo reply" in read, read


def test_connections_are_in_the_flow_log_while_one_is_kept(lan: Daemon) -> None:
    refused = lan.roost("network", "flows", "lan", check=False)
    assert refused.returncode == 4 and "roost network flows lan --on" in refused.stderr
    lan.roost("network", "flows", "lan", "--on")
    wait_for(lambda: lan.request("GET", "/v1/networks/default/lan")[1]["status"]["generation"] >= 2, "the log")
    own, b = address_of(lan, "a"), address_of(lan, "b")
    heard: list[str] = []
    follower = threading.Thread(target=lambda: heard.append(lan.roost("network", "flows", "lan", "--follow").stdout))
    follower.start()
    inside(lan, "a", f"ping -c 2 -W 3 {b}")
    inside(lan, "a", f"nc -w 1 {b} 99")
    wait_for(lambda: ":99\n" in lan.roost("network", "flows", "lan").stdout, "the connection")
    told = lan.roost("network", "flows", "lan").stdout
    assert len(re.findall(rf"allowed  icmp  a {own} -> b {b}$", told, re.M)) == 1, told
    assert re.search(rf"allowed  tcp   a {own}:\d+ -> b {b}:99$", told, re.M), told
    lan.roost("network", "flows", "lan", "--off")
    follower.join()
    assert heard == [told]


def test_what_ports_and_rules_counted_is_shown_and_in_the_metrics(lan: Daemon) -> None:
    inside(lan, "a", f"ping -c 3 {address_of(lan, 'b')}")
    shown = lan.roost("network", "show", "lan").stdout
    assert re.search(r"^├─ a  10\.20\.0\.\d  ([0-9a-f]{2}:){5}[0-9a-f]{2}$", shown, re.M), shown
    assert re.search(r"^rule 0 of default: \d+ packets?, ", shown, re.M), shown
    assert "rogue" not in shown and "spoofed" not in shown, "honest guests are accused of nothing"
    metrics = lan.request("GET", "/metrics")[1].decode()
    place = 'direction="in",machine="b",network="lan",port="lan",project="default"'
    passed = re.search(rf"^roost_network_port_packets_total{{{place}}} (\S+)$", metrics, re.M)
    assert passed is not None and float(passed[1]) >= 3
    assert 'roost_network_rule_packets_total{network="lan",project="default",rule="default/0"}' in metrics


def test_ports_are_plugged_in_and_out_while_a_machine_runs(lan: Daemon) -> None:
    lan.roost("network", "create", "back", "--mode", "isolated")
    for name in ("a", "b"):
        lan.roost("network", "attach", "back", name)
    wait_for(lambda: len(lan.machine("a")["status"]["ports"]) == 2, "the port")
    again = lan.roost("network", "attach", "back", "a", check=False)
    assert 'machine "a" has a port "back" already' in again.stderr and "roost edit machine a" in again.stderr
    target = lan.machine("b")["status"]["ports"][1]["addresses"][0].partition("/")[0]
    wait_for(lambda: " 0% packet loss" in inside(lan, "a", f"ping -c 1 -W 2 {target}").stdout, "the way through back")
    for name in ("a", "b"):
        lan.roost("network", "detach", "back", name)
    wait_for(lambda: len(lan.machine("a")["status"]["ports"]) == 1, "the port to be gone")
    assert "eth1" not in inside(lan, "a", "ls /sys/class/net").stdout
    lan.roost("network", "delete", "back")


def test_an_isolated_network_has_the_metadata_service(lan: Daemon) -> None:
    assert lan.machine("a")["spec"]["cold"], "not from a template, which an agent tells everything"
    ask = r"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n"
    told = inside(lan, "a", f"(printf '{ask}'; sleep 1) | nc -w 3 169.254.169.254 80; ip route").stdout
    assert " 200 " in told.splitlines()[0], told


def test_a_machine_of_another_network_of_the_asker_s_has_a_name(lan: Daemon) -> None:
    lan.roost("network", "create", "back", "--mode", "isolated")
    lan.roost("launch", "tiny", "db", "--network", "back", timeout=120)
    assert "can't find db.default.internal" in inside(lan, "a", "nslookup db.default.internal").stdout
    lan.roost("network", "attach", "back", "a")
    wait_for(lambda: " 0% packet loss" in inside(lan, "a", "ping -c 1 -W 2 db").stdout, "the way to db by its name")
    lan.roost("network", "detach", "back", "a")
    lan.roost("delete", "db")
    wait_for(lambda: "can't find db" in inside(lan, "a", "nslookup db.default.internal").stdout, "the name to be gone")
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
        booted, warm = (inside(lan, name, "cat /sys/class/net/eth0/device/features").stdout for name in ("b", "w1"))
        assert warm == booted, "the card does for it what it does for a machine that booted"
        assert booted[:2] == "11", "checksums are left to it"
    finally:
        lan.cold = True
        lan.roost("delete", "w0", "w1", check=False)
