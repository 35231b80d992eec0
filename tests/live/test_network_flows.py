"""The flow log: the kernel tells of connections that are allowed and refused, once each, bounded, and as both root and an ordinary user."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.model.ruleset import Rule, RuleSetSpec
from roost.network.fabric import NetworkFabric
from tests.fabrics import LAN, engine, on_host, plug, wanted
from tests.frames import syn, udp
from tests.needs import needs_program
from tests.ordinary import WHO

pytestmark = [pytest.mark.live, needs_program("ip", "nft"), pytest.mark.timeout(120)]
both = pytest.mark.parametrize("who", WHO)
RULES = {"default": RuleSetSpec(rules=(Rule(direction="in", protocol="tcp", ports=("80",)),))}


async def logged(fabric: NetworkFabric, enough: Callable[[list[Any]], bool]) -> list[Any]:
    """The flows, when there are enough, or 5 s have passed."""
    found: list[Any] = []
    for _ in range(50):
        pieces = [piece async for piece in fabric.flows(LAN, follow=False)]
        found = [json.loads(line) for line in b"".join(pieces).splitlines()]
        if enough(found):
            break
        await asyncio.sleep(0.1)
    return found


def told(flow: dict[str, Any]) -> tuple[Any, ...]:
    """A flow without its time."""
    ends = (f"{flow['from']}:{flow['source_port']}", f"{flow['to']}:{flow['target_port']}")
    return (flow["verdict"], flow["protocol"], *ends)


@both
def test_what_is_allowed_and_what_is_refused_is_told_with_the_machines_names(who: str) -> None:
    async def main() -> list[Any]:
        async with engine() as fabric:
            network = wanted(flow_log=True, rulesets=RULES)
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            one.send4(syn(one.address4, two.address4, (1000, 80)))
            one.send4(udp(one.address4, two.address4, (1000, 53), b"not let in"))
            one.send6(udp(one.address6, two.address6, (1001, 53), b"not let in"))
            return sorted(map(told, await logged(fabric, lambda found: len(found) >= 3)))

    assert on_host(who, main) == [
        ("allowed", "tcp", "m0:1000", "m1:80"),
        ("refused", "udp", "m0:1000", "m1:53"),
        ("refused", "udp", "m0:1001", "m1:53"),
    ]


@both
def test_a_flood_is_told_in_part_and_one_that_nobody_answers_once(who: str) -> None:
    async def main() -> tuple[int, int]:
        async with engine() as fabric:
            network = wanted(flow_log=True)
            await fabric.ensure(network)
            one, two = await plug(fabric, network)
            for _ in range(20):
                one.send4(udp(one.address4, two.address4, (999, 7), b"again"))
            for number in range(3000):
                one.send4(udp(one.address4, two.address4, (1000 + number, 9), b"flood"))
            found = await logged(fabric, lambda found: len(found) >= 900)
            return sum(flow["target_port"] == 7 for flow in found), sum(flow["target_port"] == 9 for flow in found)

    again, flood = on_host(who, main)
    assert (again, 900 <= flood <= 2000) == (1, True)


def test_the_log_begins_and_ends_without_a_new_network_and_outlives_the_daemon(tmp_path: Path) -> None:
    async def main() -> list[int]:
        counts = []
        network = wanted()
        async with engine(tmp_path) as fabric:
            await fabric.ensure(network)
            ends = await plug(fabric, network)

            def knock(number: int) -> None:
                ends[0].send4(udp(ends[0].address4, ends[1].address4, (number, 9), b"knock"))

            knock(1)
            await fabric.ensure(network._replace(flow_log=True))
            knock(2)
            counts.append(len(await logged(fabric, bool)))
        async with engine(tmp_path) as fabric:
            await fabric.ensure(network._replace(flow_log=True))
            knock(3)
            counts.append(len(await logged(fabric, lambda found: len(found) == 2)))
            heard: list[bytes] = []

            async def follow() -> None:
                heard.extend([piece async for piece in fabric.flows(LAN, follow=True)])

            async with asyncio.TaskGroup() as group:
                group.create_task(follow())
                await asyncio.sleep(0.1)
                knock(4)
                await logged(fabric, lambda found: len(found) == 3)
                await fabric.ensure(network)
            counts.append(b"".join(heard).count(b"\n"))
            knock(5)
            await asyncio.sleep(0.3)
            counts.append(len(await logged(fabric, bool)))
            await fabric.remove(LAN)
            with contextlib.suppress(FileNotFoundError):
                counts.append(len(list((tmp_path / "run/networks").iterdir())))
        return counts

    assert on_host("root", main) == [1, 2, 3, 3]
