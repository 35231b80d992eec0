"""Random orders, ends and restarts in any sequence: the machine's processes are never two, and nothing is left after a delete."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from roost.control.records import Records
from roost.errors import NotFound
from tests.control_plane import READY, WEB, Bench, spec

KEY = "machines/default/web"
ORDERS = 12
SEEDS = 12


async def _restart(bench: Bench) -> None:
    restarts = (await bench.get()).spec.restarts
    await bench.wish(spec(restarts=restarts + 1))


async def _end(bench: Bench) -> None:
    bench.hypervisor.guests[WEB.meta.uid].end("killed by signal 9", clean=False)


async def _panic(bench: Bench) -> None:
    guest = bench.hypervisor.guests[WEB.meta.uid]
    if await guest.state() == "running":
        guest.become("panicked")


async def _wait(bench: Bench) -> None:
    await bench.clock.advance(random.uniform(0, 40))


async def _new_daemon(bench: Bench) -> None:
    await bench.end()
    bench.begin()


async def _deaf(bench: Bench) -> None:
    bench.hypervisor.hears_power = not bench.hypervisor.hears_power


ACTIONS: tuple[Callable[[Bench], Awaitable[object]], ...] = (
    lambda bench: bench.wish(spec(power="stopped")),
    lambda bench: bench.wish(spec(power="running")),
    lambda bench: bench.wish(spec(power="paused")),
    lambda bench: bench.wish(spec(power="stopped", stop_grace=0.0)),
    _restart,
    _end,
    _panic,
    _wait,
    _new_daemon,
    _deaf,
)


@pytest.mark.fault(94)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_happens_a_deleted_machine_leaves_nothing(tmp_path: Path, seed: int) -> None:
    random.seed(seed)
    bench = Bench(tmp_path)
    await bench.image(READY)
    await bench.put(WEB)
    for action in random.choices(ACTIONS, k=ORDERS):
        await action(bench)
    await Records(bench.store).delete(KEY)
    await Records(bench.store).delete(KEY)
    await bench.settle()
    await bench.clock.advance(70)
    await bench.settle()
    with pytest.raises(NotFound):
        await bench.get()
    assert await bench.hypervisor.guests[WEB.meta.uid].state() == "gone"
    assert bench.hypervisor.doubles == 0
    where = bench.paths.machine(WEB.meta.uid)
    assert not where.keep.exists()
    assert not where.live.exists()
    await bench.end()
