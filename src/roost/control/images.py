"""The reconciler of images: fetches or builds what a spec names, shows how far it is, and removes what nobody uses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Set
from functools import partial
from typing import NamedTuple, NoReturn, Protocol

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.records import Records, read
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.model import codec
from roost.model.image import Image, ImageStatus
from roost.model.kinds import BY_NAME, prefix_of
from roost.model.machine import Machine
from roost.model.meta import Arch, Trouble
from roost.model.snapshot import Snapshot
from roost.storage.manifest import Manifest, Progress

_IN_USE_DELAY = 10.0
"""Seconds until a deletion that waits for machines looks again."""

_SHOW = 0.5
"""At most two writes of a progress a second."""

_GRACE = 3600.0
"""Seconds an image without an owner stays: one that was just made gets its owner a moment later."""


class Pool(Protocol):
    """What the reconciler needs of storage.images.Images."""

    async def ensure_template(self, name: str, arch: Arch, progress: Progress) -> Manifest:
        """Build or download a template."""
        ...

    async def ensure_url(self, url: str, sha256: str, limit: int, progress: Progress) -> Manifest:
        """Download a disk."""
        ...

    def find(self, digest: str) -> Manifest | None:
        """The manifest of an image that is there."""
        ...

    def is_current(self, name: str, arch: Arch, digest: str) -> bool:
        """Whether `digest` is what the template would be made into now."""
        ...

    async def delete(self, digest: str) -> None:
        """Remove an image."""
        ...

    async def collect(self, keep: set[str], older_than: float) -> None:
        """Remove the images that are not in `keep` and older than so many seconds."""
        ...


class Stands(Protocol):
    """What stands on images besides the machines of the store."""

    def images(self) -> set[str]:
        """The digests that layers and disks stand on."""
        ...

    def snapshots(self, digest: str) -> Set[str]:
        """The uids of the snapshots that stand on this image."""
        ...

    async def forget_image(self, digest: str) -> None:
        """The image is going: what is only a cache makes way."""
        ...


class Parts(NamedTuple):
    """What it works upon. `arch` is the host's."""

    pool: Pool
    arch: Arch
    stands: Stands


