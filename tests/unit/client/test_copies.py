"""Clones, snapshots and restores through the SDK: handles, and errors where they belong."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

import roost
from roost.errors import Conflict, Invalid, NotFound, Unavailable
from tests.unit.client.scripted import Scripted, scripted


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with scripted(tmp_path_factory.mktemp("d")) as running:
        yield running


@pytest.fixture
def host(daemon: Scripted) -> Iterator[roost.Host]:
    with roost.connect(f"unix:{daemon.socket}") as found:
        yield found


@pytest.fixture
def web(host: roost.Host) -> Iterator[roost.MachineHandle]:
    machine = host.machines.launch("tiny")
    yield machine
    for each in host.snapshots.list():
        host.snapshots.delete(each.name)
    for each in host.machines.list():
        host.machines.delete(each.name)


def names(kids: list[roost.MachineHandle | roost.RoostError]) -> list[str]:
    return [kid.name for kid in kids if isinstance(kid, roost.MachineHandle)]


def test_a_launch_says_by_which_path_the_machine_came_up(host: roost.Host, web: roost.MachineHandle) -> None:
    cold = host.machines.launch("tiny", "cold-one", cold=True, tpm=True)
    assert (cold.spec.cold, cold.spec.tpm, web.timing.path) == (True, True, "warm")


def test_clones_are_machines_in_the_order_of_their_numbers(web: roost.MachineHandle) -> None:
    kids = web.clone("kid", count=3)
    assert names(kids) == ["kid-1", "kid-2", "kid-3"]
    assert {kid.status.phase for kid in kids if isinstance(kid, roost.MachineHandle)} == {"running"}


def test_a_clone_without_a_name_is_called_after_its_parent(web: roost.MachineHandle) -> None:
    (name,) = names(web.clone())
    assert re.fullmatch(rf"{web.name}-\w+-\w+", name)


def test_the_error_that_stopped_one_clone_stands_in_its_place(host: roost.Host, web: roost.MachineHandle) -> None:
    host.machines.launch("tiny", "pair-1")
    taken, made = web.clone("pair", count=2)
    assert isinstance(taken, Conflict)
    assert isinstance(made, roost.MachineHandle)


def test_a_clone_that_does_not_start_is_its_error_and_the_others_run(web: roost.MachineHandle) -> None:
    kids = web.clone("unlucky", count=2)
    assert [type(kid) for kid in kids] == [Unavailable, Unavailable]
    assert names(web.clone("lucky")) == ["lucky"]


def test_a_clone_that_is_deleted_meanwhile_is_not_waited_for(host: roost.Host, web: roost.MachineHandle) -> None:
    reports: list[str] = []

    def delete(name: str, now: object) -> None:
        reports.append(name)
        if len(reports) == 1:
            host.machines.delete("never", wait=False)

    (gone,) = web.clone("never", report=delete)
    assert isinstance(gone, NotFound)


def test_what_keeps_all_clones_from_being_made_is_raised(web: roost.MachineHandle) -> None:
    with pytest.raises(Invalid):
        web.clone("Not A Name", count=2)


def test_a_clone_of_a_stopped_machine_is_stopped_unless_told_to_run(web: roost.MachineHandle) -> None:
    web.stop()
    (off,), (on,) = web.clone("off"), web.clone("on", start=True)
    assert isinstance(off, roost.MachineHandle)
    assert isinstance(on, roost.MachineHandle)
    assert (off.status.phase, on.status.phase) == ("stopped", "running")


def test_how_a_clone_is_made_is_passed_on(web: roost.MachineHandle) -> None:
    (kid,) = web.clone("exact", keep_identity=True, memory=False, wait=False)
    assert isinstance(kid, roost.MachineHandle)
    assert kid.spec.source is not None
    assert (kid.spec.source.keep_identity, kid.spec.source.memory) == (True, False)


def test_a_snapshot_is_waited_for_and_can_be_used(host: roost.Host, web: roost.MachineHandle) -> None:
    snap = web.snapshot("ready")
    assert (snap.name, snap.status.phase, snap.status.memory) == (f"{web.name}.ready", "ready", True)
    assert names(snap.clone("kid", count=2)) == ["kid-1", "kid-2"]
    assert host.snapshots.handle(snap.name).status.machine_uid == web.object.meta.uid
    snap.delete()
    with pytest.raises(NotFound):
        snap.refresh()


def test_snapshots_without_names_have_the_time_for_one(web: roost.MachineHandle) -> None:
    made = [web.snapshot(memory=False).name.removeprefix(f"{web.name}.") for _ in range(3)]
    assert len(set(made)) == 3
    assert all(re.fullmatch(r"\d{8}-\d{6}(-\d)?", name) for name in made)
    assert [snap.name for snap in web.snapshots()] == [f"{web.name}.{name}" for name in made]


def test_what_kept_a_snapshot_from_being_taken_is_raised(web: roost.MachineHandle) -> None:
    with pytest.raises(Unavailable, match="no luck"):
        web.snapshot("unlucky")


def test_a_snapshot_may_expire(web: roost.MachineHandle) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*Z", web.snapshot("soon", expires="7d").spec.expires or "")
    assert web.snapshot("then", expires="2031-01-01T00:00:00Z").spec.expires == "2031-01-01T00:00:00Z"
    with pytest.raises(Invalid):
        web.snapshot("what", expires="soon")


def test_a_machine_goes_back_by_either_name_and_each_time(web: roost.MachineHandle) -> None:
    snap = web.snapshot("ready")
    web.stop()
    web.restore("ready")
    assert (web.status.phase, web.status.restored) == ("running", 1)
    web.restore(snap.name)
    assert web.status.restored == 2


def test_a_disk_alone_goes_back_into_a_stopped_machine(web: roost.MachineHandle) -> None:
    web.snapshot("disk", memory=False)
    web.stop()
    web.restore("disk")
    assert (web.status.phase, web.status.restored) == ("stopped", 1)


def test_snapshots_stay_with_a_machine_that_is_renamed(web: roost.MachineHandle) -> None:
    snap = web.snapshot("ready")
    web.rename("renamed")
    assert [found.name for found in web.snapshots()] == [snap.name]
    web.restore(snap.name)
    assert web.status.restored == 1


def test_a_schedule_is_set_whole_and_taken_away(web: roost.MachineHandle) -> None:
    web.schedule("1h", keep=24, expire="7d")
    assert web.spec.schedule == roost.Schedule(every=3600, keep=24, expire=7 * 86400)
    web.schedule(120, memory=False)
    assert web.spec.schedule == roost.Schedule(every=120, memory=False)
    web.schedule(None)
    assert web.spec.schedule is None
    with pytest.raises(Invalid):
        web.schedule("often")


async def test_the_asynchronous_face_clones_from_many_tasks_at_once(daemon: Scripted) -> None:
    async with roost.connect_async(f"unix:{daemon.socket}") as host:
        machines = [await host.machines.launch("tiny", f"parent-{number}") for number in range(3)]
        kids = await asyncio.gather(*(machine.clone(f"of-{machine.name}", count=2) for machine in machines))
        assert [kid.name for few in kids for kid in few if isinstance(kid, roost.AsyncMachineHandle)] == [
            f"of-parent-{parent}-{kid}" for parent in range(3) for kid in (1, 2)
        ]
