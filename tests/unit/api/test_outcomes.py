"""A retried write: the same key finds the outcome or does the work, never both."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from roost.errors import OutcomeUnknown
from tests.unit.api.world import ALICE, BOB, World, machine, world

KEY = {"Idempotency-Key": "launch-1"}


async def drop_reply(w: World, method: str, path: str, body: Any = None, *, uid: int = ALICE) -> None:
    """The request arrives and is carried out; its answer is lost with the connection."""
    async for _ in w.stream(method, path, body, uid=uid, headers=KEY):
        break


async def names(w: World, project: str = "alice") -> list[str]:
    return [item["name"] for item in (await w.call("GET", f"/v1/machines?project={project}")).json["items"]]


@pytest.mark.fault(85)
async def test_a_create_whose_reply_was_lost_makes_one_machine() -> None:
    async with world() as w:
        await drop_reply(w, "POST", "/v1/machines", machine())
        retried = await w.call("POST", "/v1/machines", machine(), uid=ALICE, headers=KEY)
        assert (retried.status, retried.headers["idempotency-replayed"]) == (201, "true")
        assert retried.json == (await w.call("GET", "/v1/machines/alice/web", uid=ALICE)).json
        assert await names(w) == ["web"]


@pytest.mark.fault(85)
async def test_a_create_retried_after_a_rename_makes_no_second_machine() -> None:
    async with world() as w:
        await drop_reply(w, "POST", "/v1/machines", machine())
        await w.call("POST", "/v1/machines/alice/web/rename", {"name": "shop"}, uid=ALICE)
        retried = await w.call("POST", "/v1/machines", machine(), uid=ALICE, headers=KEY)
        assert (retried.status, await names(w)) == (201, ["shop"])


@pytest.mark.fault(85)
async def test_the_same_create_twenty_times_at_once_is_one_machine_and_one_answer() -> None:
    async with world() as w:
        replies = await asyncio.gather(*(w.call("POST", "/v1/machines", machine(), headers=KEY) for _ in range(20)))
        assert {reply.status for reply in replies} == {201}
        assert len({reply.body for reply in replies}) == 1


@pytest.mark.fault(85)
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("DELETE", "/v1/machines/alice/web", None, 202),
        ("DELETE", "/v1/projects/alice", None, 200),
        ("POST", "/v1/machines/alice/web/rename", {"name": "shop"}, 200),
        ("PATCH", "/v1/machines/alice/web", {"spec": {"cpus": 2}}, 200),
        ("PUT", "/v1/machines/alice/web", machine(cpus=2), 200),
    ],
)
async def test_every_write_can_be_retried(method: str, path: str, body: Any, status: int) -> None:
    async with world() as w:
        if "projects" not in path:
            await w.call("POST", "/v1/machines", machine(), uid=ALICE)
        first = await w.call(method, path, body, uid=ALICE, headers=KEY)
        _, before = await w.store.list("")
        second = await w.call(method, path, body, uid=ALICE, headers=KEY)
        _, after = await w.store.list("")
        assert (first.status, first.json) == (second.status, second.json)
        assert (first.status, before) == (status, after)


@pytest.mark.fault(85)
async def test_a_key_belongs_to_one_request_of_one_caller() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine(), uid=ALICE, headers=KEY)
        other = await w.call("POST", "/v1/machines", machine("shop"), uid=ALICE, headers=KEY)
        assert (other.status, other.error["code"]) == (409, "conflict")
        assert (await w.call("POST", "/v1/machines", machine("web", "bob"), uid=BOB, headers=KEY)).status == 201
        assert (await names(w), await names(w, "bob")) == (["web"], ["web"])


@pytest.mark.fault(85)
async def test_a_commit_whose_outcome_is_unknown_can_be_retried() -> None:
    async with world() as w:
        commit = w.store.commit

        async def commit_and_say_nothing(writes: Any) -> int:
            await commit(writes)
            raise OutcomeUnknown("the change may or may not have been kept")

        w.store.commit = commit_and_say_nothing
        first = await w.call("POST", "/v1/machines", machine(), headers=KEY)
        w.store.commit = commit
        second = await w.call("POST", "/v1/machines", machine(), headers=KEY)
        assert (first.error["code"], second.status, await names(w)) == ("outcome-unknown", 201, ["web"])


async def test_outcomes_are_forgotten_after_a_day() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine(), headers=KEY)
        assert len((await w.store.list("outcomes/"))[0]) == 1
        await w.store._clock.advance(26 * 3600)
        assert (await w.store.list("outcomes/"))[0] == []


@pytest.mark.parametrize("key", ["", "x" * 129, "a\tb"])
async def test_a_key_that_is_none_is_refused(key: str) -> None:
    async with world() as w:
        reply = await w.call("POST", "/v1/machines", machine(), headers={"Idempotency-Key": key})
        assert (reply.status, reply.error["problems"][0]["path"]) == (400, "Idempotency-Key")
