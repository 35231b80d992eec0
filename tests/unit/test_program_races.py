"""Random wishes, ends and restarts in any sequence: a program never runs twice, and nothing is left after a delete."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from roost.control.records import Records, marked
from roost.errors import NotFound
from roost.model.program import Program
from tests.program_plane import API, KEY, SPEC, Bench, spec

ORDERS, SEEDS = 14, 16


async def _restart(bench: Bench) -> None:
    restarts = (await bench.get()).spec.restarts
    await bench.wish(spec(restarts=restarts + 1))


async def _end(bench: Bench) -> None:
    bench.keeper.end(random.choice((0, 1, 137)), seconds=random.choice((0.0, 90.0)))


async def _lose(bench: Bench) -> None:
    bench.keeper.signal(signal.SIGKILL)


async def _wait(bench: Bench) -> None:
    await bench.clock.advance(random.uniform(0, 40))


async def _new_daemon(bench: Bench) -> None:
    await bench.end()
    await random.choice((_end, _lose, _wait))(bench)
    bench.begin()


async def _reboot(bench: Bench) -> None:
    keeper = bench.keeper
    await bench.end()
    bench.keepers.reboot()
    bench.keepers.live[API.meta.uid] = keeper
    bench.begin()


async def _deaf(bench: Bench) -> None:
    bench.keepers.deaf = not bench.keepers.deaf


async def _slow(bench: Bench) -> None:
    bench.keepers.slow = not bench.keepers.slow


ACTIONS: tuple[Callable[[Bench], Awaitable[object]], ...] = (
    lambda bench: bench.wish(spec(power="stopped")),
    lambda bench: bench.wish(spec(power="running")),
    lambda bench: bench.wish(spec(power="stopped", stop_grace=0.0)),
    lambda bench: bench.wish(spec(restart="never")),
    lambda bench: bench.wish(spec(restart="always")),
    _restart,
    _end,
    _lose,
    _wait,
    _new_daemon,
    _reboot,
    _deaf,
    _slow,
)


async def _random_life(seed: int) -> Bench:
    random.seed(seed)
    bench = Bench()
    await bench.put(msgspec.structs.replace(SPEC, restart="always"))
    for action in random.choices(ACTIONS, k=ORDERS):
        await action(bench)
    return bench


@pytest.mark.fault(94)
@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_happens_a_deleted_program_leaves_nothing(seed: int) -> None:
    bench = await _random_life(seed)
    await Records(bench.store).change(KEY, Program, marked)
    await bench.settle()
    await bench.clock.advance(70)
    await bench.settle()
    with pytest.raises(NotFound):
        await bench.get()
    assert bench.keepers.doubles == 0
    assert not bench.keeper.alive()
    assert not bench.keepers.has_files(API.meta.uid)
    await bench.end()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_whatever_happens_a_program_comes_to_be_as_it_is_wished(seed: int) -> None:
    bench = await _random_life(seed)
    bench.keepers.slow = False
    await bench.settle()
    await bench.wish(spec(power="running", restart="always", restarts=100))
    await bench.clock.advance(120)
    await bench.settle()
    bench.keeper.run()
    await bench.clock.advance(5)
    after = await bench.get()
    assert (after.status.phase, after.status.restarts) == ("running", 100)
    assert after.status.process == bench.keeper.process
    assert bench.keepers.doubles == 0
    await bench.end()
