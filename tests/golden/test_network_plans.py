"""What every kind of network is made of: a change of a link, a route, a rule or a line for dnsmasq shows as a change of a file here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.network import nft, outside, plan
from roost.network.base import Fabric, Resolver
from tests.network_samples import SAMPLES, attached, network

GOLDEN = Path(__file__).parent / "network"
UPDATE = os.environ.get("ROOST_GOLDEN_UPDATE") == "1"


def render(fabric: Fabric) -> str:
    return "\n".join(_lines(fabric)) + "\n"


def _lines(fabric: Fabric) -> Iterator[str]:
    for name in ("links", "addresses", "routes", "neighbours", "forwarding", "sysctls", "published", "metadata"):
        yield from (f"{name}: {item}" for item in getattr(fabric, name))
    for tap in fabric.taps.values():
        yield from (f"{tap.interface} {name}: {value}" for name, value in tap._asdict().items())
    for name in ("addresses", "routes", "sysctls"):
        yield from (f"outside {name}: {item}" for item in getattr(fabric.outside, name))
    yield from (f"outside element: {item}" for item in sorted(fabric.outside.elements))
    for name, text in (fabric.resolver or Resolver("", "", ""))._asdict().items():
        yield f"\n--- dnsmasq {name}\n{text}"
    yield f"--- rules\n{nft.replacing(fabric.tables)}"


@pytest.mark.parametrize("name", SAMPLES)
def test_the_network(name: str) -> None:
    compare(GOLDEN / f"{name}.txt", render(plan.fabric(SAMPLES[name])))


def test_the_table_of_the_host() -> None:
    elements = {*outside.of(SAMPLES["nat"]).elements, *outside.of(SAMPLES["routed"]._replace(uid="77")).elements}
    compare(GOLDEN / "outside.nft", nft.replacing([outside.table(elements)]))


def test_the_table_of_a_host_with_a_tunnel() -> None:
    elements = outside.of(SAMPLES["vxlan"]._replace(door="none", transfer=())).elements
    compare(GOLDEN / "tunnel.nft", nft.replacing([outside.table(elements)]))


def test_a_port_more_is_a_few_lines() -> None:
    before, ports = network(), (*network().ports, attached(2, "web"))
    compare(GOLDEN / "port.nft", plan.change(plan.fabric(before), plan.fabric(before._replace(ports=ports))).rules)


def test_every_file_has_its_case() -> None:
    whole = {"outside.nft", "port.nft", "tunnel.nft"}
    assert {path.name for path in GOLDEN.iterdir()} == {*(f"{name}.txt" for name in SAMPLES), *whole}


def compare(path: Path, planned: str) -> None:
    if UPDATE:
        path.write_text(planned)
    assert planned == path.read_text()
