"""Real machines on a network that spans two hosts, each with a daemon of its own, and on one that is part of the hosts' own network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests import hosts as lab
from tests.daemon import Daemon
from tests.fabrics import on_host, sh
from tests.live.test_bridged import server
from tests.live.test_networks import clear, inside, wait_for
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.timeout(300), needs_root, needs_program("qemu-system-x86_64", "nft", "dnsmasq")]


@contextlib.contextmanager
def daemon(net: int, document: str) -> Iterator[Daemon]:
    """A daemon on a host, with what the document says; asserts that nothing is left of it."""
    one = Daemon()
    with lab.inside(net):
        one.start()
    try:
        one.provide("tiny")
        one.roost("apply", "-f", "-", stdin=document.encode())
        yield one
        clear(one)
    finally:
        left = one.close()
    assert not left, "left behind:\n" + "\n".join(left)


def ready(*daemons: Daemon) -> None:
    """The machines run and answer."""
    for one in daemons:
        wait_for(lambda: all(it["status"]["agent"] == "roost" for it in one.machines()), "the machines", seconds=90)  # noqa: B023


def machine(name: str) -> str:
    return f"kind: machine\nname: {name}\nspec: {{image: tiny, memory: 128MiB, cold: true, network: none, ports: [{{network: lan}}]}}"


def spanned(number: int, peer: int) -> str:
    vxlan = (
        f"{{id: 42, local: 192.0.2.{number}, subnets: [10.20.{number}.0/24], "
        f"peers: [{{address: 192.0.2.{peer}, subnets: [10.20.{peer}.0/24]}}]}}"
    )
    network = f"kind: network\nname: lan\nspec: {{mode: isolated, subnets: [{{cidr: 10.20.0.0/16}}], vxlan: {vxlan}}}"
    return f"{network}\n---\n{machine(f'm{number}')}"


def test_machines_of_two_hosts_talk_with_packets_of_the_size_they_are_told() -> None:
    async def main() -> list[Any]:
        sh("ip link add wire type bridge && ip link set wire up")
        with daemon(lab.joined(1), spanned(1, 2)) as one, daemon(lab.joined(2), spanned(2, 1)) as two:
            ready(one, two)
            found: list[Any] = []
            for here, name, there in ((one, "m1", two), (two, "m2", one)):
                address = there.machines()[0]["status"]["ports"][0]["addresses"][0].partition("/")[0]
                found.append(" 0% packet loss" in inside(here, name, f"ping -c 2 -W 3 -s 1422 {address}").stdout)
                found.append(inside(here, name, "cat /sys/class/net/eth0/mtu").stdout.strip())
            return found

    assert on_host("root", main) == [True, "1450", True, "1450"]


def test_a_machine_of_a_bridged_network_is_given_an_address_there_and_reaches_its_neighbours() -> None:
    document = f"kind: network\nname: lan\nspec: {{mode: bridged, interface: wire}}\n---\n{machine('m')}"

    async def main() -> list[Any]:
        sh("ip link add wire type bridge && ip link set wire up && ip addr add 192.0.2.1/24 dev wire")
        neighbour, home = lab.joined(5), lab.here()
        with server(neighbour), daemon(home, document) as one:
            ready(one)
            wait_for(lambda: "192.0.2.1" in inside(one, "m", "ip -4 addr show eth0").stdout, "an address")
            found: list[Any] = [" 0% packet loss" in inside(one, "m", "ping -c 2 -W 3 192.0.2.5").stdout]
            port = one.machines()[0]["status"]["ports"][0]
            return [*found, port["addresses"], one.request("GET", "/v1/networks/default/lan")[1]["status"]["door"]]

    assert on_host("root", main) == [True, [], "bridge"]
