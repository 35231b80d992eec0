"""Both stores pass the suite that every store must pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.store.base import Store
from roost.store.memory import MemoryStore
from roost.store.sqlite import SqliteStore
from roost.testing.clock import VirtualClock
from roost.testing.stores import CHECKS, Check, check_store, run_check


@asynccontextmanager
async def in_memory(clock: VirtualClock) -> AsyncIterator[Store]:
    store = MemoryStore(clock)
    yield store
    await store.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_memory_store(check: Check) -> None:
    await run_check(check, in_memory)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_sqlite_store(check: Check, tmp_path: Path) -> None:
    @asynccontextmanager
    async def in_sqlite(clock: VirtualClock) -> AsyncIterator[Store]:
        store = await SqliteStore.open(tmp_path / "roost.db", clock=clock)
        yield store
        await store.close()

    await run_check(check, in_sqlite)


async def test_the_whole_suite_is_one_call() -> None:
    await check_store(in_memory)
