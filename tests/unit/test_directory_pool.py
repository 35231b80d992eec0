"""The directory pool: whenever it is stopped, a volume is what it was or what it is to be, and nothing that others stand on goes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import resource
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from roost.errors import Conflict, Invalid, NotFound, Unavailable
from roost.host import files
from roost.host.paths import Paths
from roost.storage import formats, overlays
from roost.storage.directory import DirectoryPool
from roost.storage.layers import LONGEST
from roost.storage.pool import Origin
from roost.testing.pools import refused
from tests.stops import counted, stopped_after

MiB = 1 << 20
SIZE = 64 * MiB
IMAGE = overlays.empty(SIZE)
DIGEST = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"
POOL = "00000000-0000-4000-8000-000000000001"


class Place:
    """A state directory with one image, and a pool with a volume `web` whose guest wrote "old"."""

    def __init__(self, directory: Path) -> None:
        self.paths = Paths(directory / "state", directory / "run")
        image = self.paths.image(DIGEST)
        image.directory.mkdir(parents=True)
        image.disk.write_bytes(IMAGE)
        image.disk.chmod(0o444)
        self.pool = self.restart()
        self.files = self.pool._files

    def restart(self) -> DirectoryPool:
        """Another daemon, which remembers nothing."""
        found = self.paths.image(DIGEST).disk
        self.pool = DirectoryPool(self.paths, POOL, "", lambda digest: found if digest == DIGEST else None)
        return self.pool

    async def made(self) -> Place:
        await self.pool.prepare()
        await self.pool.create("web", SIZE)
        self.write("web", b"old")
        return self

    def write(self, uid: str, data: bytes) -> None:
        """As QEMU does it: data at the end, and an entry in the level 1 table that leads there."""
        with self.files.disk(uid).disk.open("r+b") as file:
            file.seek(formats.level_1(file.read(48))[0])
            file.write(b"\1")
            file.seek(0, os.SEEK_END)
            file.write(data)

    async def seen(self, uid: str) -> list[bytes]:
        """What was written to each file of a volume or a snapshot, from the top down, without empty ones."""
        async with self.pool.opened(uid) as opened:
            assert opened.file is not None
            written = [path.read_bytes()[len(IMAGE) :] for path in (opened.file, *opened.below)]
            return [data for data in written if data]


@pytest.fixture
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return await Place(tmp_path).made()


Step = Callable[[Place], Coroutine[Any, Any, Any]]


async def create(place: Place) -> None:
    await place.pool.create("new", SIZE)


async def copy_volume(place: Place) -> None:
    await place.pool.create("new", 2 * SIZE, Origin("volume", "web"))


async def copy_image(place: Place) -> None:
    await place.pool.create("new", None, Origin("image", DIGEST))


async def snapshot(place: Place) -> None:
    await place.pool.snapshot("web", "one")


async def resize(place: Place) -> None:
    await place.pool.resize("web", 2 * SIZE)


async def cover(place: Place) -> None:
    """As control does it with a volume that is attached, also after a restart."""
    await place.pool.hold("web")
    await place.pool.settle("web", covered=False)
    if "one" not in await place.pool.usage():
        await place.pool.cover("web", "one")
        await place.pool.settle("web", covered=True)
    await place.pool.release("web")


async def remove(place: Place) -> None:
    await place.pool.remove("web")


STEPS: dict[str, tuple[Step, int]] = {
    "create": (create, 11),
    "copy-a-volume": (copy_volume, 27),
    "copy-an-image": (copy_image, 11),
    "snapshot": (snapshot, 18),
    "cover": (cover, 18),
    "resize": (resize, 1),
}
"""Each with the number of changes of files that it makes."""
STOPS = [(step, stop) for step, (_, changes) in STEPS.items() for stop in range(changes)]


@pytest.mark.parametrize("step", STEPS)
async def test_the_steps_make_as_many_changes_as_they_are_stopped_after(place: Place, step: str) -> None:
    act, expected = STEPS[step]
    with counted() as changes:
        await act(place)
    assert changes == [expected]


@pytest.mark.fault(8)
@pytest.mark.parametrize(("step", "stop"), STOPS)
async def test_a_daemon_killed_anywhere_leaves_the_old_or_the_new_and_it_can_be_done_again(
    place: Place, step: str, stop: int
) -> None:
    act, _ = STEPS[step]
    with stopped_after(stop):
        await act(place)
    await place.restart().prepare()
    assert await place.seen("web") == [b"old"], "what the guest wrote is there after every kill"
    await act(place)
    assert await place.seen("web") == [b"old"]
    found = {uid: usage.virtual for uid, usage in (await place.pool.usage()).items()}
    assert [line async for line in place.pool.verify(thorough=True)] == []
    await act(place)
    assert {uid: usage.virtual for uid, usage in (await place.pool.usage()).items()} == found
    for kept in found:
        assert await place.seen(kept) in ([b"old"], [])


@pytest.mark.fault(9)
async def test_what_others_stand_on_stays_when_its_volume_and_its_snapshot_go(place: Place) -> None:
    await snapshot(place)
    place.write("web", b"newer")
    await place.pool.snapshot("web", "two")
    await place.pool.create("new", None, Origin("snapshot", "one"))
    await place.pool.remove_snapshot("one")
    await place.pool.remove("web")
    assert await place.seen("new") == [b"old"]
    assert await place.seen("two") == [b"newer", b"old"]
    await place.pool.remove_snapshot("two")
    assert len(list(place.files.layers.iterdir())) == 1, "the new volume stands on what was the snapshot"
    await place.pool.remove("new")
    assert list(place.files.layers.iterdir()) == []


@pytest.mark.fault(9)
async def test_a_snapshot_of_a_name_that_a_layer_has_never_replaces_what_was_written_since(place: Place) -> None:
    await snapshot(place)
    place.write("web", b"newer")
    await place.pool.remove_snapshot("one")
    await place.pool.hold("web")
    assert await refused(place.pool.cover("web", "one")) is Conflict
    await place.pool.release("web")
    await snapshot(place)
    assert await place.seen("web") == [b"newer", b"old"]


@pytest.mark.fault(7)
async def test_nothing_is_removed_while_what_a_volume_stands_on_is_not_known(place: Place) -> None:
    await snapshot(place)
    await place.pool.create("new", None, Origin("snapshot", "one"))
    place.files.disk("new").base.unlink()
    place.restart()
    with pytest.raises(Unavailable, match=r"base\.json"):
        await place.pool.remove_snapshot("one")
    assert place.files.layer("one").disk.exists()
    assert "base.json is missing" in " ".join([line async for line in place.pool.verify(thorough=False)])
    with pytest.raises(Unavailable):
        place.pool.images()


@pytest.mark.fault(14)
@pytest.mark.parametrize("at", [0, 70_000, len(IMAGE)])
async def test_a_flipped_bit_of_a_snapshot_is_found_and_who_stands_on_it_named(place: Place, at: int) -> None:
    await snapshot(place)
    await place.pool.tend("web")
    disk = place.files.layer("one").disk
    disk.chmod(0o600)
    with disk.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0] ^ 1
        file.seek(at)
        file.write(bytes([byte]))
    disk.chmod(0o444)
    (line,) = [line async for line in place.restart().verify(thorough=True)]
    assert "its content was changed" in line
    assert "snapshot one, web" in line


async def test_a_volume_whose_header_is_gone_is_told(place: Place) -> None:
    with place.files.disk("web").disk.open("r+b") as file:
        file.write(bytes(64))
    (line,) = [line async for line in place.pool.verify(thorough=False)]
    assert "does not begin as a qcow2" in line
    await create(place)
    assert {uid: usage.virtual for uid, usage in (await place.pool.usage()).items()} == {"web": 0, "new": SIZE}


async def test_images_that_a_volume_stands_on_are_named(place: Place) -> None:
    assert place.pool.images() == set()
    await copy_image(place)
    await place.pool.snapshot("new", "kept")
    await place.pool.remove("new")
    assert place.pool.images() == {DIGEST}
    await place.pool.remove_snapshot("kept")
    assert place.pool.images() == set()


async def test_what_a_snapshot_takes_is_its_own_when_nobody_stands_on_it(place: Place) -> None:
    place.write("web", b"x" * MiB)
    alone = (await place.pool.usage())["web"]
    assert alone.own >= MiB
    await snapshot(place)
    usage = await place.pool.usage()
    assert (usage["one"].own, usage["one"].shared) == (0, alone.own)
    await place.pool.remove("web")
    usage = await place.pool.usage()
    assert (usage["one"].own, usage["one"].shared) == (alone.own, 0)


@pytest.mark.fault(12)
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "link", "rename", "replace"])
async def test_a_call_that_fails_leaves_what_was_and_it_can_be_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str, error: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        outcome = await refused(copy_volume(place))
    assert outcome in (Unavailable, None), "an error of ours, unless the call is not made"
    assert await place.seen("web") == [b"old"]
    await place.restart().prepare()
    await copy_volume(place)
    assert await place.seen("new") == [b"old"]
    assert [line async for line in place.pool.verify(thorough=True)] == []


@pytest.mark.fault(12)
async def test_a_file_system_that_takes_no_more_leaves_nothing_half_made(place: Place) -> None:
    """A short write: what the kernel takes of the file ends before our data do."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    try:
        outcome = await refused(create(place)), await refused(snapshot(place))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome == (Unavailable, Unavailable)
    assert set(await place.pool.usage()) == {"web"}
    assert [path.name for path in place.files.disks.iterdir()] == ["web"]
    assert list(place.files.snapshots.iterdir()) == []
    assert await place.seen("web") == [b"old"]


