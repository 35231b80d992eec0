"""Who comes into a machine before it is set up waits until it is the machine it is to be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from roost.errors import Conflict, NotStarted
from roost.hypervisor.base import Setup
from roost.log import spawn_task
from roost.testing.hypervisor import FakeAgent
from tests.control_plane import READY, WEB, Bench


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        made = Bench(tmp_path)
        stack.push_async_callback(made.end)
        await made.image(READY)
        yield made


class SlowSetup:
    """Set-ups that have begun and go on until they are told to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.done = asyncio.Event(), asyncio.Event()
        slow = self

        async def setup(agent: FakeAgent, given: Setup) -> None:
            slow.begun.set()
            await slow.done.wait()

        monkeypatch.setattr(FakeAgent, "setup", setup)


@pytest.fixture
async def slow(monkeypatch: pytest.MonkeyPatch) -> SlowSetup:
    return SlowSetup(monkeypatch)


async def _put_without_waiting(bench: Bench, slow: SlowSetup) -> asyncio.Task[object]:
    putting: asyncio.Task[object] = spawn_task(bench.put(WEB), "put")
    await slow.begun.wait()
    return putting


async def test_a_machine_is_greeted_only_after_its_set_up(bench: Bench, slow: SlowSetup) -> None:
    putting = await _put_without_waiting(bench, slow)
    web = await bench.get()
    guest = await bench.custody.guest(web)
    greeted = spawn_task(bench.custody.greeted(web, guest), "greeted")
    done, _ = await asyncio.wait([greeted], timeout=0.02)
    assert not done
    slow.done.set()
    await asyncio.wait_for(greeted, 1)
    assert (await bench.get()).status.configured
    await putting


async def test_who_waits_for_a_machine_that_ends_is_told(bench: Bench, slow: SlowSetup) -> None:
    putting = await _put_without_waiting(bench, slow)
    web = await bench.get()
    guest = await bench.custody.guest(web)
    greeted = spawn_task(bench.custody.greeted(web, guest), "greeted")
    await asyncio.sleep(0)
    bench.hypervisor.guests[WEB.meta.uid].end("killed by signal 9", clean=False)
    with pytest.raises(Conflict, match="ended while it was set up"):
        await asyncio.wait_for(greeted, 1)
    slow.done.set()
    await putting


async def test_the_wait_is_bounded(bench: Bench, slow: SlowSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roost.control.custody.GREETING_SECONDS", 0.01)
    putting = await _put_without_waiting(bench, slow)
    web = await bench.get()
    with pytest.raises(NotStarted, match="still being set up"):
        await bench.custody.greeted(web, await bench.custody.guest(web))
    slow.done.set()
    await putting


async def test_a_machine_that_is_taken_back_needs_no_second_greeting(bench: Bench) -> None:
    await bench.put(WEB)
    await bench.end()
    bench.begin()
    await bench.settle()
    web = await bench.get()
    await asyncio.wait_for(bench.custody.greeted(web, await bench.custody.guest(web)), 1)
