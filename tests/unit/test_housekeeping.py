"""Housekeeping: layers go when nothing stands on them and not before, long chains are flattened, and space is told as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from roost.control.housekeeping import AFTER_FAILURE, AGAIN, FULL, SETTLE
from roost.control.records import marked
from roost.errors import Unavailable
from roost.log import spawn_task
from roost.model.machine import Machine, Restore
from roost.model.meta import Meta, MiB
from roost.storage.layers import LONGEST, Base
from tests.keeping import IMAGE, RUNNING, SPEC, STOPPED, WEB, Keeping

replace = msgspec.structs.replace
LONG = LONGEST + 1


@pytest.fixture
async def keeping(tmp_path: Path) -> AsyncIterator[Keeping]:
    made = Keeping(tmp_path)
    yield made
    made.layers.going_on.set()
    await made.end()


class Slow:
    """A guest's flattening that goes on until it is told to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.given_up = 0
        self.end = asyncio.Event()
        self.fail: Exception | None = None

    async def __call__(self, progress: Callable[[float], None], name: str = "") -> None:
        self.begun += 1
        progress(0.5)
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        if self.fail is not None:
            raise self.fail


async def flattening(keeping: Keeping, files: int = LONG, machine: Machine = WEB) -> Slow:
    """A machine whose disk is just being flattened."""
    await keeping.machine(machine)
    keeping.layers.grow(machine.meta.uid, files)
    slow = Slow()
    keeping.guests[machine.meta.uid].flatten = slow
    await keeping.clock.advance(SETTLE + 1)
    assert slow.begun == 1
    return slow


# ---------------------------------------------------------------------- garbage


async def test_layers_that_nothing_stands_on_go_after_a_start(keeping: Keeping) -> None:
    keeping.layers.cover("a-machine-that-was")
    del keeping.layers.disks["a-machine-that-was"]
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.layers == {}


@pytest.mark.fault(9)
async def test_a_snapshot_in_the_middle_goes_while_machines_and_snapshots_above_it_stay(keeping: Keeping) -> None:
    await keeping.machine(WEB)
    for name in ("one", "two", "three"):
        await keeping.ask(f"web.{name}", name)
    await keeping.delete("web.two")
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.collections == 1
    assert sorted(keeping.checkpoints.disk) == ["one", "three"]
    assert keeping.layers.below(keeping.layers.disks["web-uid"]) == tuple(
        Path(name) for name in ("layer-2", "layer-1", "layer-0", IMAGE)
    )


async def test_many_changes_are_one_look(keeping: Keeping) -> None:
    await keeping.clock.advance(SETTLE)
    before = keeping.layers.collections
    for _ in range(5):
        keeping.housekeeping.changed()
    await keeping.clock.advance(SETTLE * 3)
    assert keeping.layers.collections == before + 1


@pytest.mark.fault(7)
async def test_nothing_is_removed_while_somebody_builds_on_layers(keeping: Keeping) -> None:
    async with keeping.housekeeping.holding(), keeping.housekeeping.holding():
        await keeping.clock.advance(SETTLE * 10)
        assert keeping.layers.collections == 0
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.collections == 1


async def test_nobody_waits_to_build_on_layers_while_others_are_removed(keeping: Keeping) -> None:
    keeping.layers.going_on.clear()
    await keeping.clock.advance(SETTLE)
    async with keeping.housekeeping.holding():
        assert keeping.layers.collections == 1


async def test_layers_that_are_kept_are_digested(keeping: Keeping) -> None:
    await keeping.machine(WEB)
    await keeping.ask("web.one", "one")
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.hashed == {"layer-0"}


async def test_a_failure_is_tried_again(keeping: Keeping) -> None:
    collect = keeping.layers.collect

    async def refused(roots: object) -> list[str]:
        raise Unavailable("layers can not be removed", "Input/output error")

    keeping.layers.collect = refused
    await keeping.clock.advance(SETTLE)
    keeping.layers.collect = collect
    await keeping.clock.advance(AGAIN + SETTLE)
    assert keeping.layers.collections == 1


async def test_space_moves_to_whoever_is_left(keeping: Keeping) -> None:
    await keeping.machine(WEB)
    await keeping.ask("web.one", "one")
    assert ((await keeping.get()).status.own, (await keeping.get()).status.shared) == (64 * MiB, 1 * MiB)
    del keeping.layers.disks["web-uid"]
    keeping.housekeeping.changed()
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.collections == 1
    assert ((await keeping.get()).status.own, (await keeping.get()).status.shared) == (65 * MiB, 0)


# ---------------------------------------------------------------------- chains


@pytest.mark.fault(9)
async def test_the_disk_of_a_running_machine_is_flattened_before_it_stands_on_too_many(keeping: Keeping) -> None:
    await keeping.machine(WEB)
    keeping.layers.grow("web-uid", 50)
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.disks["web-uid"] == Base(image=IMAGE)
    assert keeping.guests["web-uid"].flattened == 1
    await keeping.clock.advance(SETTLE + SETTLE)
    assert keeping.layers.layers == {}
    assert sorted(await keeping.events()) == ["Flattened", "Flattening"]


async def test_the_disk_of_a_stopped_machine_is_flattened_too(keeping: Keeping) -> None:
    await keeping.machine(STOPPED)
    keeping.layers.grow("web-uid", LONG)
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.flattened == ["web-uid"]


