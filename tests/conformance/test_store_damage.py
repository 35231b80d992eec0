"""A database that was cut or altered: the store opens with all that was acknowledged, or refuses and says how to go on."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.errors import Unavailable
from roost.store.base import Entry, Write
from roost.store.sqlite import SqliteStore
from roost.testing.clock import VirtualClock

STRIDE = 211
"""Offsets between two that are tried, coprime to all sizes of pages and records; the soak tries every single one."""

Content = tuple[list[Entry], int]
Files = dict[str, bytes]


class Image(NamedTuple):
    """The files of a store as a crash leaves them, and what it held after each revision."""

    files: Files
    versions: dict[int, list[Entry]]

    @property
    def content(self) -> Content:
        last = max(self.versions)
        return self.versions[last], last


async def made(directory: Path, *, crashed: bool) -> Image:
    """A store with some of everything: values of several sizes, deletions, a lease, compacted history and a later one."""
    versions: dict[int, list[Entry]] = {0: []}
    store = await SqliteStore.open(directory / "roost.db", clock=VirtualClock())

    async def note() -> None:
        entries, revision = await store.list("")
        versions[revision] = entries

    for number in range(4):
        await store.commit([Write("a", b"%d" % number * 9), Write(f"b{number}", bytes(90))])
        await note()
    await store.compact(2)
    lease = await store.grant(60)
    await note()
    await store.put("c", b"leased", lease=lease)
    await note()
    for key, value in (("a", b"last"), ("b1", None), ("d", bytes(range(250)) * 20), ("e", b"")):
        await store.put(key, value)
        await note()
    files = read(directory)
    await store.close()
    return Image(files if crashed else read(directory), versions)


@pytest.fixture(params=[True, False], ids=["crashed", "closed"])
async def image(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    (tmp_path / "made").mkdir()
    return await made(tmp_path / "made", crashed=request.param)


@pytest.fixture
async def crashed(tmp_path: Path) -> Image:
    (tmp_path / "made").mkdir()
    return await made(tmp_path / "made", crashed=True)


def read(directory: Path) -> Files:
    return {file.name: file.read_bytes() for file in directory.glob("roost.db*")}


def write(directory: Path, files: Files) -> Path:
    for file in directory.glob("roost.db*"):
        file.unlink()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory / "roost.db"


async def opened(directory: Path, files: Files) -> Content | Unavailable:
    """What a store over these files holds, also after one more write and opening it again; or why it is refused."""
    path = write(directory, files)
    try:
        store = await SqliteStore.open(path, clock=VirtualClock())
    except Unavailable as error:
        assert error.why and error.fix
        return error
    content = await store.list("")
    await store.put("z", b"")
    await store.close()
    store = await SqliteStore.open(path, clock=VirtualClock())
    assert [entry for entry in (await store.list(""))[0] if entry.key != "z"] == content[0]
    await store.close()
    return content


def offsets(size: int, every: bool) -> Iterator[int]:
    yield from range(size) if every else sorted({*range(0, size, STRIDE), *range(min(size, 100)), size - 1})


def flips(files: Files, every: bool) -> Iterable[tuple[str, int, Files]]:
    for name, data in files.items():
        for offset in offsets(len(data), every):
            altered = bytearray(data)
            altered[offset] ^= 1 << offset % 8
            yield name, offset, files | {name: bytes(altered)}


def cuts(files: Files, every: bool) -> Iterable[tuple[str, int, Files]]:
    for name, data in files.items():
        for offset in offsets(len(data), every):
            yield name, offset, files | {name: data[:offset]}


async def all_or_refused(image: Image, damaged: Iterable[tuple[str, int, Files]], directory: Path) -> tuple[int, int]:
    """How many of the damaged copies opened and how many were refused; never one with less than everything."""
    whole = refused = 0
    for name, offset, files in damaged:
        result = await opened(directory, files)
        if isinstance(result, Unavailable):
            refused += 1
        else:
            assert result == image.content, f"{name} at {offset}"
            whole += 1
    return whole, refused


@pytest.mark.fault(30)
async def test_a_flipped_bit_is_harmless_or_refused(image: Image, tmp_path: Path) -> None:
    _, refused = await all_or_refused(image, flips(image.files, every=False), tmp_path)
    assert refused > 10


@pytest.mark.fault(30)
async def test_a_file_cut_anywhere_is_harmless_or_refused(image: Image, tmp_path: Path) -> None:
    _, refused = await all_or_refused(image, cuts(image.files, every=False), tmp_path)
    assert refused > 10


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.fault(30)
async def test_every_single_flip_and_cut_is_harmless_or_refused(image: Image, tmp_path: Path) -> None:
    await all_or_refused(image, flips(image.files, every=True), tmp_path)
    await all_or_refused(image, cuts(image.files, every=True), tmp_path)


@pytest.mark.fault(30)
async def test_a_refused_store_opens_again_once_the_damage_is_undone(crashed: Image, tmp_path: Path) -> None:
    for name in crashed.files:
        damaged = dict(crashed.files)
        del damaged[name]
        result = await opened(tmp_path, damaged)
        assert isinstance(result, Unavailable) or name.endswith(".mark")
        if isinstance(result, Unavailable):
            (tmp_path / name).write_bytes(crashed.files[name])
            assert await opened(tmp_path, read(tmp_path)) == crashed.content


@pytest.mark.fault(30)
async def test_a_damaged_log_is_kept_as_it_is_when_the_store_refuses(crashed: Image, tmp_path: Path) -> None:
    log = bytearray(crashed.files["roost.db-wal"])
    log[len(log) // 2] ^= 1
    result = await opened(tmp_path, crashed.files | {"roost.db-wal": bytes(log)})
    assert isinstance(result, Unavailable)
    assert "acknowledged" in result.why
    assert read(tmp_path)["roost.db-wal"] == bytes(log)
    assert await opened(tmp_path, read(tmp_path) | {"roost.db-wal": crashed.files["roost.db-wal"]}) == crashed.content


@pytest.mark.fault(30)
async def test_without_its_mark_a_cut_log_opens_at_the_last_good_record(crashed: Image, tmp_path: Path) -> None:
    log = crashed.files["roost.db-wal"]
    files = {"roost.db": crashed.files["roost.db"]}
    reached = []
    for offset in range(len(log), 32 + 3 * 4120, -1031):
        result = await opened(tmp_path, files | {"roost.db-wal": log[:offset]})
        assert not isinstance(result, Unavailable)
        entries, revision = result
        assert entries == crashed.versions[revision]
        reached.append(revision)
    assert reached == sorted(reached, reverse=True)
    assert len(set(reached)) >= 6


@pytest.mark.fault(30)
async def test_what_was_torn_before_it_was_acknowledged_is_dropped_without_a_word(
    crashed: Image, tmp_path: Path
) -> None:
    log = crashed.files["roost.db-wal"]
    page_size, salts = struct.unpack(">I", log[8:12])[0], log[16:24]
    torn = struct.pack(">II", 2, 0) + salts + bytes(8) + bytes(page_size // 2)
    assert await opened(tmp_path, crashed.files | {"roost.db-wal": log + torn}) == crashed.content


@pytest.mark.fault(30)
async def test_one_lost_slot_of_the_mark_is_made_good_by_the_other(crashed: Image, tmp_path: Path) -> None:
    mark = crashed.files["roost.db.mark"]
    for spoilt in (bytes(4096) + mark[4096:], mark[:4096] + bytes(4096)):
        assert await opened(tmp_path, crashed.files | {"roost.db.mark": spoilt}) == crashed.content
