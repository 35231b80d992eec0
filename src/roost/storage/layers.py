"""Disks that stand on disks: layers that are never written again, and who stands on them.

A disk, a machine's root disk or a volume, changes what it stands on by one small journal: `next_disk` is written whole, then `next_base` says
what a disk made of it stands on. From then on the change is decided, unless that is a layer which the present disk is still to become; two
renames end it, and whoever finds `next_base` can go on from there. So a daemon or a host may stop at any instant.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec

from roost.errors import Conflict, Invalid, Unavailable
from roost.host import files
from roost.host.poolpaths import DiskFiles
from roost.model import size as sizes
from roost.storage import chains, flattening, formats, overlays, verification
from roost.storage.chains import Base, Chains, Layer, Place
from roost.storage.verification import Finding

__all__ = ["LONGEST", "Base", "Finding", "Layer", "Layers", "Next", "Space"]

LONGEST = 8
"""Files that a disk may stand on before it should be flattened."""

_ROOM = 16 << 20
"""Bytes of disk that must be free before a disk is made: what comes after it, a layer's manifest first of all, must not fail for lack of them."""

_PAGE = 4096

P = ParamSpec("P")
R = TypeVar("R")


class Next(NamedTuple):
    """A disk that is about to become a layer: the layer's UUID, the empty overlay that will cover it, and the name for QEMU's node."""

    layer: str
    file: Path
    node: str


class Space(NamedTuple):
    """Bytes on the host: `own` go when the owner goes, `shared` others stand on too."""

    own: int
    shared: int


