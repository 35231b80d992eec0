"""The store on a disk that is full or fails: an operation fails cleanly and changes nothing, and a failed fsync is final."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

from roost.errors import OutcomeUnknown, Unavailable
from roost.store import mark
from roost.store.base import Entry, Write
from roost.store.sqlite import SqliteStore
from roost.testing.clock import VirtualClock


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a file system of its own needs root")
    image, directory = tmp_path / "disk", tmp_path / "mounted"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True)
    mounted = subprocess.run(["mount", "-o", "loop", str(image), str(directory)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this host mounts no loop file system: {mounted.stderr.decode()}")
    yield directory
    # Lazily: a test that failed may have left files open.
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Use up every last block."""
    filler = directory / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


@pytest.mark.fault(11)
async def test_a_full_disk_refuses_writes_serves_reads_and_is_forgotten_once_there_is_space(small_disk: Path) -> None:
    path = small_disk / "roost.db"
    store = await SqliteStore.open(path, clock=VirtualClock())
    await store.put("a", b"before")
    filler = fill(small_disk)

    tried = await asyncio.gather(*(store.put(f"k{n}", os.urandom(60_000)) for n in range(40)), return_exceptions=True)
    refused = [error for error in tried if isinstance(error, Unavailable)]
    assert len(refused) >= 30
    assert "full" in refused[0].why and "df -h" in refused[0].fix
    assert getattr(refused[0].__cause__, "sqlite_errorname", "") == "SQLITE_FULL"
    kept, revision = await store.list("")
    assert len(kept) == 1 + len(tried) - len(refused)
    assert (await store.get("a")).value == b"before"
    with pytest.raises(Unavailable):
        await store.commit([Write(f"half{n}", os.urandom(60_000)) for n in range(40)])
    assert await store.list("") == (kept, revision)

    filler.unlink()
    assert await store.put("a", b"after") == revision + 1
    content = await store.list("")
    await store.close()
    store = await SqliteStore.open(path, clock=VirtualClock())
    assert await store.list("") == content
    await store.close()


@pytest.mark.fault(11)
async def test_a_store_opens_on_a_full_disk(small_disk: Path) -> None:
    path = small_disk / "roost.db"
    store = await SqliteStore.open(path, clock=VirtualClock())
    await store.put("a", b"before")
    await store.close()
    filler = fill(small_disk)
    store = await SqliteStore.open(path, clock=VirtualClock())
    assert (await store.get("a")).value == b"before"
    with pytest.raises(Unavailable):
        await store.put("a", os.urandom(1 << 20))
    filler.unlink()
    await store.put("a", b"after")
    await store.close()


class Disk:
    """Fails the `at`-th operation of the kind in `fails`, with SQLite's `code`; a write is cut in half before it fails."""

    def __init__(self, fails: str, code: int, at: int, *, lasting: bool = False) -> None:
        self.fails = fails
        self.code = code
        self.left = at
        self.lasting = lasting
        self.fired = False
        self.name = f"failing-{id(self)}"
        self.vfs = Vfs(self)

    def operation(self, kind: str) -> None:
        if kind != self.fails or (self.fired and not self.lasting):
            return
        self.left -= 1
        if self.left < 0:
            self.fired = True
            raise apsw.exception_for(self.code)

    def connect(self, path: str) -> Connection:
        return Connection(path, self.name)


class Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__(disk.name, "unix")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        self.disk.operation("open")
        return File(self.disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.disk.operation("delete")
        super().xDelete(filename, syncdir)


class File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self.disk = disk
        super().__init__("unix", name, flags)

    def xRead(self, amount: int, offset: int) -> bytes:
        self.disk.operation("read")
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:
        try:
            self.disk.operation("write")
        except apsw.Error:
            super().xWrite(data[: len(data) // 2], offset)
            raise
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self.disk.operation("sync")
        super().xSync(flags)

    def xTruncate(self, size: int) -> None:
        self.disk.operation("truncate")
        super().xTruncate(size)

    def xFileSize(self) -> int:
        self.disk.operation("size")
        return super().xFileSize()


class Connection:
    """apsw in the shape of the standard library's sqlite3."""

    def __init__(self, path: str, vfs: str) -> None:
        self.connection = self.translated(lambda: apsw.Connection(path, vfs=vfs))

    @staticmethod
    def translated(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except apsw.Error as error:
            translated = sqlite3.OperationalError(str(error) or type(error).__name__)
            translated.sqlite_errorcode = getattr(error, "extendedresult", error.result)
            raise translated from error

    @property
    def in_transaction(self) -> bool:
        return self.connection.in_transaction

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        return self.translated(lambda: self.connection.execute(sql, parameters).fetchall())

    def executemany(self, sql: str, parameters: Any) -> None:
        self.translated(lambda: self.connection.executemany(sql, parameters).fetchall())

    def close(self) -> None:
        self.translated(self.connection.close)


class Witness:
    """What callers were told: the content after what was acknowledged, and each content that is also possible."""

    def __init__(self) -> None:
        self.acknowledged: list[list[Entry]] = [[]]
        self.possible: list[dict[str, bytes | None]] = []
        self.unknown = False

    async def commit(self, store: SqliteStore, writes: list[Write]) -> None:
        before = await store.list("")
        try:
            await store.commit(writes)
        except Unavailable:
            assert await store.list("") == before
        except OutcomeUnknown:
            assert await store.list("") == before
            self.unknown = True
            self.possible.append(dict(values(before[0])) | {write.key: write.value for write in writes})
            with pytest.raises(Unavailable):
                await store.put("more", b"")
        else:
            assert not self.unknown
            self.acknowledged.append((await store.list(""))[0])

    def check(self, entries: list[Entry]) -> None:
        assert values(entries) in [values(self.acknowledged[-1]), *self.possible]


def values(entries: list[Entry]) -> dict[str, bytes | None]:
    return {entry.key: entry.value for entry in entries}


async def work(path: Path, connect: Callable[[str], Any], witness: Witness) -> None:
    """Open, write, compact, checkpoint, close, under whatever the disk does."""
    try:
        store = await SqliteStore.open(path, clock=VirtualClock(), connect=connect)
    except Unavailable:
        return
    for number in range(3):
        await witness.commit(store, [Write("a", b"%d" % number), Write(f"b{number}", bytes(5000), 0)])
    with suppress(Unavailable, OutcomeUnknown):
        await store.compact(2)
    await witness.commit(store, [Write("c", b"")])
    with suppress(sqlite3.Error):
        await store.close()


async def fails_cleanly_everywhere(directory: Path, kind: str, code: int, *, lasting: bool) -> int:
    """Repeat the work with the first, the second, ... operation failing, until there is none left to fail; how many there were."""
    for at in range(400):
        path = directory / f"{at}.db"
        disk, witness = Disk(kind, code, at, lasting=lasting), Witness()
        await work(path, disk.connect, witness)
        store = await SqliteStore.open(path, clock=VirtualClock())
        witness.check((await store.list(""))[0])
        await store.put("c", b"works again")
        await store.close()
        if not disk.fired:
            assert len(witness.acknowledged) == 5
            return at
    raise AssertionError("the work never ends")


@pytest.mark.fault(12)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from-then-on"])
@pytest.mark.parametrize(
    ("kind", "code", "least"),
    [
        ("write", apsw.SQLITE_IOERR_WRITE, 20),
        ("write", apsw.SQLITE_FULL, 20),
        ("sync", apsw.SQLITE_IOERR_FSYNC, 8),
        ("read", apsw.SQLITE_IOERR_READ, 1),
        ("truncate", apsw.SQLITE_IOERR_TRUNCATE, 0),
        ("size", apsw.SQLITE_IOERR_FSTAT, 1),
        ("open", apsw.SQLITE_CANTOPEN, 2),
        ("delete", apsw.SQLITE_IOERR_DELETE, 0),
    ],
)
async def test_an_error_of_any_operation_leaves_what_was_acknowledged(
    kind: str, code: int, least: int, lasting: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.store.sqlite.CHECKPOINT_BYTES", 1)
    assert await fails_cleanly_everywhere(tmp_path, kind, code, lasting=lasting) >= least


@pytest.mark.fault(12)
async def test_a_failed_fsync_is_final_until_the_store_is_opened_again(tmp_path: Path) -> None:
    disk = Disk("sync", apsw.SQLITE_IOERR_FSYNC, 10_000)
    store = await SqliteStore.open(tmp_path / "roost.db", clock=VirtualClock(), connect=disk.connect)
    await store.put("a", b"1")
    disk.left = 0
    with pytest.raises(OutcomeUnknown) as unknown:
        await store.put("a", b"2")
    assert "may or may not" in unknown.value.what
    assert disk.fired
    for attempt in (store.put("a", b"3"), store.grant(5), store.compact(1)):
        with pytest.raises(Unavailable, match="restart"):
            await attempt
    assert (await store.get("a")).value == b"1"
    await store.close()


async def test_every_commit_waits_for_an_fsync(tmp_path: Path) -> None:
    disk = Disk("sync", apsw.SQLITE_IOERR_FSYNC, 10_000)
    store = await SqliteStore.open(tmp_path / "roost.db", clock=VirtualClock(), connect=disk.connect)
    for number in range(3):
        before = disk.left
        await store.put("a", b"%d" % number)
        assert disk.left < before
    await store.close()


@pytest.mark.fault(12)
async def test_a_failed_fsync_of_a_checkpoint_is_final_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk("sync", apsw.SQLITE_IOERR_FSYNC, 10_000)
    store = await SqliteStore.open(tmp_path / "roost.db", clock=VirtualClock(), connect=disk.connect)
    monkeypatch.setattr("roost.store.sqlite.CHECKPOINT_BYTES", 1)
    disk.left = 2
    assert await store.put("a", b"1") == 1
    with pytest.raises(Unavailable, match="restart"):
        await store.put("a", b"2")
    assert disk.fired
    await store.close()


@pytest.mark.fault(12)
@pytest.mark.parametrize(("name", "result"), [("pwrite", None), ("pwrite", 7), ("fdatasync", None)])
async def test_a_mark_that_cannot_be_written_is_final_and_loses_nothing(
    name: str, result: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, witness = tmp_path / "roost.db", Witness()
    store = await SqliteStore.open(path, clock=VirtualClock())
    await witness.commit(store, [Write("a", b"1")])

    def fail(*arguments: object) -> int:
        if result is None:
            raise OSError(5, "Input/output error")
        return result

    with monkeypatch.context() as broken:
        broken.setattr(mark.os, name, fail)
        await witness.commit(store, [Write("a", b"2")])
    assert witness.unknown
    await store.close()
    store = await SqliteStore.open(path, clock=VirtualClock())
    witness.check((await store.list(""))[0])
    await store.close()


@pytest.mark.fault(12)
async def test_a_commit_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    disk = Disk("write", apsw.SQLITE_FULL, 10_000)
    store = await SqliteStore.open(tmp_path / "roost.db", clock=VirtualClock(), connect=disk.connect)
    first = asyncio.ensure_future(store.put("first", b""))
    await asyncio.sleep(0)
    group = [asyncio.ensure_future(store.put(f"k{n}", b"")) for n in range(10)]
    await first
    disk.left = 0
    results = await asyncio.gather(*group, return_exceptions=True)
    assert disk.fired
    assert [type(result) for result in results].count(int) == 10
    await store.close()
