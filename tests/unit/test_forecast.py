"""How much memory machines are going to need, and that a storm of them ends in refusals and not in the OOM killer."""

from __future__ import annotations

import asyncio
import itertools
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.control.forecast import OVERHEAD, Pending, admits, forecast, left, reserve
from roost.control.reservations import LEARN_SECONDS, Reservations
from roost.errors import NotStarted, Unavailable
from roost.model.meta import GiB, MiB
from roost.testing.clock import VirtualClock

SIZES = st.integers(0, 64 * GiB)


class Host:
    """A host with memory that machines take after they started."""

    def __init__(self, memory: int) -> None:
        self.clock = VirtualClock()
        self.memory = memory
        self.used: dict[str, int] = {}
        self.asked = 0
        self.numbers = itertools.count()
        self.places = Reservations(self.clock, self.free, kept_back=256 * MiB)

    def free(self) -> int:
        return self.memory - sum(self.used.values())

    async def launch(self, uid: str) -> None:
        """As the reconciler does: a place, then a process, whose start takes a while."""
        await self.places.take(uid, self.places.forecast("fork", 512 * MiB, "shape"), "shape")
        await self.clock.sleep(0.05)
        self.used[uid] = 30 * MiB
        self.places.started(uid, lambda: self.measure(uid))

    async def measure(self, uid: str) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        return self.used[uid]

    async def storm(self, count: int) -> list[BaseException]:
        """All at once; returns the refusals."""
        asking = [asyncio.ensure_future(self.launch(f"m{number}")) for number in islice(self.numbers, count)]
        await self.clock.advance(0.5)
        done = await asyncio.gather(*asking, return_exceptions=True)
        return [outcome for outcome in done if outcome is not None]


def test_a_boot_may_use_all_of_its_memory() -> None:
    assert forecast("cold", 512 * MiB) == 512 * MiB + OVERHEAD


@pytest.mark.parametrize(("memory", "first"), [(128 * MiB, 96 * MiB), (512 * MiB, 128 * MiB), (4 * GiB, GiB)])
def test_the_first_fork_is_given_a_quarter_of_its_memory(memory: int, first: int) -> None:
    assert forecast("fork", memory) == first


def test_later_forks_are_given_what_the_largest_before_them_used_and_a_quarter_more() -> None:
    assert forecast("fork", 512 * MiB, [40 * MiB, 64 * MiB, 48 * MiB]) == 80 * MiB


@given(SIZES, st.lists(SIZES, max_size=20))
def test_a_fork_never_counts_more_than_a_boot(memory: int, earlier: list[int]) -> None:
    assert 0 < forecast("fork", memory, earlier) <= forecast("cold", memory)


@pytest.mark.parametrize(("total", "kept_back"), [(GiB, 128 * MiB), (8 * GiB, 8 * GiB // 20), (256 * GiB, GiB)])
def test_the_host_keeps_some_memory_for_itself(total: int, kept_back: int) -> None:
    assert reserve(total) == kept_back


@given(SIZES, SIZES, st.lists(st.builds(Pending, SIZES, SIZES)), SIZES)
def test_what_is_admitted_leaves_room_for_all_that_was_promised(
    wanted: int, free: int, pending: list[Pending], kept_back: int
) -> None:
    refusal = admits(wanted, free, pending, kept_back)
    after = left(free, [*pending, Pending(wanted)], kept_back)
    assert (refusal is None) is (after >= 0)


def test_a_refusal_says_what_is_lacking_and_what_to_do() -> None:
    refusal = admits(600 * MiB, GiB, [Pending(512 * MiB, 112 * MiB)], 256 * MiB)
    assert refusal is not None
    assert "600 MiB" in refusal.why
    assert "368 MiB are left" in refusal.why
    assert "--memory" in refusal.fix


@pytest.mark.fault(48)
async def test_of_fifty_asked_at_once_as_many_run_as_the_host_carries() -> None:
    host = Host(256 * MiB + 20 * 128 * MiB)
    refusals = await host.storm(50)
    assert len(host.used) == 20
    assert [type(refusal) for refusal in refusals] == [Unavailable] * 30
    host.places.close()


@pytest.mark.fault(48)
async def test_whoever_grows_into_its_promise_takes_nothing_from_the_others() -> None:
    host = Host(256 * MiB + 20 * 128 * MiB)
    await host.storm(50)
    host.used = dict.fromkeys(host.used, 128 * MiB)
    assert host.free() == 256 * MiB
    host.places.close()


async def test_measured_forks_leave_room_for_more() -> None:
    host = Host(256 * MiB + 20 * 128 * MiB)
    await host.storm(2)
    await host.clock.advance(LEARN_SECONDS)
    await host.storm(100)
    assert len(host.used) == 2 + 18 * 128 * MiB // (30 * MiB * 5 // 4)
    host.places.close()


async def test_a_place_is_free_again_when_its_machine_ends() -> None:
    host = Host(256 * MiB + 128 * MiB)
    await host.storm(1)
    with pytest.raises(Unavailable):
        await host.places.take("next", 128 * MiB)
    host.places.release("m0")
    host.used.clear()
    await host.places.take("next", 128 * MiB)


async def test_nobody_is_measured_while_there_is_room() -> None:
    host = Host(16 * GiB)
    await host.storm(20)
    assert host.asked == 0
    host.places.close()


async def test_a_storm_of_refusals_measures_everybody_once() -> None:
    host = Host(256 * MiB + 10 * 128 * MiB)
    await host.storm(10)
    await host.clock.advance(2)
    await host.storm(60)
    assert host.asked == 10
    host.places.close()


async def test_what_grew_already_is_not_counted_twice() -> None:
    host = Host(256 * MiB + 2 * 128 * MiB)
    await host.storm(1)
    host.used["m0"] = 128 * MiB
    await host.places.take("second", 128 * MiB)
    host.places.close()


async def test_a_machine_that_ends_while_it_is_measured_is_no_trouble() -> None:
    host = Host(GiB)

    async def gone() -> int:
        raise NotStarted("it ended")

    host.places.hold("old", GiB)
    host.places.started("old", gone)
    with pytest.raises(Unavailable):
        await host.places.take("new", 512 * MiB)
    host.places.close()


async def test_an_adopted_machine_has_its_place_without_asking() -> None:
    host = Host(GiB)
    host.places.hold("old", 2 * GiB)
    assert host.places.room() < 0


async def test_who_is_refused_keeps_no_place() -> None:
    host = Host(256 * MiB + 128 * MiB)
    with pytest.raises(Unavailable):
        await host.places.take("large", GiB)
    await host.places.take("small", 128 * MiB)
