"""The contents of programs: each kept once, under its digest, linked into the directory of every program that it was uploaded for.

A program sees a content only when its own client brought all of it: to know a digest is not enough. What no program links to goes.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from roost.errors import Invalid, Unavailable
from roost.host import files
from roost.host.paths import Paths

LARGEST = 2 << 30
"""Bytes of a program."""

KEPT_FREE = 256 << 20
"""Bytes of the host's disk that no upload takes: the store and the machines need them."""

_PART = ".part-"


class Contents:
    """The contents of this host's programs."""

    def __init__(self, paths: Paths, largest: int = LARGEST) -> None:
        self._paths = paths
        self._largest = largest
        self._changing = asyncio.Lock()

    async def store(self, uid: str, sha256: str, name: str, stream: AsyncIterator[bytes]) -> None:
        """Take what `stream` delivers as the file `name` of the program `uid`. Raises Invalid (another digest, too long), Unavailable
        (no space); then nothing of it stays."""
        self._paths.contents.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, part = tempfile.mkstemp(prefix=_PART, dir=self._paths.contents)
        try:
            with open(descriptor, "wb") as file:
                digest = await self._receive(stream, file.fileno())
            if digest != sha256:
                why = f"its sha256 is {digest}, and not {sha256}"
                raise Invalid("the program was not uploaded", why, "upload the file that spec.sha256 tells of")
            async with self._changing:
                await asyncio.to_thread(self._link, Path(part), uid, sha256, name)
        finally:
            with suppress(FileNotFoundError):
                Path(part).unlink()

    async def _receive(self, stream: AsyncIterator[bytes], descriptor: int) -> str:
        digest, size = hashlib.sha256(), 0
        async for piece in stream:
            size += len(piece)
            if size > self._largest:
                why = f"it is longer than {self._largest} bytes"
                raise Invalid("the program was not uploaded", why, "let it read its data from files: --fs")
            await asyncio.to_thread(self._append, descriptor, piece)
            digest.update(piece)
        await asyncio.to_thread(os.fsync, descriptor)
        return digest.hexdigest()

    def _append(self, descriptor: int, piece: bytes) -> None:
        if files.free_space(self._paths.contents) < KEPT_FREE:
            why = f"less than {KEPT_FREE >> 20} MiB are free on the host's disk"
            raise Unavailable("the program was not uploaded", why, "free space on the host: roost doctor storage")
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]

    def _link(self, part: Path, uid: str, sha256: str, name: str) -> None:
        kept, target = self._paths.contents / f"sha256-{sha256}", self._paths.program(uid).content(sha256, name)
        part.chmod(0o500)
        if not kept.exists():
            part.replace(kept)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            os.link(kept, target)
        files.sync_directory(target.parent)

    async def forget(self, uid: str) -> None:
        """Remove all files of a program, and the contents that only it used."""
        async with self._changing:
            await asyncio.to_thread(files.remove_tree, self._paths.program(uid).directory)
            await asyncio.to_thread(self._collect)

    async def keep_only(self, uid: str, sha256: str) -> None:
        """Remove what was uploaded for the program earlier, under other digests."""
        top = self._paths.program(uid).contents
        async with self._changing:
            for entry in [*top.iterdir()] if top.is_dir() else ():
                if entry.name != sha256:
                    await asyncio.to_thread(files.remove_tree, entry)
            await asyncio.to_thread(self._collect)

    async def sweep(self) -> None:
        """At daemon start: remove what an upload that was cut off left, and what no program uses."""
        async with self._changing:
            for entry in self._entries():
                if entry.name.startswith(_PART):
                    entry.unlink()
            await asyncio.to_thread(self._collect)

    def _collect(self) -> None:
        for entry in self._entries():
            if not entry.name.startswith(_PART) and entry.lstat().st_nlink == 1:
                entry.unlink()

    def _entries(self) -> list[Path]:
        return [*self._paths.contents.iterdir()] if self._paths.contents.is_dir() else []
