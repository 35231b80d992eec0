"""The pool of immutable images on disk: made once, named by digest, visible only when whole, shared by overlays."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from roost import log
from roost.errors import Invalid, NotStarted, Unavailable
from roost.host import files
from roost.host.paths import ImageFiles, Paths
from roost.model import size as sizes
from roost.model.meta import Arch, GiB
from roost.storage import appliances, catalogue, conversion, exporting, fetch, importing, namespaces
from roost.storage.formats import Format
from roost.storage.manifest import AgentKind, Manifest, Progress
from roost.storage.ova import Appliance
from roost.storage.template import Template, Workshop
from roost.storage.templates import TEMPLATES
from roost.storage.templates import find as find_template

__all__ = ["AgentKind", "Images", "Manifest", "Progress"]

_MANIFEST_LIMIT = 1 << 20
_SUMS_LIMIT = 1 << 20
_CLOUD_LIMIT = 16 * GiB
_BLOCK = 1 << 20
_KEEP_PARTIAL = 7 * 86_400.0
"""Seconds that a download which broke off waits for its next attempt."""
_RESERVE = GiB // 2
"""Bytes of disk that no image may take: the store and running guests need them more."""

Make = Callable[[Path, ImageFiles, Progress], Awaitable[Manifest]]
"""Makes an image's files in `ImageFiles`, with a scratch directory; returns its manifest without digest and size."""


