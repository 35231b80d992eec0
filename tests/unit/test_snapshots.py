"""The reconciler of snapshots: taken once, kept whole or not at all, gone when nobody needs them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from roost.control.records import marked
from roost.errors import Conflict, NotFound, Unavailable
from roost.model.machine import Machine, MachineStatus, Restore, Source
from roost.model.meta import Meta, MiB
from tests.keeping import RUNNING, SPEC, STOPPED, WEB, Keeping

replace = msgspec.structs.replace
FULL = Unavailable(
    "the checkpoint was not written", "the disk is full: 0 bytes free", "free some space, then: roost snapshot web"
)


@pytest.fixture
async def keeping(tmp_path: Path) -> AsyncIterator[Keeping]:
    made = Keeping(tmp_path)
    yield made
    await made.end()


@pytest.fixture
async def web(keeping: Keeping) -> Keeping:
    await keeping.machine(WEB)
    return keeping


def copy_of(source: str, name: str = "kid", **status: object) -> Machine:
    spec = replace(SPEC, source=Source(snapshot=source))
    return Machine(name=name, meta=Meta(uid=f"{name}-uid"), spec=spec, status=replace(MachineStatus(), **status))


# ---------------------------------------------------------------------- taking


async def test_a_running_machine_is_kept_with_its_memory(web: Keeping) -> None:
    one = await web.ask("web.one", "uid-one")
    assert (one.status.phase, one.status.memory, one.status.pause) == ("ready", True, 0.02)
    assert (one.status.machine_uid, one.status.machine_spec) == (WEB.meta.uid, WEB.spec)
    assert one.status.taken == "2026-11-23T12:00:01.000Z"
    assert list(web.checkpoints.disk) == ["uid-one"]
    assert await web.events() == ["SnapshotTaken"]


async def test_memory_is_left_out_on_demand(web: Keeping) -> None:
    one = await web.ask("web.one", memory=False)
    assert (one.status.memory, web.taking.taken) == (False, [("web", False)])


async def test_a_stopped_machine_is_kept_as_its_disk(keeping: Keeping) -> None:
    await keeping.machine(STOPPED)
    one = await keeping.ask("web.one")
    assert (one.status.phase, one.status.memory) == ("ready", False)


async def test_the_memory_of_a_stopped_machine_can_not_be_kept(keeping: Keeping) -> None:
    await keeping.machine(STOPPED)
    one = await keeping.ask("web.one", memory=True)
    assert one.status.phase == "failed"
    assert one.status.error is not None
    assert (one.status.error.code, "not running" in one.status.error.why) == ("conflict", True)
    assert "roost start web" in one.status.error.fix
    assert keeping.taking.taken == []


async def test_a_paused_machine_is_kept_with_its_memory(keeping: Keeping) -> None:
    spec = replace(SPEC, power="paused")
    await keeping.machine(replace(WEB, spec=spec, status=replace(RUNNING, phase="paused")))
    assert (await keeping.ask("web.one")).status.memory


async def test_a_failed_machine_is_kept_as_its_disk(keeping: Keeping) -> None:
    await keeping.machine(replace(STOPPED, status=replace(STOPPED.status, phase="failed")))
    assert (await keeping.ask("web.one")).status.phase == "ready"


async def test_a_machine_that_does_not_exist_fails_the_snapshot(keeping: Keeping) -> None:
    one = await keeping.ask("web.one")
    assert one.status.error is not None
    assert (one.status.phase, one.status.error.code) == ("failed", "not-found")


async def test_a_machine_that_is_being_deleted_fails_the_snapshot(keeping: Keeping) -> None:
    await keeping.machine(marked(WEB))
    one = await keeping.ask("web.one")
    assert one.status.error is not None
    assert "being deleted" in one.status.error.why


@pytest.mark.parametrize(
    "machine",
    [
        replace(WEB, status=replace(RUNNING, phase="starting")),
        replace(WEB, status=replace(RUNNING, phase="stopping")),
        replace(WEB, status=STOPPED.status),
        replace(WEB, spec=replace(SPEC, restarts=1)),
        replace(WEB, spec=replace(SPEC, restore=Restore(snapshot="web.zero", serial=1))),
        replace(
            STOPPED, spec=replace(STOPPED.spec, source=Source(machine="parent")), status=MachineStatus(phase="stopped")
        ),
    ],
    ids=["starting", "stopping", "about-to-start", "restarting", "being-restored", "being-made"],
)
async def test_a_machine_on_its_way_is_waited_for(keeping: Keeping, machine: Machine) -> None:
    await keeping.machine(machine)
    one = await keeping.ask("web.one")
    assert (one.status.phase, "waiting for web" in one.status.progress) == ("pending", True)
    await keeping.machine(replace(WEB, meta=machine.meta))
    await keeping.clock.advance(1.0)
    await keeping.loop.settle()
    assert (await keeping.get()).status.phase == "ready"


async def test_a_process_that_is_gone_but_not_written_down_is_waited_for(web: Keeping) -> None:
    web.guests.clear()
    assert (await web.ask("web.one")).status.phase == "pending"
    assert web.taking.taken == []


async def test_waiting_has_an_end(keeping: Keeping) -> None:
    await keeping.machine(replace(WEB, status=replace(RUNNING, phase="starting")))
    await keeping.ask("web.one")
    await keeping.clock.advance(130)
    one = await keeping.get()
    assert one.status.error is not None
    assert (one.status.phase, one.status.error.why.count("starting")) == ("failed", 1)


async def test_what_it_takes_is_told(web: Keeping) -> None:
    one = await web.ask("web.one")
    assert (one.status.own, one.status.shared) == (64 * MiB, 1 * MiB)


async def test_a_changed_expiry_is_taken_note_of(web: Keeping) -> None:
    one = await web.ask("web.one")
    later = replace(one, meta=replace(one.meta, generation=2), spec=replace(one.spec, expires="2027-01-01T00:00:00Z"))
    await web.store.put("snapshots/default/web.one", msgspec.json.encode(later))
    await web.loop.settle()
    assert (await web.get()).status.generation == 2
    assert len(web.taking.taken) == 1


# ---------------------------------------------------------------------- failing


@pytest.mark.fault(10)
async def test_a_full_disk_leaves_nothing_and_says_why(web: Keeping) -> None:
    web.checkpoints.refuse = FULL
    one = await web.ask("web.one", "uid-one")
    assert one.status.error is not None
    assert one.status.phase == "failed"
    assert "disk is full" in one.status.error.why
    assert one.status.error.fix == FULL.fix
    assert web.checkpoints.forgotten == ["uid-one"]
    assert await web.events() == ["SnapshotFailed"]
    assert await web.guests[WEB.meta.uid].state() != "gone"


async def test_an_operating_system_error_is_a_failure_too(web: Keeping) -> None:
    web.taking.refuse = OSError(28, "No space left on device")
    one = await web.ask("web.one")
    assert one.status.error is not None
    assert "No space left on device" in one.status.error.why


async def test_a_failed_snapshot_is_not_tried_again(web: Keeping) -> None:
    web.taking.refuse = Conflict("the machine can not be saved", "a directory is shared with it", "unmount it")
    await web.ask("web.one")
    web.taking.refuse = None
    await web.clock.advance(1000)
    assert (await web.get()).status.phase == "failed"


async def test_a_save_that_was_given_up_ends_as_a_failure(web: Keeping) -> None:
    web.taking.refuse = asyncio.CancelledError()
    await web.ask("web.one")
    web.taking.refuse = None
    await web.clock.advance(1)
    assert (await web.get()).status.phase == "failed"
    assert web.taking.taken == []


async def test_a_snapshot_interrupted_while_saved_is_never_taken_later(web: Keeping) -> None:
    web.checkpoints.stall.clear()
    await web.ask("web.one", "uid-one", settle=False)
    await web.clock.advance(0)
    assert len(web.taking.taken) == 1
    await web.kill()
    web.checkpoints.stall.set()
    web.begin()
    await web.loop.settle()
    one = await web.get()
    assert one.status.error is not None
    assert (one.status.phase, "interrupted" in one.status.error.why) == ("failed", True)
    assert (len(web.taking.taken), web.checkpoints.disk) == (1, {})


async def test_a_snapshot_that_was_kept_is_ready_after_a_crash(web: Keeping) -> None:
    one = await web.ask("web.one", "uid-one")
    saving = replace(one, status=replace(one.status, phase="saving", taken="", own=0))
    await web.kill()
    await web.store.put("snapshots/default/web.one", msgspec.json.encode(saving))
    web.begin()
    await web.loop.settle()
    again = await web.get()
    assert (again.status.phase, again.status.taken, again.status.memory) == ("ready", one.status.taken, True)
    assert len(web.taking.taken) == 1


# ---------------------------------------------------------------------- deleting


async def test_a_deleted_snapshot_is_gone_with_what_it_kept(web: Keeping) -> None:
    await web.ask("web.one", "uid-one")
    await web.delete()
    with pytest.raises(NotFound):
        await web.get()
    assert web.checkpoints.disk == {}
    assert "SnapshotDeleted" in await web.events()


@pytest.mark.parametrize(
    "machine",
    [
        copy_of("web.one", phase="preparing"),
        replace(WEB, spec=replace(SPEC, restore=Restore(snapshot="web.one", serial=1))),
    ],
    ids=["a-copy", "a-restore"],
)
@pytest.mark.fault(7)
async def test_a_snapshot_in_use_goes_when_it_is_free(web: Keeping, machine: Machine) -> None:
    await web.ask("web.one", "uid-one")
    await web.machine(machine)
    await web.delete()
    one = await web.get()
    assert one.status.error is not None
    assert (one.status.users, machine.name in one.status.error.why) == ((machine.name,), True)
    assert "uid-one" in web.checkpoints.disk
    await web.change(machine.name, lambda now: replace(now, status=replace(now.status, born=True, restored=1)))
    await web.clock.advance(3)
    await web.loop.settle()
    assert await web.names() == []


async def test_a_snapshot_whose_memory_is_being_read_goes_when_it_is_free(web: Keeping) -> None:
    await web.ask("web.one", "uid-one")
    web.checkpoints.pinned_uids = {"uid-one"}
    await web.delete()
    assert await web.names() == ["web.one"]
    web.checkpoints.pinned_uids = set()
    await web.clock.advance(3)
    await web.loop.settle()
    assert await web.names() == []


async def test_machines_that_were_made_from_it_hold_nothing_up(web: Keeping) -> None:
    await web.ask("web.one")
    await web.machine(copy_of("web.one", phase="running", born=True))
    await web.machine(copy_of("web.one", "lost", phase="failed"))
    await web.delete()
    assert await web.names() == []


async def test_a_deletion_ends_after_a_crash(web: Keeping) -> None:
    one = await web.ask("web.one", "uid-one")
    await web.kill()
    await web.store.put("snapshots/default/web.one", msgspec.json.encode(marked(one)))
    await web.checkpoints.forget("uid-one")
    web.begin()
    await web.loop.settle()
    assert await web.names() == []


async def test_a_machine_outlives_its_snapshots_and_they_outlive_it(web: Keeping) -> None:
    await web.ask("web.one", "uid-one")
    await web.records.remove("machines/default/web", (await web.records.machine("machines/default/web")).meta.revision)
    await web.loop.settle()
    assert (await web.get()).status.phase == "ready"


# ---------------------------------------------------------------------- expiring


async def test_a_snapshot_goes_at_its_time(web: Keeping) -> None:
    await web.ask("web.one", expires="2026-11-23T12:10:00Z")
    await web.clock.advance(599)
    assert await web.names() == ["web.one"]
    await web.clock.advance(2)
    await web.loop.settle()
    assert await web.names() == []
    assert sorted(await web.events()) == ["Expired", "SnapshotDeleted", "SnapshotTaken"]


async def test_a_snapshot_whose_time_came_while_nobody_looked_goes_at_the_next_start(web: Keeping) -> None:
    await web.ask("web.one", expires="2026-11-23T12:10:00Z")
    await web.kill()
    await web.clock.advance(10_000)
    web.begin()
    await web.loop.settle()
    assert await web.names() == []


async def test_a_clock_that_goes_back_keeps_it_a_little_longer(web: Keeping) -> None:
    await web.ask("web.one", expires="2026-11-23T12:10:00Z")
    web.skew = web.skew.__class__(seconds=-60)
    await web.clock.advance(601)
    await web.loop.settle()
    assert await web.names() == ["web.one"]
    await web.clock.advance(60)
    await web.loop.settle()
    assert await web.names() == []


async def test_many_snapshots_are_taken_beside_each_other(web: Keeping) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(web.ask(f"web.s{number}", f"uid-{number}", settle=False))
    await web.loop.settle()
    assert sorted(web.checkpoints.disk) == [f"uid-{number}" for number in range(5)]
