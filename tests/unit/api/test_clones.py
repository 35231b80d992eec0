"""Clones, snapshots and restores through the API: one outcome a name, one commit, and nothing foreign."""

from __future__ import annotations

from typing import Any

import pytest

from roost.control.admission import Admission
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import Meta
from roost.model.snapshot import Snapshot, SnapshotSpec, SnapshotStatus
from roost.store.memory import MemoryStore
from tests.unit.api.world import ALICE, BOB, OWNER, VIEWER, World, machine, world

CLONE = "/v1/machines/alice/web/clone"
KEY = {"Idempotency-Key": "clone-1"}


async def with_web(w: World, **spec: Any) -> dict[str, Any]:
    made: dict[str, Any] = (await w.call("POST", "/v1/machines", machine(**spec), uid=ALICE)).json
    return made


async def snapshot(w: World, uid: str, name: str = "web.ready", project: str = "alice", **status: Any) -> None:
    kept: dict[str, Any] = {
        "phase": "ready", "machine_uid": uid, "memory": True, "machine_spec": MachineSpec(image="tiny", cpus=2),
    }  # fmt: skip
    status = kept | status
    await w.put(
        Snapshot(
            name=name,
            project=project,
            meta=Meta(uid="s"),
            spec=SnapshotSpec(machine="web"),
            status=SnapshotStatus(**status),
        )
    )


async def names(w: World, project: str = "alice") -> list[str]:
    return [item["name"] for item in (await w.call("GET", f"/v1/machines?project={project}")).json["items"]]


async def test_a_clone_is_a_new_machine_that_names_its_source() -> None:
    async with world() as w:
        web = await with_web(w, cpus=2)
        reply = await w.call("POST", CLONE, {"names": ["kid"]}, uid=ALICE)
        (item,) = reply.json["items"]
        kid = item["machine"]
        assert (reply.status, item["name"], kid["spec"]["cpus"], kid["spec"]["source"]["machine"]) == (
            200,
            "kid",
            2,
            "web",
        )
        assert kid["meta"]["uid"] != web["meta"]["uid"]
        assert kid == (await w.call("GET", "/v1/machines/alice/kid", uid=ALICE)).json


async def test_all_clones_of_a_request_are_of_one_instant_and_one_commit() -> None:
    async with world() as w:
        await with_web(w)
        reply = await w.call("POST", CLONE, {"names": ["kid-1", "kid-2", "kid-3"]}, uid=ALICE)
        kids = [item["machine"] for item in reply.json["items"]]
        assert len({kid["spec"]["source"]["moment"] for kid in kids}) == 1
        assert len({kid["meta"]["revision"] for kid in kids}) == 1
        assert len({kid["meta"]["uid"] for kid in kids}) == 3
        again = await w.call("POST", CLONE, {"names": ["kid-4"]}, uid=ALICE)
        assert again.json["items"][0]["machine"]["spec"]["source"]["moment"] != kids[0]["spec"]["source"]["moment"]


async def test_a_name_that_is_taken_stops_only_itself() -> None:
    async with world() as w:
        await with_web(w)
        await w.call("POST", "/v1/machines", machine("kid-2"), uid=ALICE)
        items = (await w.call("POST", CLONE, {"names": ["kid-1", "kid-2", "kid-3"]}, uid=ALICE)).json["items"]
        assert [item["name"] for item in items] == ["kid-1", "kid-2", "kid-3"]
        assert ["machine" in item for item in items] == [True, False, True]
        assert items[1]["error"]["code"] == "conflict"


async def test_a_quota_is_counted_child_by_child() -> None:
    stores: list[MemoryStore] = []

    async def admit(after: Any, before: Any, besides: Any = ()) -> Any:
        return await Admission(stores[0], "x86_64").admit(after, before, besides)

    async with world(admit) as w:
        stores.append(w.store)
        await w.call("PATCH", "/v1/projects/alice", {"spec": {"quota": {"machines": 3}}})
        await with_web(w)
        items = (await w.call("POST", CLONE, {"names": ["a", "b", "c"]}, uid=ALICE)).json["items"]
        assert [item.get("error", {}).get("code") for item in items] == [None, None, "quota-exceeded"]
        assert await names(w) == ["a", "b", "web"]


@pytest.mark.fault(85)
async def test_clones_whose_reply_was_lost_are_made_once() -> None:
    async with world() as w:
        await with_web(w)
        body = {"names": ["kid-1", "kid-2", "web"]}
        async for _ in w.stream("POST", CLONE, body, uid=ALICE, headers=KEY):
            break
        retried = await w.call("POST", CLONE, body, uid=ALICE, headers=KEY)
        assert retried.headers["idempotency-replayed"] == "true"
        assert await names(w) == ["kid-1", "kid-2", "web"]
        kid = (await w.call("GET", "/v1/machines/alice/kid-1", uid=ALICE)).json
        assert retried.json["items"][0] == {"name": "kid-1", "machine": kid}
        assert retried.json["items"][2]["error"]["code"] == "conflict"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"names": []}, "names"),
        ({"names": ["Kid"]}, "names[0]"),
        ({"names": ["kid", "kid"]}, "names[1]"),
        ({"names": ["a.b"]}, "names[0]"),
        ({"names": ["k"], "count": 2}, "count"),
        ({"names": [f"k{number}" for number in range(101)]}, "names"),
    ],
)
async def test_what_can_not_be_a_clone_is_refused_whole(body: Any, path: str) -> None:
    async with world() as w:
        await with_web(w)
        reply = await w.call("POST", CLONE, body, uid=ALICE)
        assert (reply.status, reply.error["problems"][0]["path"], await names(w)) == (400, path, ["web"])