@pytest.mark.fault(2)
async def test_a_volume_that_a_qemu_has_open_is_not_touched_whoever_started_it(place: Place) -> None:
    with place.files.disk("web").disk.open("r+b") as file:
        qemu_locks(file.fileno())
        place.restart()
        for verb in (resize, snapshot, remove, copy_volume):
            assert await refused(verb(place)) is Conflict
    await resize(place)


def qemu_locks(descriptor: int) -> None:
    """A lock on the byte by which QEMU says that it writes."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("@hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))


async def test_another_daemons_pool_and_one_that_is_not_mounted_are_refused(tmp_path: Path) -> None:
    place, disk = Place(tmp_path), str(tmp_path / "disk")
    mine = DirectoryPool(place.paths, POOL, disk, lambda digest: None)
    await mine.prepare()
    other = DirectoryPool(Paths(tmp_path / "other", tmp_path / "other"), "other", disk, lambda digest: None)
    with pytest.raises(Conflict, match="belongs to another pool"):
        await other.prepare()
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    with pytest.raises(Unavailable, match="is not there"):
        await mine.prepare()
    assert not (tmp_path / "disk").exists(), "no second pool begins where the first one is to be mounted"


async def remove_one(place: Place) -> None:
    await place.pool.remove_snapshot("one")


async def test_nothing_is_taken_for_removed_while_the_pool_is_not_mounted(place: Place) -> None:
    await snapshot(place)
    root = place.files.root
    root.rename(root.with_name("unmounted"))
    root.mkdir()
    for verb in (create, remove, resize, remove_one):
        assert await refused(verb(place)) is Unavailable
    root.rmdir()
    root.with_name("unmounted").rename(root)
    await remove(place)
    assert not place.files.disk("web").keep.exists()


async def test_a_long_chain_is_made_short_when_nobody_uses_the_volume(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[int] = []

    async def copy(chain: Any, target: Path, *_: object) -> None:
        copied.append(len(chain.files))

    monkeypatch.setattr("roost.storage.imagetool.copy", copy)
    for number in range(LONGEST + 1):
        await place.pool.snapshot("web", f"s{number}")
    await place.pool.hold("web")
    await place.pool.tend("web")
    await place.pool.release("web")
    assert copied == []
    await place.pool.tend("web")
    assert copied == [LONGEST + 2]
    async with place.pool.opened("web") as opened:
        assert opened.below == ()
    assert await place.seen(f"s{LONGEST}") == [b"old"]


async def test_what_can_not_be_is_refused(place: Place) -> None:
    assert await refused(place.pool.create("new", SIZE // 2, Origin("volume", "web"))) is Invalid
    assert await refused(place.pool.create("new", None, Origin("image", "sha256:none"))) is Unavailable
    assert await refused(place.pool.snapshot("nowhere", "one")) is NotFound
    assert [path.name for path in place.files.disks.iterdir()] == ["web"]


def test_a_lock_of_ours_is_none_of_others(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    assert not files.is_locked(disk, 100, 200)
    with disk.open("r+b") as file:
        qemu_locks(file.fileno())
        assert files.is_locked(disk, 100, 200)
        assert not files.is_locked(disk, 200, 100)