async def test_a_chain_that_is_not_too_long_is_left_alone(keeping: Keeping) -> None:
    await keeping.machine(WEB)
    keeping.layers.grow("web-uid", LONGEST)
    await keeping.clock.advance(SETTLE * 3)
    assert keeping.layers.collections > 0
    assert keeping.guests["web-uid"].flattened == 0


@pytest.mark.parametrize(
    "machine",
    [
        replace(WEB, status=replace(RUNNING, phase="starting")),
        replace(WEB, spec=replace(SPEC, power="stopped")),
        replace(STOPPED, spec=SPEC),
        marked(WEB),
    ],
    ids=["starting", "stopping", "about-to-start", "being-deleted"],
)
async def test_a_machine_on_its_way_is_left_alone(keeping: Keeping, machine: Machine) -> None:
    await keeping.machine(machine)
    keeping.layers.grow("web-uid", LONG)
    await keeping.clock.advance(SETTLE * 2)
    assert keeping.layers.collections > 0
    assert await keeping.events() == []


async def test_a_disk_whose_instant_is_not_settled_is_left_alone(keeping: Keeping) -> None:
    await keeping.machine(WEB)
    keeping.layers.grow("web-uid", LONG)
    keeping.layers.unsettled = {"web-uid"}
    await keeping.clock.advance(SETTLE * 2)
    assert keeping.layers.collections > 0
    assert await keeping.events() == []


async def test_one_disk_is_flattened_at_a_time_the_longest_first(keeping: Keeping) -> None:
    other = replace(WEB, name="shop", meta=Meta(uid="shop-uid"))
    await keeping.machine(other)
    keeping.layers.grow("shop-uid", LONG)
    slow = await flattening(keeping, LONG + 5)
    assert keeping.guests["shop-uid"].flattened == 0
    slow.end.set()
    await keeping.clock.advance(0)
    assert keeping.guests["shop-uid"].flattened == 1


async def test_flattening_stands_aside_for_a_copy_and_is_tried_again(keeping: Keeping) -> None:
    slow = await flattening(keeping)
    async with keeping.housekeeping.using("web-uid"):
        assert (slow.given_up, keeping.housekeeping.idle()) == (1, True)
        await keeping.clock.advance(AGAIN + 2 * SETTLE)
        assert slow.begun == 1
    slow.end.set()
    await keeping.clock.advance(SETTLE + AGAIN)
    assert keeping.layers.disks["web-uid"] == Base(image=IMAGE)


async def test_flattening_goes_on_while_others_are_copied(keeping: Keeping) -> None:
    slow = await flattening(keeping)
    async with keeping.housekeeping.using("another"):
        assert (slow.given_up, keeping.housekeeping.idle()) == (0, False)


@pytest.mark.fault(9)
async def test_a_copy_waits_when_a_chain_became_far_too_long(keeping: Keeping) -> None:
    slow = await flattening(keeping, FULL)
    async with AsyncExitStack() as stack:
        copying = spawn_task(stack.enter_async_context(keeping.housekeeping.using("web-uid")), "copy")
        await keeping.clock.advance(10)
        assert (slow.given_up, copying.done()) == (0, False)
        slow.end.set()
        await copying
        assert keeping.layers.disks["web-uid"] == Base(image=IMAGE)


@pytest.mark.parametrize(
    "wish",
    [
        marked,
        lambda web: replace(web, spec=replace(web.spec, power="stopped")),
        lambda web: replace(web, spec=replace(web.spec, restarts=1)),
        lambda web: replace(web, spec=replace(web.spec, restore=Restore(snapshot="web.one", serial=1))),
    ],
    ids=["deleted", "stopped", "restarted", "restored"],
)
async def test_flattening_is_given_up_when_the_machine_is(keeping: Keeping, wish: Callable[[Machine], Machine]) -> None:
    slow = await flattening(keeping)
    await keeping.change("web", wish)
    await keeping.clock.advance(0)
    assert slow.given_up == 1


async def test_flattening_goes_on_when_only_the_status_changes(keeping: Keeping) -> None:
    slow = await flattening(keeping)
    await keeping.change("web", lambda web: replace(web, status=replace(web.status, progress="something")))
    await keeping.clock.advance(1)
    assert slow.given_up == 0


async def test_a_failed_flattening_is_tried_again_much_later(keeping: Keeping) -> None:
    slow = await flattening(keeping)
    slow.fail = Unavailable("the disk was not flattened", "the disk is full")
    slow.end.set()
    await keeping.clock.advance(0)
    assert keeping.housekeeping.idle()
    await keeping.clock.advance(AFTER_FAILURE / 2)
    keeping.housekeeping.changed()
    await keeping.clock.advance(SETTLE)
    assert slow.begun == 1
    slow.fail = None
    await keeping.clock.advance(AFTER_FAILURE)
    assert keeping.layers.disks["web-uid"] == Base(image=IMAGE)


@pytest.mark.fault(8)
async def test_a_flattening_that_a_dying_daemon_left_is_done_by_the_next(keeping: Keeping) -> None:
    slow = await flattening(keeping)
    chain = keeping.layers.disks["web-uid"]
    await keeping.kill()
    assert keeping.layers.disks["web-uid"] == chain
    slow.end.set()
    keeping.begin()
    await keeping.clock.advance(SETTLE)
    assert keeping.layers.disks["web-uid"] == Base(image=IMAGE)
    await keeping.clock.advance(SETTLE + SETTLE)
    assert keeping.layers.layers == {}
