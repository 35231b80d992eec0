"""Saved guests on disk: they come back as they were, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from roost.errors import Conflict, Unavailable
from roost.host import files as host_files
from roost.host.paths import CheckpointFiles
from roost.hypervisor import memfd, saved
from roost.hypervisor.base import Saved
from roost.hypervisor.memory import Memory

MiB = 1 << 20
PAGE = 4096
SIZE = 130 * MiB
KEY = b"k" * 32
PLACES = (0, MiB - PAGE, MiB, 63 * MiB + PAGE, 64 * MiB, 129 * MiB, SIZE - PAGE)


def sealed(content: dict[int, bytes], size: int = SIZE) -> int:
    descriptor = memfd.create("test", size)
    for offset, data in content.items():
        os.pwrite(descriptor, data, offset)
    memfd.seal(descriptor)
    return descriptor


@pytest.fixture
def guest() -> Iterator[Saved]:
    """Two layers: pages at the ends of chunks and extents, and a page of the second one that hides one of the first with zeros."""
    base = sealed({place: bytes([65 + number]) * PAGE for number, place in enumerate(PLACES)} | {5 * MiB: bytes(PAGE)})
    upper = sealed({MiB: bytes(PAGE), 7 * MiB: b"z" * PAGE})
    device = sealed({0: b"devices"}, 7)
    made = Saved(device, Memory(SIZE, [base, upper]), 0.021, "in-place")
    yield made
    saved.release(made)


@pytest.fixture
def place(tmp_path: Path) -> CheckpointFiles:
    return CheckpointFiles(tmp_path / "checkpoint")


def content(memory: Memory) -> dict[int, bytes]:
    """The pages that are not zero."""
    (descriptor,) = memory.layers
    chunks = ((start, end) for start, end in memfd.data(descriptor))
    pages = (at for start, end in chunks for at in range(start, end, PAGE))
    found = {at: os.pread(descriptor, PAGE, at) for at in pages}
    return {at: data[:1] for at, data in found.items() if any(data)}


async def test_comes_back_as_it_was(guest: Saved, place: CheckpointFiles) -> None:
    used = await saved.write(guest, place, b"a note", KEY)
    back, note = await saved.read(place, KEY)
    assert note == b"a note"
    assert (back.pause, back.method) == (0.021, "in-place")
    assert back.device is not None
    assert back.memory is not None
    assert os.pread(back.device, 100, 0) == b"devices"
    expected = {at: bytes([65 + number]) for number, at in enumerate(PLACES) if at != MiB} | {7 * MiB: b"z"}
    assert content(back.memory) == expected
    assert memfd.is_frozen(back.device)
    assert memfd.is_frozen(back.memory.layers[0])
    assert used < MiB
    saved.release(back)


async def test_only_its_owner_may_read_the_files(guest: Saved, place: CheckpointFiles) -> None:
    await saved.write(guest, place, b"", KEY)
    modes = {path.name: path.stat().st_mode & 0o777 for path in place.directory.iterdir()}
    assert modes == {"checkpoint.json": 0o400, "memory": 0o400, "device": 0o400}


async def test_a_copy_whose_holes_were_filled_with_zeros_is_as_good(guest: Saved, place: CheckpointFiles) -> None:
    await saved.write(guest, place, b"", KEY)
    with overwritable(place.memory) as file:
        os.pwrite(file, bytes(2 * MiB), 20 * MiB)
    back, _ = await saved.read(place, KEY)
    saved.release(back)


@contextlib.contextmanager
def overwritable(path: Path) -> Iterator[int]:
    """A file opened for writing, whatever its mode says."""
    path.chmod(0o600)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def flip(path: Path, offset: int) -> None:
    with overwritable(path) as file:
        os.pwrite(file, bytes([os.pread(file, 1, offset)[0] ^ 1]), offset)


def move(place: CheckpointFiles) -> None:
    """The same bytes one page further on."""
    with overwritable(place.memory) as file:
        data = os.pread(file, PAGE, 0)
        os.pwrite(file, bytes(PAGE), 0)
        os.pwrite(file, data, PAGE)


def forget_a_page(place: CheckpointFiles) -> None:
    with overwritable(place.memory) as file:
        os.pwrite(file, bytes(PAGE), SIZE - PAGE)


def grow(place: CheckpointFiles) -> None:
    with overwritable(place.memory) as file:
        os.ftruncate(file, SIZE + PAGE)


def lengthen_device(place: CheckpointFiles) -> None:
    with overwritable(place.device) as file:
        os.pwrite(file, b"!", 7)


def change_note(place: CheckpointFiles) -> None:
    text = place.manifest.read_bytes()
    host_files.atomic_write(place.manifest, text.replace(b'"YSBub3Rl"', b'"YiBub3Rl"'))


def link_memory(place: CheckpointFiles) -> None:
    place.memory.rename(place.directory / "elsewhere")
    place.memory.symlink_to(place.directory / "elsewhere")


def pipe_device(place: CheckpointFiles) -> None:
    place.device.unlink()
    os.mkfifo(place.device)


CHANGES: dict[str, Callable[[CheckpointFiles], None]] = {
    "first byte of memory": lambda place: flip(place.memory, 0),
    "a zero byte of memory": lambda place: flip(place.memory, 30 * MiB),
    "last byte of memory": lambda place: flip(place.memory, SIZE - 1),
    "a page that moved": move,
    "a page that became zero": forget_a_page,
    "memory that grew": grow,
    "first byte of devices": lambda place: flip(place.device, 0),
    "last byte of devices": lambda place: flip(place.device, 6),
    "devices that grew": lengthen_device,
    "the note": change_note,
    "the manifest": lambda place: flip(place.manifest, 0),
    "a link to the memory": link_memory,
    "a pipe in place of devices": pipe_device,
    "no devices": lambda place: place.device.unlink(),
    "no manifest": lambda place: place.manifest.unlink(),
}


@pytest.mark.fault(46)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_what_was_changed_is_not_used(
    guest: Saved, place: CheckpointFiles, change: Callable[[CheckpointFiles], None]
) -> None:
    await saved.write(guest, place, b"a note", KEY)
    change(place)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Unavailable, match="can not be used"):
        await saved.read(place, KEY)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.fault(46)
async def test_what_another_host_has_sealed_is_not_used(guest: Saved, place: CheckpointFiles) -> None:
    await saved.write(guest, place, b"a note", b"another key, of some other host.")
    with pytest.raises(Unavailable) as refused:
        await saved.read(place, KEY)
    assert "does not match its seal" in refused.value.why


async def test_a_disk_without_enough_room_is_known_beforehand(
    guest: Saved, place: CheckpointFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_files, "free_space", lambda path: saved.RESERVE)
    with pytest.raises(Unavailable) as refused:
        await saved.write(guest, place, b"", KEY)
    assert "512" in refused.value.why
    assert "roost" in refused.value.fix
    assert not place.directory.exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_a_disk_that_fails_meanwhile_keeps_nothing_of_it(
    guest: Saved, place: CheckpointFiles, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def full(descriptor: int, data: memoryview, offset: int) -> None:
        if offset >= 64 * MiB:
            raise OSError(error, os.strerror(error))
        os.pwrite(descriptor, data, offset)

    monkeypatch.setattr(saved, "_write_all", full)
    with pytest.raises(Unavailable):
        await saved.write(guest, place, b"", KEY)
    assert not place.directory.exists()


async def test_when_cancelled_nothing_of_it_stays(guest: Saved, place: CheckpointFiles) -> None:
    writing = asyncio.ensure_future(saved.write(guest, place, b"", KEY))
    await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not place.directory.exists()


async def test_a_whole_checkpoint_is_not_written_over(guest: Saved, place: CheckpointFiles) -> None:
    await saved.write(guest, place, b"", KEY)
    with pytest.raises(Conflict):
        await saved.write(guest, place, b"", KEY)
    back, _ = await saved.read(place, KEY)
    saved.release(back)


async def test_what_a_killed_daemon_left_unfinished_is_replaced(guest: Saved, place: CheckpointFiles) -> None:
    place.directory.mkdir()
    place.memory.write_bytes(b"half")
    await saved.write(guest, place, b"", KEY)
    back, _ = await saved.read(place, KEY)
    saved.release(back)


async def test_a_guest_that_did_not_run_is_its_note_alone(place: CheckpointFiles) -> None:
    await saved.write(Saved(None, None), place, b"a note", KEY)
    assert [path.name for path in place.directory.iterdir()] == ["checkpoint.json"]
    assert await saved.read(place, KEY) == (Saved(None, None), b"a note")
    change_note(place)
    with pytest.raises(Unavailable):
        await saved.read(place, KEY)


async def test_the_note_is_shown_without_a_look_at_the_rest(guest: Saved, place: CheckpointFiles) -> None:
    assert saved.peek(place) is None
    await saved.write(guest, place, b"a note", KEY)
    flip(place.memory, 0)
    assert saved.peek(place) == b"a note"
    flip(place.manifest, 0)
    assert saved.peek(place) is None
