"""A pool that is a directory: volumes are qcow2 files over layers, so that snapshots and clones copy nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from roost.errors import Conflict, Invalid, NotFound, Unavailable
from roost.host import files
from roost.host.paths import Paths
from roost.host.poolpaths import PoolFiles, VolumeFiles
from roost.model import size as sizes
from roost.storage import chains, formats, imagetool, overlays
from roost.storage.accounting import Accounting
from roost.storage.chains import NOTHING, Base
from roost.storage.imagetool import Chain
from roost.storage.layers import LONGEST, Layers, write_new
from roost.storage.pool import Abilities, Capacity, Cover, Opened, Origin, Usage

_LOCKS = (100, 200)
"""The bytes of an image that QEMU locks (block/file-posix.c): as long as one has it open, it holds some of them."""
_MARK_LIMIT = 4 << 10


class DirectoryPool:
    """See storage.pool.Pool. `uid` is the pool's, in `path` ("" is the daemon's own directory); `image_disk` gives the file of an image by digest.

    The caller does one thing at a time to each volume, but may make several from one.
    """

    abilities = Abilities()

    def __init__(self, paths: Paths, uid: str, path: str, image_disk: Callable[[str], Path | None]) -> None:
        self._uid = uid
        self._files = PoolFiles.below(path, paths)
        self._record = paths.pool_record(uid)
        self._pipes = paths.passages
        self._layers = Layers(self._files, image_disk)
        self._accounting = Accounting(self._files, self._layers.chains)
        self._counting = asyncio.Lock()
        self._held: set[str] = set()
        self._open: Counter[str] = Counter()
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def prepare(self) -> None:
        with _told(f"the pool in {self._files.root} can not be used"):
            await asyncio.to_thread(self._mark)
            await asyncio.to_thread(self._make_whole)
        await self._layers.sweep()
        with _told(f"the pool in {self._files.root} can not be used"):
            await asyncio.to_thread(self._clear)

    async def discard(self) -> None:
        """The pool is no more: remove our mark and what is empty. Raises Conflict while there is a volume or a snapshot in it."""
        found = self._files
        if any(path.is_dir() and any(path.iterdir()) for path in (found.disks, found.snapshots)):
            raise Conflict(f"the pool in {found.root} is not discarded", "there are volumes in it", "roost volume list")
        with _told(f"the pool in {found.root} is not discarded"):
            for path in (found.disks, found.snapshots, found.layers, found.removed, found.marker, self._record):
                await asyncio.to_thread(files.remove_tree, path)
            with contextlib.suppress(OSError):
                found.root.rmdir()

    async def capacity(self) -> Capacity:
        with _told(f"the pool in {self._files.root} can not be looked at"):
            found = os.statvfs(self._files.root)
        size = found.f_blocks * found.f_frsize
        # What is kept for root is taken: a guest's QEMU is not root.
        return Capacity(size, size - found.f_bavail * found.f_frsize)

    async def create(self, uid: str, size: int | None, origin: Origin | None = None, key: bytes | None = None) -> None:
        async with self._lock(uid):
            if self._files.disk(uid).disk.exists():
                return
            if size is None and origin is None:
                raise Invalid(f"volume {uid} is not made", "it has no size and no origin")
            base = NOTHING if origin is None else await self._origin(origin)
            await self._check_same(base, key)
            async with self._making(uid) as where:
                if key is not None and base == NOTHING:
                    await self._layers.replace(
                        where, NOTHING, lambda target: imagetool.make_locked(target, size or 0, key, self._pipes)
                    )
                else:
                    await self._layers.create_disk(base, where, size)

    async def fill(
        self, uid: str, source: Opened, size: int, key: bytes | None, progress: Callable[[float], None]
    ) -> None:
        if source.file is None:
            raise Invalid(f"volume {uid} is not made", "it can be copied from files only, not from a server")
        read = Chain((source.file, *source.below), source.format, source.key)
        have = chains.virtual_size(read.files[0]) if read.format == "qcow2" else read.files[0].stat().st_size
        if size < have:
            raise Invalid(f"volume {uid} is not made", f"{sizes.show(size)} are less than the {sizes.show(have)} of it")

        async def write(target: Path) -> None:
            if key is None:
                await asyncio.to_thread(write_new, target, overlays.empty(size))
            else:
                await imagetool.make_locked(target, size, key, self._pipes)
            await imagetool.copy(read, target, key, self._pipes, progress)

        async with self._lock(uid):
            if not self._files.disk(uid).disk.exists():
                async with self._making(uid) as where:
                    await self._layers.replace(where, NOTHING, write)

    @contextlib.asynccontextmanager
    async def opened(self, uid: str, key: bytes | None = None) -> AsyncIterator[Opened]:
        self._open[uid] += 1
        try:
            yield await self._opened(uid, key)
        finally:
            self._open[uid] -= 1
            self._open += Counter()

    async def hold(self, uid: str, key: bytes | None = None) -> Opened:
        found = await self._opened(uid, key)
        self._held.add(uid)
        return found

    async def release(self, uid: str) -> None:
        self._held.discard(uid)

    async def resize(self, uid: str, size: int, key: bytes | None = None) -> None:
        async with self._lock(uid):
            where = await self._idle(uid)
            have = chains.virtual_size(where.disk)
            if size < have:
                raise Invalid(
                    f"volume {uid} is not resized", f"it has {sizes.show(have)}, and what lies beyond would be lost"
                )
            with _told(f"volume {uid} is not resized"):
                if not await asyncio.to_thread(_grow, where.disk, size):
                    await imagetool.resize(where.disk, size, key, self._pipes)

    async def snapshot(self, uid: str, snapshot: str) -> None:
        async with self._lock(uid):
            if self._is_snapshot(snapshot):
                return
            where = await self._idle(uid)
            await self._keep(uid, where, snapshot)

    async def cover(self, uid: str, snapshot: str) -> Cover:
        where = self._there(uid)
        if self._is_snapshot(snapshot):
            raise Conflict(f"volume {uid} is not covered", f"snapshot {snapshot} is there already")
        self._check_depth(uid, where)
        self._intend(snapshot)
        coming = await self._layers.prepare(where, "", snapshot)
        return Cover(snapshot, coming.file, coming.node)

    async def settle(self, uid: str, *, covered: bool) -> None:
        where = self._there(uid)
        if (coming := self._layers.pending(where)) is not None:
            await self._layers.settle(where, "", covered=covered)
            self._conclude(coming.layer)

    async def rekey(self, uid: str, key: bytes, new: bytes) -> None:
        async with self._lock(uid):
            where = await self._idle(uid)
            base = self._base(where)
            if base == NOTHING:
                with _told(f"the key of volume {uid} is not changed"):
                    await imagetool.change_key(where.disk, key, new, self._pipes)
                return
            if not await imagetool.opens(where.disk, new, self._pipes):
                await self._copy_whole(where, base, key, new)
        await self._collect()

    async def tend(self, uid: str, key: bytes | None = None) -> None:
        where = self._there(uid)
        base = self._base(where)
        if base.layer:
            await self._layers.hash(base.layer)
        async with self._lock(uid):
            if len(self._layers.below(base)) <= LONGEST or self._why_busy(uid, where):
                return
            where = await self._idle(uid)
            if self._layers.chains.image_below(base):
                await self._layers.flatten(where, "")
            else:
                await self._copy_whole(where, base, key, key)
        await self._collect()

    async def remove(self, uid: str) -> None:
        async with self._lock(uid):
            where = self._files.disk(uid)
            if not where.keep.exists():
                self._check_ours()
                return
            if why := self._why_busy(uid, where):
                raise Conflict(f"volume {uid} is not removed", why, "roost volume show NAME tells who has it")
            with _told(f"volume {uid} is not removed"):
                doomed = self._files.removed / uuid.uuid4().hex
                where.keep.rename(doomed)
                files.sync_directory(self._files.disks)
                await asyncio.to_thread(files.remove_tree, doomed)
        await self._collect()

    async def remove_snapshot(self, snapshot: str) -> None:
        if self._open[snapshot] or snapshot in self._held:
            raise Conflict(f"snapshot {snapshot} is not removed", "it is in use", "try again")
        self._check_ours()
        with _told(f"snapshot {snapshot} is not removed"):
            (self._files.snapshots / snapshot).unlink(missing_ok=True)
            files.sync_directory(self._files.snapshots)
        await self._collect()

    async def usage(self) -> Mapping[str, Usage]:
        with _told(f"the pool in {self._files.root} can not be looked at"):
            async with self._counting:
                return await asyncio.to_thread(lambda: self._accounting.usage(self._snapshots()))

    def images(self) -> set[str]:
        """The digests of all images that something in it stands on. Raises Unavailable when that can not be known."""
        self._check_bases()
        return self._layers.images()

    async def verify(self, *, thorough: bool) -> AsyncIterator[str]:
        snapshots = self._snapshots()
        for snapshot in sorted(snapshots):
            if self._layers.chains.layer(snapshot) is None:
                yield f"snapshot {snapshot}: {self._files.layer(snapshot).disk} is missing: put it back from a backup"
        for uid in self._layers.chains.uids():
            if problem := _flaw(self._files.disk(uid)):
                yield f"volume {uid}: {problem}: put it back from a backup"
        others = [(Base(layer=snapshot), f"snapshot {snapshot}") for snapshot in snapshots]
        for found in await self._layers.verify(thorough=thorough, others=others):
            users = ", ".join(found.users)
            yield f"{found.file}: {found.problem}; it is needed by {users}: {found.fix}"

    def _mark(self) -> None:
        """See that the place is ours, or make it so. Raises OSError, Conflict, Unavailable."""
        root = self._files.root
        try:
            mark = msgspec.json.decode(files.read_bounded(self._files.marker, _MARK_LIMIT), type=dict[str, str])
        except (FileNotFoundError, NotADirectoryError):
            if self._record.exists():
                raise Unavailable(
                    f"the pool in {root} can not be used", f"{self._files.marker} is not there", f"mount {root.parent}"
                ) from None
            mark = {"pool": self._uid}
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.atomic_write(self._files.marker, msgspec.json.encode(mark))
        except (msgspec.MsgspecError, Invalid) as error:
            raise Unavailable(f"the pool in {root} can not be used", f"{self._files.marker}: {error}") from error
        if mark.get("pool") != self._uid:
            raise Conflict(
                f"the pool in {root} can not be used", "it belongs to another pool", "give the pool another path"
            )
        if not self._record.exists():
            self._record.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            files.atomic_write(self._record, msgspec.json.encode({"root": str(root)}))

    def _check_ours(self) -> None:
        """That our pool is there now: what is not mounted is not gone. Raises Unavailable."""
        mark: dict[str, str] = {}
        with contextlib.suppress(OSError, Invalid, msgspec.MsgspecError):
            mark = msgspec.json.decode(files.read_bounded(self._files.marker, _MARK_LIMIT), type=dict[str, str])
        if mark.get("pool") != self._uid:
            why = f"{self._files.marker} is not there, or not ours"
            fix = f"mount {self._files.root.parent} again"
            raise Unavailable(f"the pool in {self._files.root} can not be used", why, fix)

    def _make_whole(self) -> None:
        found = self._files
        for directory in (found.disks, found.layers, found.snapshots, found.removed):
            directory.mkdir(exist_ok=True, mode=0o700)
        for leftover in found.removed.iterdir():
            files.remove_tree(leftover)

    def _clear(self) -> None:
        """Remove volumes that were never whole; end snapshots that were being made, except where a guest may be writing: there `settle` does."""
        for uid in self._layers.chains.uids():
            where = self._files.disk(uid)
            if not where.disk.exists() and not where.next_base.exists():
                files.remove_tree(where.keep)
        disks = map(self._files.disk, self._layers.chains.uids())
        coming = {pending.layer for where in disks if (pending := self._layers.pending(where))}
        for path in self._files.snapshots.glob("*.new"):
            if path.stem not in coming:
                self._conclude(path.stem)

    def _lock(self, uid: str) -> asyncio.Lock:
        lock = self._locks.get(uid)
        if lock is None:
            lock = self._locks[uid] = asyncio.Lock()
        return lock

    @contextlib.asynccontextmanager
    async def _making(self, uid: str) -> AsyncIterator[VolumeFiles]:
        """The files of a volume that is being made: durable afterwards, or gone."""
        where = self._files.disk(uid)
        self._check_ours()
        try:
            with _told(f"volume {uid} is not made"):
                where.keep.mkdir(exist_ok=True, mode=0o700)
                yield where
                files.sync_directory(self._files.disks)
        except BaseException:
            if not where.disk.exists():
                files.remove_tree(where.keep)
            raise

    def _there(self, uid: str) -> VolumeFiles:
        where = self._files.disk(uid)
        if not where.keep.is_dir():
            self._check_ours()
            raise NotFound(f"volume {uid} is not in the pool", f"{where.keep} is not there", "roost volume list")
        return where

    def _base(self, where: VolumeFiles) -> Base:
        """What a volume stands on: that of one whose file says nothing can not be guessed. Raises Unavailable."""
        base = self._layers.chains.base_of(where)
        if base is None:
            raise Unavailable(
                f"volume {where.keep.name} can not be used", f"{where.base} is missing", f"put {where.base} back"
            )
        return base

    def _why_busy(self, uid: str, where: VolumeFiles) -> str:
        if uid in self._held or self._open[uid]:
            return "it is in use"
        return "a QEMU has it open" if _is_locked(where.disk) else ""

    async def _idle(self, uid: str) -> VolumeFiles:
        """The files of a volume that nobody uses; what was begun with it is ended. Raises Conflict, NotFound, Unavailable."""
        where = self._there(uid)
        if why := self._why_busy(uid, where):
            raise Conflict(f"volume {uid} can not be changed", why, "roost volume detach NAME, or stop the machine")
        await self.settle(uid, covered=True)
        self._base(where)
        return where

    async def _opened(self, uid: str, key: bytes | None) -> Opened:
        if self._is_snapshot(uid):
            disk, *below = self._layers.below(Base(layer=uid))
        else:
            where = self._there(uid)
            if uid not in self._held and not _is_locked(where.disk):
                await self.settle(uid, covered=True)
            disk, below = where.disk, list(self._layers.below(self._base(where)))
        await imagetool.check_key(Chain((disk, *below), key=key), self._pipes)
        return Opened("qcow2", disk, tuple(below), key=key)

    async def _origin(self, origin: Origin) -> Base:
        if origin.kind == "image":
            return Base(image=origin.id)
        if origin.kind == "snapshot":
            if not self._is_snapshot(origin.id):
                raise NotFound(f"snapshot {origin.id} is not in the pool", "", "roost volume snapshots NAME")
            return Base(layer=origin.id)
        async with self._lock(origin.id):
            where = await self._idle(origin.id)
            self._check_depth(origin.id, where)
            layer = str(uuid.uuid4())
            await self._layers.prepare(where, "", layer)
            return await self._layers.settle(where, "", covered=True)

    async def _check_same(self, base: Base, key: bytes | None) -> None:
        """A chain is encrypted by one key throughout, or not at all."""
        below = self._layers.below(base)
        if not below:
            return
        with below[0].open("rb") as file:
            locked = overlays.is_locked(file.read(formats.HEAD))
        if locked != (key is not None):
            raise Invalid("the volume is not made", "its origin is encrypted otherwise than it is to be", "copy it")
        if locked:
            await imagetool.check_key(Chain(below, key=key), self._pipes)

    async def _copy_whole(self, where: VolumeFiles, base: Base, key: bytes | None, new: bytes | None) -> None:
        """Let a volume stand on nothing, locked by `new`: what it stood on stays as it is for the others."""
        read = Chain((where.disk, *self._layers.below(base)), key=key)
        size = chains.virtual_size(where.disk)

        async def write(target: Path) -> None:
            if new is None:
                await asyncio.to_thread(write_new, target, overlays.empty(size))
            else:
                await imagetool.make_locked(target, size, new, self._pipes)
            await imagetool.copy(read, target, new, self._pipes, lambda done: None)

        with _told(f"volume {where.keep.name} is not copied"):
            await self._layers.replace(where, NOTHING, write)

    async def _keep(self, uid: str, where: VolumeFiles, snapshot: str) -> None:
        self._check_depth(uid, where)
        self._intend(snapshot)
        try:
            if self._layers.chains.layer(snapshot) is None:
                await self._layers.prepare(where, "", snapshot)
                await self._layers.settle(where, "", covered=True)
        finally:
            if self._layers.pending(where) is None:
                self._conclude(snapshot)

    def _check_depth(self, uid: str, where: VolumeFiles) -> None:
        if len(self._layers.below(self._base(where))) >= chains.DEEPEST:
            raise Conflict(
                f"volume {uid} can not be kept as it is",
                f"it stands on {chains.DEEPEST} files already",
                "detach it: then it is copied into one",
            )

    def _intend(self, snapshot: str) -> None:
        """Say that a layer of this name is to be a snapshot, before it is one: so it is never taken for one that nobody needs."""
        with _told(f"snapshot {snapshot} is not made"):
            (self._files.snapshots / f"{snapshot}.new").touch(0o600)
            files.sync_directory(self._files.snapshots)

    def _conclude(self, snapshot: str) -> None:
        intent = self._files.snapshots / f"{snapshot}.new"
        with _told(f"snapshot {snapshot} is not made"), contextlib.suppress(FileNotFoundError):
            if self._layers.chains.layer(snapshot) is None:
                intent.unlink()
            else:
                intent.rename(intent.with_suffix(""))

    def _is_snapshot(self, uid: str) -> bool:
        return uid in self._snapshots()

    def _snapshots(self) -> set[str]:
        """All that are there: one whose end was not noted is one as soon as its layer is."""
        try:
            names = {path.name for path in self._files.snapshots.iterdir()}
        except FileNotFoundError:
            return set()
        whole = {name for name in names if not name.endswith(".new")}
        begun = {name.removesuffix(".new") for name in names} - whole
        return whole | {name for name in begun if self._layers.chains.layer(name) is not None}

    def _check_bases(self) -> None:
        """What a volume stands on must be known of all before anything goes. Raises Unavailable."""
        for uid in self._layers.chains.uids():
            where = self._files.disk(uid)
            if where.disk.exists():
                self._base(where)

    async def _collect(self) -> None:
        await asyncio.to_thread(self._check_bases)
        await self._layers.collect([Base(layer=snapshot) for snapshot in self._snapshots()])


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unavailable(what, str(error), "roost pool list") from error


def _grow(disk: Path, size: int) -> bool:
    """Grow a disk by its header alone, durable; whether that was possible. Raises OSError."""
    with disk.open("r+b") as file:
        change = overlays.grown(file.read(formats.HEAD), size)
        if change is None:
            return False
        head, unused = change
        file.seek(unused.offset)
        file.write(bytes(unused.length))
        file.flush()
        os.fsync(file.fileno())
        os.pwrite(file.fileno(), head, 0)
        os.fsync(file.fileno())
    return True


def _flaw(where: VolumeFiles) -> str:
    """What is wrong with a volume's own file, as far as its header tells."""
    if not where.base.exists() and not where.next_base.exists():
        return f"{where.base} is missing"
    try:
        with where.disk.open("rb") as file:
            head = file.read(formats.HEAD)
        formats.virtual_size(head)
        if overlays.is_locked(head):
            overlays.luks_header(head)
    except OSError as error:
        return str(error)
    except Invalid as error:
        return f"{where.disk}: {error.why}"
    return ""


def _is_locked(disk: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return files.is_locked(disk, *_LOCKS)
    return False
