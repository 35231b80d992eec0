"""The virtual clock keeps the order of time, and the real one is real."""

from __future__ import annotations

import asyncio

from roost.host.clock import Clock, SystemClock
from roost.testing.clock import VirtualClock


async def test_timers_fire_in_order_and_at_their_own_time() -> None:
    clock, fired = VirtualClock(0.0), list[tuple[str, float]]()
    clock.call_later(5, lambda: fired.append(("late", clock.now())))
    clock.call_later(2, lambda: fired.append(("early", clock.now())))
    clock.call_later(3, lambda: fired.append(("never", clock.now()))).cancel()
    await clock.advance(1)
    assert fired == []
    await clock.advance(9)
    assert fired == [("early", 2.0), ("late", 5.0)]
    assert clock.now() == 10.0


async def test_what_sleeps_again_and_again_wakes_at_each_of_its_times() -> None:
    clock, woken = VirtualClock(0.0), list[float]()

    async def tick() -> None:
        while True:
            await clock.sleep(10)
            woken.append(clock.now())

    ticking = asyncio.ensure_future(tick())
    await clock.advance(35)
    ticking.cancel()
    assert woken == [10.0, 20.0, 30.0]


async def test_the_system_clock_moves_by_itself() -> None:
    clock: Clock = SystemClock()
    before, called = clock.now(), asyncio.Event()
    clock.call_later(0.001, called.set)
    await clock.sleep(0.001)
    await called.wait()
    assert clock.now() > before
