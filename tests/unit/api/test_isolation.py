"""A foreign object is a missing one: every route of the table, asked by a stranger in a world with the object and in one without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from roost.api.app import Api
from roost.api.routes import Route
from roost.api.services import Services
from roost.control.pictures import Pictures
from roost.errors import NotFound
from roost.model.event import Event, EventSpec
from roost.model.forward import Forward, ForwardSpec
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import Meta
from roost.model.network import Network
from roost.model.pool import Pool
from roost.model.program import Program, ProgramSpec
from roost.model.ruleset import RuleSet
from roost.model.snapshot import Snapshot, SnapshotSpec
from roost.model.volume import Volume, VolumeSnapshot, VolumeSnapshotSpec, VolumeSpec
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock
from tests.fake_keepers import FakeKeepers
from tests.fake_networks import FakeNetworks
from tests.unit.api.world import ALICE, BOB, OWNER, Guests, Reply, Running, Uploads, World, machine, world

SECRET = "attic"
"""The project that Bob must not know of, and the name of everything in it."""

BODIES: dict[str, Any] = {
    "Machine": {"name": SECRET, "project": SECRET, "spec": {"image": "tiny", "cpus": 2}},
    "Program": {"name": SECRET, "project": SECRET, "spec": {"file": "b.wasm", "sha256": "1" * 64}},
    "Network": {"name": SECRET, "project": SECRET, "spec": {"mode": "isolated"}},
    "RuleSet": {"name": SECRET, "project": SECRET, "spec": {"rules": [{"direction": "in"}]}},
    "Forward": {"name": SECRET, "project": SECRET, "spec": {"machine": SECRET, "host_port": 80, "guest_port": 80}},
    "Image": {"name": SECRET, "project": SECRET, "spec": {"upload": True, "limit": 1 << 20}},
    "Project": {"name": SECRET, "spec": {"members": {f"uid:{BOB}": "owner"}}},
    "MergePatch": {"meta": {"labels": {"mine": "now"}}},
    "NewName": {"name": "mine"},
    "CloneRequest": {"names": ["mine"]},
    "RestoreRequest": {"snapshot": "attic.attic"},
    "Snapshot": {"name": "attic.attic", "project": SECRET, "spec": {"machine": SECRET}},
    "Pool": {"name": SECRET},
    "Volume": {"name": SECRET, "project": SECRET, "spec": {"size": 1 << 20}},
    "VolumeSnapshot": {"name": "attic.attic", "project": SECRET, "spec": {"volume": SECRET}},
}
OPEN = {"create_project"}
"""Names of projects are one namespace: whoever makes one learns whether the name is taken, as with user names anywhere."""


FORWARD = ForwardSpec(machine=SECRET, host_port=8080, guest_port=80)
LAST = ForwardSpec(machine="last", host_port=8080, guest_port=80)
VOLUME = VolumeSpec(size=1 << 20)
OF_VOLUME = VolumeSnapshotSpec(volume=SECRET)
PROGRAM = ProgramSpec(file="a.wasm", sha256="0" * 64)


def _routes() -> list[Route]:
    services = Services(
        store=MemoryStore(VirtualClock()),
        guests=Guests(),
        uploads=Uploads(),
        programs=FakeKeepers(),
        networks=FakeNetworks(),
        now=str,
        owner=OWNER,
        node="here",
        build="1",
    )
    return [route for route in Api(services).routes if route.name not in OPEN]


ROUTES = _routes()


@asynccontextmanager
async def world_with(*, secret: bool) -> AsyncIterator[World]:
    """A world in which the attic and all in it exist, or one with the same history in which they do not."""
    spec = EventSpec(about=f"machines/{SECRET}/{SECRET}", uid="u", reason="Started", message="m", time="t")
    async with world() as w:
        made = [
            w.call("POST", "/v1/projects", {"name": SECRET if secret else "cellar"}, uid=ALICE),
            w.put(Machine(name=SECRET, project=SECRET if secret else "cellar", spec=MachineSpec(image="tiny"))),
            w.put(Program(name=SECRET, project=SECRET if secret else "cellar", spec=PROGRAM)),
            w.put(Network(name=SECRET, project=SECRET if secret else "cellar")),
            w.put(RuleSet(name=SECRET, project=SECRET if secret else "cellar")),
            w.put(Forward(name=SECRET, project=SECRET if secret else "cellar", spec=FORWARD)),
            w.put(Image(name=SECRET, project=SECRET if secret else "cellar", spec=ImageSpec(upload=True))),
            w.put(
                Snapshot(name="attic.attic", project=SECRET if secret else "cellar", spec=SnapshotSpec(machine=SECRET))
            ),
            w.put(Volume(name=SECRET, project=SECRET if secret else "cellar", spec=VOLUME)),
            w.put(VolumeSnapshot(name="attic.attic", project=SECRET if secret else "cellar", spec=OF_VOLUME)),
            w.put(Event(name=SECRET, project=SECRET if secret else "cellar", spec=spec)),
        ]
        for writing in made:
            await writing
        w.guests.running[SECRET] = Running()
        yield w


async def answer(w: World, route: Route) -> Reply:
    """What Bob is told."""
    path = (
        route.path.replace("{project}", SECRET).replace(
            "{name}", "attic.attic" if "snapshots" in route.path else SECRET
        )
        + "?"
        + QUERIES.get(route.name, f"project={SECRET}")
    )
    if route.method == "WS":
        socket = w.socket(path, uid=BOB)
        refused = await socket.opened()
        await socket.close()
        return refused or Reply(status=101)
    reply = Reply()
    async for chunk in w.stream(route.method, path, BODIES.get(route.takes), uid=BOB, reply=reply):
        reply.body += chunk
        if b"event: synced" in reply.body:
            break
    return reply


QUERIES = {
    "watch": f"kind=machine&project={SECRET}",
    "fetch_files": "path=/etc",
    "send_files": "path=/etc",
    "trace_network": "from=web&to=db",
    "capture_network": "machine=web",
}


@pytest.mark.fault(79)
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_a_foreign_object_can_not_be_told_from_a_missing_one(route: Route) -> None:
    async with world_with(secret=True) as there, world_with(secret=False) as absent:
        foreign, missing = await answer(there, route), await answer(absent, route)
    assert (foreign.status, foreign.headers, foreign.body) == (missing.status, missing.headers, missing.body)
    assert foreign.status == 404 or route.kind is None or not route.path.count("{")


@pytest.mark.fault(79)
@pytest.mark.parametrize(
    "query", ["project=all", f"project={SECRET}", "project=default", "project=all&label=x", "project=all&limit=1"]
)
@pytest.mark.parametrize(
    "plural",
    [
        "machines",
        "programs",
        "networks",
        "rulesets",
        "forwards",
        "images",
        "snapshots",
        "volumes",
        "volumesnapshots",
        "pools",
        "events",
        "projects",
        "nodes",
    ],
)
async def test_lists_do_not_hint_at_foreign_objects(plural: str, query: str) -> None:
    async with world_with(secret=True) as there, world_with(secret=False) as absent:
        path = f"/v1/{plural}?{query}"
        foreign, missing = await there.call("GET", path, uid=BOB), await absent.call("GET", path, uid=BOB)
    assert (foreign.status, foreign.body) == (missing.status, missing.body)
    assert SECRET.encode() not in foreign.body or foreign.status == 404


@pytest.mark.fault(79)
@pytest.mark.parametrize(
    "kind",
    [
        "machine",
        "program",
        "network",
        "ruleset",
        "forward",
        "image",
        "snapshot",
        "volume",
        "volumesnapshot",
        "pool",
        "event",
        "project",
    ],
)
async def test_a_watch_of_everything_says_nothing_of_foreign_changes(kind: str) -> None:
    async with world_with(secret=True) as w:
        heard = b""
        async for chunk in w.stream("GET", f"/v1/watch?kind={kind}&project=all", uid=BOB):
            heard += chunk
            if b"event: synced" in chunk:
                await w.call("POST", "/v1/machines", machine("new", SECRET), uid=ALICE)
                await w.call("DELETE", f"/v1/images/{SECRET}/{SECRET}", uid=ALICE)
                await w.call("PATCH", f"/v1/projects/{SECRET}", {"meta": {"labels": {"a": "b"}}}, uid=ALICE)
                await w.call("POST", "/v1/machines", machine("last", "bob"), uid=BOB)
                await w.call(
                    "POST", "/v1/images", {"name": "last", "project": "bob", "spec": {"upload": True}}, uid=BOB
                )
                await w.call("POST", "/v1/projects", {"name": "last"}, uid=BOB)
                await w.put(Program(name="last", project="bob", spec=PROGRAM))
                await w.put(Network(name="last", project="bob"))
                await w.put(RuleSet(name="last", project="bob"))
                await w.put(Forward(name="last", project="bob", spec=LAST))
                await w.put(Volume(name="last", project="bob", spec=VOLUME))
                await w.put(Pool(name="last"))
                await w.put(VolumeSnapshot(name="last.last", project="bob", spec=VolumeSnapshotSpec(volume="last")))
                await w.put(Snapshot(name="last.last", project="bob", spec=SnapshotSpec(machine="last")))
            if b'"name":"last' in chunk or kind == "event":
                break
    assert SECRET.encode() not in heard


@pytest.mark.fault(79)
async def test_a_machine_from_a_foreign_image_is_one_from_a_missing_image() -> None:
    told = []
    for where in (SECRET, "cellar"):
        async with world_with(secret=True) as w:
            ready = ImageStatus(phase="ready", digest="sha256:" + "0" * 64)
            await w.put(Image(name="golden", project=where, spec=ImageSpec(upload=True), status=ready))
            made = await w.call("POST", "/v1/machines", machine("thief", "bob", image="golden"), uid=BOB)
            pictures = Pictures(w.store, "x86_64", lambda name, arch: False, lambda key: None)
            thief = Machine(name="thief", project="bob", spec=MachineSpec(image="golden"), meta=Meta(uid="t"))
            with pytest.raises(NotFound) as refused:
                await pictures.request(thief, "machines/bob/thief")
            told.append((made.status, str(refused.value)))
    assert told[0] == told[1]
    assert told[0][0] == 201


@pytest.mark.fault(79)
async def test_a_member_who_is_removed_sees_nothing_more() -> None:
    async with world_with(secret=True) as w:
        give = {"spec": {"members": {f"uid:{BOB}": "viewer"}}}
        take = {"spec": {"members": {f"uid:{BOB}": None}}}
        path = f"/v1/machines/{SECRET}/{SECRET}"
        await w.call("PATCH", f"/v1/projects/{SECRET}", give, uid=ALICE)
        assert (await w.call("GET", path, uid=BOB)).status == 200
        await w.call("PATCH", f"/v1/projects/{SECRET}", take, uid=ALICE)
        assert (await w.call("GET", path, uid=BOB)).status == 404
        await asyncio.sleep(0)
