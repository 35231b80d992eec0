"""The durable store's journal in SQLite: a log of writes, chained by hashes, that is never believed without being checked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, Protocol

from roost import log
from roost.errors import OutcomeUnknown, Unavailable
from roost.store import chain, mark
from roost.store.durable import DurableStore
from roost.store.mark import START, Mark, Point
from roost.store.serving import LeaseClock
from roost.store.state import Commit, Compaction, Row, State

CHECKPOINT_BYTES = 4 << 20
"""Bytes written to the write-ahead log (about) before they are moved into the database."""

SCHEMA_VERSION = 1

_SCHEMA = (
    # One row a write. A value is live while no later row of its key exists; compaction deletes what is neither live nor watchable.
    "CREATE TABLE log (id INTEGER PRIMARY KEY, key BLOB NOT NULL, value BLOB, lease INTEGER, chain BLOB NOT NULL) STRICT",
    # Where the history begins: the chain there, and the sum of the hashes of the rows up to it.
    "CREATE TABLE anchor (revision INTEGER NOT NULL, chain BLOB NOT NULL, total BLOB NOT NULL) STRICT",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

_PRAGMAS = (
    # One process alone: also no shared memory file, which could not be made on a full disk.
    "PRAGMA locking_mode = EXCLUSIVE",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    # SQLite hides the errors of checkpoints that it starts itself, a failed fsync among them.
    "PRAGMA wal_autocheckpoint = 0",
    "PRAGMA cache_size = -2048",
)

_FATAL = frozenset(
    (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
)
"""After a failed fsync the kernel may call pages clean that never reached the disk: trying again would succeed and prove nothing."""

_SQLITE_RAISES = (sqlite3.Error, ValueError)
"""ValueError: the text of an error of a damaged database may be no UTF-8, and Python then raises that instead."""

_ORDINAL_BITS = 20
"""A row's id is its revision above these bits and its place in the commit in them."""


class Rows(Protocol):
    """What a statement gives."""

    def __iter__(self) -> Iterator[Any]:
        """Row after row."""
        ...


class Connection(Protocol):
    """What is used of `sqlite3.Connection`, so that tests can put a failing disk below it."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Rows:
        """Run one statement. Raises sqlite3.Error."""
        ...

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> object:
        """Run one statement for each of `parameters`. Raises sqlite3.Error."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


def connect(path: str) -> Connection:
    """A connection that opens no transactions by itself and never waits for another process."""
    return sqlite3.connect(path, isolation_level=None, timeout=0)


