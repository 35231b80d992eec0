"""Volumes in a control plane of fakes: what is done in which order, and what a cut leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from roost.control.records import Records
from roost.errors import Conflict, Unavailable
from roost.hypervisor.base import Medium
from roost.model.meta import Meta, MiB
from roost.model.volume import (
    Limits,
    Mount,
    Volume,
    VolumeSource,
)
from tests.control_plane import READY, WEB, spec
from tests.storage_plane import OTHER, SNAP, UID, Storage


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Storage]:
    made = Storage(tmp_path)
    await made.add_pool()
    yield made
    await made.end()


async def test_a_volume_is_made_in_its_pool(bench: Storage) -> None:
    made = await bench.volume()
    assert (made.status.phase, made.status.pool, made.status.size) == ("ready", "default", 8 * MiB)
    assert made.status.generation == made.meta.generation
    assert set(bench.place().volumes) == {UID}


async def test_a_volume_whose_pool_refuses_fails_and_says_why(bench: Storage) -> None:
    bench.place().failing["create"] = Unavailable("nothing was made", "the disk is full", "make room")
    failed = await bench.volume()
    assert failed.status.phase == "failed"
    assert failed.status.error is not None
    assert "the disk is full" in failed.status.error.why
    await bench.delete_volume()
    assert await bench.names() == []


async def test_an_encrypted_volume_gets_the_projects_key(bench: Storage) -> None:
    made = await bench.volume(encrypted=True)
    assert made.status.keyed == "default-1"
    assert bench.place().volumes[UID].key == b"default-1"


async def test_a_lost_key_is_told_before_anything_is_attached(bench: Storage) -> None:
    await bench.volume(encrypted=True)
    bench.keys.lost = True
    machine = await bench.running(Mount(volume="data"))
    assert machine.status.phase == "failed"
    assert machine.status.error is not None
    assert "the key is lost" in machine.status.error.why
    assert (await bench.shown()).status.holders == ()


async def test_volumes_are_attached_before_the_first_instruction(bench: Storage) -> None:
    await bench.volume(limits=Limits(iops=100))
    machine = await bench.running(Mount(volume="data"))
    (mount,) = machine.status.volumes
    assert (mount.volume, mount.volume_uid, mount.lun, mount.phase) == ("data", UID, 0, "attached")
    attached = bench.guest().fake_volumes.present[0]
    assert (attached.uid, attached.serial, attached.limits.iops) == (UID, "data", 100)
    assert (await bench.shown()).status.machines == ("web",)
    assert bench.place().held == {UID}


async def test_a_machine_waits_for_its_volume(bench: Storage) -> None:
    machine = await bench.running(Mount(volume="data"))
    assert machine.status.phase == "pending"
    assert machine.status.error is not None
    assert 'volume "data" does not exist' in machine.status.error.why
    await bench.volume()
    await bench.clock.advance(3)
    await bench.settle()
    machine = await bench.get()
    assert (machine.status.phase, machine.status.error) == ("running", None)


async def test_a_volume_comes_and_goes_while_the_machine_runs(bench: Storage) -> None:
    await bench.volume()
    await bench.running()
    machine = await bench.wish(spec(volumes=(Mount(volume="data"),)))
    assert [mount.phase for mount in machine.status.volumes] == ["attached"]
    machine = await bench.wish(spec(volumes=()))
    assert machine.status.volumes == ()
    assert bench.guest().fake_volumes.present == {}
    volume = await bench.shown()
    assert (volume.status.holders, bench.place().held) == ((), set())


async def test_a_guest_that_does_not_let_go_keeps_its_volume(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    bench.guest().fake_volumes.clings = True
    machine = await bench.wish(spec(volumes=()))
    (mount,) = machine.status.volumes
    assert mount.phase == "detaching"
    assert mount.error is not None
    assert (await bench.shown()).status.machines == ("web",)
    bench.guest().fake_volumes.clings = False
    await bench.clock.advance(3)
    await bench.settle()
    assert (await bench.get()).status.volumes == ()


@pytest.mark.fault(1)
async def test_a_second_machine_never_gets_a_volume_that_one_writes(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    second = replace(
        WEB, name="second", meta=Meta(uid="1" * 8), spec=replace(WEB.spec, volumes=(Mount(volume="data"),))
    )
    waits = await bench.put(second)
    assert waits.status.phase == "pending"
    assert "attached to web" in waits.status.progress
    await bench.wish(spec(power="stopped", stop_grace=0.0))
    await bench.clock.advance(3)
    await bench.settle()
    assert (await bench.get("second")).status.phase == "running"
    assert (await bench.shown()).status.machines == ("second",)


async def test_a_volume_is_free_when_its_machine_has_ended(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    bench.guest().end("killed", clean=False)
    await bench.settle()
    assert (await bench.get()).status.volumes == ()
    assert (await bench.shown()).status.holders == ()
    assert bench.place().held == set()


async def test_a_claim_of_a_machine_that_is_no_more_is_dropped(bench: Storage) -> None:
    await bench.volume()

    def claimed(volume: Volume) -> Volume:
        return replace(volume, status=replace(volume.status, holders=("gone",), machines=("gone",)))

    await Records(bench.store).change("volumes/default/data", Volume, claimed)
    await bench.settle()
    assert (await bench.shown()).status.holders == ()


async def test_a_restart_of_the_daemon_takes_attached_volumes_back(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    bench.place().held.clear()
    await bench.restart()
    assert bench.place().held == {UID}
    assert (await bench.get()).status.phase == "running"
    assert bench.guest().fake_volumes.done.count("attach 0") == 1


async def test_growing_is_done_where_the_volume_is(bench: Storage) -> None:
    await bench.volume()
    assert (await bench.wish_volume(size=16 * MiB)).status.size == 16 * MiB
    assert bench.place().volumes[UID].size == 16 * MiB
    await bench.running(Mount(volume="data"))
    assert (await bench.wish_volume(size=32 * MiB)).status.size == 32 * MiB
    assert bench.guest().fake_volumes.sizes == {0: 32 * MiB}


async def test_what_can_not_be_grown_keeps_its_size_and_the_wish_is_given_up(bench: Storage) -> None:
    await bench.volume()
    bench.place().failing["resize"] = Unavailable("it was not grown", "the disk is full")
    failed = await bench.wish_volume(size=16 * MiB)
    assert (failed.spec.size, failed.status.size, failed.status.phase) == (8 * MiB, 8 * MiB, "ready")
    assert failed.status.error is not None
    assert (await bench.wish_volume(size=16 * MiB)).status.error is None


async def test_limits_are_changed_while_the_machine_runs(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    assert (await bench.wish_volume(limits=Limits(bandwidth=MiB))).status.limits.bandwidth == MiB
    assert bench.guest().fake_volumes.present[0].limits.bandwidth == MiB


# ---------------------------------------------------------------------- moving


async def test_a_volume_at_rest_moves(bench: Storage) -> None:
    await bench.volume()
    await bench.add_pool("big")
    moved = await bench.wish_volume(pool="big")
    assert (moved.status.phase, moved.status.pool, moved.status.target) == ("ready", "big", "")
    assert (set(bench.place().volumes), set(bench.place("big").volumes)) == (set(), {UID})


async def test_a_volume_moves_while_a_guest_writes_to_it(bench: Storage) -> None:
    await bench.volume()
    await bench.add_pool("big")
    await bench.running(Mount(volume="data"))
    moved = await bench.wish_volume(pool="big")
    assert (moved.status.phase, moved.status.pool) == ("ready", "big")
    assert (set(bench.place().volumes), bench.place("big").held) == (set(), {UID})
    assert (bench.guest().fake_volumes.present[0].medium.file or Path()).parent.name == "big"


async def test_a_move_that_fails_leaves_the_volume_where_it_was(bench: Storage) -> None:
    await bench.volume()
    await bench.add_pool("big")
    bench.places["big"].failing["fill"] = Unavailable("it was not copied", "the server is gone")
    failed = await bench.wish_volume(pool="big")
    assert (failed.status.phase, failed.status.pool, failed.spec.pool) == ("ready", "default", "default")
    assert failed.status.error is not None
    assert set(bench.place().volumes) == {UID}


def _moving(*, switching: bool) -> Callable[[Volume], Volume]:
    def change(volume: Volume) -> Volume:
        status = replace(volume.status, phase="moving", target="big", switching=switching)
        return replace(volume, spec=replace(volume.spec, pool="big"), status=status)

    return change


async def _cut(bench: Storage, *, switching: bool) -> None:
    """A daemon died while the volume moved."""
    await bench.end()
    await Records(bench.store).change("volumes/default/data", Volume, _moving(switching=switching))
    bench.begin()
    await bench.settle()
    await bench.clock.advance(10)
    await bench.settle()


@pytest.mark.parametrize("switching", [False, True])
async def test_after_a_cut_the_guest_tells_where_it_writes(bench: Storage, switching: bool) -> None:
    await bench.volume()
    await bench.add_pool("big")
    await bench.running(Mount(volume="data"))
    target = bench.place("big")
    await target.create(UID, 8 * MiB)
    here = bench.guest().fake_volumes
    here.present[0] = here.present[0]._replace(medium=Medium(*await target.hold(UID)))
    copies = here.done.count("move 0")
    await _cut(bench, switching=switching)
    volume = await bench.shown()
    assert (volume.status.phase, volume.status.pool) == ("ready", "big")
    assert (set(bench.place().volumes), here.done.count("move 0") - copies) == (set(), 0)


@pytest.mark.parametrize(("switching", "copied"), [(False, 1), (True, 0)])
async def test_after_a_cut_that_the_guest_did_not_survive_the_place_with_every_write_counts(
    bench: Storage, switching: bool, copied: int
) -> None:
    await bench.volume()
    await bench.add_pool("big")
    await bench.place("big").create(UID, 8 * MiB)
    await _cut(bench, switching=switching)
    volume = await bench.shown()
    assert (volume.status.phase, volume.status.pool) == ("ready", "big")
    assert [verb for verb, _ in bench.place("big").calls].count("fill") == copied


async def test_a_guest_that_writes_to_the_source_after_a_cut_moves_anew(bench: Storage) -> None:
    await bench.volume()
    await bench.add_pool("big")
    await bench.running(Mount(volume="data"))
    await _cut(bench, switching=True)
    volume = await bench.shown()
    assert (volume.status.phase, volume.status.pool, volume.status.switching) == ("ready", "big", False)
    assert bench.guest().fake_volumes.done.count("move 0") == 1


async def test_a_volume_that_moves_is_not_attached_meanwhile(bench: Storage) -> None:
    await bench.volume()
    await bench.add_pool("big")
    await bench.running(Mount(volume="data"))
    here = bench.guest().fake_volumes
    here.hold = asyncio.Event()
    await Records(bench.store).change(
        "volumes/default/data", Volume, lambda it: replace(it, spec=replace(it.spec, pool="big"))
    )
    await asyncio.sleep(0.05)
    await Records(bench.store).update("machines/default/web", lambda it: replace(it, spec=spec(volumes=())(it.spec)))
    await asyncio.sleep(0.05)
    (mount,) = (await bench.get()).status.volumes
    assert mount.error is not None
    assert "being changed" in mount.error.why
    here.hold.set()
    await bench.settle()
    await bench.clock.advance(3)
    await bench.settle()
    assert ((await bench.get()).status.volumes, (await bench.shown()).status.pool) == ((), "big")


# ---------------------------------------------------------------------- snapshots and copies


async def test_a_snapshot_of_a_volume_at_rest(bench: Storage) -> None:
    await bench.volume()
    taken = await bench.take_snapshot()
    assert (taken.status.phase, taken.status.size, taken.status.volume_uid) == ("ready", 8 * MiB, UID)
    assert bench.place().snapshots == {SNAP}


async def test_a_snapshot_of_a_volume_that_a_guest_writes(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    taken = await bench.take_snapshot()
    assert taken.status.phase == "ready"
    assert "cover 0" in bench.guest().fake_volumes.done


async def test_a_snapshot_that_the_guest_refuses_leaves_the_volume_as_it_was(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    bench.guest().fake_volumes.refuse = Unavailable("it was not covered", "QEMU does not answer")
    taken = await bench.take_snapshot()
    assert taken.status.phase == "failed"
    assert (bench.place().snapshots, bench.place().calls[-1][0]) == (set(), "settle")


async def test_a_snapshot_of_a_volume_that_is_only_read_is_refused(bench: Storage) -> None:
    await bench.volume(sharing="read-only")
    await bench.running(Mount(volume="data", read_only=True))
    taken = await bench.take_snapshot()
    assert taken.status.phase == "failed"
    assert taken.status.error is not None
    assert taken.status.error.fix == "roost volume detach data web"


async def test_a_copy_of_a_volume_of_a_snapshot_and_of_an_image(bench: Storage) -> None:
    await bench.image(READY)
    await bench.volume()
    await bench.take_snapshot()
    bench.place().image_sizes[READY.digest] = 4 * MiB
    for number, source in enumerate(
        (VolumeSource(volume="data"), VolumeSource(snapshot="data.one"), VolumeSource(image="disk"))
    ):
        uid = f"4444444{number}-4444-4444-8444-444444444444"
        made = await bench.volume(f"copy{number}", uid, size=None, source=source)
        assert made.status.phase == "ready", made.status.error
    assert bench.pools.images() == {READY.digest}


async def test_a_copy_of_a_volume_that_a_guest_writes_is_of_one_instant(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    made = await bench.volume("copy", OTHER, size=None, source=VolumeSource(volume="data"))
    assert made.status.phase == "ready"
    assert bench.place().snapshots == set()
    assert bench.place().volumes[OTHER].below


async def test_a_copy_into_another_pool_is_filled(bench: Storage) -> None:
    await bench.volume(encrypted=True)
    await bench.add_pool("big")
    made = await bench.volume("copy", OTHER, size=None, pool="big", source=VolumeSource(volume="data"))
    assert (made.status.phase, made.status.keyed) == ("ready", "default-1")
    assert ("fill", OTHER) in bench.place("big").calls


async def test_the_memory_of_a_machine_with_volumes_is_not_kept(bench: Storage) -> None:
    await bench.volume()
    machine = await bench.running(Mount(volume="data"))
    with pytest.raises(Conflict, match="volumes are attached to it: data"):
        await bench.taker.take(machine, memory=True)
    assert (await bench.taker.take(machine, memory=False)).saved is None
