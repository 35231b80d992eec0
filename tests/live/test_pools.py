"""The directory pool with real qemu-img: what was written is read again through snapshots, copies, keys and kills, on a disk that is full too."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.errors import Conflict, Forbidden, Unavailable
from roost.host.paths import Paths
from roost.storage import formats, imagetool, overlays
from roost.storage.directory import DirectoryPool
from roost.storage.layers import LONGEST
from roost.storage.pool import Opened, Origin
from roost.testing.pools import KEY, OTHER, refused
from tests.needs import needs_program, needs_root
from tests.stops import stopped_after

pytestmark = [needs_program("qemu-img", "qemu-io")]

MiB = 1 << 20
SIZE = 32 * MiB
CANARY = b"what the guest wrote, which nobody without the key may read....."


class Place:
    """A pool, and a guest that writes to its volumes by qemu-io."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.paths = Paths(directory / "state", directory / "run")
        self.canary = directory / "canary"
        self.canary.write_bytes(CANARY * 1024)
        (directory / "key").write_bytes(KEY)
        (directory / "other").write_bytes(OTHER)
        self.pool = self.restart()

    def restart(self) -> DirectoryPool:
        """Another daemon, which remembers nothing."""
        self.pool = DirectoryPool(self.paths, "the-pool", str(self.directory), lambda digest: None)
        return self.pool

    def words(self, opened: Opened) -> list[str]:
        """What a tool outside of the jail is told."""
        names = {str(path): path for path in (opened.file, *opened.below) if path is not None}
        if opened.key is None:
            return [imagetool.node(names, "qcow2", "")]
        secret = self.directory / ("key" if opened.key == KEY else "other")
        return ["--object", f"secret,id=key,file={secret}", imagetool.node(names, "qcow2", "key")]

    async def write(self, uid: str, at: int, key: bytes | None = None) -> None:
        """The canary, 64 KiB of it, at this MiB."""
        async with self.pool.opened(uid, key) as opened:
            run("qemu-io", "-c", f"write -s {self.canary} {at}M 64k", "-c", "flush", *self.words(opened))

    async def seen(self, uid: str, key: bytes | None = None) -> list[int]:
        """At which MiB the canary is."""
        async with self.pool.opened(uid, key) as opened:
            raw = self.directory / f"raw-{uuid.uuid4()}"
            run("qemu-img", "convert", "-O", "raw", *self.words(opened), raw)
        data = raw.read_bytes()
        raw.unlink()
        whole = self.canary.read_bytes()
        return [at for at in range(len(data) // MiB) if data[at * MiB :].startswith(whole)]


def run(*argv: object) -> str:
    return subprocess.run([str(word) for word in argv], check=True, capture_output=True, text=True, timeout=60).stdout


MADE: dict[tuple[int, bytes], bytes] = {}


@pytest.fixture(autouse=True)
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU takes 2 s for each new header: every size and key has one here, as a copy has that of its origin."""
    make = imagetool.make_locked

    async def make_once(target: Path, size: int, key: bytes, pipes: Path) -> None:
        if (size, key) not in MADE:
            await make(target, size, key, pipes)
            MADE[size, key] = target.read_bytes()
        target.write_bytes(MADE[size, key])
        target.chmod(0o600)

    monkeypatch.setattr(imagetool, "make_locked", make_once)


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    made = Place(tmp_path)
    await made.pool.prepare()
    return made


@pytest.mark.fault(9)
async def test_a_long_chain_holds_what_was_written_and_is_made_short(place: Place) -> None:
    await place.pool.create("web", SIZE)
    for number in range(LONGEST + 1):
        await place.write("web", number)
        await place.pool.snapshot("web", f"s{number}")
    await place.pool.tend("web")
    async with place.pool.opened("web") as opened:
        assert opened.below == ()
    assert await place.seen("web") == list(range(LONGEST + 1))
    assert await place.seen("s3") == [0, 1, 2, 3]
    await place.pool.resize("web", 2 * SIZE)
    await place.write("web", 60)
    assert (await place.seen("web"))[-1] == 60
    run("qemu-img", "check", place.pool._files.disk("web").disk)


async def test_what_is_grown_by_its_header_is_whole_and_reads_as_zeros(place: Place) -> None:
    await place.pool.create("web", SIZE)
    await place.write("web", 1)
    await place.pool.resize("web", 3 << 40)
    await place.pool.resize("web", 9 << 40)
    disk = place.pool._files.disk("web").disk
    run("qemu-img", "check", disk)
    assert json.loads(run("qemu-img", "info", "--output=json", disk))["virtual-size"] == 9 << 40
    mapped = json.loads(run("qemu-img", "map", "--output=json", disk))
    assert [(part["start"], part["length"]) for part in mapped if part["data"]] == [(MiB, 65536)]


@pytest.mark.fault(18)
@pytest.mark.fault(87)
async def test_an_encrypted_volume_is_read_with_its_key_alone_and_its_copies_too(place: Place) -> None:
    await place.pool.create("web", SIZE, None, KEY)
    await place.write("web", 0, KEY)
    await place.pool.snapshot("web", "one")
    await place.write("web", 2, KEY)
    await place.pool.create("copy", None, Origin("snapshot", "one"), KEY)
    await place.write("copy", 3, KEY)
    assert await place.seen("web", KEY) == [0, 2]
    assert await place.seen("copy", KEY) == [0, 3]
    for wrong in (OTHER, None):
        for uid in ("web", "one", "copy"):
            with pytest.raises(Forbidden) as caught:
                await place.pool.hold(uid, wrong)
            assert b"canary" not in str(caught.value).encode()
    await place.pool.rekey("web", KEY, OTHER)
    assert await place.seen("web", OTHER) == [0, 2]
    assert await place.seen("one", KEY) == [0]
    assert await refused(place.pool.hold("web", KEY)) is Forbidden
    stored = [path for top in (place.paths.state, place.paths.run, place.pool._files.root) for path in top.rglob("*")]
    contents = [path.read_bytes() for path in stored if path.is_file()]
    assert [found for found in contents if CANARY in found or KEY in found or OTHER in found] == []


@pytest.mark.fault(18)
async def test_a_volume_that_stands_on_nothing_changes_its_key_in_place(place: Place) -> None:
    await place.pool.create("web", SIZE, None, KEY)
    await place.write("web", 1, KEY)
    for _ in range(2):
        await place.pool.rekey("web", KEY, OTHER)
    assert await refused(place.pool.hold("web", KEY)) is Forbidden
    assert await refused(place.pool.rekey("web", KEY, KEY + b"x")) is Forbidden
    assert await place.seen("web", OTHER) == [1]


@pytest.mark.fault(18)
@pytest.mark.parametrize(("at", "length"), [(0, 592), (4096, 260_000)], ids=["header", "key-material"])
async def test_a_damaged_key_header_is_an_error_and_never_garbage(place: Place, at: int, length: int) -> None:
    await place.pool.create("web", SIZE, None, KEY)
    disk = place.pool._files.disk("web").disk
    with disk.open("r+b") as file:
        file.seek(overlays.luks_header(file.read(formats.HEAD)).offset + at)
        file.write(os.urandom(length))
    assert await refused(place.pool.hold("web", KEY)) in (Forbidden, Unavailable)


@contextlib.contextmanager
def held_open(disk: Path) -> Iterator[None]:
    """A real QEMU's tool has it open meanwhile."""
    argv = ["qemu-io", "-f", "qcow2", str(disk)]
    reader = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert reader.stdout is not None
        assert reader.stdout.read(8) == b"qemu-io>"
        yield
    finally:
        reader.communicate(timeout=30)


@pytest.mark.fault(2)
async def test_a_volume_that_a_real_qemu_has_open_is_not_touched(place: Place) -> None:
    await place.pool.create("web", SIZE)
    disk = place.pool._files.disk("web").disk
    with held_open(disk):
        place.restart()
        for verb in (place.pool.resize("web", 2 * SIZE), place.pool.snapshot("web", "one"), place.pool.remove("web")):
            assert await refused(verb) is Conflict
    await place.pool.resize("web", 2 * SIZE)


@pytest.mark.fault(8)
@pytest.mark.parametrize("stop", [3, 6, 9])
async def test_a_daemon_killed_while_it_copies_for_a_new_key_leaves_the_old_one_or_the_new(
    place: Place, stop: int
) -> None:
    await place.pool.create("web", SIZE, None, KEY)
    await place.write("web", 1, KEY)
    await place.pool.snapshot("web", "one")
    with stopped_after(stop):
        await place.pool.rekey("web", KEY, OTHER)
    await place.restart().prepare()
    await place.pool.rekey("web", KEY, OTHER)
    assert await place.seen("web", OTHER) == [1]
    assert await place.seen("one", KEY) == [1]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    image, mounted = tmp_path / "fs", tmp_path / "full"
    with image.open("xb") as file:
        file.truncate(64 * MiB)
    mounted.mkdir()
    run("mkfs.ext4", "-q", "-m", "0", image)
    run("mount", "-o", "loop", image, mounted)
    try:
        yield mounted
    finally:
        run("umount", mounted)


@needs_root
@needs_program("mkfs.ext4")
@pytest.mark.fault(10)
@pytest.mark.fault(12)
async def test_on_a_full_disk_nothing_is_half_made_and_nothing_lost(
    full: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.storage.layers._ROOM", 0)
    monkeypatch.setattr("roost.storage.imagetool._RESERVE", 0)
    place = Place(full)
    await place.pool.prepare()
    await place.pool.create("web", SIZE)
    await place.write("web", 1)
    ballast = full / "ballast"
    room = await place.pool.capacity()
    with ballast.open("xb") as file:
        os.posix_fallocate(file.fileno(), 0, room.size - room.used - 8 * 1024)
    for verb in (
        place.pool.create("new", SIZE),
        place.pool.snapshot("web", "one"),
        place.pool.create("copy", None, Origin("volume", "web")),
        place.pool.create("locked", SIZE, None, KEY),
    ):
        assert await refused(verb) is Unavailable
    assert set(await place.pool.usage()) == {"web"}
    ballast.unlink()
    await place.restart().prepare()
    assert await place.seen("web") == [1]
    assert [line async for line in place.pool.verify(thorough=True)] == []
    await place.pool.snapshot("web", "one")
    assert await place.seen("one") == [1]