class SqliteStore(DurableStore):
    """A `Store` in one SQLite database: what was acknowledged survives the loss of power."""

    @classmethod
    async def open(
        cls, path: Path, *, clock: LeaseClock, connect: Callable[[str], Connection] = connect
    ) -> SqliteStore:
        """Open the database at `path`, made when missing (0600); `path`-wal and `path`.mark lie beside it.

        Raises Unavailable when another process has it, when it is damaged, and when it lacks what was acknowledged: it never starts
        with less than it had, and leaves the files as they are.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        try:
            database, state = await asyncio.get_running_loop().run_in_executor(thread, _open, path, connect)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(state, clock, database, thread)


class _Full(Unavailable):
    """There is no space."""


class _Unreadable(Exception):
    """The content is not what was written; the text says where."""


class _Database:
    """The open files. `last` is the point everything up to which is kept; `anchor` the one up to which history is forgotten."""

    def __init__(self, path: Path, connection: Connection) -> None:
        self.path = path
        self.last = START
        self._connection = connection
        self._mark: Mark | None = None
        self._anchor = START
        self._total = chain.Total()
        self._unmoved = 0

    def append(self, commits: Sequence[Commit]) -> None:
        """Keep commits, all or none."""
        link, rows = self.last.chain, list[tuple[object, ...]]()
        for commit in commits:
            link = chain.following(link, commit)
            rows += [(_identity(row), row.key.encode(), row.value, row.lease, link) for row in commit]
        with self._transaction():
            self._connection.executemany("INSERT INTO log VALUES (?, ?, ?, ?, ?)", rows)
        self.last = Point(commits[-1][0].revision, link)
        self._unmoved += sum(row.size for commit in commits for row in commit) + 4 * 4096
        self.acknowledge()

    def acknowledge(self) -> None:
        """Set the mark to `last`. Raises OutcomeUnknown: the change is kept, but nothing would tell if it were lost again."""
        try:
            if self._mark is None:
                self._mark = Mark(_beside(self.path, ".mark"), self.last)
            else:
                self._mark.write(self.last)
        except OSError as error:
            raise _outcome_unknown(_beside(self.path, ".mark"), error) from error

    def rehearse(self) -> None:
        """Write without changing anything: damage that only a write meets is met before anyone relies on the store."""
        with self._transaction():
            self._connection.execute("UPDATE anchor SET revision = revision")

    def forget(self, compaction: Compaction) -> None:
        """Delete rows and move the anchor."""
        total = chain.Total(self._total.value)
        for row in compaction.keep:
            total.add(row)
        for row in compaction.drop:
            if row.revision <= self._anchor.revision:
                total.remove(row)
        first = compaction.revision << _ORDINAL_BITS
        with self._transaction():
            ((link,),) = self._connection.execute("SELECT chain FROM log WHERE id >= ? LIMIT 1", (first,))
            self._connection.executemany("DELETE FROM log WHERE id = ?", [(_identity(row),) for row in compaction.drop])
            self._connection.execute(
                "UPDATE anchor SET revision = ?, chain = ?, total = ?", (compaction.revision, link, total.value)
            )
        self._anchor, self._total = Point(compaction.revision, link), total
        self._unmoved += 4096 * len(compaction.drop)

    def tidy(self) -> None:
        """Move the write-ahead log into the database when it has grown."""
        if self._unmoved >= CHECKPOINT_BYTES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Move the write-ahead log into the database now."""
        try:
            list(self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)"))
        except _SQLITE_RAISES as error:
            _raise_unwritten(self.path, error)
        self._unmoved = 0

    def close(self) -> None:
        """Let go of the files."""
        if self._mark is not None:
            self._mark.close()
        self._connection.close()

    def schema(self) -> tuple[int, int]:
        """The version of the schema and the number of tables; both 0 in a new database. Raises sqlite3.Error."""
        ((version,),) = self._connection.execute("PRAGMA user_version")
        ((tables,),) = self._connection.execute("SELECT count(*) FROM sqlite_schema")
        return version, tables

    def create(self) -> None:
        """Make the tables. Raises sqlite3.Error."""
        for statement in ("BEGIN IMMEDIATE", *_SCHEMA):
            self._connection.execute(statement)
        self._connection.execute("INSERT INTO anchor VALUES (0, ?, ?)", (START.chain, self._total.value))
        self._connection.execute("COMMIT")

    def load(self) -> State:
        """Read and check everything. Raises _Unreadable, sqlite3.Error."""
        for (verdict,) in self._connection.execute("PRAGMA quick_check(1)"):
            if verdict != "ok":
                raise _Unreadable(str(verdict).splitlines()[-1])
        ((revision, link, recorded),) = self._connection.execute("SELECT revision, chain, total FROM anchor")
        self._anchor = self.last = Point(revision, link)
        state, total = State(compacted=revision), chain.Total()
        for commit, stored in self._commits():
            if commit[0].revision <= revision:
                for row in commit:
                    total.add(row)
            else:
                self._follow(commit, stored)
            state.apply(commit)
        if total.value != recorded:
            raise _Unreadable(f"values written up to revision {revision} are missing or altered")
        self._total = total
        return state

    def _commits(self) -> Iterator[tuple[Commit, bytes]]:
        rows = self._connection.execute("SELECT id, key, value, lease, chain FROM log ORDER BY id")
        for _, group in itertools.groupby(rows, key=lambda row: row[0] >> _ORDINAL_BITS):
            listed = list(group)
            yield tuple(_row(*row[:4]) for row in listed), listed[-1][4]

    def _follow(self, commit: Commit, stored: bytes) -> None:
        """Check that a commit continues the chain."""
        expected = self.last.revision + 1
        if commit[0].revision != expected:
            raise _Unreadable(f"revision {expected} is missing")
        link = chain.following(self.last.chain, commit)
        if link != stored:
            raise _Unreadable(f"revision {expected} is not what was written")
        self.last = Point(expected, link)

    def chain_at(self, revision: int) -> bytes | None:
        """The chain at a revision of the history, None outside of it."""
        if revision == self._anchor.revision:
            return self._anchor.chain
        first = revision << _ORDINAL_BITS
        rows = self._connection.execute("SELECT id, chain FROM log WHERE id >= ? LIMIT 1", (first,))
        return next((link for identity, link in rows if identity >> _ORDINAL_BITS == revision), None)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except _SQLITE_RAISES as error:
            self._roll_back(error)

    def _roll_back(self, error: Exception) -> NoReturn:
        """Make sure that a failed transaction left nothing behind, and raise what that means."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            ((identity,),) = self._connection.execute("SELECT max(id) FROM log")
        except _SQLITE_RAISES as second:
            raise _outcome_unknown(self.path, second) from error
        if (identity or 0) >> _ORDINAL_BITS > self.last.revision:
            raise _outcome_unknown(self.path, error)
        _raise_unwritten(self.path, error)


def _open(path: Path, connect: Callable[[str], Connection]) -> tuple[_Database, State]:
    """Open, check, and only then change anything. Raises Unavailable."""
    try:
        marked = mark.read(_beside(path, ".mark"))
        _prepare(path, marked)
    except mark.Damaged:
        raise _lost(path, "its mark cannot be read, so nobody knows whether something is missing") from None
    except OSError as error:
        raise Unavailable(f"{path} cannot be opened", why=str(error), fix=f"ls -ld {path.parent}") from error
    connection = _connected(path, connect)
    with contextlib.ExitStack() as refused:
        refused.callback(_close_unchanged, path, connection)
        database = _Database(path, connection)
        state = _load(database, marked or START)
        _check_mark(database, marked)
        _settle(database)
        refused.pop_all()
    return database, state


def _prepare(path: Path, marked: Point | None) -> None:
    """Never start empty where something was. Raises Unavailable, OSError."""
    log_file, kept = _beside(path, "-wal"), _beside(path, "-wal.kept")
    if kept.exists() and not log_file.exists():
        kept.rename(log_file)
    if path.exists() and path.stat().st_size:
        return
    if marked is not None and marked.revision:
        raise _lost(path, f"it is missing or empty, but revision {marked.revision} was acknowledged")
    if log_file.exists() and log_file.stat().st_size:
        # SQLite would delete the log of a database that is empty.
        raise _damaged(path, f"it is missing or empty, but {log_file.name} is not")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    mark.sync_directory(path.parent)


def _connected(path: Path, connect: Callable[[str], Connection]) -> Connection:
    """A connection that holds the lock. Raises Unavailable."""
    connection = None
    try:
        connection = connect(str(path))
        # The first read takes the lock.
        for statement in (*_PRAGMAS, "SELECT count(*) FROM sqlite_schema"):
            list(connection.execute(statement))
    except _SQLITE_RAISES as error:
        code = _code(error) & 0xFF
        if connection is not None and code == sqlite3.SQLITE_BUSY:
            connection.close()
        elif connection is not None:
            _close_unchanged(path, connection)
        raise _refused_by_sqlite(path, code, error) from error
    return connection


def _refused_by_sqlite(path: Path, code: int, error: Exception) -> Unavailable:
    if code == sqlite3.SQLITE_BUSY:
        return Unavailable(
            f"{path} is in use", why="another process has it open", fix=f"stop it first: fuser -v {path}"
        )
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
        return _damaged(path, str(error))
    return Unavailable(f"{path} cannot be opened", why=str(error), fix=f"ls -l {path.parent}; dmesg")


def _close_unchanged(path: Path, connection: Connection) -> None:
    """Close a database that was refused, and keep its write-ahead log, which SQLite would cut and delete: it may be all there is."""
    log_file, kept = _beside(path, "-wal"), _beside(path, "-wal.kept")
    with contextlib.suppress(FileNotFoundError):
        log_file.rename(kept)
    with contextlib.suppress(*_SQLITE_RAISES):
        connection.close()
    with contextlib.suppress(FileNotFoundError):
        kept.rename(log_file)


def _load(database: _Database, marked: Point) -> State:
    """Everything, checked; the schema is made in a database that is new. Raises Unavailable."""
    try:
        version, tables = database.schema()
        if version > SCHEMA_VERSION:
            raise Unavailable(
                f"{database.path} is not opened", why="a newer Roost made it", fix="install that version of Roost again"
            )
        if (version, tables, marked.revision) == (0, 0, 0):
            _create(database)
        return database.load()
    except (_Unreadable, *_SQLITE_RAISES, TypeError, LookupError) as error:
        raise _damaged(database.path, str(error)) from error


def _create(database: _Database) -> None:
    try:
        database.create()
    except _SQLITE_RAISES as error:
        fix = f"look for a full disk or disk errors: df -h {database.path.parent}; dmesg"
        raise Unavailable(f"{database.path} cannot be made", why=str(error), fix=fix) from error


def _check_mark(database: _Database, marked: Point | None) -> None:
    """Compare what is there with what was acknowledged. Raises Unavailable."""
    last = database.last.revision
    if marked is None:
        if last:
            log.get(__name__).warning("the store has no mark: lost changes would go unseen", revision=last)
    elif marked.revision > last:
        why = f"it ends at revision {last}, but revision {marked.revision} was acknowledged"
        raise _lost(database.path, f"{why}: the end of its -wal file is damaged or missing, or it is an older copy")
    elif database.chain_at(marked.revision) != marked.chain:
        raise _lost(
            database.path, f"revision {marked.revision} is not the one that was acknowledged: it is another copy"
        )


def _settle(database: _Database) -> None:
    """Try a write, move what the last process left in the write-ahead log, and mark where we begin. Raises Unavailable."""
    try:
        database.rehearse()
        database.checkpoint()
    except _Full as error:
        # What is there can be read, and writes will work when there is space.
        log.get(__name__).warning("the store cannot write", why=error.why)
    except (Unavailable, OutcomeUnknown) as error:
        raise Unavailable(
            f"{database.path} cannot be written", why=error.why, fix="look for disk errors: dmesg"
        ) from error
    try:
        database.acknowledge()
    except OutcomeUnknown as error:
        raise Unavailable(f"{database.path} cannot be marked", why=error.why, fix="df -h; dmesg") from error


def _lost(path: Path, why: str) -> Unavailable:
    files = f"{path.name}, {path.name}-wal and {path.name}.mark"
    fix = f"put {files} back as they belong together, or go on with what is there: rm {_beside(path, '.mark')}"
    return Unavailable(f"{path} has lost acknowledged changes and is not opened", why=why, fix=fix)


def _damaged(path: Path, why: str) -> Unavailable:
    fix = f"restore a backup, or start empty: mkdir {path.parent}/damaged && mv {path}* {path.parent}/damaged/"
    return Unavailable(f"{path} is damaged and is not opened", why=why, fix=fix)


def _outcome_unknown(path: Path, error: Exception) -> OutcomeUnknown:
    return OutcomeUnknown(
        "the change may or may not have been kept",
        why=f"{path}: {error}",
        fix="look for disk errors (dmesg), restart the daemon, then look whether it happened",
    )


def _raise_unwritten(path: Path, error: Exception) -> NoReturn:
    """What a failed write means: Unavailable when it left nothing, OutcomeUnknown when nothing can be trusted any more."""
    if _code(error) in _FATAL:
        raise _outcome_unknown(path, error) from error
    if _code(error) == sqlite3.SQLITE_FULL:
        raise _Full(
            "the change was not kept", why=f"{path}: {error}", fix=f"free space: df -h {path.parent}"
        ) from error
    raise Unavailable("the change was not kept", why=f"{path}: {error}", fix="look for disk errors: dmesg") from error


def _code(error: Exception) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _identity(row: Row) -> int:
    return row.revision << _ORDINAL_BITS | row.ordinal


def _row(identity: int, key: bytes, value: bytes | None, lease: int | None) -> Row:
    return Row(identity >> _ORDINAL_BITS, identity & ((1 << _ORDINAL_BITS) - 1), key.decode(), value, lease)
