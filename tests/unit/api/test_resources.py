"""Objects over HTTP: create, read, change, delete and rename, with every problem told."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from roost.errors import QuotaExceeded
from roost.model import codec
from roost.model.event import Event, EventSpec
from roost.model.image import Image, ImageSpec
from roost.model.machine import Machine, MachineSpec, MachineStatus
from tests.unit.api.world import ALICE, BOB, OWNER, VIEWER, machine, world


async def test_a_created_machine_is_there_with_an_identity() -> None:
    async with world() as w:
        made = await w.call("POST", "/v1/machines", machine(memory="1GiB"), uid=ALICE)
        assert made.status == 201
        got = (await w.call("GET", "/v1/machines/alice/web", uid=ALICE)).json
        assert got == made.json
        assert got["spec"]["memory"] == 1 << 30
        assert (got["meta"]["creator"], got["meta"]["generation"]) == ("uid:1001", 1)
        assert got["meta"]["revision"] > 0 and len(got["meta"]["uid"]) == 36


async def test_a_taken_name_is_a_conflict() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        again = await w.call("POST", "/v1/machines", machine())
        assert (again.status, again.error["code"]) == (409, "conflict")
        assert again.error["fix"]


async def test_one_name_created_fifty_times_at_once_is_one_machine() -> None:
    async with world() as w:
        replies = await asyncio.gather(*(w.call("POST", "/v1/machines", machine()) for _ in range(50)))
        assert sorted(reply.status for reply in replies) == [201] + [409] * 49


async def test_every_mistake_is_told_at_once() -> None:
    async with world() as w:
        document = machine("We!", cpus="many", memory=1, publish=[{"host_port": 0, "guest_port": "x"}], colour="red")
        reply = await w.call("POST", "/v1/machines", document)
        paths = {problem["path"] for problem in reply.error["problems"]}
        assert reply.status == 400
        assert {"name", "spec.cpus", "spec.colour", "spec.publish[0].host_port", "spec.publish[0].guest_port"} <= paths


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"status": {"phase": "running"}}, "status"),
        ({"meta": {"uid": "mine"}}, "meta.uid"),
        ({"meta": {"creator": "uid:0"}}, "meta.creator"),
        ({"meta": {"deleting": "now"}}, "meta.deleting"),
    ],
)
async def test_what_only_roost_writes_is_refused(change: dict[str, Any], path: str) -> None:
    async with world() as w:
        reply = await w.call("POST", "/v1/machines", machine() | change)
        assert reply.status == 400
        assert [problem["path"] for problem in reply.error["problems"]] == [path]


async def test_what_get_gave_can_be_put_back() -> None:
    async with world() as w:
        await w.put(Machine(name="web", spec=MachineSpec(image="tiny"), status=MachineStatus(phase="running", pid=7)))
        got = (await w.call("GET", "/v1/machines/default/web")).json
        got["spec"]["cpus"] = 2
        put = await w.call("PUT", "/v1/machines/default/web", got)
        assert (put.status, put.json["spec"]["cpus"], put.json["meta"]["generation"]) == (200, 2, 2)
        assert put.json["status"]["pid"] == 7


async def test_an_old_revision_is_a_conflict() -> None:
    async with world() as w:
        made = (await w.call("POST", "/v1/machines", machine())).json
        await w.call("PATCH", "/v1/machines/alice/web", {"spec": {"cpus": 3}})
        assert (await w.call("PUT", "/v1/machines/alice/web", made)).status == 409
        old = {"spec": {"cpus": 4}, "meta": {"revision": made["meta"]["revision"]}}
        assert (await w.call("PATCH", "/v1/machines/alice/web", old)).status == 409


async def test_a_patch_changes_what_it_names() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine(cpus=2) | {"meta": {"labels": {"tier": "a"}}})
        patch = {"spec": {"power": "stopped"}, "meta": {"labels": {"tier": None, "team": "x"}}}
        after = (await w.call("PATCH", "/v1/machines/alice/web", patch)).json
        assert (after["spec"]["power"], after["spec"]["cpus"]) == ("stopped", 2)
        assert after["meta"]["labels"] == {"team": "x"}


async def test_a_patch_that_changes_nothing_writes_nothing() -> None:
    async with world() as w:
        made = (await w.call("POST", "/v1/machines", machine())).json
        _, before = await w.store.list("")
        same = await w.call("PATCH", "/v1/machines/alice/web", {"spec": {"cpus": 1}})
        _, after = await w.store.list("")
        assert (same.status, same.json, after) == (200, made, before)


@pytest.mark.parametrize(
    "patch", [{"status": {}}, {"name": "x"}, {"meta": {"uid": "x"}}, {"spec": None}, {"spec": {"image": None}}]
)
async def test_a_patch_of_anything_else_is_refused(patch: dict[str, Any]) -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        assert (await w.call("PATCH", "/v1/machines/alice/web", patch)).status == 400


async def test_a_patch_survives_the_reconciler_writing_between() -> None:
    calls = 0

    async def admit(after: Any, before: Any, besides: Any = ()) -> Any:
        nonlocal calls
        calls += 1
        if before is not None and calls == 2:
            key = "machines/alice/web"
            entry = await w.store.get(key)
            now = msgspec.structs.replace(codec.stored(entry.value, Machine), status=MachineStatus(phase="running"))
            await w.store.put(key, codec.encode(now))
        return after

    async with world(admit) as w:
        await w.call("POST", "/v1/machines", machine())
        after = (await w.call("PATCH", "/v1/machines/alice/web", {"spec": {"cpus": 2}})).json
        assert (after["spec"]["cpus"], after["status"]["phase"], calls) == (2, "running", 3)


async def test_deletion_waits_for_the_reconciler_and_can_be_said_twice() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        first = await w.call("DELETE", "/v1/machines/alice/web")
        second = await w.call("DELETE", "/v1/machines/alice/web")
        assert (first.status, first.json["meta"]["deleting"]) == (202, "2030-01-01T00:00:00.000Z")
        assert (second.status, second.json) == (202, first.json)


async def test_a_rename_keeps_the_identity_and_frees_the_name() -> None:
    async with world() as w:
        made = (await w.call("POST", "/v1/machines", machine())).json
        renamed = await w.call("POST", "/v1/machines/alice/web/rename", {"name": "shop"})
        assert (renamed.status, renamed.json["name"], renamed.json["meta"]["uid"]) == (200, "shop", made["meta"]["uid"])
        assert (await w.call("GET", "/v1/machines/alice/web")).status == 404
        assert (await w.call("POST", "/v1/machines", machine())).status == 201


async def test_a_rename_onto_another_machine_is_a_conflict() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine("web"))
        await w.call("POST", "/v1/machines", machine("shop"))
        assert (await w.call("POST", "/v1/machines/alice/web/rename", {"name": "shop"})).status == 409
        assert (await w.call("POST", "/v1/machines/alice/web/rename", {"name": "-x"})).status == 400


async def test_a_list_comes_in_pages_in_order() -> None:
    async with world() as w:
        for number in range(7):
            await w.call("POST", "/v1/machines", machine(f"m{number}"))
        names, token = [], ""
        first = (await w.call("GET", "/v1/machines?project=alice&limit=3")).json
        second = (await w.call("GET", f"/v1/machines?project=alice&limit=3&continue={first['continue']}")).json
        third = (await w.call("GET", f"/v1/machines?project=alice&limit=3&continue={second['continue']}")).json
        names = [item["name"] for page in (first, second, third) for item in page["items"]]
        assert names == [f"m{number}" for number in range(7)]
        assert third["continue"] is None and not token


async def test_a_list_can_ask_for_labels() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine("a") | {"meta": {"labels": {"tier": "web", "new": ""}}})
        await w.call("POST", "/v1/machines", machine("b") | {"meta": {"labels": {"tier": "db"}}})

        async def names(query: str) -> list[str]:
            return [item["name"] for item in (await w.call("GET", f"/v1/machines?project=alice&{query}")).json["items"]]

        assert await names("label=tier") == ["a", "b"]
        assert await names("label=tier=db") == ["b"]
        assert await names("label=tier&label=new") == ["a"]
        assert await names("label=tier=x") == []


async def test_everything_means_everything_the_caller_may_see() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine("a", "alice"))
        await w.call("POST", "/v1/machines", machine("b", "bob"))
        assert [m["name"] for m in (await w.call("GET", "/v1/machines?project=all", uid=ALICE)).json["items"]] == ["a"]
        assert len((await w.call("GET", "/v1/machines?project=all", uid=OWNER)).json["items"]) == 2
        assert [p["name"] for p in (await w.call("GET", "/v1/projects", uid=BOB)).json["items"]] == ["bob"]


async def test_a_viewer_looks_but_does_not_touch() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        assert (await w.call("GET", "/v1/machines/alice/web", uid=VIEWER)).status == 200
        refused = await w.call("PATCH", "/v1/machines/alice/web", {"spec": {"cpus": 2}}, uid=VIEWER)
        assert (refused.status, refused.error["code"]) == (403, "forbidden")
        assert (await w.call("POST", "/v1/machines", machine("x"), uid=VIEWER)).status == 403


async def test_nodes_and_events_are_read_only_and_nodes_visible_to_all() -> None:
    async with world() as w:
        spec = EventSpec(
            about="machines/alice/web", uid="u", reason="Started", message="it runs", time="2030-01-01T00:00:00Z"
        )
        await w.put(Event(project="alice", name="e1", spec=spec))
        assert (await w.call("GET", "/v1/nodes/system/here", uid=BOB)).status == 200
        assert (await w.call("GET", "/v1/events?project=alice", uid=ALICE)).json["items"][0]["spec"][
            "reason"
        ] == "Started"
        refused = await w.call("DELETE", "/v1/nodes/system/here")
        assert (refused.status, refused.headers["allow"]) == (405, "GET, OPTIONS")


async def test_whoever_makes_a_project_owns_it() -> None:
    async with world() as w:
        made = await w.call("POST", "/v1/projects", {"name": "mine"}, uid=BOB)
        assert (made.status, made.json["spec"]["members"]) == (201, {"uid:1002": "owner"})
        assert (await w.call("POST", "/v1/machines", machine("m", "mine"), uid=BOB)).status == 201


async def test_owners_do_not_set_their_own_quota_nor_publish_images() -> None:
    async with world() as w:
        patch = {"spec": {"quota": {"machines": 1000}}}
        assert (await w.call("PATCH", "/v1/projects/alice", patch, uid=ALICE)).status == 403
        assert (await w.call("PATCH", "/v1/projects/alice", patch, uid=OWNER)).status == 200
        image = {"name": "tiny", "project": "alice", "spec": {"upload": True, "published": True}}
        assert (await w.call("POST", "/v1/images", image, uid=ALICE)).status == 403
        assert (await w.call("POST", "/v1/images", image, uid=OWNER)).status == 201


async def test_a_project_with_something_in_it_stays() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        refused = await w.call("DELETE", "/v1/projects/alice", uid=ALICE)
        assert (refused.status, "machines/alice/web" in refused.error["why"]) == (409, True)
        assert (await w.call("DELETE", "/v1/projects/bob", uid=BOB)).status == 200
        assert (await w.call("GET", "/v1/projects/bob")).status == 404
        assert (await w.call("DELETE", "/v1/projects/default")).status == 403


async def test_quota_checks_of_one_project_do_not_overlap() -> None:
    inside = most = 0

    async def admit(after: Any, before: Any, besides: Any = ()) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        count = len((await w.store.list("machines/alice/"))[0])
        inside -= 1
        if after.kind == "machine" and count >= 3:
            raise QuotaExceeded("over quota", "3 machines are allowed")
        return after

    async with world(admit) as w:
        await w.call("PATCH", "/v1/projects/alice", {"spec": {"quota": {"machines": 3}}})
        replies = await asyncio.gather(*(w.call("POST", "/v1/machines", machine(f"m{n}")) for n in range(20)))
        assert sorted(reply.status for reply in replies) == [201] * 3 + [403] * 17
        assert most == 1


async def test_an_image_takes_its_bytes() -> None:
    async with world() as w:
        await w.put(Image(project="alice", name="disk:1", spec=ImageSpec(upload=True)))
        reply = await w.call("PUT", "/v1/images/alice/disk:1/content", b"bytes" * 1000, uid=ALICE)
        assert (reply.status, w.uploads.content["disk:1"]) == (200, b"bytes" * 1000)


async def test_health_and_version_answer_anyone() -> None:
    async with world() as w:
        assert (await w.call("GET", "/healthz", uid=BOB)).json == {"status": "ok"}
        version = (await w.call("GET", "/v1/version", uid=BOB)).json
        assert (version["version"], version["principal"], version["admin"]) == ("1.2.3", "uid:1002", False)


async def test_metrics_count_by_route_and_belong_to_admins() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        text = (await w.call("GET", "/metrics")).body.decode()
        assert 'roost_http_requests_total{method="POST",route="/v1/machines",status="201"} 1.0' in text
        assert 'roost_machines{phase="pending"} 1.0' in text
        assert (await w.call("GET", "/metrics", uid=ALICE)).status == 403


async def test_unknown_routes_and_broken_handlers_have_the_same_shape_of_error() -> None:
    async def admit(after: Any, before: Any, besides: Any = ()) -> Any:
        raise ZeroDivisionError("insides")

    async with world(admit) as w:
        assert (await w.call("GET", "/v2/machines")).error["code"] == "not-found"
        broken = await w.call("POST", "/v1/machines", machine())
        assert (broken.status, broken.error["code"]) == (500, "failed")
        assert b"insides" not in broken.body and b"Zero" not in broken.body
