"""Watching over server-sent events: what is there, what changes, what is lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from roost.model.machine import Machine, MachineSpec
from roost.model.snapshot import Snapshot, SnapshotSpec, SnapshotStatus
from tests.unit.api.world import ALICE, BOB, VIEWER, World, machine, world


async def events(
    w: World, query: str, *, uid: int = ALICE, headers: dict[str, str] | None = None
) -> AsyncIterator[tuple[str, Any, str]]:
    """(event, data, id) as they come."""
    async for chunk in w.stream("GET", f"/v1/watch?{query}", uid=uid, headers=headers):
        lines = dict(line.split(": ", 1) for line in chunk.decode().splitlines() if line and not line.startswith(":"))
        if lines:
            yield lines["event"], json.loads(lines["data"]), lines.get("id", "")


async def test_what_is_there_comes_first_then_what_changes() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine("old"))
        heard = []
        async for event, data, _ in events(w, "kind=machine&project=alice"):
            heard.append((event, data.get("name")))
            if event == "synced":
                await w.call("POST", "/v1/machines", machine("new"))
                await w.call("POST", "/v1/machines/alice/new/rename", {"name": "newer"})
            if heard[-1] == ("put", "newer"):
                break
        assert heard[:3] == [("put", "old"), ("synced", None), ("put", "new")]
        assert sorted(heard[3:]) == [("delete", "new"), ("put", "newer")]


async def test_since_goes_on_where_one_was() -> None:
    async with world() as w:
        made = (await w.call("POST", "/v1/machines", machine("a"))).json
        await w.call("POST", "/v1/machines", machine("b"))
        revision = made["meta"]["revision"]
        async for event, data, identity in events(w, f"kind=machine&project=alice&since={revision}"):
            assert (event, data["name"], identity) == ("put", "b", str(data["meta"]["revision"]))
            break
        async for _, data, _ in events(w, "kind=machine&project=alice", headers={"Last-Event-ID": str(revision)}):
            assert data["name"] == "b"
            break


async def test_lost_history_is_told_and_ends_the_stream() -> None:
    async with world() as w:
        made = (await w.call("POST", "/v1/machines", machine("a"))).json
        await w.call("POST", "/v1/machines", machine("b"))
        await w.store.compact(made["meta"]["revision"] + 1)
        assert [event async for event, _, _ in events(w, "kind=machine&project=alice&since=1")] == ["resync"]


async def test_the_owner_of_a_deleted_project_is_told() -> None:
    async with world() as w:
        async for event, data, _ in events(w, "kind=project", uid=BOB):
            if event == "synced":
                await w.call("DELETE", "/v1/projects/bob", uid=BOB)
            if event == "delete":
                assert data == {"kind": "project", "project": "", "name": "bob"}
                break


async def test_user_data_is_not_for_viewers() -> None:
    async with world() as w:
        await w.put(Machine(name="web", project="alice", spec=MachineSpec(image="tiny", user_data="#cloud-config")))
        seen = []
        for uid in (ALICE, VIEWER):
            async for _, data, _ in events(w, "kind=machine&project=alice", uid=uid):
                seen.append(data["spec"]["user_data"])
                break
            listed = (await w.call("GET", "/v1/machines?project=alice", uid=uid)).json["items"]
            seen.append(listed[0]["spec"]["user_data"])
            seen.append((await w.call("GET", "/v1/machines/alice/web", uid=uid)).json["spec"]["user_data"])
        assert seen == ["#cloud-config"] * 3 + [None] * 3


async def test_a_wrong_watch_is_refused() -> None:
    async with world() as w:
        assert (await w.call("GET", "/v1/watch?kind=machine&project=alice&since=x")).status == 400
        assert (await w.call("GET", "/v1/watch?kind=ghost")).status == 404


async def test_user_data_that_a_snapshot_keeps_is_not_for_viewers_either() -> None:
    kept = SnapshotStatus(phase="ready", machine_spec=MachineSpec(image="tiny", user_data="#cloud-config"))
    path = "/v1/snapshots/alice/web.ready"
    async with world() as w:
        await w.put(Snapshot(name="web.ready", project="alice", spec=SnapshotSpec(machine="web"), status=kept))
        seen = [
            (await w.call("GET", path, uid=uid)).json["status"]["machine_spec"]["user_data"] for uid in (ALICE, VIEWER)
        ]
        assert seen == ["#cloud-config", None]
        assert b"#cloud-config" not in (await w.call("GET", "/v1/snapshots?project=alice", uid=VIEWER)).body
        heard = b""
        async for chunk in w.stream("GET", "/v1/watch?kind=snapshot&project=alice", uid=VIEWER):
            heard += chunk
            if b"event: synced" in chunk:
                break
        assert b"web.ready" in heard
        assert b"#cloud-config" not in heard
