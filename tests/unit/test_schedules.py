"""Snapshots by schedule: one for each time that matters, never a heap of them, and none that people made is touched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.control.events import Recorder
from roost.control.records import Records, marked
from roost.control.schedules import CREATOR, Decision, Schedules, due
from roost.log import spawn_task
from roost.model import codec
from roost.model.machine import Machine, MachineSpec, MachineStatus, Schedule
from roost.model.meta import Meta
from roost.model.snapshot import Snapshot, SnapshotSpec, SnapshotStatus
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock

replace = msgspec.structs.replace
HOUR = 3600.0
BORN = datetime(2026, 11, 23, 9, 15, tzinfo=UTC)
WEB = Machine(
    name="web",
    meta=Meta(uid="web-uid", created="2026-11-23T09:15:00.000Z"),
    spec=MachineSpec(image="disk", schedule=Schedule(every=HOUR)),
    status=MachineStatus(phase="running", agent="roost"),
)


def after(hours: float) -> datetime:
    return BORN + timedelta(hours=hours)


def stamp(time: datetime) -> str:
    return time.isoformat().replace("+00:00", "Z")


def scheduled(hours: float, **schedule: object) -> Machine:
    """The machine, when the last snapshot that was begun stands for so many hours after its creation."""
    wished = replace(WEB.spec.schedule, **schedule)
    return replace(
        WEB, spec=replace(WEB.spec, schedule=wished), status=replace(WEB.status, scheduled=stamp(after(hours)))
    )


def made(hours: float, phase: str = "ready", **meta: object) -> Snapshot:
    """A snapshot that the schedule made so many hours after the machine."""
    whole = {"uid": f"at-{hours}", "created": stamp(after(hours)), "creator": CREATOR, "labels": {"schedule": "true"}}
    return Snapshot(
        name=f"web.auto-{hours}",
        meta=Meta(**{**whole, **meta}),
        spec=SnapshotSpec(machine="web"),
        status=SnapshotStatus(
            phase=phase, machine_uid="web-uid", taken=stamp(after(hours)) if phase == "ready" else ""
        ),
    )


# ---------------------------------------------------------------------- when


def test_nothing_is_due_without_a_schedule() -> None:
    assert due(replace(WEB, spec=MachineSpec(image="disk")), [made(1)], after(9)) == Decision()


def test_the_first_is_due_one_interval_after_the_creation() -> None:
    assert due(WEB, [], after(0.75)) == Decision(wait=HOUR / 4)
    assert due(WEB, [], after(1)).take == after(1)


def test_each_time_is_done_once() -> None:
    assert due(scheduled(3), [], after(3.5)) == Decision(wait=HOUR / 2)
    assert due(scheduled(3), [], after(4.25)) == Decision(after(4), (), HOUR * 0.75)


def test_of_the_times_that_were_missed_only_the_last_counts() -> None:
    assert due(scheduled(3), [], after(48.5)).take == after(48)


@pytest.mark.parametrize("phase", ["stopped", "paused", "starting", "failed", "crashed"])
def test_a_machine_that_does_not_run_is_left_alone(phase: str) -> None:
    assert due(replace(WEB, status=MachineStatus(phase=phase)), [], after(5)) == Decision()


def test_a_machine_that_boots_is_left_alone_until_something_answers() -> None:
    assert due(replace(WEB, status=MachineStatus(phase="running")), [], after(5)).take is None
    assert due(replace(WEB, status=MachineStatus(phase="running", agent="absent")), [], after(5)).take == after(5)


def test_a_machine_that_is_being_deleted_is_left_alone() -> None:
    assert due(marked(WEB), [made(1)], after(5)) == Decision()


@pytest.mark.parametrize("phase", ["pending", "saving"])
def test_a_time_that_comes_while_one_is_being_made_waits(phase: str) -> None:
    assert due(scheduled(1), [made(1, phase)], after(2.5)).take is None
    assert due(scheduled(1), [made(1)], after(2.5)).take == after(2)


def test_one_that_expired_before_the_next_time_is_not_made_again() -> None:
    assert due(scheduled(3), [], after(3.9)).take is None


def test_a_clock_that_goes_back_a_little_makes_no_second_one() -> None:
    assert due(scheduled(3), [], after(2.99)).take is None
    assert due(scheduled(3), [], after(3.01)).take is None


def test_a_clock_that_was_years_ahead_does_not_end_the_schedule() -> None:
    assert due(scheduled(90_000), [], after(3.5)).take == after(3)


# ---------------------------------------------------------------------- which go


def test_the_oldest_go_when_there_are_more_than_wanted() -> None:
    assert due(scheduled(4, keep=2), [made(2), made(4), made(1), made(3)], after(4.5)).delete == (
        "web.auto-2",
        "web.auto-1",
    )


def test_the_oldest_stays_until_the_new_one_is_ready() -> None:
    assert due(scheduled(2, keep=1), [made(1), made(2, "saving")], after(2)).delete == ()


def test_without_a_bound_all_stay() -> None:
    assert due(scheduled(4), [made(hour) for hour in range(1, 5)], after(4)).delete == ()


def test_a_failed_one_stays_only_while_it_is_the_last_word() -> None:
    assert due(scheduled(2), [made(1), made(2, "failed")], after(2)).delete == ()
    assert due(scheduled(3), [made(2, "failed"), made(3)], after(3)).delete == ("web.auto-2",)


def test_what_people_made_is_never_touched() -> None:
    theirs = [made(1, creator="uid:1000"), made(2, labels={}), replace(made(3), status=SnapshotStatus(phase="ready"))]
    others = [replace(made(4), status=SnapshotStatus(phase="ready", machine_uid="an earlier machine of this name"))]
    newest = made(5)
    foreign = [theirs[0], theirs[1], *others, newest]
    assert due(scheduled(5, keep=1), foreign, after(5)).delete == ()


def test_one_that_goes_already_does_not_count() -> None:
    assert due(scheduled(3, keep=1), [marked(made(2)), made(3)], after(3)).delete == ()


def test_what_was_dated_into_the_future_goes_first() -> None:
    assert due(scheduled(3, keep=1), [made(90_000), made(3)], after(3)).delete == ("web.auto-90000",)


def test_a_stopped_machine_still_loses_what_is_too_much() -> None:
    stopped = replace(scheduled(3, keep=1), status=MachineStatus(phase="stopped"))
    assert due(stopped, [made(2), made(3)], after(9)).delete == ("web.auto-2",)


# ---------------------------------------------------------------------- whatever comes

moments = st.integers(min_value=0, max_value=30_000).map(lambda minutes: minutes / 60)
"""Hours; in whole minutes, so that a time is never a rounding away from an hour."""
phases = st.sampled_from(["pending", "saving", "ready", "failed"])
snapshots = st.lists(st.builds(made, moments, phases), max_size=12, unique_by=lambda snapshot: snapshot.name)


@settings(max_examples=25)
@given(looks=st.lists(moments, min_size=1, max_size=30))
def test_looking_more_often_never_makes_more(looks: Sequence[float]) -> None:
    taken: list[datetime] = []
    web = WEB
    for look in sorted(looks):
        time = due(web, [], after(look)).take
        taken += [time] if time is not None else []
        web = replace(web, status=replace(web.status, scheduled=stamp(time))) if time is not None else web
    assert all(later - earlier >= timedelta(seconds=HOUR) for earlier, later in pairwise(taken))
    assert set(taken) == {after(int(look)) for look in looks if look >= 1}


@settings(max_examples=25)
@given(done=moments, now=moments)
def test_whatever_the_clock_did_the_next_is_never_further_than_two_intervals(done: float, now: float) -> None:
    web = scheduled(done)
    assert any(due(web, [], after(1 + now + step)).take is not None for step in (0, 1, 2))


@settings(max_examples=25)
@given(there=snapshots, now=moments, keep=st.integers(1, 5))
def test_what_is_ready_is_bounded_and_the_newest_stays(there: Sequence[Snapshot], now: float, keep: int) -> None:
    decision = due(scheduled(now, keep=keep), there, after(now))
    left = [snapshot for snapshot in there if snapshot.name not in decision.delete]
    ready = [snapshot for snapshot in left if snapshot.status.phase == "ready"]
    assert len(ready) == min(keep, sum(snapshot.status.phase == "ready" for snapshot in there))
    assert sum(snapshot.status.phase == "failed" for snapshot in left) <= 1
    assert [s.name for s in there if s.status.phase in ("pending", "saving")] == [
        s.name for s in left if s.status.phase in ("pending", "saving")
    ]


@settings(max_examples=25)
@given(there=snapshots, now=moments, keep=st.integers(1, 5))
def test_what_was_decided_is_done_with(there: Sequence[Snapshot], now: float, keep: int) -> None:
    decision = due(scheduled(now, keep=keep), there, after(now))
    left = [snapshot for snapshot in there if snapshot.name not in decision.delete]
    assert due(scheduled(now, keep=keep), left, after(now)).delete == ()
    assert decision.wait is not None
    assert 0 < decision.wait <= HOUR


# ---------------------------------------------------------------------- the runner


class Bench:
    """Schedules over a memory store; a snapshot that they make is ready as soon as the test says so."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.records = Records(self.store)
        self.began = self.clock.now()
        self.begin()

    def begin(self) -> None:
        self.schedules = Schedules(self.records, Recorder(self.store), self.clock, self.wall)
        self.task = spawn_task(self.schedules.loop.run(), "schedules")

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    def wall(self) -> datetime:
        return BORN + timedelta(seconds=self.clock.now() - self.began)

    async def put(self, machine: Machine) -> None:
        await self.store.put(f"machines/default/{machine.name}", codec.encode(machine))
        await self.schedules.loop.settle()

    async def snapshots(self) -> list[Snapshot]:
        there = await self.records.all(Snapshot)
        return [snapshot for snapshot in there if snapshot.meta.deleting is None]

    async def make_ready(self) -> None:
        for snapshot in await self.snapshots():
            ready = replace(snapshot.status, phase="ready", machine_uid="web-uid", taken=snapshot.meta.created)
            key = f"snapshots/default/{snapshot.name}"
            await self.records.change(key, Snapshot, lambda now: replace(now, status=ready))  # noqa: B023
        await self.schedules.loop.settle()

    async def pass_by(self, hours: int) -> None:
        for _ in range(hours):
            await self.clock.advance(HOUR)
            await self.schedules.loop.settle()
            await self.make_ready()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    await made.end()


