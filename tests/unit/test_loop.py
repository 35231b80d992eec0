"""The reconcile loop: what wakes an object, what holds it back, and what never does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import structlog

from roost.control.base import Retry
from roost.control.loop import Loop
from roost.errors import Conflict, Invalid, Unavailable
from roost.store.base import Entry
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock

Act = Callable[[str], Awaitable[None]]


async def nothing(key: str) -> None:
    pass


class Recorder:
    """A reconciler that notes when each run began and how many of them overlapped."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.runs: list[tuple[str, float]] = []
        self.now: dict[str, int] = defaultdict(int)
        self.most_of_one_key = 0
        self.most_at_once = 0
        self.act: Act = nothing

    async def reconcile(self, key: str) -> None:
        self.runs.append((key, round(self.clock.now() - 1000, 3)))
        self.now[key] += 1
        self.most_of_one_key = max(self.most_of_one_key, self.now[key])
        self.most_at_once = max(self.most_at_once, sum(self.now.values()))
        try:
            await self.act(key)
        finally:
            self.now[key] -= 1

    @property
    def keys(self) -> list[str]:
        return [key for key, _ in self.runs]

    @property
    def times(self) -> list[float]:
        return [time for _, time in self.runs]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def store(clock: VirtualClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def recorder(clock: VirtualClock) -> Recorder:
    return Recorder(clock)


@pytest.fixture
def loop(store: MemoryStore, clock: VirtualClock, recorder: Recorder) -> Loop:
    loop = Loop(store, clock, chance=lambda: 0.0)
    loop.add("m/", recorder, workers=4)
    return loop


@asynccontextmanager
async def running(loop: Loop) -> AsyncIterator[None]:
    task = asyncio.ensure_future(loop.run())
    await loop.settle()
    try:
        yield
    finally:
        await loop.stop(grace=0)
        await asyncio.wait_for(task, 5)


def failing(*outcomes: Exception | None) -> Act:
    left = list(outcomes)

    async def act(key: str) -> None:
        outcome = left.pop(0) if left else None
        if outcome is not None:
            raise outcome

    return act


async def test_what_exists_is_reconciled_at_the_start(loop: Loop, store: MemoryStore, recorder: Recorder) -> None:
    await store.put("m/a", b"")
    await store.put("m/b", b"")
    await store.put("other/c", b"")
    async with running(loop):
        assert recorder.keys == ["m/a", "m/b"]


async def test_every_change_wakes_its_object_without_any_time_passing(
    loop: Loop, store: MemoryStore, recorder: Recorder
) -> None:
    async with running(loop):
        await store.put("m/a", b"1")
        await loop.settle()
        await store.put("m/a", b"2")
        await loop.settle()
        await store.put("m/a", None)
        await loop.settle()
    assert recorder.runs == [("m/a", 0.0)] * 3


async def test_wakes_that_wait_for_a_worker_are_one_run(loop: Loop, recorder: Recorder) -> None:
    loop.wake("m/a")
    loop.wake("m/a")
    assert loop.queued == 1
    async with running(loop):
        assert recorder.keys == ["m/a"]


async def test_one_object_is_never_reconciled_twice_at_once(loop: Loop, recorder: Recorder) -> None:
    gate = asyncio.Event()
    recorder.act = lambda key: gate.wait()  # type: ignore[assignment, return-value]
    async with running(loop):
        loop.wake("m/a")
        await asyncio.sleep(0)
        loop.wake("m/a")
        loop.wake("m/a")
        gate.set()
        await loop.settle()
    assert recorder.most_of_one_key == 1
    assert recorder.keys == ["m/a", "m/a"]


async def test_a_slow_object_does_not_hold_up_others(loop: Loop, recorder: Recorder) -> None:
    gate = asyncio.Event()

    async def slow_a(key: str) -> None:
        await (gate.wait() if key == "m/a" else asyncio.sleep(0))

    recorder.act = slow_a
    async with running(loop):
        for key in ("m/a", "m/b", "m/c"):
            loop.wake(key)
        for _ in range(20):
            await asyncio.sleep(0)
        assert recorder.keys == ["m/a", "m/b", "m/c"]
        assert loop.running == 1
        gate.set()


async def test_no_more_objects_are_reconciled_at_once_than_there_are_workers(loop: Loop, recorder: Recorder) -> None:
    async def turn(key: str) -> None:
        await asyncio.sleep(0)

    recorder.act = turn
    async with running(loop):
        for n in range(20):
            loop.wake(f"m/{n}")
        await loop.settle()
    assert recorder.most_at_once == 4
    assert len(recorder.runs) == 20


async def test_another_kind_has_its_own_workers(
    loop: Loop, store: MemoryStore, clock: VirtualClock, recorder: Recorder
) -> None:
    images, gate = Recorder(clock), asyncio.Event()
    loop.add("images/", images)
    recorder.act = lambda key: gate.wait()  # type: ignore[assignment, return-value]
    async with running(loop):
        for n in range(10):
            loop.wake(f"m/{n}")
        loop.wake("images/x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert images.keys == ["images/x"]
        gate.set()


async def test_what_someone_waits_for_goes_before_the_routine(
    loop: Loop, store: MemoryStore, recorder: Recorder
) -> None:
    for n in range(50):
        await store.put(f"m/{n:02}", b"")

    async def turn(key: str) -> None:
        await asyncio.sleep(0)

    recorder.act = turn
    task = asyncio.ensure_future(loop.run())
    for _ in range(3):
        await asyncio.sleep(0)
    loop.wake("m/40")
    await loop.settle()
    assert recorder.keys.index("m/40") < 10
    assert recorder.keys.count("m/40") == 1
    await loop.stop()
    await task


async def test_a_failure_is_retried_after_delays_that_double(
    loop: Loop, clock: VirtualClock, recorder: Recorder
) -> None:
    recorder.act = failing(*[Retry("not yet")] * 12)
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(300)
    waits = [round(b - a, 3) for a, b in zip(recorder.times, recorder.times[1:], strict=False)]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    assert (loop.failures, loop.reconciles) == (12, 13)


async def test_chance_shortens_the_delay_by_up_to_half(
    store: MemoryStore, clock: VirtualClock, recorder: Recorder
) -> None:
    loop = Loop(store, clock, chance=lambda: 0.999999)
    loop.add("m/", recorder)
    recorder.act = failing(*[Retry("not yet")] * 3)
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(10)
    assert recorder.times == [0.0, 0.05, 0.15, 0.35]


async def test_success_forgets_the_failures_before_it(loop: Loop, clock: VirtualClock, recorder: Recorder) -> None:
    recorder.act = failing(Retry(""), Retry(""), None, Retry(""))
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(1)
        loop.wake("m/a")
        await clock.advance(1)
    assert recorder.times == [0.0, 0.1, 0.3, 1.0, 1.1]


async def test_a_retry_with_its_own_delay_is_no_failure(loop: Loop, clock: VirtualClock, recorder: Recorder) -> None:
    recorder.act = failing(Retry("booting", after=5), Retry("booting", after=0.0))
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(6)
    assert recorder.times == [0.0, 5.0, 5.0]
    assert loop.failures == 0


async def test_a_planned_retry_forgets_the_failures_before_it(
    loop: Loop, clock: VirtualClock, recorder: Recorder
) -> None:
    recorder.act = failing(Retry(""), Retry(""), Retry("booting", after=5), Retry(""))
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(10)
    assert recorder.times == [0.0, 0.1, 0.3, 5.3, 5.4]


async def test_a_change_does_not_wait_for_the_delay_of_a_failure(
    loop: Loop, store: MemoryStore, clock: VirtualClock, recorder: Recorder
) -> None:
    recorder.act = failing(*[Retry("no disk")] * 8)
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(15)
        await store.put("m/a", b"mended")
        await loop.settle()
    assert recorder.times[-1] == 15.0


async def test_an_object_that_fails_and_wakes_itself_does_not_spin(
    loop: Loop, store: MemoryStore, clock: VirtualClock, recorder: Recorder
) -> None:
    async def write_and_fail(key: str) -> None:
        await store.put(key, b"%d" % len(recorder.runs))
        raise Retry("always")

    recorder.act = write_and_fail
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(1)
    assert 5 <= len(recorder.runs) <= 12


async def test_an_unexpected_error_is_logged_once_with_its_traceback_and_retried(
    loop: Loop, clock: VirtualClock, recorder: Recorder
) -> None:
    recorder.act = failing(*[ValueError("broken")] * 4)
    with structlog.testing.capture_logs() as lines:
        async with running(loop):
            loop.wake("m/a")
            await clock.advance(10)
    warnings = [line for line in lines if line["log_level"] == "warning"]
    assert [line["why"] for line in warnings] == ["ValueError: broken"]
    assert isinstance(warnings[0]["exc_info"], ValueError)
    assert len(recorder.runs) == 5


async def test_an_object_cancelled_from_inside_is_retried(loop: Loop, clock: VirtualClock, recorder: Recorder) -> None:
    recorder.act = failing(asyncio.CancelledError())  # type: ignore[arg-type]
    async with running(loop):
        loop.wake("m/a")
        await clock.advance(1)
    assert recorder.times == [0.0, 0.1]


async def test_wake_after_waits_and_the_earliest_holds(loop: Loop, clock: VirtualClock, recorder: Recorder) -> None:
    async with running(loop):
        loop.wake_after("m/a", 5)
        loop.wake_after("m/a", 3)
        loop.wake_after("m/a", 9)
        assert loop.idle()
        await clock.advance(20)
    assert recorder.times == [3.0]


async def test_a_run_takes_the_place_of_a_later_wake(loop: Loop, clock: VirtualClock, recorder: Recorder) -> None:
    async with running(loop):
        loop.wake_after("m/a", 5)
        loop.wake("m/a")
        await clock.advance(20)
    assert recorder.times == [0.0]


async def test_everything_is_looked_at_again_every_five_minutes(
    loop: Loop, store: MemoryStore, clock: VirtualClock, recorder: Recorder
) -> None:
    await store.put("m/a", b"")
    async with running(loop):
        await clock.advance(900)
    assert recorder.times == [0.0, 300.0, 600.0, 900.0]


class Forgetful(MemoryStore):
    """A store whose watches break, and which loses all events between two of them."""

    def __init__(self, clock: VirtualClock, error: Exception) -> None:
        super().__init__(clock)
        self.error: Exception | None = error
        self.broken = asyncio.Event()

    async def watch(self, prefix: str, *, since: int) -> AsyncIterator[Entry]:
        if self.error is not None:
            await self.broken.wait()
            error, self.error = self.error, None
            raise error
        async for entry in super().watch(prefix, since=since):
            yield entry


@pytest.mark.parametrize("error", [Conflict("compacted"), Unavailable("disk"), RuntimeError("bug")])
async def test_a_broken_watch_is_followed_by_a_list_that_misses_nothing(
    clock: VirtualClock, recorder: Recorder, error: Exception
) -> None:
    store = Forgetful(clock, error)
    loop = Loop(store, clock, chance=lambda: 0.0)
    loop.add("m/", recorder)
    await store.put("m/gone", b"")
    await store.put("m/kept", b"")
    async with running(loop):
        await store.put("m/gone", None)
        await store.put("m/new", b"")
        recorder.runs.clear()
        store.broken.set()
        await clock.advance(1)
        assert sorted(recorder.keys) == ["m/gone", "m/kept", "m/new"]
        await store.put("m/kept", b"2")
        await loop.settle()
        assert recorder.keys[3:] == ["m/kept"]


async def test_stop_lets_running_work_end_and_starts_no_more(
    loop: Loop, store: MemoryStore, recorder: Recorder
) -> None:
    gate = asyncio.Event()
    recorder.act = lambda key: gate.wait()  # type: ignore[assignment, return-value]
    task = asyncio.ensure_future(loop.run())
    loop.wake("m/a")
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(loop.stop())
    await asyncio.sleep(0)
    loop.wake("m/b")
    assert not stopping.done()
    gate.set()
    await asyncio.wait_for(stopping, 5)
    await asyncio.wait_for(task, 5)
    assert recorder.keys == ["m/a"]


async def test_stop_cancels_what_does_not_end_within_its_grace(
    loop: Loop, clock: VirtualClock, recorder: Recorder
) -> None:
    recorder.act = lambda key: asyncio.Event().wait()  # type: ignore[assignment, return-value]
    task = asyncio.ensure_future(loop.run())
    loop.wake("m/a")
    await asyncio.sleep(0)
    stopping = asyncio.ensure_future(loop.stop(grace=10))
    await clock.advance(9)
    assert not stopping.done()
    await clock.advance(2)
    await asyncio.wait_for(stopping, 5)
    await asyncio.wait_for(task, 5)
    assert recorder.now["m/a"] == 0


async def test_cancelling_run_cancels_what_runs(loop: Loop, recorder: Recorder) -> None:
    recorder.act = lambda key: asyncio.Event().wait()  # type: ignore[assignment, return-value]
    task = asyncio.ensure_future(loop.run())
    for n in range(10):
        loop.wake(f"m/{n}")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert sum(recorder.now.values()) == 0
    assert loop.running == 0


async def test_a_key_that_nobody_reconciles_is_an_error(loop: Loop) -> None:
    with pytest.raises(Invalid, match="nobody reconciles"):
        loop.wake("x/a")


async def test_objects_at_rest_cost_nothing(loop: Loop, store: MemoryStore, clock: VirtualClock) -> None:
    async with running(loop):
        for n in range(100):
            await store.put(f"m/{n}", b"")
            await store.put(f"m/{n}", None)
        await loop.settle()
        assert loop._objects == {}
        assert loop._kinds[0].known == set()