class Images:
    """The pool. Every `ensure_*` returns the manifest of an image that is there; the same wish twice at once is built once.

    `allow` are networks that downloads may reach besides the public Internet, `mirror` a Debian mirror instead of the host's sources.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        allow: Sequence[fetch.Network] = (),
        mirror: str = "",
        built: Sequence[Template] = TEMPLATES,
        cloud: Sequence[catalogue.Entry] = catalogue.ENTRIES,
    ) -> None:
        self._paths = paths
        self._allow = tuple(allow)
        self._mirror = mirror
        self._built = tuple(built)
        self._cloud = {entry.name: entry for entry in cloud}
        self._builds: dict[str, _Build] = {}

    async def sweep(self) -> None:
        """At daemon start, before anything is built: remove what an earlier daemon left half made, and what has no manifest."""
        for directory in (self._paths.images, self._paths.building, self._paths.recipes):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        oldest = time.time() - _KEEP_PARTIAL
        for leftover in self._paths.building.iterdir():
            # Partial downloads are worth keeping: they are resumed, and verified in full before use.
            if leftover.suffix != fetch.PARTIAL or leftover.stat().st_mtime < oldest:
                await namespaces.remove_tree(leftover)
        for directory in self._paths.images.iterdir():
            if not (directory / "manifest.json").exists():
                await namespaces.remove_tree(directory)
        for link in self._paths.recipes.iterdir():
            if not link.exists():
                link.unlink()

    def find(self, digest: str) -> Manifest | None:
        """The manifest of the image "sha256:...", None when it is not there."""
        return self._read(self._paths.image(digest))

    def files(self, digest: str) -> ImageFiles:
        """The files of an image."""
        return self._paths.image(digest)

    def all(self) -> list[Manifest]:
        """Every image that is there."""
        found = (self._read(ImageFiles(path)) for path in sorted(self._paths.images.glob("sha256-*")))
        return [manifest for manifest in found if manifest is not None]

    async def ensure_template(self, name: str, arch: Arch, progress: Progress) -> Manifest:
        """The template `name`, built when it is missing or its recipe has changed, or the cloud image of that name, downloaded.

        Raises NotFound, Unavailable, Invalid.
        """
        if name in self._cloud:
            return await self._ensure_cloud(self._cloud[name].locate(arch), name, arch, progress)
        template = find_template(self._built, name, arch, self._cloud)

        async def make(scratch: Path, product: ImageFiles, report: Progress) -> Manifest:
            return await template.build(template, Workshop(scratch, product, self._mirror, report))

        return await self._ensure(template.recipe(), make, template.needs, progress)

    async def ensure_url(self, url: str, sha256: str, limit: int, progress: Progress) -> Manifest:
        """The disk at `url`, at most `limit` bytes, whose SHA-256 is `sha256`. Raises Invalid (not a disk, another hash), Unavailable."""
        wish = fetch.Download(url, f"sha256:{sha256}", limit, self._allow)
        return await self._ensure_download(wish, url.rpartition("/")[2], None, progress)

    async def _ensure_cloud(self, place: catalogue.Location, name: str, arch: Arch, progress: Progress) -> Manifest:
        progress("fetching the publisher's hashes", None)
        listed = await fetch.read(fetch.Download(place.sums_url, "", _SUMS_LIMIT, self._allow))
        digest = catalogue.digest_in(listed.decode(errors="replace"), place.file, place.algorithm)
        wish = fetch.Download(place.url, digest, _CLOUD_LIMIT, self._allow)
        return await self._ensure_download(wish, name, arch, progress)

    async def _ensure_download(
        self, wish: fetch.Download, name: str, arch: Arch | None, progress: Progress
    ) -> Manifest:
        recipe = wish.digest.replace(":", "-")

        async def make(scratch: Path, product: ImageFiles, report: Progress) -> Manifest:
            partial = self._paths.building / f"{recipe}{fetch.PARTIAL}"
            await fetch.download(
                wish, partial, lambda done: report("downloading", done if done is None else done * 0.7)
            )
            report("checking and rewriting", 0.7)
            manifest = await importing.rewrite(
                partial, product, name, wish.limit, lambda what, done: report(what, 0.7 + 0.3 * (done or 0.0))
            )
            partial.unlink()
            return msgspec.structs.replace(manifest, arch=arch)

        return await self._ensure(recipe, make, 0, progress)

    async def ensure_upload(
        self,
        stream: AsyncIterator[bytes],
        limit: int,
        progress: Progress,
        *,
        name: str = "upload",
        sha256: str | None = None,
    ) -> Manifest:
        """The disk that `stream` delivers, at most `limit` bytes, checked against `sha256` when given.

        Raises Invalid (too large, another hash, not a disk), Unavailable.
        """
        async with self._directory() as scratch:
            upload = scratch / "upload"
            digest = await self._receive(stream, upload, limit, progress)
            if sha256 is not None and digest != sha256:
                raise Invalid(
                    "the upload is not what it should be", f"its sha256 is {digest}, not {sha256}", "upload it again"
                )

            async def make(_: Path, product: ImageFiles, report: Progress) -> Manifest:
                report("checking and rewriting", None)
                draft = await importing.rewrite(upload, product, name, limit, report)
                return await appliances.look(upload, product, draft)

            return await self._ensure(f"sha256-{digest}", make, 0, progress)

    async def export(self, digest: str, format: Format, name: str) -> AsyncIterator[bytes]:
        """The disk of an image in another format than its own, as a stream; nothing of it stays. Raises Invalid, Unavailable."""
        manifest = self.find(digest)
        disk = conversion.whole(self.files(digest).disk, "qcow2", manifest.virtual_size if manifest is not None else 0)
        async with self._directory() as scratch:
            return await exporting.stream(disk, scratch, format, name)

    async def export_disk(self, disk: conversion.Disk, format: Format, name: str) -> AsyncIterator[bytes]:
        """A disk that stands anywhere, whole and in one format, as a stream; nothing of it stays. Raises Invalid, Unavailable."""
        async with self._directory() as scratch:
            return await exporting.stream(disk, scratch, format, name)

    async def export_appliance(self, disk: conversion.Disk, machine: Appliance) -> AsyncIterator[bytes]:
        """An OVA of a machine with this one disk, as a stream; nothing of it stays. Raises Invalid, Unavailable."""
        async with self._directory() as scratch:
            return await appliances.stream(disk, scratch, machine)

    def templates(self) -> list[str]:
        """The names of everything that `ensure_template` makes or fetches, those built here first."""
        return list(dict.fromkeys((*(template.name for template in self._built), *self._cloud)))

    def offers(self, name: str, arch: Arch) -> bool:
        """Whether `name` is a template or a cloud image that can be had for `arch`."""
        if name in self._cloud:
            return arch in self._cloud[name].arches
        return any(template.name == name and template.arch == arch for template in self._built)

    def is_current(self, name: str, arch: Arch, digest: str) -> bool:
        """Whether the image `digest` is what the template `name` would be made into now; cloud images stay what they were."""
        if name in self._cloud:
            return self.find(digest) is not None
        made = self._made(find_template(self._built, name, arch).recipe())
        return made is not None and made.digest == digest

    async def delete(self, digest: str) -> None:
        """Remove the image; nothing when it is gone already. The caller knows that no machine uses it."""
        directory = self._paths.image(digest).directory
        doomed = self._paths.building / f"deleted-{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):
            directory.rename(doomed)
            await asyncio.to_thread(files.remove_tree, doomed)
        for link in self._paths.recipes.iterdir():
            if not link.exists():
                link.unlink()

    async def collect(self, keep: set[str], older_than: float) -> None:
        """Remove the images whose digest is not in `keep` and that are older than `older_than` seconds."""
        for manifest in self.all():
            age = time.time() - self.files(manifest.digest).manifest.stat().st_mtime
            if manifest.digest not in keep and age > older_than:
                log.get(__name__).info("image removed: nothing uses it", digest=manifest.digest, image=manifest.name)
                await self.delete(manifest.digest)

    async def _ensure(self, recipe: str, make: Make, needs: int, progress: Progress) -> Manifest:
        """What `recipe` made, made now when it is not there."""
        found = self._made(recipe)
        if found is not None:
            return found
        build = self._builds.get(recipe)
        if build is None:
            build = self._builds[recipe] = _Build()
            task = log.spawn_task(build.run(self._build(recipe, make, needs, build.report)), f"image {recipe[:12]}")
            task.add_done_callback(lambda _: self._forget(recipe, build))

            def abandon() -> None:
                self._forget(recipe, build)
                task.cancel()

            build.abandon = abandon
        return await build.join(progress)

    def _forget(self, recipe: str, build: _Build) -> None:
        """A build that ended, or is being cancelled, is not one to join: the next wish starts anew."""
        if self._builds.get(recipe) is build:
            del self._builds[recipe]

    def _made(self, recipe: str) -> Manifest | None:
        return self._read(ImageFiles(self._paths.recipes / recipe))

    def _read(self, image: ImageFiles) -> Manifest | None:
        try:
            return msgspec.json.decode(files.read_bounded(image.manifest, _MANIFEST_LIMIT), type=Manifest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.MsgspecError as error:
            raise Unavailable(
                f"image {image.directory.name} cannot be read", f"its manifest: {error}", f"rm -r {image.directory}"
            ) from error

    async def _build(self, recipe: str, make: Make, needs: int, report: Progress) -> Manifest:
        async with self._directory() as scratch:
            self._check_space(needs)
            product = ImageFiles(scratch / "image")
            product.directory.mkdir(mode=0o755)
            try:
                draft = await make(scratch, product, report)
            except OSError as error:
                raise Unavailable("the image was not made", str(error), f"df -h {self._paths.state}") from error
            manifest = await asyncio.to_thread(_seal, draft, product)
            return await asyncio.to_thread(self._publish, manifest, product, recipe)

    def _publish(self, manifest: Manifest, product: ImageFiles, recipe: str) -> Manifest:
        """Make the image visible: one rename, then the link from its recipe. A crash between the two costs a second build, no more."""
        target = self._paths.image(manifest.digest)
        if not target.manifest.exists():
            with contextlib.suppress(FileNotFoundError):
                files.remove_tree(target.directory)
            product.directory.rename(target.directory)
            files.sync_directory(self._paths.images)
        link = self._paths.building / f"link-{uuid.uuid4().hex}"
        link.symlink_to(Path("..") / self._paths.images.name / target.directory.name)
        link.rename(self._paths.recipes / recipe)
        files.sync_directory(self._paths.recipes)
        return self._read(target) or manifest

    @contextlib.asynccontextmanager
    async def _directory(self) -> AsyncIterator[Path]:
        """A scratch directory that is removed whatever happens (after a kill: by `sweep`)."""
        for parent in (self._paths.building, self._paths.images, self._paths.recipes):
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = self._paths.building / uuid.uuid4().hex
        scratch.mkdir(mode=0o700)
        try:
            yield scratch
        finally:
            await asyncio.shield(namespaces.remove_tree(scratch))

    def _check_space(self, needs: int) -> None:
        free = files.free_space(self._paths.building)
        if free < needs + _RESERVE:
            raise Unavailable(
                "the image cannot be made: the disk is too full",
                f"{sizes.show(needs + _RESERVE)} are needed below {self._paths.state}, {sizes.show(free)} are free",
                f"remove images (roost image delete NAME) or make room: du -xh --max-depth=2 {self._paths.state}",
            )

    async def _receive(self, stream: AsyncIterator[bytes], target: Path, limit: int, progress: Progress) -> str:
        """Write the stream to `target`; its SHA-256. A whole pipeline's back-pressure: the next block is asked for when this is written."""
        digest, written = hashlib.sha256(), 0
        with target.open("xb") as file:
            async for block in stream:
                written += len(block)
                if written > limit:
                    raise Invalid(
                        "the upload is too large", f"more than the {sizes.show(limit)} allowed", "raise spec.limit"
                    )
                self._check_space(len(block))
                await asyncio.to_thread(_write, file, block, digest)
                progress(f"received {sizes.show(written)}", None)
        return digest.hexdigest()


