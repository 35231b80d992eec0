"""The view of the store: in order, never older than what was told, never resurrecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from roost.api.view import View
from roost.model import codec
from roost.model.kinds import BY_NAME
from roost.model.machine import Machine, MachineSpec
from roost.model.project import Project, ProjectSpec
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock

MACHINE = codec.encode(Machine(name="web", spec=MachineSpec(image="tiny")))


@asynccontextmanager
async def following() -> AsyncIterator[tuple[MemoryStore, View]]:
    store = MemoryStore(VirtualClock())
    view = View(store)
    task = asyncio.ensure_future(view.run())
    await view.ready.wait()
    yield store, view
    await store.close()
    await asyncio.wait([task], timeout=1)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_follows_the_store() -> None:
    async with following() as (store, view):
        await store.put("machines/default/web", MACHINE)
        revision = await store.put("machines/default/a", MACHINE)
        await settle()
        assert [item.key for item in view.below("machines/")] == ["machines/default/a", "machines/default/web"]
        assert (view.revision, view.count(BY_NAME["machine"])) == (revision, 2)
        await store.put("machines/default/a", None)
        await settle()
        assert [item.key for item in view.below("machines/")] == ["machines/default/web"]


async def test_prefixes_end_at_the_slash() -> None:
    async with following() as (store, view):
        for project in ("a", "a-b", "ab"):
            await store.put(f"machines/{project}/web", MACHINE)
        await settle()
        assert [item.key for item in view.below("machines/a/")] == ["machines/a/web"]
        assert [item.key for item in view.below("machines/", "machines/a/web")] == ["machines/ab/web"]


async def test_an_own_write_is_seen_before_the_watch_tells_and_not_undone_by_it() -> None:
    async with following() as (store, view):
        first = await store.put("machines/default/web", MACHINE)
        gone = await store.put("machines/default/web", None)
        view.apply("machines/default/web", MACHINE, first)
        view.apply("machines/default/web", None, gone)
        view.apply("machines/default/web", MACHINE, first)
        assert view.get("machines/default/web") is None
        await settle()
        again = await store.put("machines/default/web", MACHINE)
        await settle()
        assert (view.get("machines/default/web") or view).revision == again


async def test_membership_comes_and_goes_with_its_project() -> None:
    async with following() as (store, view):
        await store.put("projects/p", codec.encode(Project(name="p", spec=ProjectSpec(members={"uid:1": "viewer"}))))
        await settle()
        assert view.members("p") == {"uid:1": "viewer"}
        await store.put("projects/p", None)
        await settle()
        assert view.members("p") is None


async def test_it_reads_all_again_when_history_was_lost() -> None:
    store = MemoryStore(VirtualClock())
    await store.put("machines/default/old", MACHINE)
    view = View(store)
    task = asyncio.ensure_future(view.run())
    await view.ready.wait()
    await store.put("machines/default/a", MACHINE)
    last = await store.put("machines/default/old", None)
    await store.compact(last)
    await settle()
    assert [item.key for item in view.below("machines/")] == ["machines/default/a"]
    task.cancel()