class ImageReconciler:
    """Brings image objects from pending to ready, and deleted ones out of the pool.

    `show` is the seconds between two writes of a progress.
    """

    def __init__(self, records: Records, recorder: Recorder, parts: Parts, *, show: float = _SHOW) -> None:
        self._records = records
        self._store = records.store
        self._pool = parts.pool
        self._recorder = recorder
        self._arch = parts.arch
        self._stands = parts.stands
        self._pause = show
        self._collected = -_GRACE

    async def reconcile(self, key: str) -> None:
        """Bring one image to what is wanted. Raises Retry."""
        try:
            image = await self._records.image(key)
        except NotFound:
            return
        if image.meta.deleting is not None:
            await self._remove(key, image)
        elif self._is_settled(image):
            await self._collect()
        else:
            await self._make(key, image)

    async def finish_upload(self, key: str, manifest: Manifest) -> Image:
        """Note that the upload for the image at `key` is complete and in the pool. Raises NotFound, Conflict (it is no upload)."""
        image = await self._records.image(key)
        if not image.spec.upload:
            raise Conflict(
                f'image "{image.name}" takes no upload', "its spec names another source", "create one with upload: true"
            )
        return await self._ready(key, manifest)

    def _is_settled(self, image: Image) -> bool:
        """Whether there is nothing to do: failed for this spec, waiting for an upload, or ready with what the spec names now."""
        status, spec = image.status, image.spec
        if spec.upload and not status.digest:
            return True
        if status.generation != image.meta.generation:
            return False
        if status.phase == "failed":
            return True
        if status.phase != "ready" or self._pool.find(status.digest) is None:
            return False
        return spec.template is None or self._pool.is_current(spec.template, spec.arch or self._arch, status.digest)

    async def _make(self, key: str, image: Image) -> None:
        """Fetch or build it, showing how far it is; a deletion meanwhile ends the work."""
        if image.spec.upload:
            if self._pool.find(image.status.digest) is None:
                await self._failed(
                    key, Conflict(f'image "{image.name}" is lost', "its files are gone", "upload it again")
                )
            else:
                await self._show(key, lambda status: replace(status, generation=image.meta.generation))
            return
        news = _News()
        building = {"phase": "building", "generation": image.meta.generation, "error": None}
        await self._show(key, lambda status: replace(status, **building))
        manifest, failure = await self._attempt(key, image, news)
        if manifest is not None:
            await self._ready(key, manifest)
        elif failure is not None:
            await self._failed(key, failure)
        else:
            raise Retry("it was deleted while it was made", after=0.0)

    async def _attempt(self, key: str, image: Image, news: _News) -> tuple[Manifest | None, RoostError | None]:
        """The manifest, or what went wrong, or neither when the object was deleted meanwhile."""
        manifest: Manifest | None = None
        failure: RoostError | None = None
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell(key, news))
                manifest = await self._ensure(image, news.report)
                telling.cancel()
        except* _Gone:
            manifest = None
        except* RoostError as failures:
            failure = _first(failures)
        return manifest, failure

    async def _ensure(self, image: Image, progress: Progress) -> Manifest:
        spec = image.spec
        if spec.template is not None:
            return await self._pool.ensure_template(spec.template, spec.arch or self._arch, progress)
        return await self._pool.ensure_url(spec.url or "", spec.sha256 or "", spec.limit, progress)

    async def _tell(self, key: str, news: _News) -> NoReturn:
        """Write the progress as it changes, at most twice a second."""
        while True:
            await asyncio.sleep(self._pause)
            text, fraction = news.latest
            shown = await self._show(key, partial(replace, progress=text, fraction=fraction))
            if shown is None or shown.meta.deleting is not None:
                raise _Gone

    async def _ready(self, key: str, manifest: Manifest) -> Image:
        shown = await self._show(
            key,
            lambda status: ImageStatus(
                phase="ready",
                generation=status.generation,
                digest=manifest.digest,
                arch=manifest.arch,
                size=manifest.size,
                virtual_size=manifest.virtual_size,
                firmwares=manifest.firmwares,
                hardware=manifest.hardware,
            ),
            settle=True,
        )
        if shown is None:
            raise NotFound(f"{key} does not exist any more")
        await self._recorder.record(shown, "ImageReady", f"{shown.name} is ready: {manifest.digest}")
        return shown

    async def _failed(self, key: str, error: RoostError) -> None:
        trouble = Trouble(what=error.what, why=error.why, fix=error.fix, code=error.code)
        shown = await self._show(
            key,
            lambda status: replace(status, phase="failed", error=trouble, progress="", fraction=None),
            settle=True,
        )
        if shown is not None:
            await self._recorder.record(shown, "ImageFailed", f"{error.what}: {error.why}", level="error")

    async def _show(
        self, key: str, change: Callable[[ImageStatus], ImageStatus], *, settle: bool = False
    ) -> Image | None:
        """Write a changed status (`settle`: for the present generation), None when the image is gone."""
        while True:
            try:
                before = await self._records.image(key)
                status = change(before.status)
                if settle:
                    status = replace(status, generation=before.meta.generation)
                after = replace(before, status=status)
                if after == before:
                    return before
                revision = await self._store.put(key, codec.encode(after), expect=before.meta.revision)
                return replace(after, meta=replace(after.meta, revision=revision))
            except Conflict:
                continue
            except NotFound:
                return None

    async def _remove(self, key: str, image: Image) -> None:
        """Out of the pool when nothing uses it, then out of the store."""
        digest = image.status.digest
        if digest:
            await self._stands.forget_image(digest)
            users = await self._users(digest)
            if users:
                trouble = Trouble(
                    what=f'image "{image.name}" is not deleted yet',
                    why=f"it is in use by: {', '.join(users[:5])}",
                    fix="delete these; the image then goes by itself",
                    code=Conflict.code,
                )
                await self._show(key, lambda status: replace(status, error=trouble))
                raise Retry(trouble.why, after=_IN_USE_DELAY)
            if not await self._shared(key, digest):
                await self._pool.delete(digest)
        with contextlib.suppress(Conflict):  # changed meanwhile: the change wakes us again
            await self._records.remove(key, image.meta.revision)

    async def _users(self, digest: str) -> list[str]:
        """The machines and snapshots, of any project, whose disk lies over the image."""
        entries, _ = await self._store.list(prefix_of(BY_NAME["machine"]))
        machines = (read(entry, Machine) for entry in entries)
        users = [f"{machine.project}/{machine.name}" for machine in machines if machine.status.image == digest]
        kept = self._stands.snapshots(digest)
        users += [f"snapshot {it.project}/{it.name}" for it in await self._records.all(Snapshot) if it.meta.uid in kept]
        if not users and digest in await asyncio.to_thread(self._stands.images):
            return ["a disk that is just going"]
        return users

    async def _shared(self, key: str, digest: str) -> bool:
        """Whether another image object has the same content."""
        entries, _ = await self._store.list(prefix_of(BY_NAME["image"]))
        return any(entry.key != key and read(entry, Image).status.digest == digest for entry in entries)

    async def _collect(self) -> None:
        """Now and then: remove what templates of an earlier version left in the pool and no machine uses any more."""
        if time.monotonic() - self._collected < _GRACE:
            return
        self._collected = time.monotonic()
        images, _ = await self._store.list(prefix_of(BY_NAME["image"]))
        machines, _ = await self._store.list(prefix_of(BY_NAME["machine"]))
        keep = {read(entry, Image).status.digest for entry in images}
        keep |= {read(entry, Machine).status.image for entry in machines}
        with contextlib.suppress(Unavailable):  # a pool of volumes is not open yet: what stands on images is not known
            keep |= await asyncio.to_thread(self._stands.images)
            await self._pool.collect(keep, _GRACE)


class _Gone(Exception):
    """The object was deleted while its image was made."""


class _News:
    """The latest progress of a build."""

    def __init__(self) -> None:
        self.latest: tuple[str, float | None] = ("", None)

    def report(self, text: str, fraction: float | None) -> None:
        """Take note; called as often as the builder likes."""
        self.latest = text, fraction if fraction is None else round(fraction, 3)


def _first(group: BaseExceptionGroup[RoostError]) -> RoostError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
