"""Disks that stand on disks: layers that are never written again, and who stands on them.

A machine's root disk changes what it stands on by one small journal: `next_disk` is written whole, then `next_base` says what a disk made of
it stands on. From then on the change is decided, unless that is a layer which the present root disk is still to become; two renames
end it, and whoever finds `next_base` can go on from there. So a daemon or a host may stop at any instant.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, ParamSpec, TypeVar

import msgspec

from roost.errors import Conflict, Invalid, Unavailable
from roost.host import files
from roost.host.paths import MachineFiles, Paths
from roost.model import size as sizes
from roost.storage import chains, flattening, formats, verification
from roost.storage.chains import Base, Chains, Layer
from roost.storage.verification import Finding

__all__ = ["LONGEST", "Base", "Finding", "Layer", "Layers", "Next", "Space"]

LONGEST = 8
"""Files that a disk may stand on before it should be flattened."""

_ROOM = 16 << 20
"""Bytes of disk that must be free before a disk is made: what comes after it, a layer's manifest first of all, must not fail for lack of them."""

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
    """All layers of this host. Who stands on what is read from the files themselves, never counted.

    `image_disk` gives the file of an image by its digest, None when it is not there. The caller does one thing at a time to each machine.
    """

    def __init__(self, paths: Paths, image_disk: Callable[[str], Path | None]) -> None:
        self._paths = paths
        self._chains = Chains(paths, image_disk)
        self._using: list[Base] = []
        """What disks are being made on just now: no file says so yet."""

    async def sweep(self) -> None:
        """At daemon start: remove layers without a manifest, and disks that were not whole when a daemon before this one ended."""
        await asyncio.to_thread(self._sweep)

    def base_of(self, machine: MachineFiles, image: str) -> Base:
        """What the machine's root disk stands on; `image` is the digest of the image that it was made from. Raises Unavailable."""
        return self._chains.base_of(machine) or Base(image=image)

    def below(self, base: Base) -> tuple[Path, ...]:
        """The files that a disk on `base` stands on, the nearest first. Raises Unavailable when one is missing, was changed in size or was made
        writable."""
        return self._chains.below(base)

    def virtual_size(self, base: Base) -> int:
        """Bytes that the guest sees. Raises Unavailable."""
        return self._chains.virtual_size(base)

    async def create_disk(self, base: Base, machine: MachineFiles, size: int | None = None) -> None:
        """A new empty root disk on `base`, `size` bytes or as large as that; replaces what was there, atomically.

        Killed in between, either the old disk is there and `pending` tells nothing, or it tells, and `settle` ends it; or do it again.
        Raises Invalid (smaller), Conflict (a `prepare` was not settled), Unavailable (disk full; `base` is not whole): then the old disk stays.
        """
        (below, *_), have = self._chains.below(base), self._chains.virtual_size(base)
        if size is not None and size < have:
            raise Invalid(
                f"a disk of {sizes.show(size)} is too small for what it is to stand on",
                f"that has {sizes.show(have)}",
                f"--disk {sizes.show(have)} or more",
            )
        async with self._use(base):
            await _uncut(self._create_disk, machine, base, formats.overlay(size or have, chains.hint(machine, below)))

    async def prepare(self, machine: MachineFiles, image: str) -> Next:
        """The overlay that is to cover the root disk, durable: the guest may rely on what it writes there.

        Raises Conflict (an earlier `prepare` was not settled), Unavailable (disk full): then nothing of it is left.
        """
        self._check_settled(machine)
        coming = Base(layer=str(uuid.uuid4()))
        try:
            await _uncut(self._prepare, machine, coming)
        except BaseException:
            await _uncut(self._take_back, machine)
            raise
        return _next(machine, coming)

    def pending(self, machine: MachineFiles) -> Next | None:
        """The `prepare` that was not settled yet, also that of a daemon before this one. Raises Unavailable."""
        coming = self._chains.coming(machine)
        return None if coming is None else _next(machine, coming)

    async def settle(self, machine: MachineFiles, image: str, *, covered: bool) -> Base:
        """End what `prepare` began, however far an earlier attempt came: the root disk becomes the layer and the overlay the root disk
        (`covered`: QEMU writes to the overlay, or there is no QEMU), or the overlay goes away. Returns what the root disk stands on then.

        An overlay that holds data was covering, and a layer that has its manifest is one, whatever `covered` says. Raises Unavailable
        (disk full, ...): then nothing is lost, and it can be done again.
        """
        return await _uncut(self._settle, machine, image, covered)

    async def repoint(self, machine: MachineFiles, base: Base) -> None:
        """Note that the root disk stands on `base` now (after it was flattened by QEMU). Raises Unavailable."""
        with _room_for(f"that {machine.disk} stands on its own"):
            await _uncut(files.atomic_write, machine.base, msgspec.json.encode(base))

    async def flatten(self, machine: MachineFiles, image: str) -> None:
        """Let the root disk stand on its image alone, for a machine that does not run. What was covered is settled first.

        Killed at any instant the disk is whole. Raises Unavailable (disk full): then it stands where it stood.
        """
        base = await self.settle(machine, image, covered=True)
        below = self._chains.below(base)
        if len(below) < 2:
            return
        target = Base(image=self._chains.image_below(base))
        async with self._use(base):
            try:
                with _room_for(f"{machine.disk} can not be flattened"):
                    size = chains.virtual_size(machine.disk)
                    await _uncut(_write, machine.next_disk, formats.overlay(size, chains.hint(machine, below[-1])))
                await flattening.rebase(machine.next_disk, (machine.disk, *below), chains.hint(machine, below[-1]))
                await _uncut(self._decide, machine, target)
            except BaseException:
                await _uncut(self._take_back, machine)
                raise
            await _uncut(self._advance, machine)

    async def collect(self, roots: Iterable[Base]) -> list[str]:
        """Remove the layers that neither a machine's disk nor any of `roots` stands on, directly or further below. Returns their UUIDs.

        Raises Unavailable when a chain is broken: what it stood on can not be known, so nothing is removed.
        """
        await asyncio.to_thread(self._chains.machines)
        # Files are remembered now, so that this look is short; no disk can be made on a layer between it and the end of the layer.
        doomed = sorted(set(self._chains.all()) - self._needed(roots))
        for layer in doomed:
            self._paths.layer(layer).manifest.unlink(missing_ok=True)
            self._chains.forget(layer)
        for layer in doomed:
            await asyncio.to_thread(files.remove_tree, self._paths.layer(layer).directory)
        return doomed

    def images(self) -> set[str]:
        """The digests of all images that a layer stands on, or a machine whose base.json says so. Raises Unavailable."""
        bases = [base for _, base in self._chains.machines()]
        layers = [layer.base for layer in map(self._chains.layer, self._chains.all()) if layer is not None]
        return {base.image for base in (*bases, *layers, *self._using) if base.image}

    def space(self, base: Base, others: Iterable[Base], owner: str = "") -> Space:
        """What the layers below `base` take, apart by whether a machine's disk or one of `others` stands on them too; images do not count.

        `owner` is the uid of a machine that does not count as another. Raises Unavailable.
        """
        machines = (found for uid, found in self._chains.machines() if uid != owner)
        theirs = self._chains.standing((*machines, *others))
        taken = {layer: _taken(self._paths.layer(layer).disk) for layer in self._chains.standing((base,))}
        shared = sum(taken[layer] for layer in taken.keys() & theirs)
        return Space(sum(taken.values()) - shared, shared)

    async def hash(self, layer: str) -> None:
        """Compute and note the digests of a layer and of those below it, where there is none yet, in the background. Raises Unavailable."""
        async with self._use(Base(layer=layer)):
            for link in tuple(self._chains.links(Base(layer=layer))):
                if link.layer:
                    await verification.complete(self._paths, self._chains, link.layer)

    async def verify(self, *, thorough: bool, others: Iterable[tuple[Base, str]] = ()) -> list[Finding]:
        """Look at every layer and image that something stands on: there, read-only, the size it had and, when `thorough`, its digest.

        `others` are what stands on them besides the machines with a base.json, with names for people.
        """
        return await verification.verify(self._paths, self._chains, others, self.hash if thorough else None)

    @contextlib.asynccontextmanager
    async def _use(self, base: Base) -> AsyncIterator[None]:
        """Keep `base` from being collected meanwhile."""
        self._using.append(base)
        try:
            yield
        finally:
            self._using.remove(base)

    def _needed(self, roots: Iterable[Base]) -> set[str]:
        machines = (base for _, base in self._chains.machines())
        needed = self._chains.standing((*machines, *roots, *self._using))
        for layer in sorted(needed):
            if self._chains.layer(layer) is None:
                where = self._paths.layer(layer).directory
                raise Unavailable(
                    "no layer is removed", f"{where} is missing, and with it what it stood on", "roost doctor storage"
                )
        return needed

    def _check_settled(self, machine: MachineFiles) -> None:
        if self._chains.coming(machine) is not None:
            raise Conflict(f"{machine.disk} can not be changed", "an earlier change of it has not ended", "try again")

    def _create_disk(self, machine: MachineFiles, base: Base, overlay: bytes) -> None:
        coming = self._chains.coming(machine)
        if coming is not None and self._chains.unfinished(coming):
            self._check_settled(machine)
        self._advance(machine)
        with _room_for(f"{machine.disk} can not be made", machine.keep):
            try:
                _write(machine.next_disk, overlay)
                self._decide(machine, base)
            except BaseException:
                self._take_back(machine)
                raise
        self._advance(machine)

    def _prepare(self, machine: MachineFiles, coming: Base) -> None:
        with _room_for(f"{machine.disk} can not be covered", machine.keep):
            size = chains.virtual_size(machine.disk)
            backing = chains.hint(machine, self._paths.layer(coming.layer).disk)
            _write(machine.next_disk, formats.overlay(size, backing))
            self._decide(machine, coming)

    def _decide(self, machine: MachineFiles, coming: Base) -> None:
        """From here on the next disk counts. Both are durable when this returns, for that syncs the directory of both."""
        with _room_for(f"{machine.disk} can not be changed"):
            files.atomic_write(machine.next_base, msgspec.json.encode(coming))

    def _settle(self, machine: MachineFiles, image: str, covered: bool) -> Base:
        coming = self._chains.coming(machine)
        if coming is None or not self._chains.unfinished(coming):
            return self._advance(machine) or self.base_of(machine, image)
        if not machine.next_disk.exists() or not (covered or _holds_data(machine.next_disk)):
            self._take_back(machine)
            files.remove_tree(self._paths.layer(coming.layer).directory)
            return self.base_of(machine, image)
        with _room_for(f"{machine.disk} can not become a layer"):
            self._seal(machine, coming.layer, self.base_of(machine, image))
        return self._advance(machine) or coming

    def _seal(self, machine: MachineFiles, uid: str, base: Base) -> None:
        """Give the root disk its second name, as a layer; the first one goes when the overlay takes it."""
        where = self._paths.layer(uid)
        where.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.link(machine.disk, where.disk)
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
            origin=machine.keep.name,
        )
        verification.write_manifest(where, layer)
        files.sync_directory(self._paths.layers)
        self._chains.learn(layer)

    def _advance(self, machine: MachineFiles) -> Base | None:
        """End a change that was decided; None when there is none.

        Nothing is synced: if the host stops, these two renames in one directory are both lost, or the second one (file systems keep their
        order), and found pending again.
        """
        coming = self._chains.coming(machine)
        if coming is None:
            machine.next_disk.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            machine.next_disk.replace(machine.disk)
        machine.next_base.replace(machine.base)
        return coming

    def _take_back(self, machine: MachineFiles) -> None:
        """Undo what was not decided. The root disk is writable again before anything says that it is not about to be covered."""
        with contextlib.suppress(FileNotFoundError):
            if not machine.disk.stat().st_mode & 0o200:
                machine.disk.chmod(0o600)
        machine.next_base.unlink(missing_ok=True)
        machine.next_disk.unlink(missing_ok=True)

    def _sweep(self) -> None:
        self._paths.layers.mkdir(parents=True, exist_ok=True, mode=0o700)
        whole = set(self._chains.all())
        for directory in self._paths.layers.iterdir():
            if directory.name not in whole:
                files.remove_tree(directory)
        for keep in self._paths.machines.iterdir() if self._paths.machines.is_dir() else ():
            machine = self._paths.machine(keep.name)
            if not machine.next_base.exists():
                machine.next_disk.unlink(missing_ok=True)


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


def _next(machine: MachineFiles, coming: Base) -> Next:
    return Next(coming.layer, machine.next_disk, f"top-{coming.layer.replace('-', '')[:20]}")


def _write(path: Path, data: bytes) -> None:
    """A new file that nobody has open, its content durable."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
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
