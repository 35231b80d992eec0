"""Volumes and pools at the API: who may, what may be, and what is decided alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from roost.api.locks import Locks
from roost.control.admission import Admission
from roost.model import codec
from roost.model.meta import GiB, Meta
from roost.model.pool import Pool, PoolSpec, PoolStatus
from roost.model.project import Project, ProjectSpec, Quota
from roost.model.volume import MountStatus, Volume, VolumeSource, VolumeSpec, VolumeStatus
from tests.unit.api.world import ALICE, BOB, World, machine, world


@asynccontextmanager
async def storage(pool: PoolStatus | None = None) -> AsyncIterator[World]:
    """A world with a pool and rules."""
    async with world() as w:
        admission = Admission(w.store, "x86_64")
        object.__setattr__(w.api.services, "admit", admission.admit)
        object.__setattr__(w.api.services, "dismiss", admission.dismiss)
        await w.put(Pool(name="default", status=pool or PoolStatus(phase="ready")))
        yield w


def volume(name: str = "data", **spec: Any) -> dict[str, Any]:
    return {"name": name, "project": "alice", "spec": {"size": GiB, **spec}}


async def made(w: World, name: str = "data", **status: Any) -> None:
    """A volume that control made."""
    status = {"phase": "ready", "size": GiB, "pool": "default", **status}
    thing = Volume(name=name, project="alice", meta=Meta(uid=name), spec=VolumeSpec(size=GiB))
    await w.put(codec.decode({**codec.plain(thing), "status": status}, Volume, "volume"))


async def test_pools_are_seen_by_everybody_and_written_by_admins() -> None:
    async with storage() as w:
        seen = await w.call("GET", "/v1/pools/default", uid=BOB)
        listed = await w.call("GET", "/v1/pools", uid=BOB)
        refused = await w.call("POST", "/v1/pools", {"name": "mine", "spec": {"path": "/etc"}}, uid=BOB)
        changed = await w.call("PATCH", "/v1/pools/default", {"spec": {"grace": 0}}, uid=BOB)
        admin = await w.call("POST", "/v1/pools", {"name": "mine", "spec": {"path": "/srv"}})
        gone = await w.call("DELETE", "/v1/pools/mine", uid=BOB), await w.call("DELETE", "/v1/pools/mine")
    assert (seen.status, len(listed.json["items"]), refused.status, changed.status) == (200, 1, 403, 403)
    assert (admin.status, gone[0].status, gone[1].status) == (201, 403, 202)


async def test_a_project_without_volumes_is_not_held_by_the_hosts_pools() -> None:
    async with storage() as w:
        empty = await w.call("DELETE", "/v1/projects/bob")
        await made(w)
        full = await w.call("DELETE", "/v1/projects/alice")
    assert (empty.status, full.status) == (200, 409)
    assert full.error["fix"] == "roost delete volume data --project alice"


@pytest.mark.fault(1)
async def test_of_many_that_want_to_write_at_once_one_does() -> None:
    async with storage() as w:
        await made(w)
        wishes = [machine(f"m{number}", volumes=[{"volume": "data"}]) for number in range(8)]
        answers = await asyncio.gather(*(w.call("POST", "/v1/machines", wish, uid=ALICE) for wish in wishes))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 7


async def test_who_still_has_it_is_waited_for() -> None:
    async with storage() as w:
        await made(w)
        await w.call("POST", "/v1/machines", machine("old"), uid=ALICE)
        stored = codec.plain((await w.call("GET", "/v1/machines/alice/old")).json)
        stored["status"]["volumes"] = [codec.plain(MountStatus(volume="data", volume_uid="data", lun=0))]
        await w.store.put("machines/alice/old", codec.encode(stored))
        refused = await w.call("POST", "/v1/machines", machine("new", volumes=[{"volume": "data"}]), uid=ALICE)
    assert (refused.status, refused.error["why"]) == (409, "old has it, and two writers would destroy it")


async def test_a_volume_of_another_project_does_not_exist() -> None:
    async with storage() as w:
        await made(w)
        wish = machine("thief", "bob", volumes=[{"volume": "data"}])
        assert (await w.call("POST", "/v1/machines", wish, uid=BOB)).status == 404


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"size": GiB // 2}, 400),
        ({"encrypted": True}, 400),
        ({"source": {"volume": "other"}}, 400),
        ({"pool": "nowhere"}, 404),
        ({"size": 2 * GiB}, 200),
        ({"protected": True}, 200),
        ({"size": None}, 400),
    ],
)
async def test_what_may_change(change: dict[str, Any], status: int) -> None:
    async with storage() as w:
        await made(w)
        answer = await w.call("PATCH", "/v1/volumes/alice/data", {"spec": change}, uid=ALICE)
    assert answer.status == status, answer.body


async def test_nothing_begins_in_a_full_pool() -> None:
    full = PoolStatus(phase="ready", level="closed", size=100 * GiB, used=95 * GiB)
    async with storage(full) as w:
        created = await w.call("POST", "/v1/volumes", volume(), uid=ALICE)
        await made(w, "old")
        grown = await w.call("PATCH", "/v1/volumes/alice/old", {"spec": {"size": 2 * GiB}}, uid=ALICE)
        limited = await w.call("PATCH", "/v1/volumes/alice/old", {"spec": {"limits": {"iops": 5}}}, uid=ALICE)
        body = {"name": "old.a", "project": "alice", "spec": {"volume": "old"}}
        kept = await w.call("POST", "/v1/volumesnapshots", body, uid=ALICE)
    assert (created.status, grown.status, kept.status, limited.status) == (503, 503, 503, 200)
    assert "95GiB of 100GiB are taken" in created.error["why"]


async def test_a_copy_is_as_large_as_what_it_is_a_copy_of() -> None:
    async with storage() as w:
        await made(w)
        source = {"source": {"volume": "data"}}
        copy = await w.call("POST", "/v1/volumes", volume("copy", size=None, **source), uid=ALICE)
        less = await w.call("POST", "/v1/volumes", volume("less", size=GiB // 2, **source), uid=ALICE)
        busy = await w.call("DELETE", "/v1/volumes/alice/data", uid=ALICE)
    assert (copy.json["spec"]["size"], less.status) == (GiB, 400)
    assert (busy.status, busy.error["why"]) == (409, 'volume "copy" is being made of it')


async def test_a_quota_bounds_volumes_and_their_bytes() -> None:
    async with storage() as w:
        quota = Quota(volumes=2, storage=3 * GiB)
        await w.put(
            Project(name="alice", meta=Meta(uid="a"), spec=ProjectSpec(members={f"uid:{ALICE}": "owner"}, quota=quota))
        )
        answers = [
            await w.call("POST", "/v1/volumes", volume("large", size=4 * GiB), uid=ALICE),
            await w.call("POST", "/v1/volumes", volume("one"), uid=ALICE),
            await w.call("POST", "/v1/volumes", volume("two"), uid=ALICE),
            await w.call("POST", "/v1/volumes", volume("three"), uid=ALICE),
            await w.call("PATCH", "/v1/volumes/alice/two", {"spec": {"size": 3 * GiB}}, uid=ALICE),
            await w.call("PATCH", "/v1/volumes/alice/two", {"spec": {"size": 2 * GiB}}, uid=ALICE),
        ]
    assert [answer.status for answer in answers] == [403, 201, 201, 403, 403, 200]


async def test_what_is_in_the_trash_comes_back_by_a_name_and_changes_by_nothing_else() -> None:
    name = "data--trash-0123ab"
    async with storage() as w:
        await made(w, name, phase="trash", trashed="2030-01-01T00:00:00Z")
        changed = await w.call("PATCH", f"/v1/volumes/alice/{name}", {"spec": {"protected": True}}, uid=ALICE)
        mounted = await w.call("POST", "/v1/machines", machine(volumes=[{"volume": name}]), uid=ALICE)
        renamed = await w.call("POST", f"/v1/volumes/alice/{name}/rename", {"name": "data"}, uid=ALICE)
    assert (changed.status, mounted.status, renamed.status, renamed.json["name"]) == (409, 409, 200, "data")


async def test_past_the_trash_is_said_in_the_object() -> None:
    async with storage() as w:
        await made(w)
        gone = await w.call("DELETE", "/v1/volumes/alice/data?now=true", uid=ALICE)
    assert (gone.status, gone.json["status"]["phase"], bool(gone.json["meta"]["deleting"])) == (202, "trash", True)


async def test_an_nbd_export_holds_one_volume_whoever_has_it() -> None:
    async with storage() as w:
        spec = PoolSpec(type="nbd", servers=("localhost:10809",), export="disk")
        await w.put(Pool(name="far", spec=spec, status=PoolStatus(phase="ready")))
        first = await w.call("POST", "/v1/volumes", volume(pool="far"), uid=ALICE)
        other = {"name": "mine", "project": "bob", "spec": {"size": GiB, "pool": "far"}}
        second = await w.call("POST", "/v1/volumes", other, uid=BOB)
    assert (first.status, second.status) == (201, 409)
    assert b"data" not in second.body


async def test_who_waits_for_a_decision_is_not_overtaken() -> None:
    locks, inside, order = Locks(), asyncio.Event(), []

    async def decide(name: str) -> None:
        async with locks.deciding("p", alone=True):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(f"{name} out")
        inside.set()

    waiting = [asyncio.ensure_future(decide(name)) for name in ("a", "b")]
    await inside.wait()
    await asyncio.gather(*waiting, decide("c"))
    assert order == ["a in", "a out", "b in", "b out", "c in", "c out"]


def test_a_source_is_named_once() -> None:
    spec = VolumeSpec(source=VolumeSource(image="tiny", volume="data"))
    assert [problem.path for problem in spec.problems()] == ["source"]
    assert VolumeStatus().phase == "pending"
