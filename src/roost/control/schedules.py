"""Snapshots that are made by themselves: which machine is due when, and which of its older ones have to go."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from msgspec.structs import replace

from roost.control.events import Recorder
from roost.control.loop import Loop
from roost.control.records import Records, marked
from roost.errors import Conflict, NotFound
from roost.host.clock import Clock
from roost.log import bind
from roost.model import codec
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine, Schedule
from roost.model.meta import Meta
from roost.model.snapshot import Snapshot, SnapshotSpec

LABEL = ("schedule", "true")
"""What tells snapshots made by schedule from those that people made; they also have `CREATOR`, which no user can be."""

CREATOR = "roost"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROUNDING = timedelta(milliseconds=500)
"""Times are written in milliseconds; two that are written for one instant may differ by less than this."""


class Decision(NamedTuple):
    """`take`: make a snapshot that stands for this time. `delete`: names of snapshots that have to go. `wait`: seconds until the next time,
    None while no time matters."""

    take: datetime | None = None
    delete: tuple[str, ...] = ()
    wait: float | None = None


def due(machine: Machine, snapshots: Iterable[Snapshot], now: datetime) -> Decision:
    """What the machine's schedule asks for at `now`.

    The times are those of the machine's creation and every `every` seconds from there, so that machines made at different times are not
    all saved at once. Of the times that passed while nobody looked only the last counts. A time is done with when the status says that a
    snapshot for it, or for a later one, was begun; one so far ahead that it was written by a clock that was wrong says nothing.
    """
    schedule = machine.spec.schedule
    if schedule is None or machine.meta.deleting is not None:
        return Decision()
    mine = [snapshot for snapshot in snapshots if _is_of(snapshot, machine)]
    delete = tuple(snapshot.name for snapshot in _surplus(mine, schedule, now))
    if machine.status.phase != "running" or machine.status.agent == "none":
        # Its coming up wakes the schedule. Until something answers it boots: nothing of that is worth keeping.
        return Decision(delete=delete)
    time, following = _times(machine, schedule, now)
    wait = (following - now).total_seconds()
    if time is None or _is_done(machine, schedule, time, now) or any(_under_way(snapshot) for snapshot in mine):
        return Decision(None, delete, wait)
    return Decision(time, delete, wait)


def _times(machine: Machine, schedule: Schedule, now: datetime) -> tuple[datetime | None, datetime]:
    """The last time of the schedule up to `now`, if there was one yet, and the next one."""
    first = datetime.fromisoformat(machine.meta.created) if machine.meta.created else _EPOCH
    every = timedelta(seconds=schedule.every)
    count = (now - first) // every
    if count < 1:
        return None, first + every
    return first + count * every, first + (count + 1) * every


def _is_done(machine: Machine, schedule: Schedule, time: datetime, now: datetime) -> bool:
    if not machine.status.scheduled:
        return False
    done = datetime.fromisoformat(machine.status.scheduled)
    return time - _ROUNDING < done <= now + timedelta(seconds=schedule.every)


def _is_of(snapshot: Snapshot, machine: Machine) -> bool:
    """Whether it was made by the schedule of this machine, whatever the machine was called then, and is not going already."""
    made = snapshot.meta.creator == CREATOR and snapshot.meta.labels.get(LABEL[0]) == LABEL[1]
    uid = snapshot.status.machine_uid
    mine = uid == machine.meta.uid if uid else snapshot.spec.machine == machine.name
    return made and mine and snapshot.meta.deleting is None


def _under_way(snapshot: Snapshot) -> bool:
    return snapshot.status.phase in ("pending", "saving")


def _surplus(mine: Sequence[Snapshot], schedule: Schedule, now: datetime) -> list[Snapshot]:
    """Those beyond `keep`, the oldest first to go, and failed ones that are not the last word. One that is being made counts when it is ready."""

    def age(snapshot: Snapshot) -> tuple[bool, datetime]:
        # What a clock that was wrong dated into the future is older than all else.
        made = datetime.fromisoformat(snapshot.status.taken or snapshot.meta.created)
        return made <= now, made

    newest_first = sorted(mine, key=age, reverse=True)
    ready = [snapshot for snapshot in newest_first if snapshot.status.phase == "ready"]
    failed = [snapshot for snapshot in newest_first[1:] if snapshot.status.phase == "failed"]
    return ([] if schedule.keep is None else ready[schedule.keep :]) + failed


class Schedules:
    """Makes what is due. Its own loop follows machines and snapshots, and wakes each machine at its next time; `wall` is the time of day."""

    def __init__(self, records: Records, recorder: Recorder, clock: Clock, wall: Callable[[], datetime]) -> None:
        self._records = records
        self._recorder = recorder
        self._wall = wall
        self.loop = Loop(records.store, clock)
        self.loop.add("machines/", self, workers=1)
        self.loop.add("snapshots/", _Follower(self.loop.wake), workers=1)

    async def reconcile(self, key: str) -> None:
        """Do what the schedule of the machine at `key` asks for now."""
        try:
            machine = await self._records.machine(key)
        except NotFound:
            return
        if machine.spec.schedule is None:
            return
        with bind(machine=machine.name, project=machine.project):
            decision = due(machine, await self._records.all(Snapshot, machine.project), self._wall())
            for name in decision.delete:
                await self._expire(key_of(BY_NAME["snapshot"], machine.project, name))
            if decision.take is not None:
                await self._take(key, machine, machine.spec.schedule, decision.take)
        if decision.wait is not None:
            self.loop.wake_after(key, decision.wait)

    async def _take(self, key: str, machine: Machine, schedule: Schedule, time: datetime) -> None:
        """The snapshot first, then that it was begun: a daemon killed in between finds its name taken, and begins none twice."""
        made = self._wall()
        expires = None if schedule.expire is None else _written(made + timedelta(seconds=schedule.expire))
        snapshot = Snapshot(
            project=machine.project,
            name=f"{machine.name}.auto-{time.astimezone(UTC):%Y%m%d-%H%M%S}",
            meta=Meta(uid=str(uuid.uuid4()), created=_written(made), creator=CREATOR, labels=dict([LABEL])),
            spec=SnapshotSpec(machine=machine.name, memory=None if schedule.memory else False, expires=expires),
        )
        place = key_of(BY_NAME["snapshot"], machine.project, snapshot.name)
        with suppress(Conflict):
            await self._records.store.put(place, codec.encode(snapshot), expect=0)
        with suppress(NotFound):
            await self._records.update(
                key, lambda now: replace(now, status=replace(now.status, scheduled=_written(time)))
            )

    async def _expire(self, key: str) -> None:
        with suppress(NotFound):
            snapshot = await self._records.change(key, Snapshot, marked)
            await self._recorder.record(snapshot, "Expired", "its schedule keeps others in its place")


class _Follower:
    """A snapshot that changed is news for the machine that it is named after."""

    def __init__(self, wake: Callable[[str], None]) -> None:
        self._wake = wake

    async def reconcile(self, key: str) -> None:
        """Wake the machine."""
        _, project, name = key.split("/")
        self._wake(key_of(BY_NAME["machine"], project, name.partition(".")[0]))


def _written(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
