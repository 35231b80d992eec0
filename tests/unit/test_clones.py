"""What a copy keeps of the machine or snapshot it is made from, and what it must not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from roost.control.clones import check_snapshot, child_of, child_of_snapshot, restored
from roost.errors import Conflict, Invalid, NotFound
from roost.model.machine import Machine, MachineSpec, MachineStatus, Publish, Restore, Schedule, Source
from roost.model.meta import Meta, MiB
from roost.model.snapshot import Snapshot, SnapshotSpec, SnapshotStatus
from roost.model.volume import Mount

PORT = Publish(host_port=8080, guest_port=80)
WEB = Machine(
    name="web",
    project="lab",
    meta=Meta(uid="w", labels={"tier": "front"}),
    spec=MachineSpec(
        image="debian:12",
        cpus=2,
        memory=1024 * MiB,
        disk=4096 * MiB,
        restarts=3,
        tpm=True,
        user_data="#cloud-config",
        publish=(PORT,),
        hostname="www",
        ephemeral=True,
        cold=True,
        restore=Restore(snapshot="web.old", serial=4),
        schedule=Schedule(every=3600),
        source=Source(machine="older"),
    ),
)


def snapshot(name: str = "web.ready", **status: Any) -> Snapshot:
    kept: dict[str, Any] = {"phase": "ready", "machine_uid": "w", "machine_spec": WEB.spec, "memory": True} | status
    return Snapshot(
        name=name, project="lab", spec=SnapshotSpec(machine="web"), status=SnapshotStatus(**kept), meta=Meta(uid="s")
    )


def changed(machine: Machine, **spec: Any) -> Machine:
    return msgspec.structs.replace(machine, spec=msgspec.structs.replace(machine.spec, **spec))


def test_a_child_has_the_hardware_and_the_image_of_its_parent() -> None:
    child = child_of(WEB, "kid", "m")
    same = ("image", "cpus", "memory", "disk", "tpm", "network", "user_data")
    assert [getattr(child.spec, field) for field in same] == [getattr(WEB.spec, field) for field in same]
    assert (child.project, child.name) == ("lab", "kid")


def test_a_child_has_nothing_that_belongs_to_one_machine_only() -> None:
    spec = child_of(WEB, "kid", "m").spec
    assert (spec.publish, spec.hostname, spec.ephemeral, spec.cold) == ((), None, False, False)
    assert (spec.restore, spec.schedule, spec.restarts) == (None, None, 0)


def test_a_child_says_what_it_is_a_copy_of_and_of_which_instant() -> None:
    assert child_of(WEB, "kid", "m", keep_identity=True).spec.source == Source(
        machine="web", moment="m", keep_identity=True
    )


def test_the_user_learns_which_ports_a_copy_does_not_publish() -> None:
    (warning,) = child_of(WEB, "kid", "m").status.warnings
    assert "127.0.0.1:8080" in warning
    assert child_of(changed(WEB, publish=()), "kid", "m").status.warnings == ()


@pytest.mark.parametrize("power", ["running", "paused", "stopped"])
def test_a_child_is_on_or_off_as_its_parent_unless_it_is_told_to_run(power: Any) -> None:
    parent = changed(WEB, power=power)
    assert child_of(parent, "kid", "m").spec.power == power
    assert child_of(parent, "kid", "m", start=True).spec.power == "running"


def test_a_machine_that_is_being_deleted_has_no_more_children() -> None:
    leaving = msgspec.structs.replace(WEB, meta=Meta(uid="w", deleting="2030-01-01T00:00:00Z"))
    with pytest.raises(Conflict, match="kid"):
        child_of(leaving, "kid", "m")


@pytest.mark.parametrize(
    ("memory", "start", "power"), [(True, False, "running"), (False, False, "stopped"), (False, True, "running")]
)
def test_a_machine_of_a_snapshot_runs_when_there_is_memory_or_when_told(memory: bool, start: bool, power: str) -> None:
    child = child_of_snapshot(snapshot(memory=memory), "kid", "m", start=start)
    assert (child.spec.power, child.spec.source) == (power, Source(snapshot="web.ready", moment="m"))


@pytest.mark.parametrize("status", [{"phase": "saving"}, {"phase": "failed"}, {"machine_spec": None}])
def test_a_snapshot_that_is_not_ready_is_no_beginning(status: dict[str, Any]) -> None:
    with pytest.raises(Conflict, match="kid"):
        child_of_snapshot(snapshot(**status), "kid", "m")
    with pytest.raises(Conflict, match="not restored"):
        restored(WEB, snapshot(**status))


def test_every_restore_counts_up() -> None:
    assert restored(WEB, snapshot()).spec.restore == Restore(snapshot="web.ready", serial=5)
    forgotten = changed(WEB, restore=None)
    assert restored(forgotten, snapshot()).spec.restore == Restore(snapshot="web.ready", serial=1)
    done = msgspec.structs.replace(forgotten, status=MachineStatus(restored=7))
    assert restored(done, snapshot()).spec.restore == Restore(snapshot="web.ready", serial=8)


def test_a_restored_memory_runs_on_the_hardware_it_had() -> None:
    now = changed(WEB, power="stopped", memory=512 * MiB, cpus=1, network="none", publish=())
    spec = restored(now, snapshot()).spec
    assert (spec.power, spec.memory, spec.cpus, spec.network) == ("running", 1024 * MiB, 2, "user")


def test_a_memory_without_network_takes_the_published_ports_away() -> None:
    kept = msgspec.structs.replace(WEB.spec, network="none", publish=())
    assert restored(WEB, snapshot(machine_spec=kept)).spec.publish == ()


def test_a_restored_disk_alone_changes_neither_power_nor_hardware() -> None:
    now = changed(WEB, power="stopped", memory=512 * MiB)
    spec = restored(now, snapshot(memory=False)).spec
    assert (spec.power, spec.memory) == ("stopped", 512 * MiB)


def test_the_disk_alone_is_taken_when_the_memory_is_not_wanted() -> None:
    off = changed(WEB, power="stopped")
    spec = restored(off, snapshot(), memory=False).spec
    assert (spec.power, spec.restore) == ("stopped", Restore(snapshot="web.ready", serial=5, memory=False))
    child = child_of_snapshot(snapshot(), "kid", "m", memory=False).spec
    assert (child.power, child.source) == ("running", Source(snapshot="web.ready", moment="m", memory=False))


def test_a_machine_is_not_restored_to_a_snapshot_of_another_of_that_name() -> None:
    with pytest.raises(Conflict, match="not restored") as refused:
        restored(WEB, snapshot(machine_uid="an earlier web"))
    assert "--as NEW" in refused.value.fix


def test_a_snapshot_is_named_after_a_machine_that_exists() -> None:
    new = snapshot()
    check_snapshot(new, None, WEB)
    with pytest.raises(Invalid, match="not taken"):
        check_snapshot(msgspec.structs.replace(new, name="db.ready"), None, WEB)
    with pytest.raises(NotFound):
        check_snapshot(new, None, None)


def test_what_a_snapshot_is_of_can_not_change_and_when_it_expires_can() -> None:
    old = snapshot()
    later = msgspec.structs.replace(old, spec=SnapshotSpec(machine="web", expires="2030-01-01T00:00:00Z"))
    check_snapshot(later, old, None)
    other = msgspec.structs.replace(old, spec=SnapshotSpec(machine="db", memory=False))
    with pytest.raises(Invalid) as refused:
        check_snapshot(other, old, WEB)
    assert [problem.path for problem in refused.value.problems] == ["spec.machine", "spec.memory"]


def test_the_memory_of_a_machine_with_volumes_is_not_kept() -> None:
    parent = changed(WEB, volumes=(Mount(volume="data"),))
    with pytest.raises(Conflict, match="roost clone web kid --no-memory; or first roost volume detach data web"):
        child_of(parent, "kid", "m")
    with pytest.raises(Conflict, match="roost snapshot web --no-memory"):
        check_snapshot(msgspec.structs.replace(snapshot(), spec=SnapshotSpec(machine="web")), None, parent)


def test_a_copy_has_no_volumes_and_says_so() -> None:
    child = child_of(changed(WEB, volumes=(Mount(volume="data"),), publish=(), power="stopped"), "kid", "m")
    alone = child_of(changed(WEB, volumes=(Mount(volume="data"),), publish=()), "kid", "m", memory=False)
    assert (child.spec.volumes, alone.spec.volumes) == ((), ())
    assert [warning.partition(" of the machine")[0] for warning in child.status.warnings] == ["data"]
