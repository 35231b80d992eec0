"""A pool without bytes: volumes, snapshots and what stands on what in memory, with an empty file for each, for tests of everything above it."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from roost.errors import Conflict, Forbidden, Invalid, NotFound, RoostError
from roost.storage.pool import Abilities, Capacity, Cover, Opened, Origin, Usage

MiB = 1 << 20
WRITTEN = MiB
"""Bytes that every file takes."""


class _File(NamedTuple):
    """A volume's or a snapshot's file: what its guest sees in bytes, what it stands on (nearest first), the image at the end, its key."""

    size: int
    below: tuple[str, ...] = ()
    image: str = ""
    key: bytes | None = None


class FakePool:
    """All verbs of storage.pool.Pool. A test sets `room` (Capacity), `failing` (verb -> the error that it raises once), `broken` (what `verify`
    says) and `image_sizes` (digest -> bytes); it reads `calls`, `held` and `tended`."""

    abilities = Abilities()

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.room = Capacity(1 << 40, 1 << 30)
        self.failing: dict[str, RoostError] = {}
        self.broken: list[str] = []
        self.image_sizes: dict[str, int] = {}
        self.calls: list[tuple[str, str]] = []
        self.held: set[str] = set()
        self.tended: list[str] = []
        self.volumes: dict[str, _File] = {}
        self.snapshots: set[str] = set()
        self._layers: dict[str, _File] = {}
        self._covers: dict[str, Cover] = {}

    async def prepare(self) -> None:
        self._called("prepare", "")
        self.directory.mkdir(parents=True, exist_ok=True)

    async def discard(self) -> None:
        self._called("discard", "")
        if self.volumes or self.snapshots:
            raise Conflict("the pool is not discarded", "there are volumes in it")

    async def capacity(self) -> Capacity:
        self._called("capacity", "")
        return self.room

    async def create(self, uid: str, size: int | None, origin: Origin | None = None, key: bytes | None = None) -> None:
        self._called("create", uid)
        if uid in self.volumes:
            return
        source = self._origin(origin, key)
        if size is None and origin is None:
            raise Invalid("no volume is made", "it has no size")
        if size is not None and size < source.size:
            raise Invalid("no volume is made", f"{size} bytes are less than the {source.size} of its origin")
        self._put(uid, _File(size or source.size, source.below, source.image, key))

    async def fill(
        self, uid: str, source: Opened, size: int, key: bytes | None, progress: Callable[[float], None]
    ) -> None:
        self._called("fill", uid)
        progress(0.5)
        if uid not in self.volumes:
            self._put(uid, _File(size, key=key))
        progress(1.0)

    @contextlib.asynccontextmanager
    async def opened(self, uid: str, key: bytes | None = None) -> AsyncIterator[Opened]:
        self._called("opened", uid)
        found = self._open(uid, key)
        busy = uid in self.held
        self.held.add(uid)
        try:
            yield found
        finally:
            if not busy:
                self.held.discard(uid)

    async def hold(self, uid: str, key: bytes | None = None) -> Opened:
        self._called("hold", uid)
        found = self._open(uid, key)
        self.held.add(uid)
        return found

    async def release(self, uid: str) -> None:
        self._called("release", uid)
        self.held.discard(uid)

    async def resize(self, uid: str, size: int, key: bytes | None = None) -> None:
        self._called("resize", uid)
        disk = self._idle(uid)
        if size < disk.size:
            raise Invalid(f"volume {uid} is not resized", f"it has {disk.size} bytes and would lose some")
        self.volumes[uid] = disk._replace(size=size)

    async def snapshot(self, uid: str, snapshot: str) -> None:
        self._called("snapshot", uid)
        if snapshot not in self.snapshots:
            self._idle(uid)
            self._layer(uid, snapshot)
            self.snapshots.add(snapshot)

    async def cover(self, uid: str, snapshot: str) -> Cover:
        self._called("cover", uid)
        self._volume(uid)
        if uid in self._covers:
            raise Conflict(f"volume {uid} is not covered", "an earlier cover of it was not settled")
        file = self.directory / f"{uid}.next"
        file.touch()
        self._covers[uid] = Cover(snapshot, file, f"cover-{snapshot.replace('-', '')[:16]}")
        return self._covers[uid]

    async def settle(self, uid: str, *, covered: bool) -> None:
        self._called("settle", uid)
        cover = self._covers.pop(uid, None)
        if cover is None:
            return
        if covered:
            self._layer(uid, cover.snapshot)
            self.snapshots.add(cover.snapshot)
        cover.file.unlink(missing_ok=True)

    async def rekey(self, uid: str, key: bytes, new: bytes) -> None:
        self._called("rekey", uid)
        disk = self._idle(uid)
        if disk.key not in (key, new) or disk.key is None:
            raise Forbidden(f"volume {uid} can not be opened", "the key is wrong")
        if disk.key != new:
            self.volumes[uid] = _File(disk.size, key=new)

    async def tend(self, uid: str, key: bytes | None = None) -> None:
        self._called("tend", uid)
        self.tended.append(uid)

    async def remove(self, uid: str) -> None:
        self._called("remove", uid)
        if uid in self.volumes:
            self._idle(uid)
            del self.volumes[uid]
            self._path(uid).unlink(missing_ok=True)
        self._collect()

    async def remove_snapshot(self, snapshot: str) -> None:
        self._called("remove_snapshot", snapshot)
        self.snapshots.discard(snapshot)
        self._collect()

    async def usage(self) -> Mapping[str, Usage]:
        self._called("usage", "")
        users: dict[str, int] = {}
        for chain in self._chains():
            for layer in chain:
                users[layer] = users.get(layer, 0) + 1
        found: dict[str, Usage] = {}
        for uid, disk in self.volumes.items():
            shared = sum(users[layer] > 1 for layer in disk.below)
            found[uid] = Usage(disk.size, (1 + len(disk.below) - shared) * WRITTEN, shared * WRITTEN)
        for uid in self.snapshots:
            chain = (uid, *self._layers[uid].below)
            shared = sum(users[layer] > 1 for layer in chain)
            found[uid] = Usage(self._layers[uid].size, (len(chain) - shared) * WRITTEN, shared * WRITTEN)
        return found

    def images(self) -> set[str]:
        return {disk.image for disk in (*self.volumes.values(), *self._layers.values()) if disk.image}

    async def verify(self, *, thorough: bool) -> AsyncIterator[str]:
        self._called("verify", "")
        for line in self.broken:
            yield line

    def _called(self, verb: str, uid: str) -> None:
        self.calls.append((verb, uid))
        if error := self.failing.pop(verb, None):
            raise error

    def _origin(self, origin: Origin | None, key: bytes | None) -> _File:
        if origin is None:
            return _File(0)
        if origin.kind == "image":
            if key is not None:
                raise Invalid("no volume is made", "the image is not encrypted as the volume is to be", "fill it")
            return _File(self.image_sizes.get(origin.id, MiB), (), origin.id)
        if origin.kind == "volume":
            self._idle(origin.id)
            layer = str(uuid.uuid4())
            self._matches(self._volume(origin.id), key)
            self._layer(origin.id, layer)
        else:
            layer = origin.id
            if layer not in self._layers:
                raise NotFound(f"no snapshot {layer} is in the pool")
            self._matches(self._layers[layer], key)
        found = self._layers[layer]
        return found._replace(below=(layer, *found.below))

    def _matches(self, disk: _File, key: bytes | None) -> None:
        if (disk.key is None) != (key is None):
            raise Invalid("no volume is made", "its origin is not encrypted as the volume is to be", "fill it")
        if disk.key != key:
            raise Forbidden("no volume is made", "the key of its origin is another")

    def _open(self, uid: str, key: bytes | None) -> Opened:
        disk = self._layers[uid] if uid in self.snapshots else self._volume(uid)
        if disk.key != key:
            raise Forbidden(f"volume {uid} can not be opened", "the key is wrong")
        return Opened("qcow2", self._path(uid), tuple(map(self._path, disk.below)), key=key)

    def _idle(self, uid: str) -> _File:
        if uid in self.held or uid in self._covers:
            raise Conflict(f"volume {uid} can not be changed", "it is in use")
        return self._volume(uid)

    def _volume(self, uid: str) -> _File:
        if uid not in self.volumes:
            raise NotFound(f"no volume {uid} is in the pool")
        return self.volumes[uid]

    def _put(self, uid: str, disk: _File) -> None:
        self._path(uid).touch()
        self.volumes[uid] = disk

    def _layer(self, uid: str, layer: str) -> None:
        """What the volume was becomes a layer, and an empty file covers it."""
        disk = self._volume(uid)
        self._path(layer).touch()
        self._layers[layer] = disk
        self.volumes[uid] = disk._replace(below=(layer, *disk.below))

    def _chains(self) -> list[tuple[str, ...]]:
        chains = [disk.below for disk in self.volumes.values()]
        return chains + [(uid, *self._layers[uid].below) for uid in self.snapshots]

    def _collect(self) -> None:
        needed = {layer for chain in self._chains() for layer in chain}
        for layer in set(self._layers) - needed:
            del self._layers[layer]
            self._path(layer).unlink(missing_ok=True)

    def _path(self, uid: str) -> Path:
        return self.directory / f"{uid}.qcow2"
