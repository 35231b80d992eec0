"""The durable store: what survives, what shares a transaction, and what a reader sees."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

import roost.store.state
from roost.errors import Conflict, NotFound, Unavailable
from roost.store.base import Entry, Write
from roost.store.sqlite import SqliteStore
from roost.testing.clock import VirtualClock
from roost.testing.stores import take


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roost.db"


@asynccontextmanager
async def opened(path: Path, clock: VirtualClock | None = None) -> AsyncIterator[SqliteStore]:
    store = await SqliteStore.open(path, clock=clock or VirtualClock())
    try:
        yield store
    finally:
        await store.close()


async def test_everything_is_there_after_opening_again(path: Path) -> None:
    async with opened(path) as store:
        await store.commit([Write("a", b"1"), Write("b", b"2")])
        await store.put("a", None)
        await store.put("c", bytes(5000))
    async with opened(path) as store:
        assert await store.list("") == ([Entry("b", b"2", 1), Entry("c", bytes(5000), 3)], 3)
        assert await take(store.watch("", since=1), 2) == [Entry("a", None, 2), Entry("c", bytes(5000), 3)]
        assert await store.put("d", b"") == 4


async def test_compaction_survives_and_no_revision_is_given_twice(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"1")
        await store.put("b", b"1")
        await store.put("b", None)
        await store.compact(3)
    async with opened(path) as store:
        assert await store.list("") == ([Entry("a", b"1", 1)], 3)
        with pytest.raises(Conflict):
            await take(store.watch("", since=2), 1)
        await store.put("a", b"2")
        await store.compact(4)
    async with opened(path) as store:
        assert await store.list("") == ([Entry("a", b"2", 4)], 4)


async def test_a_lease_gets_its_full_time_again_after_opening_and_then_expires(path: Path) -> None:
    async with opened(path) as store:
        lease = await store.grant(10)
        await store.put("a", b"1", lease=lease)
        await store.compact(2)
    clock = VirtualClock(5.0)
    async with opened(path, clock) as store:
        await clock.advance(9)
        assert (await store.get("a")).value == b"1"
        await clock.advance(2)
        assert (await take(store.watch("", since=2), 1))[0].value is None
    async with opened(path, VirtualClock()) as store:
        assert (await store.list(""))[0] == []
        with pytest.raises(NotFound):
            await store.renew(lease)


async def test_files_are_private_to_their_owner(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"secret")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {"roost.db": 0o600, "roost.db-wal": 0o600, "roost.db.mark": 0o600}


async def test_a_second_daemon_is_refused_and_disturbs_nothing(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"1")
        with pytest.raises(Unavailable, match="in use") as refusal:
            await SqliteStore.open(path, clock=VirtualClock())
        assert "fuser" in refusal.value.fix
        await store.put("a", b"2")
    async with opened(path) as store:
        assert (await store.get("a")).value == b"2"


async def test_a_database_of_a_newer_version_is_left_alone(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"1")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(Unavailable, match="newer"):
        await SqliteStore.open(path, clock=VirtualClock())


async def test_a_directory_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot be opened"):
        await SqliteStore.open(tmp_path / "missing" / "roost.db", clock=VirtualClock())


async def test_a_mark_that_cannot_be_read_is_said(path: Path) -> None:
    Path(f"{path}.mark").mkdir()
    with pytest.raises(Unavailable, match="cannot be opened"):
        await SqliteStore.open(path, clock=VirtualClock())
    assert not path.exists()


async def test_an_older_copy_of_the_database_is_refused_with_the_way_on(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"1")
    older = path.read_bytes()
    async with opened(path) as store:
        await store.put("a", b"2")
    path.write_bytes(older)
    with pytest.raises(Unavailable, match="lost acknowledged changes") as refusal:
        await SqliteStore.open(path, clock=VirtualClock())
    assert "ends at revision 1, but revision 2 was acknowledged" in refusal.value.why
    assert refusal.value.fix.endswith(f"rm {path}.mark")
    Path(f"{path}.mark").unlink()
    async with opened(path) as store:
        assert (await store.get("a")).value == b"1"


async def test_a_copy_with_another_history_is_refused(path: Path, tmp_path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"1")
    async with opened(tmp_path / "other.db") as store:
        await store.put("a", b"other")
        await store.put("a", b"other")
    path.write_bytes((tmp_path / "other.db").read_bytes())
    with pytest.raises(Unavailable, match="another copy"):
        await SqliteStore.open(path, clock=VirtualClock())


async def test_a_database_that_vanished_is_not_replaced_by_an_empty_one(path: Path) -> None:
    async with opened(path) as store:
        await store.put("a", b"1")
    path.unlink()
    with pytest.raises(Unavailable, match="lost acknowledged changes"):
        await SqliteStore.open(path, clock=VirtualClock())
    assert not path.exists()


class Counting:
    """A connection that counts what is committed."""

    def __init__(self, path: str) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.commits = 0

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        self.commits += sql == "COMMIT"
        return self.connection.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any) -> sqlite3.Cursor:
        return self.connection.executemany(sql, parameters)

    def close(self) -> None:
        self.connection.close()


async def test_commits_that_come_together_share_a_transaction(path: Path) -> None:
    connections: list[Counting] = []

    def connect(name: str) -> Counting:
        connections.append(Counting(name))
        return connections[-1]

    store = await SqliteStore.open(path, clock=VirtualClock(), connect=connect)
    before = connections[0].commits
    revisions = await asyncio.gather(*(store.put(f"k{n}", b"") for n in range(100)))
    assert sorted(revisions) == list(range(1, 101))
    assert connections[0].commits - before <= 2
    await store.close()


async def test_readers_see_only_what_is_durable(path: Path) -> None:
    async with opened(path) as store:
        writing = asyncio.ensure_future(store.put("a", b"1"))
        await asyncio.sleep(0)
        with pytest.raises(NotFound):
            await store.get("a")
        await writing
        assert (await store.get("a")).value == b"1"


async def test_a_commit_whose_caller_gave_up_before_it_began_does_not_happen(path: Path) -> None:
    async with opened(path) as store:
        first = asyncio.ensure_future(store.put("a", b"1"))
        await asyncio.sleep(0)
        given_up = asyncio.ensure_future(store.put("b", b"1"))
        await asyncio.sleep(0)
        given_up.cancel()
        assert await first == 1
        await store.put("c", b"1")
        assert [entry.key for entry in (await store.list(""))[0]] == ["a", "c"]


async def test_history_is_bounded_in_revisions_and_in_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roost.store.state, "HISTORY_REVISIONS", 40)
    async with opened(path) as store:
        await asyncio.gather(*(store.put(f"k{n % 5}", b"%d" % n) for n in range(200)))
        await asyncio.gather(*(store.put(f"k{n % 5}", b"%d" % n) for n in range(200, 210)))
        assert 40 <= store._state.revision - store._state.compacted <= 51
        monkeypatch.setattr(roost.store.state, "HISTORY_BYTES", 50_000)
        for n in range(20):
            await store.put(f"big{n % 3}", bytes(10_000))
        assert store._state.revision - store._state.compacted <= 8
        expected = await store.list("")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM log").fetchone()[0] <= 24
    async with opened(path) as store:
        assert await store.list("") == expected


async def test_compaction_leaves_one_row_for_each_value_and_none_for_what_is_gone(path: Path) -> None:
    async with opened(path) as store:
        for _ in range(5):
            lease = await store.grant(60)
            await store.put("leased", b"", lease=lease)
            await store.put("kept", b"")
            await store.compact(1000)
            await store.revoke(lease)
            await store.compact(1000)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT key FROM log").fetchall() == [(b"kept",)]


async def test_the_files_do_not_grow_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roost.store.state, "HISTORY_REVISIONS", 20)
    monkeypatch.setattr("roost.store.sqlite.CHECKPOINT_BYTES", 200_000)
    async with opened(path) as store:
        for _ in range(30):
            await asyncio.gather(*(store.put(f"k{n}", os.urandom(2000)) for n in range(20)))
        assert path.stat().st_size < 1 << 20
        assert Path(f"{path}-wal").stat().st_size < 1 << 20
