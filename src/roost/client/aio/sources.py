"""What machines can start from, turned into an image: a template's name, an image's name, a disk file, a URL with its sha256."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from roost.client.aio.objects import AsyncObjects
from roost.client.aio.session import AsyncSession
from roost.client.aio.wait import apart
from roost.client.progress import failed
from roost.client.protocol import Request, path
from roost.client.results import Progress
from roost.errors import Conflict, Invalid, NotFound, OutcomeUnknown
from roost.model.image import DiskFormat, Image
from roost.model.kinds import BY_NAME

PIECE = 1 << 20
_DISK = (".qcow2", ".raw", ".img", ".vmdk", ".vhd", ".vhdx", ".vdi", ".ova", ".gz", ".xz", ".zst", ".bz2")


class AsyncSources(AsyncObjects[Image]):
    """The images of a project."""

    def __init__(self, session: AsyncSession, project: str) -> None:
        super().__init__(session, BY_NAME["image"], Image, project)

    async def image_of(self, source: str, sha256: str | None, report: Callable[[str, Progress], None]) -> str:
        """The name of an image for `source`; a file is uploaded once, by its content. Raises Invalid, NotFound."""
        if source.startswith(("http://", "https://")):
            return (await self.fetch(source, sha256)).name
        if looks_like_file(source):
            return (await self.upload(Path(source), sha256=sha256, report=report)).name
        if sha256 is not None:
            raise Invalid(f"{source!r} is a template", "a sha256 belongs to a URL or a file", "leave --sha256 away")
        return source

    async def fetch(self, url: str, sha256: str | None, name: str | None = None) -> Image:
        """An image that the daemon downloads and checks against `sha256`. Raises Invalid without one, Conflict."""
        if not sha256:
            raise Invalid(
                f"{url} is not used",
                "nobody could tell whether it delivers what you mean",
                "add --sha256 with its checksum",
            )
        sha256 = sha256.lower().removeprefix("sha256:")
        name = name or image_name(posixpath.basename(urlsplit(url).path), sha256)
        return await self._ensure(name, {"url": url, "sha256": sha256})

    async def upload(
        self, file: Path, *, name: str | None = None, sha256: str | None = None, report: Callable[[str, Progress], None]
    ) -> Image:
        """An image with the content of a disk file of this computer. Raises NotFound, Invalid (no disk, or another checksum), Conflict."""
        if not file.is_file():
            raise NotFound(f"{file} does not exist", "it is no file on this computer", "check the path")
        digest = await apart(lambda: _digest(file, report))
        if sha256 is not None and sha256.lower().removeprefix("sha256:") != digest:
            raise Invalid(f"{file} is not used", f"its sha256 is {digest}", "get the file again")
        name = name or image_name(file.name, digest)
        image = await self._ensure(name, {"upload": True, "sha256": digest})
        if image.status.phase in ("ready", "building"):
            return image
        if image.status.phase == "failed":
            raise failed(image)
        await self._session.upload(
            path("images", self._project, name, "content"), _content(file, report), "application/octet-stream"
        )
        return await self.get(name)

    async def download(
        self, name: str, file: Path, *, format: DiskFormat = "qcow2", report: Callable[[str, Progress], None]
    ) -> None:
        """Write the disk of an image to `file`, which appears when it is whole; in the format it is stored in (qcow2), also its checksum is right.

        Raises NotFound, Conflict (the image has no disk), OutcomeUnknown (the transfer broke, or another checksum).
        """
        image = await self.get(name)
        target_path = path("images", self._project, name, "content")
        report(name, Progress(f"exporting {name}"))
        answer = await self._session.open(Request("GET", f"{target_path}?format={format}"), timeout=None)
        part, digest, done = file.with_name(f".{file.name}.part"), hashlib.sha256(), 0
        try:
            with open(part, "wb") as target:
                async for piece in answer.pieces():
                    target.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    report(name, Progress(f"exporting {name}", done / max(image.status.size, done)))
            if format == "qcow2" and f"sha256:{digest.hexdigest()}" != image.status.digest:
                raise OutcomeUnknown(
                    f"image {name!r} was not exported", "what arrived has another checksum", "try again"
                )
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    async def _ensure(self, name: str, spec: dict[str, Any]) -> Image:
        try:
            return await self.create(name, spec)
        except Conflict:
            image = await self.get(name)
            if image.spec.sha256 != spec["sha256"]:
                raise
            return image


def looks_like_file(source: str) -> bool:
    """Whether a launch's first word means a file of this computer: it has a slash or a disk's suffix."""
    return "/" in source or source.endswith(_DISK)


def image_name(file: str, sha256: str) -> str:
    """An image name that says where it came from and is the same for the same content."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", Path(file).stem.lower()).strip("-._")[:60]
    return f"{stem or 'disk'}-{sha256[:12]}"


def _digest(file: Path, report: Callable[[str, Progress], None]) -> str:
    digest = hashlib.sha256()
    for piece in _read(file, "checking", report):
        digest.update(piece)
    return digest.hexdigest()


def _content(file: Path, report: Callable[[str, Progress], None]) -> Iterator[bytes]:
    return _read(file, "uploading", report)


def _read(file: Path, what: str, report: Callable[[str, Progress], None]) -> Iterator[bytes]:
    size, done = file.stat().st_size, 0
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            done += len(piece)
            report(file.name, Progress(f"{what} {file.name}", done / max(size, done)))
            yield piece