async def test_a_snapshot_is_made_at_its_time_and_named_after_it(bench: Bench) -> None:
    await bench.put(scheduled(0, expire=7200))
    await bench.clock.advance(HOUR)
    await bench.schedules.loop.settle()
    (snapshot,) = await bench.snapshots()
    assert (snapshot.name, snapshot.spec.expires) == ("web.auto-20261123-101500", "2026-11-23T12:15:00.000Z")
    assert (snapshot.meta.labels, snapshot.meta.creator) == ({"schedule": "true"}, "roost")
    assert (snapshot.spec.machine, snapshot.spec.memory, snapshot.status.phase) == ("web", None, "pending")
    assert (await bench.records.machine("machines/default/web")).status.scheduled == "2026-11-23T10:15:00.000Z"


async def test_memory_is_left_out_when_the_schedule_says_so(bench: Bench) -> None:
    await bench.put(scheduled(0, memory=False))
    await bench.pass_by(1)
    assert [snapshot.spec.memory for snapshot in await bench.snapshots()] == [False]


async def test_hour_after_hour_no_more_than_wanted_are_there(bench: Bench) -> None:
    await bench.put(scheduled(0, keep=2))
    await bench.pass_by(5)
    assert [snapshot.name for snapshot in await bench.snapshots()] == [
        "web.auto-20261123-131500",
        "web.auto-20261123-141500",
    ]


