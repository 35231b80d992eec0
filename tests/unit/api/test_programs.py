"""Programs over the API: who may lend them what, what viewers see, their content and their logs."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from roost.control.admission import Admission
from roost.model.meta import GiB, MiB
from roost.model.program import PolicySpec, is_local, split_peer
from roost.model.project import Project, ProjectSpec, Quota
from roost.runtimes.base import Policy
from tests.unit.api.world import ALICE, OWNER, VIEWER, World, world

SHA = "0" * 64
PLACE = "/v1/programs/alice/api"


def program(policy: dict[str, Any] | None = None, name: str = "api", **spec: Any) -> dict[str, Any]:
    return {
        "name": name,
        "project": "alice",
        "spec": {"file": "api.wasm", "sha256": SHA, "policy": policy or {}, **spec},
    }


async def create(w: World, body: dict[str, Any], uid: int = ALICE) -> Any:
    return await w.call("POST", "/v1/programs", body, uid=uid)


PRIVILEGES = (
    {"fs": [{"source": "/etc"}]},
    {"fs": [{"source": "/home/alice"}]},
    {"publish": [{"host_port": 8080, "port": 80}]},
    {"gui": True},
    {"net": ["127.0.0.1:5432"]},
    {"net": ["localhost:5432"]},
    {"net": ["[::1]:80"]},
    {"net": ["[::ffff:127.0.0.1]:80"]},
    {"net": ["169.254.169.254:80"]},
    {"net": ["0.0.0.0:80"]},
    {"net": ["127.1:80"]},
    {"net": ["example.org:443", "2130706433:80"]},
)


@pytest.mark.parametrize("policy", PRIVILEGES, ids=str)
async def test_only_an_admin_lends_a_program_what_the_host_has(policy: dict[str, Any]) -> None:
    async with world() as w:
        refused = await create(w, program(policy))
        allowed = await create(w, program(policy), uid=OWNER)
    assert refused.status == 403
    assert "roost run without --detach" in refused.error["fix"]
    assert (allowed.status, allowed.json["status"]["trusted"]) == (201, True)


async def test_anyone_in_the_project_runs_what_needs_nothing_of_the_host() -> None:
    async with world() as w:
        made = await create(w, program({"net": ["example.org:443"], "env": {"A": "b"}}))
    assert (made.status, made.json["status"]["trusted"]) == (201, False)


@pytest.mark.parametrize(
    "change", [{"arguments": ["x"]}, {"sha256": "1" * 64}, {"policy": {"memory": "1GiB"}}, {"vm": "wasm"}]
)
async def test_what_an_admin_lent_can_not_be_turned_to_another_end(change: dict[str, Any]) -> None:
    async with world() as w:
        await create(w, program({"fs": [{"source": "/etc"}]}), uid=OWNER)
        refused = await w.call("PATCH", PLACE, {"spec": change}, uid=ALICE)
        after = await w.call("GET", PLACE, uid=OWNER)
    assert refused.status == 403
    assert after.json["status"]["trusted"] is True


async def test_what_an_admin_lent_may_be_stopped_and_started_by_others() -> None:
    async with world() as w:
        await create(w, program({"fs": [{"source": "/etc"}]}), uid=OWNER)
        changed = await w.call("PATCH", PLACE, {"spec": {"power": "stopped", "restarts": 1}}, uid=ALICE)
    assert (changed.status, changed.json["status"]["trusted"]) == (200, True)


async def test_a_program_that_another_has_rewritten_is_not_an_admins_any_more() -> None:
    async with world() as w:
        await create(w, program(), uid=OWNER)
        changed = await w.call("PATCH", PLACE, {"spec": {"arguments": ["x"]}}, uid=ALICE)
    assert (changed.status, changed.json["status"]["trusted"]) == (200, False)


async def test_nobody_claims_to_be_trusted() -> None:
    async with world() as w:
        made = await create(w, {**program(), "status": {"trusted": True}})
    assert made.status == 400


async def test_viewers_see_the_names_of_variables_only() -> None:
    async with world() as w:
        await create(w, program({"env": {"TOKEN": "secret"}}))
        theirs = await w.call("GET", PLACE, uid=VIEWER)
        own = await w.call("GET", PLACE, uid=ALICE)
    assert theirs.json["spec"]["policy"]["env"] == {"TOKEN": ""}
    assert own.json["spec"]["policy"]["env"] == {"TOKEN": "secret"}


async def test_the_content_comes_in_and_the_log_goes_out() -> None:
    async with world() as w:
        await create(w, program())
        brought = await w.call("PUT", f"{PLACE}/content", b"\0asm", uid=ALICE)
        log = await w.call("GET", f"{PLACE}/logs", uid=ALICE)
        refused = await w.call("PUT", f"{PLACE}/content", b"\0asm", uid=VIEWER)
        hidden = await w.call("GET", f"{PLACE}/logs", uid=VIEWER)
    assert (brought.status, log.body, refused.status, hidden.status) == (200, b"\0asm", 403, 403)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"file": "../api"}, "spec.file"),
        ({"file": ""}, "spec.file"),
        ({"sha256": "0"}, "spec.sha256"),
        ({"arguments": ["a\0b"]}, "spec.arguments[0]"),
        ({"cwd": "here"}, "spec.cwd"),
        ({"vm": "../x"}, "spec.vm"),
        ({"policy": {"net": ["nowhere"]}}, "spec.policy.net[0]"),
        ({"policy": {"net": ["host:99999"]}}, "spec.policy.net[0]"),
        ({"policy": {"env": {"A=B": "c"}}}, "spec.policy.env.A=B"),
        ({"policy": {"wall": 0}}, "spec.policy.wall"),
        ({"policy": {"fs": [{"source": "/a/../b"}]}}, "spec.policy.fs[0].source"),
    ],
    ids=str,
)
async def test_a_wrong_program_is_told_which_field(spec: dict[str, Any], path: str) -> None:
    async with world() as w:
        made = await create(w, program(**spec), uid=OWNER)
    assert made.status == 400
    assert path in [problem["path"] for problem in made.error["problems"]]


def test_the_policy_of_a_document_has_the_fields_of_the_policy_of_a_run() -> None:
    assert PolicySpec.__struct_fields__ == Policy._fields
    same = ("memory", "cpu_time", "wall", "processes", "files", "output", "tmp", "fuel", "gui")
    assert [getattr(PolicySpec(), name) for name in same] == [getattr(Policy(), name) for name in same]


@pytest.mark.parametrize("text", ["example.org:443", "10.0.0.1:80", "[2001:db8::1]:443"])
def test_services_of_the_network_are_not_the_host(text: str) -> None:
    place = split_peer(text)
    assert place is not None
    assert not is_local(place[0])


async def limited(w: World, **quota: int) -> None:
    spec = ProjectSpec(members={f"uid:{ALICE}": "owner"}, quota=Quota(**quota))
    await w.put(msgspec.structs.replace(Project(name="alice"), spec=spec))
    w.api.services.__dict__["admit"] = Admission(w.store, "x86_64").admit


@pytest.mark.parametrize(
    ("quota", "policy"),
    [({"programs": 1}, {}), ({"memory": GiB}, {"memory": 600 * MiB}), ({"memory": GiB}, {"memory": None})],
    ids=str,
)
async def test_programs_count_for_the_quota_beside_machines(quota: dict[str, int], policy: dict[str, Any]) -> None:
    async with world() as w:
        await limited(w, **quota)
        first = await create(w, program({"memory": 512 * MiB}, name="first"))
        second = await create(w, program(policy))
    assert (first.status, second.status) == (201, 403)
    assert second.error["code"] == "quota-exceeded"