class Layers:
    """All layers of a place. Who stands on what is read from the files themselves, never counted.

    `image_disk` gives the file of an image by its digest, None when it is not there. The caller does one thing at a time to each disk.
    """

    def __init__(self, paths: Place, image_disk: Callable[[str], Path | None]) -> None:
        self._paths = paths
        self.chains = Chains(paths, image_disk)
        self._using: list[Base] = []
        """What disks are being made on just now: no file says so yet."""

    async def sweep(self) -> None:
        """At daemon start: remove layers without a manifest, and disks that were not whole when a daemon before this one ended."""
        await asyncio.to_thread(self._sweep)

    def base_of(self, disk: DiskFiles, image: str) -> Base:
        """What the disk stands on; `image` is the digest of the image that it was made from, "" for none. Raises Unavailable."""
        return self.chains.base_of(disk) or Base(image=image)

    def below(self, base: Base) -> tuple[Path, ...]:
        """The files that a disk on `base` stands on, the nearest first. Raises Unavailable when one is missing, was changed in size or was made
        writable."""
        return self.chains.below(base)

    def virtual_size(self, base: Base) -> int:
        """Bytes that the guest sees. Raises Unavailable."""
        return self.chains.virtual_size(base)

    async def create_disk(self, base: Base, disk: DiskFiles, size: int | None = None) -> None:
        """A new empty disk on `base`, `size` bytes or as large as that; replaces what was there, atomically.

        Killed in between, either the old disk is there and `pending` tells nothing, or it tells, and `settle` ends it; or do it again.
        Raises Invalid (smaller, or no size on nothing), Conflict (a `prepare` was not settled), Unavailable (disk full; `base` is not whole):
        then the old disk stays.
        """
        below, have = self.chains.below(base), self.chains.virtual_size(base)
        if size is not None and size < have:
            raise Invalid(
                f"a disk of {sizes.show(size)} is too small for what it is to stand on",
                f"that has {sizes.show(have)}",
                f"--disk {sizes.show(have)} or more",
            )
        async with self._use(base):
            await _uncut(self._create_disk, disk, base, size or have, below[0] if below else None)

    async def replace(self, disk: DiskFiles, base: Base, write: Callable[[Path], Awaitable[None]]) -> None:
        """Let the disk be what `write` makes and makes durable, on `base`; `write` gets the name of a file that is not there.

        Killed at any instant, the old disk is there or the new one. Raises Conflict (a `prepare` was not settled), Unavailable (disk full) and
        what `write` raises: then the old disk stays.
        """
        await _uncut(self._make_way, disk)
        async with self._use(base):
            try:
                await write(disk.next_disk)
                await _uncut(self._decide, disk, base)
            except BaseException:
                await _uncut(self._take_back, disk)
                raise
            await _uncut(self._advance, disk)

    async def prepare(self, disk: DiskFiles, image: str, layer: str = "") -> Next:
        """The overlay that is to cover the disk, durable: the guest may rely on what it writes there. `layer` is the UUID that the layer is to
        have, of nobody else's making.

        Raises Conflict (an earlier `prepare` was not settled, there is such a layer), Unavailable (disk full): then nothing of it is left.
        """
        self._check_settled(disk)
        if layer and self.chains.layer(layer) is not None:
            raise Conflict(
                f"{disk.disk} can not be covered", f"there is a layer {layer} already", "roost doctor storage"
            )
        coming = Base(layer=layer or str(uuid.uuid4()))
        try:
            await _uncut(self._prepare, disk, coming)
        except BaseException:
            await _uncut(self._take_back, disk)
            raise
        return _next(disk, coming)

    def pending(self, disk: DiskFiles) -> Next | None:
        """The `prepare` that was not settled yet, also that of a daemon before this one. Raises Unavailable."""
        coming = self.chains.coming(disk)
        return None if coming is None else _next(disk, coming)

    async def settle(self, disk: DiskFiles, image: str, *, covered: bool) -> Base:
        """End what `prepare` began, however far an earlier attempt came: the root disk becomes the layer and the overlay the root disk
        (`covered`: QEMU writes to the overlay, or there is no QEMU), or the overlay goes away. Returns what the root disk stands on then.

        An overlay that holds data was covering, and a layer that has its manifest is one, whatever `covered` says. Raises Unavailable
        (disk full, ...): then nothing is lost, and it can be done again.
        """
        return await _uncut(self._settle, disk, image, covered)

    async def repoint(self, disk: DiskFiles, base: Base) -> None:
        """Note that the root disk stands on `base` now (after it was flattened by QEMU). Raises Unavailable."""
        with _room_for(f"that {disk.disk} stands on its own"):
            await _uncut(files.atomic_write, disk.base, msgspec.json.encode(base))

    async def flatten(self, disk: DiskFiles, image: str) -> None:
        """Let a disk that nobody uses stand on its image alone; it has one. What was covered is settled first.

        Killed at any instant the disk is whole. Raises Unavailable (disk full): then it stands where it stood.
        """
        base = await self.settle(disk, image, covered=True)
        below = self.chains.below(base)
        if len(below) < 2:
            return
        image_disk = below[-1]

        async def write(target: Path) -> None:
            with _room_for(f"{disk.disk} can not be flattened"):
                size = chains.virtual_size(disk.disk)
                await _uncut(write_new, target, overlays.empty(size, chains.hint(disk, image_disk)))
            await flattening.rebase(target, (disk.disk, *below), chains.hint(disk, image_disk))

        await self.replace(disk, Base(image=self.chains.image_below(base)), write)

    async def collect(self, roots: Iterable[Base]) -> list[str]:
        """Remove the layers that neither a disk nor any of `roots` stands on, directly or further below. Returns their UUIDs.

        Raises Unavailable when a chain is broken: what it stood on can not be known, so nothing is removed.
        """
        await asyncio.to_thread(self.chains.disks)
        # Files are remembered now, so that this look is short; no disk can be made on a layer between it and the end of the layer.
        doomed = sorted(set(self.chains.all()) - self._needed(roots))
        for layer in doomed:
            self._paths.layer(layer).manifest.unlink(missing_ok=True)
            self.chains.forget(layer)
        for layer in doomed:
            await asyncio.to_thread(files.remove_tree, self._paths.layer(layer).directory)
        return doomed

    def images(self) -> set[str]:
        """The digests of all images that a layer stands on, or a disk whose base.json says so. Raises Unavailable."""
        bases = [base for _, base in self.chains.disks()]
        layers = [layer.base for layer in map(self.chains.layer, self.chains.all()) if layer is not None]
        return {base.image for base in (*bases, *layers, *self._using) if base.image}

    def space(self, base: Base, others: Iterable[Base], owner: str = "") -> Space:
        """What the layers below `base` take, apart by whether a disk or one of `others` stands on them too; images do not count.

        `owner` is the uid of a disk that does not count as another. Raises Unavailable.
        """
        disks = (found for uid, found in self.chains.disks() if uid != owner)
        theirs = self.chains.standing((*disks, *others))
        taken = {layer: _taken(self._paths.layer(layer).disk) for layer in self.chains.standing((base,))}
        shared = sum(taken[layer] for layer in taken.keys() & theirs)
        return Space(sum(taken.values()) - shared, shared)

    async def hash(self, layer: str) -> None:
        """Compute and note the digests of a layer and of those below it, where there is none yet, in the background. Raises Unavailable."""
        async with self._use(Base(layer=layer)):
            for link in tuple(self.chains.links(Base(layer=layer))):
                if link.layer:
                    await verification.complete(self._paths, self.chains, link.layer)

    async def verify(self, *, thorough: bool, others: Iterable[tuple[Base, str]] = ()) -> list[Finding]:
        """Look at every layer and image that something stands on: there, read-only, the size it had and, when `thorough`, its digest.

        `others` are what stands on them besides the disks with a base.json, with names for people.
        """
        return await verification.verify(self._paths, self.chains, others, self.hash if thorough else None)

    @contextlib.asynccontextmanager
    async def _use(self, base: Base) -> AsyncIterator[None]:
        """Keep `base` from being collected meanwhile."""
        self._using.append(base)
        try:
            yield
        finally:
            self._using.remove(base)

    def _needed(self, roots: Iterable[Base]) -> set[str]:
        disks = (base for _, base in self.chains.disks())
        needed = self.chains.standing((*disks, *roots, *self._using))
        for layer in sorted(needed):
            if self.chains.layer(layer) is None:
                where = self._paths.layer(layer).directory
                raise Unavailable(
                    "no layer is removed", f"{where} is missing, and with it what it stood on", "roost doctor storage"
                )
        return needed

    def _check_settled(self, disk: DiskFiles) -> None:
        if self.chains.coming(disk) is not None:
            raise Conflict(f"{disk.disk} can not be changed", "an earlier change of it has not ended", "try again")

    def _make_way(self, disk: DiskFiles) -> None:
        """End what was decided, so that something new can begin."""
        coming = self.chains.coming(disk)
        if coming is not None and self.chains.unfinished(coming):
            self._check_settled(disk)
        self._advance(disk)

    def _create_disk(self, disk: DiskFiles, base: Base, size: int, below: Path | None) -> None:
        self._make_way(disk)
        with _room_for(f"{disk.disk} can not be made", disk.keep):
            try:
                write_new(disk.next_disk, _overlay(size, below, chains.hint(disk, below) if below else ""))
                self._decide(disk, base)
            except BaseException:
                self._take_back(disk)
                raise
        self._advance(disk)

    def _prepare(self, disk: DiskFiles, coming: Base) -> None:
        with _room_for(f"{disk.disk} can not be covered", disk.keep):
            size = chains.virtual_size(disk.disk)
            backing = chains.hint(disk, self._paths.layer(coming.layer).disk)
            write_new(disk.next_disk, _overlay(size, disk.disk, backing))
            self._decide(disk, coming)

    def _decide(self, disk: DiskFiles, coming: Base) -> None:
        """From here on the next disk counts. Both are durable when this returns, for that syncs the directory of both."""
        with _room_for(f"{disk.disk} can not be changed"):
            files.atomic_write(disk.next_base, msgspec.json.encode(coming))

    def _settle(self, disk: DiskFiles, image: str, covered: bool) -> Base:
        coming = self.chains.coming(disk)
        if coming is None or not self.chains.unfinished(coming):
            return self._advance(disk) or self.base_of(disk, image)
        if not disk.next_disk.exists() or not (covered or _holds_data(disk.next_disk)):
            self._take_back(disk)
            files.remove_tree(self._paths.layer(coming.layer).directory)
            return self.base_of(disk, image)
        with _room_for(f"{disk.disk} can not become a layer"):
            self._seal(disk, coming.layer, self.base_of(disk, image))
        return self._advance(disk) or coming

    def _seal(self, disk: DiskFiles, uid: str, base: Base) -> None:
        """Give the root disk its second name, as a layer; the first one goes when the overlay takes it."""
        where = self._paths.layer(uid)
        where.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.link(disk.disk, where.disk)
        # All may read it, so that a jailed tool can; the directories are private.
        where.disk.chmod(0o444)
        if where.disk.stat().st_uid != os.geteuid():
            os.chown(where.disk, os.geteuid(), -1)
        # QEMU has written out what it held when it was covered, but not made it durable. Before the old name is lost, and before
        # any disk stands on it, the layer must be there for good: file, manifest, and their names.
        _sync(where.disk)
        layer = Layer(
            id=uid,
            base=base,
            virtual_size=chains.virtual_size(where.disk),
            size=where.disk.stat().st_size,
            created=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            origin=disk.keep.name,
        )
        verification.write_manifest(where, layer)
        files.sync_directory(self._paths.layers)
        self.chains.learn(layer)

    def _advance(self, disk: DiskFiles) -> Base | None:
        """End a change that was decided; None when there is none.

        Nothing is synced: if the host stops, these two renames in one directory are both lost, or the second one (file systems keep their
        order), and found pending again.
        """
        coming = self.chains.coming(disk)
        if coming is None:
            disk.next_disk.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            disk.next_disk.replace(disk.disk)
        disk.next_base.replace(disk.base)
        return coming

    def _take_back(self, disk: DiskFiles) -> None:
        """Undo what was not decided. The root disk is writable again before anything says that it is not about to be covered."""
        with contextlib.suppress(FileNotFoundError):
            if not disk.disk.stat().st_mode & 0o200:
                disk.disk.chmod(0o600)
        disk.next_base.unlink(missing_ok=True)
        disk.next_disk.unlink(missing_ok=True)

    def _sweep(self) -> None:
        self._paths.layers.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole = set(self.chains.all())
        for directory in self._paths.layers.iterdir():
            if directory.name not in whole:
                files.remove_tree(directory)
        for keep in self._paths.disks.iterdir() if self._paths.disks.is_dir() else ():
            disk = self._paths.disk(keep.name)
            if not disk.next_base.exists():
                disk.next_disk.unlink(missing_ok=True)


