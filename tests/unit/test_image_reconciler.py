"""The reconciler of images, over a memory store and a pool that does what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.images import ImageReconciler, Parts
from roost.control.records import Records
from roost.errors import Conflict, NotFound, Unavailable
from roost.host.clock import SystemClock
from roost.model import codec
from roost.model.event import Event
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.machine import Machine, MachineSpec, MachineStatus
from roost.model.meta import Arch, Meta
from roost.model.snapshot import Snapshot, SnapshotSpec
from roost.storage.manifest import Manifest, Progress
from roost.store.memory import MemoryStore

KEY = "images/default/tiny"
SHA = "ab" * 32


def manifest(digest: str = "sha256:1") -> Manifest:
    return Manifest(
        digest=digest,
        name="tiny",
        arch="x86_64",
        format="none",
        size=7,
        virtual_size=8,
        firmwares=("direct",),
        agent="roost",
    )


class FakePool:
    """A pool in memory: `outcome` is what the next wish gets."""

    def __init__(self) -> None:
        self.outcome: Callable[[Progress], Manifest] = lambda _: manifest()
        self.hold: asyncio.Event | None = None
        self.there = {"sha256:1": manifest()}
        self.wishes: list[tuple[str, ...]] = []
        self.current = True

    async def ensure_template(self, name: str, arch: Arch, progress: Progress) -> Manifest:
        return await self._make(("template", name, arch), progress)

    async def ensure_url(self, url: str, sha256: str, limit: int, progress: Progress) -> Manifest:
        return await self._make(("url", url, sha256), progress)

    async def _make(self, wish: tuple[str, ...], progress: Progress) -> Manifest:
        self.wishes.append(wish)
        progress("unpacking", 0.25)
        if self.hold is not None:
            await self.hold.wait()
        made = self.outcome(progress)
        self.there[made.digest] = made
        return made

    def find(self, digest: str) -> Manifest | None:
        return self.there.get(digest)

    def is_current(self, name: str, arch: Arch, digest: str) -> bool:
        return self.current

    async def delete(self, digest: str) -> None:
        self.there.pop(digest, None)

    async def collect(self, keep: set[str], older_than: float) -> None:
        for digest in {digest for digest in self.there if digest.endswith("old")} - keep:
            del self.there[digest]


class FakeStands:
    """What stands on images: as told."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.kept: set[str] = set()
        self.forgotten: list[str] = []

    def images(self) -> set[str]:
        return self.there

    def snapshots(self, digest: str) -> set[str]:
        return self.kept

    async def forget_image(self, digest: str) -> None:
        self.forgotten.append(digest)


class World:
    """A store, a pool, and the reconciler between them."""

    def __init__(self) -> None:
        self.store = MemoryStore(SystemClock())
        self.pool = FakePool()
        self.stands = FakeStands()
        self.records = Records(self.store)
        self.reconciler = ImageReconciler(
            self.records, Recorder(self.store), Parts(self.pool, "x86_64", self.stands), show=0.001
        )

    async def put(self, key: str, thing: Image | Machine) -> None:
        await self.store.put(key, codec.encode(thing))

    async def image(self, key: str = KEY) -> Image:
        return await self.records.image(key)

    async def reasons(self) -> list[str]:
        entries, _ = await self.store.list("events/")
        return [codec.stored(entry.value or b"", Event).spec.reason for entry in entries]


PENDING = ImageStatus()


def image(deleting: str | None = None, status: ImageStatus = PENDING, **spec: object) -> Image:
    return Image(
        name="tiny",
        meta=Meta(uid="u", deleting=deleting),
        spec=ImageSpec(**(spec or {"template": "tiny"})),
        status=status,
    )  # type: ignore[arg-type]


READY = ImageStatus(
    phase="ready", generation=1, digest="sha256:1", arch="x86_64", size=7, virtual_size=8, firmwares=("direct",)
)


@pytest.fixture
async def world() -> World:
    return World()


async def test_a_template_becomes_ready_with_what_its_manifest_says(world: World) -> None:
    await world.put(KEY, image())
    await world.reconciler.reconcile(KEY)
    assert (await world.image()).status == READY
    assert world.pool.wishes == [("template", "tiny", "x86_64")]
    assert await world.reasons() == ["ImageReady"]


async def test_a_url_is_fetched_with_its_hash(world: World) -> None:
    await world.put(KEY, image(url="http://x/y", sha256=SHA))
    await world.reconciler.reconcile(KEY)
    assert world.pool.wishes == [("url", "http://x/y", SHA)]


async def test_the_progress_is_shown_while_it_is_made(world: World) -> None:
    world.pool.hold = asyncio.Event()
    await world.put(KEY, image())
    work = asyncio.ensure_future(world.reconciler.reconcile(KEY))
    async with asyncio.timeout(5):
        async for _ in world.store.watch(KEY, since=0):
            if (await world.image()).status.progress:
                break
    shown = (await world.image()).status
    world.pool.hold.set()
    await work
    assert (shown.phase, shown.progress, shown.fraction) == ("building", "unpacking", 0.25)
    assert (await world.image()).status.progress == ""