async def test_clones_of_a_snapshot_are_as_it_kept_them() -> None:
    async with world() as w:
        web = await with_web(w)
        await snapshot(w, web["meta"]["uid"])
        path = "/v1/snapshots/alice/web.ready/clone"
        (item,) = (await w.call("POST", path, {"names": ["kid"]}, uid=ALICE)).json["items"]
        spec = item["machine"]["spec"]
        assert (spec["cpus"], spec["power"], spec["source"]["snapshot"], spec["source"]["machine"]) == (
            2,
            "running",
            "web.ready",
            None,
        )


async def test_a_snapshot_that_is_not_ready_makes_nothing() -> None:
    async with world() as w:
        web = await with_web(w)
        await snapshot(w, web["meta"]["uid"], phase="saving")
        for path in ("snapshots/alice/web.ready/clone", "machines/alice/web/restore"):
            body = {"names": ["kid"]} if path.endswith("clone") else {"snapshot": "web.ready"}
            assert (await w.call("POST", f"/v1/{path}", body, uid=ALICE)).error["code"] == "conflict"
        assert await names(w) == ["web"]


async def test_a_restore_is_a_wish_that_counts_up() -> None:
    async with world() as w:
        web = await with_web(w, power="stopped")
        await snapshot(w, web["meta"]["uid"])
        path, body = "/v1/machines/alice/web/restore", {"snapshot": "web.ready"}
        first = (await w.call("POST", path, body, uid=ALICE, headers=KEY)).json
        assert (first["spec"]["restore"], first["spec"]["power"]) == (
            {"snapshot": "web.ready", "serial": 1, "memory": True},
            "running",
        )
        assert first["meta"]["generation"] == 2
        assert (await w.call("POST", path, body, uid=ALICE, headers=KEY)).json == first
        assert (await w.call("POST", path, body, uid=ALICE)).json["spec"]["restore"]["serial"] == 2


async def test_a_restore_needs_a_snapshot_of_this_very_machine() -> None:
    async with world() as w:
        await with_web(w)
        await snapshot(w, "another uid")
        path = "/v1/machines/alice/web/restore"
        assert (await w.call("POST", path, {"snapshot": "web.none"}, uid=ALICE)).status == 404
        assert (await w.call("POST", path, {"snapshot": "../bob/web.ready"}, uid=ALICE)).status == 404
        assert (await w.call("POST", path, {"snapshot": "web.ready"}, uid=ALICE)).status == 409


async def test_a_snapshot_is_an_object_of_its_machine() -> None:
    async with world() as w:
        await with_web(w)

        async def post(name: str, machine: str) -> int:
            body = {"name": name, "project": "alice", "spec": {"machine": machine}}
            return (await w.call("POST", "/v1/snapshots", body, uid=ALICE)).status

        assert [await post("web.ready", "web"), await post("web.ready", "web")] == [201, 409]
        assert [await post("db.ready", "web"), await post("web", "web"), await post("db.a", "db")] == [400, 400, 404]
        place = "/v1/snapshots/alice/web.ready"
        later = {"spec": {"expires": "2031-01-01T00:00:00Z"}}
        assert (await w.call("PATCH", place, later, uid=ALICE)).json["spec"]["expires"] == "2031-01-01T00:00:00Z"
        assert (await w.call("PATCH", place, {"spec": {"machine": "db"}}, uid=ALICE)).status == 400
        assert (await w.call("DELETE", place, uid=ALICE)).status == 202


async def test_a_project_that_holds_snapshots_says_how_to_empty_it() -> None:
    async with world() as w:
        await snapshot(w, "gone")
        reply = await w.call("DELETE", "/v1/projects/alice")
        assert (reply.status, reply.error["fix"]) == (409, "roost delete snapshot web.ready --project alice")


@pytest.mark.fault(47)
@pytest.mark.parametrize("source", ["machines/alice/web", "snapshots/alice/web.ready"])
async def test_nobody_copies_what_another_project_owns(source: str) -> None:
    async with world() as w:
        web = await with_web(w)
        await snapshot(w, web["meta"]["uid"])
        foreign = await w.call("POST", f"/v1/{source}/clone", {"names": ["thief"]}, uid=BOB)
        missing = await w.call("POST", f"/v1/{source.replace('alice', 'nobody')}/clone", {"names": ["thief"]}, uid=BOB)
        assert (foreign.status, missing.status) == (404, 404)
        assert foreign.body == missing.body.replace(b"nobody", b"alice")
        assert await names(w, "all") == ["web"]


@pytest.mark.fault(47)
async def test_a_machine_is_not_restored_to_a_snapshot_of_another_project() -> None:
    async with world() as w:
        web = await with_web(w)
        await snapshot(w, web["meta"]["uid"])
        await w.put(
            Machine(name="web", project="bob", meta=Meta(uid=web["meta"]["uid"]), spec=MachineSpec(image="tiny"))
        )
        assert (await w.call("POST", "/v1/machines/bob/web/restore", {"snapshot": "web.ready"}, uid=BOB)).status == 404


async def test_a_viewer_looks_and_makes_nothing() -> None:
    async with world() as w:
        await with_web(w)
        assert (await w.call("POST", CLONE, {"names": ["kid"]}, uid=VIEWER)).status == 403
        assert (await w.call("POST", "/v1/machines/alice/web/restore", {"snapshot": "a.b"}, uid=VIEWER)).status == 403
        assert await names(w) == ["web"]


async def test_a_project_that_goes_takes_no_clones() -> None:
    async with world() as w:
        await w.put(
            Machine(name="web", project="alice", meta=Meta(uid="w", deleting="t"), spec=MachineSpec(image="tiny"))
        )
        assert (await w.call("POST", CLONE, {"names": ["kid"]}, uid=OWNER)).status == 409