async def test_nobody_looks_between_two_times(bench: Bench) -> None:
    await bench.put(scheduled(0))
    looked = bench.schedules.loop.reconciles
    await bench.clock.advance(299)
    assert bench.schedules.loop.reconciles == looked


async def test_a_daemon_that_rested_makes_one_not_many(bench: Bench) -> None:
    await bench.put(scheduled(0))
    await bench.pass_by(1)
    await bench.end()
    await bench.clock.advance(10 * HOUR)
    bench.begin()
    await bench.schedules.loop.settle()
    assert [snapshot.name for snapshot in await bench.snapshots()] == [
        "web.auto-20261123-101500",
        "web.auto-20261123-201500",
    ]


async def test_a_daemon_killed_before_it_noted_the_time_makes_no_second_one(bench: Bench) -> None:
    await bench.put(scheduled(0))
    await bench.pass_by(1)
    before = await bench.snapshots()
    await bench.put(scheduled(0))
    assert await bench.snapshots() == before
    assert (await bench.records.machine("machines/default/web")).status.scheduled == "2026-11-23T10:15:00.000Z"


async def test_a_machine_without_schedule_costs_nothing(bench: Bench) -> None:
    await bench.put(replace(WEB, spec=MachineSpec(image="disk")))
    await bench.pass_by(3)
    assert await bench.snapshots() == []