async def _uncut(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run in a thread and, when cancelled, wait for its end all the same: nothing else may begin on files that it still changes."""
    running = asyncio.get_running_loop().run_in_executor(None, lambda: function(*args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((running,))
        running.exception()
        raise


@contextlib.contextmanager
def _room_for(what: str, directory: Path | None = None) -> Iterator[None]:
    """What goes wrong with files in here is Unavailable; also when `directory` has hardly any room left."""
    try:
        if directory is not None and files.free_space(directory) < _ROOM:
            raise Unavailable(what, f"the disk is too full: less than {sizes.show(_ROOM)} are free", _MAKE_ROOM)
        yield
    except OSError as error:
        raise Unavailable(what, str(error), _MAKE_ROOM) from error


_MAKE_ROOM = "make room, for instance by deleting snapshots: roost snapshots"


def _next(disk: DiskFiles, coming: Base) -> Next:
    return Next(coming.layer, disk.next_disk, f"top-{coming.layer.replace('-', '')[:20]}")


def _overlay(size: int, below: Path | None, hint: str) -> bytes:
    """An empty disk of `size` bytes over `below`; where that is encrypted, by the same key. Raises OSError, Invalid."""
    if below is None:
        return overlays.empty(size)
    with below.open("rb") as file:
        head = file.read(formats.HEAD)
        if not overlays.is_locked(head):
            return overlays.empty(size, hint)
        where = overlays.luks_header(head)
        file.seek(where.offset)
        return overlays.empty(size, hint, file.read(where.length))


def write_new(path: Path, data: bytes) -> None:
    """A new file that nobody has open, its content durable; what is zero takes no room. Raises OSError."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        for at in range(0, len(data), _PAGE):
            if any(page := data[at : at + _PAGE]):
                file.seek(at)
                file.write(page)
        file.truncate(len(data))
        os.fsync(descriptor)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _holds_data(disk: Path) -> bool:
    with disk.open("rb") as file:
        offset, length = formats.level_1(file.read(48))
        file.seek(offset)
        return bool(file.read(length).strip(b"\0"))


def _taken(disk: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return disk.stat().st_blocks * 512
    return 0