async def test_a_failure_is_kept_with_its_fix_and_not_tried_again_by_itself(world: World) -> None:
    def fails(_: Progress) -> Manifest:
        raise Unavailable("no mmdebstrap", "not installed", "sudo apt-get install mmdebstrap")

    world.pool.outcome = fails
    await world.put(KEY, image())
    await world.reconciler.reconcile(KEY)
    await world.reconciler.reconcile(KEY)
    status = (await world.image()).status
    assert (status.phase, status.error and status.error.fix) == ("failed", "sudo apt-get install mmdebstrap")
    assert (len(world.pool.wishes), await world.reasons()) == (1, ["ImageFailed"])


async def test_a_changed_spec_is_tried_again_after_a_failure(world: World) -> None:
    failed = ImageStatus(phase="failed", generation=1)
    changed = Image(name="tiny", meta=Meta(uid="u", generation=2), spec=ImageSpec(template="tiny"), status=failed)
    await world.put(KEY, changed)
    await world.reconciler.reconcile(KEY)
    assert ((await world.image()).status.phase, (await world.image()).status.generation) == ("ready", 2)


async def test_what_is_ready_is_left_alone(world: World) -> None:
    await world.put(KEY, image(status=READY))
    before = (await world.image()).meta.revision
    await world.reconciler.reconcile(KEY)
    assert ((await world.image()).meta.revision, world.pool.wishes) == (before, [])


async def test_a_ready_image_whose_files_are_gone_is_made_again(world: World) -> None:
    world.pool.there.clear()
    await world.put(KEY, image(status=READY))
    await world.reconciler.reconcile(KEY)
    assert world.pool.wishes == [("template", "tiny", "x86_64")]


async def test_a_template_whose_recipe_changed_is_made_again(world: World) -> None:
    world.pool.current = False
    world.pool.outcome = lambda _: manifest("sha256:2")
    await world.put(KEY, image(status=READY))
    await world.reconciler.reconcile(KEY)
    assert (await world.image()).status.digest == "sha256:2"


async def test_an_upload_waits_for_its_client_and_is_then_ready(world: World) -> None:
    await world.put(KEY, image(upload=True))
    await world.reconciler.reconcile(KEY)
    assert (await world.image()).status.phase == "pending"
    await world.reconciler.finish_upload(KEY, manifest())
    await world.reconciler.reconcile(KEY)
    assert ((await world.image()).status.phase, world.pool.wishes) == ("ready", [])


async def test_only_an_upload_takes_an_upload(world: World) -> None:
    await world.put(KEY, image())
    with pytest.raises(Conflict):
        await world.reconciler.finish_upload(KEY, manifest())


async def test_a_deleted_image_leaves_the_pool_and_the_store(world: World) -> None:
    await world.put(KEY, image(deleting="now", status=READY))
    await world.reconciler.reconcile(KEY)
    with pytest.raises(NotFound):
        await world.image()
    assert world.pool.there == {}


async def test_an_image_that_a_machine_of_any_project_uses_stays_and_says_so(world: World) -> None:
    machine = Machine(
        name="web", project="other", spec=MachineSpec(image="tiny"), status=MachineStatus(image="sha256:1")
    )
    await world.put("machines/other/web", machine)
    await world.put(KEY, image(deleting="now", status=READY))
    with pytest.raises(Retry):
        await world.reconciler.reconcile(KEY)
    error = (await world.image()).status.error
    assert error is not None
    assert "other/web" in error.why
    assert "sha256:1" in world.pool.there


@pytest.mark.fault(7)
async def test_a_deletion_waits_for_snapshots_and_names_them(world: World) -> None:
    world.stands.kept = {"kept"}
    spec = SnapshotSpec(machine="web")
    await world.put(
        "snapshots/other/web.one", Snapshot(project="other", name="web.one", meta=Meta(uid="kept"), spec=spec)
    )
    await world.put(KEY, image(deleting="now", status=READY))
    with pytest.raises(Retry):
        await world.reconciler.reconcile(KEY)
    error = (await world.image()).status.error
    assert error is not None
    assert "snapshot other/web.one" in error.why
    assert "sha256:1" in world.pool.there


async def test_content_that_another_image_has_too_stays_in_the_pool(world: World) -> None:
    await world.put("images/other/copy", image(status=READY))
    await world.put(KEY, image(deleting="now", status=READY))
    await world.reconciler.reconcile(KEY)
    assert "sha256:1" in world.pool.there


async def test_a_deletion_ends_the_building(world: World) -> None:
    world.pool.hold = asyncio.Event()
    await world.put(KEY, image())
    work = asyncio.ensure_future(world.reconciler.reconcile(KEY))
    while not world.pool.wishes:  # noqa: ASYNC110 - a turn of the loop, no time
        await asyncio.sleep(0)
    await world.put(KEY, image(deleting="now"))
    with pytest.raises(Retry):
        await asyncio.wait_for(work, 5)


async def test_what_nobody_owns_is_collected(world: World) -> None:
    world.pool.there["sha256:old"] = manifest("sha256:old")
    await world.put(KEY, image(status=READY))
    await world.reconciler.reconcile(KEY)
    assert set(world.pool.there) == {"sha256:1"}


async def test_an_image_that_is_gone_is_nothing_to_do(world: World) -> None:
    await world.reconciler.reconcile("images/default/gone")
