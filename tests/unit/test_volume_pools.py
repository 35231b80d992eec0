"""The trash, and pools that fill up, in a control plane of fakes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from roost.control import moving
from roost.control.records import Records, marked
from roost.errors import Conflict, Unavailable
from roost.model import codec
from roost.model.meta import MiB
from roost.model.volume import (
    TRASH_NAME,
    Mount,
    Volume,
)
from roost.storage.pool import Capacity
from roost.testing.pool import FakePool
from tests.control_plane import spec
from tests.storage_plane import OTHER, UID, Storage


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Storage]:
    made = Storage(tmp_path)
    await made.add_pool()
    yield made
    await made.end()


# ---------------------------------------------------------------------- the trash


async def test_what_is_deleted_lies_in_the_trash_and_comes_back(bench: Storage) -> None:
    await bench.volume()
    await bench.delete_volume()
    (name,) = await bench.names()
    assert TRASH_NAME.fullmatch(name)
    assert (await bench.shown(name)).status.phase == "trash"
    await bench.volume("data", OTHER)  # its name is free
    await bench.delete_volume("data")
    trash = await bench.shown(name)
    entry = await bench.store.get(f"volumes/default/{name}")
    await bench.store.put(entry.key, None, expect=entry.revision)
    await bench.store.put("volumes/default/back", codec.encode(replace(trash, name="back")), expect=0)
    await bench.settle()
    back = await bench.shown("back")
    assert (back.status.phase, back.meta.uid, back.status.trashed) == ("ready", UID, "")


async def test_the_trash_goes_when_its_time_is_over(bench: Storage) -> None:
    await bench.volume()
    await bench.delete_volume()
    await bench.restart()
    await bench.clock.advance(86_000)
    await bench.settle()
    assert len(await bench.names()) == 1
    await bench.clock.advance(86_400)
    await bench.settle()
    assert (await bench.names(), bench.place().volumes) == ([], {})


async def test_without_grace_it_goes_at_once(bench: Storage) -> None:
    await bench.add_pool("quick", grace=0.0)
    await bench.volume(pool="quick")
    await bench.delete_volume()
    assert (await bench.names(), bench.place("quick").volumes) == ([], {})


async def test_what_a_machine_has_is_not_removed(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    await bench.delete_volume()
    assert await bench.names() == ["data"]
    assert set(bench.place().volumes) == {UID}


# ---------------------------------------------------------------------- full pools


async def _fill(bench: Storage, percent: int) -> None:
    bench.place().room = Capacity(100 * MiB, percent * MiB)
    await bench.watch.look()
    await bench.settle()


@pytest.mark.parametrize(("percent", "level"), [(10, "ok"), (80, "warn"), (90, "closed"), (97, "paused")])
async def test_a_pool_says_how_full_it_is(bench: Storage, percent: int, level: str) -> None:
    await _fill(bench, percent)
    pool = await Records(bench.store).pool("pools/default")
    assert pool.status.level == level


async def test_writers_stand_still_before_a_pool_is_full_and_go_on_by_themselves(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    await bench.watch.count()
    await _fill(bench, 98)
    machine = await bench.get()
    assert (machine.status.phase, await bench.guest().state()) == ("paused", "paused")
    assert machine.status.error is not None
    assert "all but full" in machine.status.error.why
    await bench.restart()
    assert await bench.guest().state() == "paused"
    await _fill(bench, 50)
    machine = await bench.get()
    assert (machine.status.phase, machine.status.error, await bench.guest().state()) == ("running", None, "running")
    assert {"PoolFull", "PoolHasRoom", "Resumed"} <= set(await bench.events())


async def test_who_only_reads_and_who_was_paused_is_left_alone(bench: Storage) -> None:
    await bench.volume(sharing="read-only")
    await bench.running(Mount(volume="data", read_only=True))
    await bench.watch.count()
    await _fill(bench, 98)
    assert await bench.guest().state() == "running"
    await bench.wish(spec(power="paused"))
    await _fill(bench, 50)
    assert await bench.guest().state() == "paused"


async def test_a_write_that_had_no_space_waits_for_its_pool(bench: Storage) -> None:
    await bench.volume()
    await bench.running(Mount(volume="data"))
    await bench.watch.count()
    bench.place().room = Capacity(64 * MiB, 64 * MiB)
    bench.guest().become("io-error")
    await bench.settle()
    assert (await bench.get()).status.phase == "paused"
    assert await bench.guest().state() == "io-error"
    await _fill(bench, 50)
    assert await bench.guest().state() == "running"


async def test_a_full_pool_lets_its_trash_go_the_oldest_first(bench: Storage) -> None:
    await bench.volume("old", UID)
    await bench.volume("new", OTHER)
    await bench.delete_volume("old")
    await bench.clock.advance(5)
    await bench.delete_volume("new")
    await _fill(bench, 92)
    assert [name.partition("--")[0] for name in await bench.names()] == ["new"]


async def test_what_volumes_take_is_counted(bench: Storage) -> None:
    await bench.volume()
    await bench.take_snapshot()
    await bench.watch.count()
    pool = await Records(bench.store).pool("pools/default")
    assert (pool.status.volumes, pool.status.provisioned) == (1, 8 * MiB)
    assert (await bench.shown()).status.used > 0


async def test_a_pool_goes_when_nothing_is_in_it(bench: Storage) -> None:
    await bench.add_pool("big")
    await bench.store.put(
        "pools/big",
        codec.encode(marked(await Records(bench.store).pool("pools/big"))),
        expect=None,
    )
    await bench.settle()
    assert [entry.key for entry in (await bench.store.list("pools/"))[0]] == ["pools/default"]


async def test_a_pool_that_can_not_be_opened_says_why(bench: Storage) -> None:
    broken = FakePool(bench.directory / "broken")
    broken.failing["prepare"] = Conflict("it is another daemon's", "its marker names another pool", "choose another")
    bench.places["broken"] = broken
    await bench.add_pool("broken")
    pool = await Records(bench.store).pool("pools/broken")
    assert pool.status.phase == "failed"
    assert pool.status.error is not None
    assert "its marker" in pool.status.error.why
    await bench.clock.advance(1)
    await bench.settle()
    assert (await Records(bench.store).pool("pools/broken")).status.phase == "ready"


# ---------------------------------------------------------------------- what can wait


async def test_a_volume_at_rest_is_tended_after_a_snapshot_and_when_it_is_given_back(bench: Storage) -> None:
    await bench.volume()
    made = len(bench.place().tended)
    await bench.take_snapshot()
    await bench.running(Mount(volume="data"))
    taken = len(bench.place().tended)
    await bench.wish(spec(volumes=()))
    assert 0 < made <= taken < len(bench.place().tended)


async def test_who_wants_a_volume_ends_what_is_done_to_it_in_passing(bench: Storage) -> None:
    made = await bench.volume()
    tending: list[str] = []

    async def tend(uid: str, key: bytes | None = None) -> None:
        tending.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            tending.append("given up")

    bench.place().tend = tend
    bench.holds.tend("volumes/default/data", made)
    bench.holds.tend("volumes/default/data", made)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (tending, bench.holds.lock(UID).locked(), bench.holds.is_busy(UID)) == (["begun"], True, False)
    async with bench.holds.lock(UID):
        assert tending == ["begun", "given up"]
        assert bench.holds.is_busy(UID)


# ---------------------------------------------------------------------- keys


async def test_an_encrypted_volume_gets_another_key(bench: Storage) -> None:
    await bench.volume(encrypted=True)
    changed = await bench.wish_volume(rekeys=1)
    status = changed.status
    assert (status.keyed, status.rekeying, status.rekeys, status.error) == ("default-2", "", 1, None)
    assert (bench.place().volumes[UID].key, status.generation) == (b"default-2", changed.meta.generation)
    assert (await bench.running(Mount(volume="data"))).status.phase == "running"


async def test_a_volume_that_a_machine_has_keeps_its_key(bench: Storage) -> None:
    await bench.volume(encrypted=True)
    await bench.running(Mount(volume="data"))
    refused = await bench.wish_volume(rekeys=1)
    assert (refused.status.keyed, refused.spec.rekeys) == ("default-1", 0)
    assert refused.status.error is not None
    assert (refused.status.error.code, "roost volume detach data web" in refused.status.error.fix) == ("conflict", True)


async def test_a_volume_that_is_not_encrypted_gets_no_key(bench: Storage) -> None:
    await bench.volume()
    refused = await bench.wish_volume(rekeys=1)
    assert refused.status.error is not None
    assert (refused.status.error.code, bench.place().volumes[UID].key) == ("invalid", None)


@pytest.mark.parametrize("done", [False, True], ids=["before the pool did it", "after"])
async def test_a_daemon_that_dies_while_a_key_is_changed_leaves_a_volume_that_opens(bench: Storage, done: bool) -> None:
    await bench.volume(encrypted=True)
    new = await bench.keys.rotate("default")
    await bench.end()
    await (bench.place().rekey(UID, b"default-1", new.encode()) if done else asyncio.sleep(0))

    def cut(volume: Volume) -> Volume:
        status = replace(volume.status, rekeying=new)
        return replace(volume, spec=replace(volume.spec, rekeys=1), status=status)

    await Records(bench.store).change("volumes/default/data", Volume, cut)
    bench.begin()
    await bench.settle()
    status = (await bench.shown()).status
    assert (status.keyed, status.rekeying, status.rekeys) == (new, "", 1)
    assert (bench.place().volumes[UID].key, bench.keys.made) == (new.encode(), 2)
    assert (await bench.running(Mount(volume="data"))).status.phase == "running"


async def test_a_key_that_can_not_be_changed_stays(bench: Storage) -> None:
    await bench.volume(encrypted=True)
    bench.place().failing["rekey"] = Unavailable("the key is not changed", "the disk is full", "make room")
    failed = await bench.wish_volume(rekeys=1)
    assert (failed.status.keyed, failed.status.rekeying, failed.spec.rekeys) == ("default-1", "", 0)
    assert failed.status.error is not None
    assert "the disk is full" in failed.status.error.why


# ---------------------------------------------------------------------- moves that something is in the way of


async def test_a_move_that_a_lock_is_in_the_way_of_is_tried_again(
    bench: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "BUSY_DELAY", 0.01)
    await bench.volume()
    await bench.add_pool("big")
    await bench.running(Mount(volume="data"))
    bench.place("big").failing["hold"] = Conflict("the volume is in use elsewhere", 'Failed to get "write" lock')
    await bench.wish_volume(pool="big")
    await bench.clock.advance(2)
    await bench.settle()
    moved = await bench.shown()
    assert (moved.status.pool, moved.status.progress, moved.status.error) == ("big", "", None)
    assert [verb for verb, _ in bench.place("big").calls].count("hold") >= 2
    assert "NotMoved" not in await bench.events()