class _Build:
    """One build and all who wait for it. Who gives up waiting leaves; when the last has left, the build is cancelled."""

    def __init__(self) -> None:
        self._done: asyncio.Future[Manifest] = asyncio.get_running_loop().create_future()
        self._waiters: list[Progress] = []
        self._last: tuple[str, float | None] = ("waiting", None)
        self.abandon: Callable[[], None] = lambda: None

    def report(self, text: str, fraction: float | None) -> None:
        """Tell everyone who waits how far it is."""
        self._last = (text, fraction)
        for waiter in self._waiters:
            waiter(text, fraction)

    async def run(self, build: Coroutine[Any, Any, Manifest]) -> None:
        """Do it; the outcome goes to those who wait, not to the log."""
        try:
            self._done.set_result(await build)
        except asyncio.CancelledError:
            self._done.set_exception(NotStarted("the image was not made", "the build was stopped"))
            self._done.exception()
            raise
        except Exception as error:
            self._done.set_exception(error)
            self._done.exception()  # retrieved: with all waiters gone nobody else does

    async def join(self, progress: Progress) -> Manifest:
        """Wait for the outcome. Raises what the build raised."""
        self._waiters.append(progress)
        progress(*self._last)
        try:
            return await asyncio.shield(self._done)
        finally:
            self._waiters.remove(progress)
            if not self._waiters and not self._done.done():
                self.abandon()


def _seal(draft: Manifest, product: ImageFiles) -> Manifest:
    """Make the files durable and read-only, and write the manifest, last."""
    present = [product.kernel, product.initramfs] if draft.format == "none" else [product.disk]
    digest = hashlib.sha256()
    for path in present:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    size = 0
    for path in product.directory.iterdir():
        path.chmod(0o444)
        size += path.stat().st_blocks * 512
        with path.open("rb") as file:
            os.fsync(file.fileno())
    manifest = msgspec.structs.replace(draft, digest=f"sha256:{digest.hexdigest()}", size=size)
    files.atomic_write(product.manifest, msgspec.json.format(msgspec.json.encode(manifest)), 0o444)
    return manifest


def _write(file: BinaryIO, block: bytes, digest: hashlib._Hash) -> None:
    file.write(block)
    digest.update(block)
