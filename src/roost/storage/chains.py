"""Who stands on what, read from the files themselves: base.json of each machine, layer.json of each layer, down to an image."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from roost.errors import Invalid, Unavailable
from roost.host import files
from roost.host.paths import ImageFiles, LayerFiles
from roost.host.poolpaths import DiskFiles
from roost.model.meta import Struct
from roost.storage import formats

DEEPEST = 64
"""Layers in one chain: far more than are ever made before it is flattened, and a bound for one that goes in a circle."""

_LIMIT = 64 << 10
"""Bytes of a manifest or a base.json; ours have a few hundred."""
_WRITABLE = 0o222


class Base(Struct, frozen=True, kw_only=True):
    """What a disk stands on: an image ("sha256:...") or a layer (its UUID), or on nothing."""

    image: str = ""
    layer: str = ""


NOTHING = Base()


class Layer(Struct, frozen=True, kw_only=True):
    """A layer's manifest, written last. `virtual_size` in bytes, `size` the file's length in bytes; `digest` ("sha256:...") of the file, "" until it
    was computed; `origin` is the uid of the machine that wrote it, or of the volume that it was."""

    id: str
    base: Base
    virtual_size: int
    size: int
    digest: str = ""
    created: str = ""
    origin: str = ""


_Found = TypeVar("_Found", Base, Layer)


class Place(Protocol):
    """Where the disks and layers are that belong together: of all machines (host.paths.Paths), of a pool (PoolFiles)."""

    @property
    def disks(self) -> Path:
        """A directory for each disk, named by its uid."""
        ...

    @property
    def layers(self) -> Path:
        """A directory for each layer, named by its UUID."""
        ...

    def disk(self, uid: str) -> DiskFiles:
        """The files of a disk."""
        ...

    def layer(self, uid: str) -> LayerFiles:
        """The files of a layer."""
        ...

    def image(self, digest: str) -> ImageFiles:
        """The files of an image."""
        ...


class Chains:
    """Reads chains. `image_disk` gives the file of an image by its digest, None when it is not there.

    What was read once is remembered: a manifest for good (it changes by `learn` alone), a base.json until the file is another.
    """

    def __init__(self, paths: Place, image_disk: Callable[[str], Path | None]) -> None:
        self._paths = paths
        self._image_disk = image_disk
        self._layers: dict[str, Layer] = {}
        self._bases: dict[Path, tuple[tuple[int, int, int], Base]] = {}
        self._image_sizes: dict[str, int] = {}

    def layer(self, uid: str) -> Layer | None:
        """A layer's manifest, None when there is no such layer. Raises Unavailable when it can not be read."""
        known = self._layers.get(uid)
        if known is None:
            known = _read(self._paths.layer(uid).manifest, Layer)
            if known is not None:
                self._layers[uid] = known
        return known

    def learn(self, layer: Layer) -> None:
        """This is the layer's manifest from now on."""
        self._layers[layer.id] = layer

    def forget(self, uid: str) -> None:
        """The layer is no more."""
        self._layers.pop(uid, None)

    def all(self) -> list[str]:
        """The UUID of every layer that is there."""
        try:
            names = sorted(path.name for path in self._paths.layers.iterdir())
        except FileNotFoundError:
            return []
        return [name for name in names if self._paths.layer(name).manifest.exists()]

    def below(self, base: Base) -> tuple[Path, ...]:
        """The files that a disk on `base` stands on, the nearest first, the image's last. Raises Unavailable when one is missing, was changed in
        size or can be written."""
        found: list[Path] = []
        while base.layer:
            layer, where = self.layer(base.layer), self._paths.layer(base.layer)
            if layer is None:
                raise _broken(where.disk, "it is missing")
            found.append(where.disk)
            if problem := flaw(where.disk, layer.size):
                raise _broken(where.disk, problem)
            if len(found) > DEEPEST:
                raise _broken(where.disk, f"more than {DEEPEST} layers stand on each other, or they stand in a circle")
            base = layer.base
        if base == NOTHING:
            return tuple(found)
        disk = self._image_disk(base.image)
        if disk is None:
            raise Unavailable(
                "a disk can not be used", f"the image {base.image} that it stands on is missing", "roost image list"
            )
        if problem := flaw(disk):
            raise _broken(disk, problem)
        return (*found, disk)

    def virtual_size(self, base: Base) -> int:
        """Bytes that the guest of a disk on `base` sees, 0 for nothing. Raises Unavailable."""
        if base == NOTHING:
            return 0
        if base.layer:
            layer = self.layer(base.layer)
            if layer is None:
                raise _broken(self._paths.layer(base.layer).disk, "it is missing")
            return layer.virtual_size
        if base.image not in self._image_sizes:
            self._image_sizes[base.image] = virtual_size(self.below(base)[0])
        return self._image_sizes[base.image]

    def links(self, base: Base) -> Iterator[Base]:
        """`base` and all below it, down to the image or to a layer that is missing. Raises Unavailable when a manifest can not be read."""
        for _ in range(DEEPEST + 2):
            yield base
            layer = self.layer(base.layer) if base.layer else None
            if layer is None:
                return
            base = layer.base

    def image_below(self, base: Base) -> str:
        """The digest of the image at the end of the chain, "" when there is none. Raises Unavailable."""
        *_, last = self.links(base)
        if last.layer:
            raise _broken(self._paths.layer(last.layer).disk, "it is missing")
        return last.image

    def standing(self, bases: Iterable[Base]) -> set[str]:
        """The UUIDs of all layers that one of `bases` names or stands on, those that are missing too."""
        return {link.layer for base in bases for link in self.links(base) if link.layer}

    def base_of(self, disk: DiskFiles) -> Base | None:
        """What base.json says; None when there is none. Raises Unavailable when it can not be read."""
        return self._remembered(disk.base)

    def coming(self, disk: DiskFiles) -> Base | None:
        """What the disk is about to stand on, as next.json says; None when it stays where it is. Raises Unavailable."""
        return self._remembered(disk.next_base)

    def disks(self) -> list[tuple[str, Base]]:
        """The uid of each disk and what it stands on or will. Raises Unavailable when a file can not be read."""
        return [(uid, base) for uid in self.uids() for base in self.bases(uid)]

    def uids(self) -> list[str]:
        """The uids of all disks that have files; what is remembered of others is forgotten."""
        try:
            uids = [path.name for path in self._paths.disks.iterdir()]
        except FileNotFoundError:
            uids = []
        there = set(uids)
        for path in tuple(self._bases):
            if path.parent.name not in there:
                self._bases.pop(path, None)
        return uids

    def bases(self, uid: str) -> list[Base]:
        """What a disk stands on, and what it is about to; a layer that is only just being made is left out. Raises Unavailable."""
        where = self._paths.disk(uid)
        # In this order: what leaves next.json arrives in base.json, so one of the two has it.
        coming, base = self.coming(where), self.base_of(where)
        if coming is not None and self.unfinished(coming):
            coming = None
        return [found for found in (coming, base) if found is not None]

    def unfinished(self, coming: Base) -> bool:
        """Whether this is a layer that is still to be made."""
        return bool(coming.layer) and self.layer(coming.layer) is None

    def _remembered(self, path: Path) -> Base | None:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._bases.pop(path, None)
            return None
        signature = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        known = self._bases.get(path)
        if known is not None and known[0] == signature:
            return known[1]
        base = _read(path, Base)
        if base is not None:
            self._bases[path] = (signature, base)
        return base


def flaw(disk: Path, size: int | None = None) -> str:
    """What is wrong with a file that must never change, as far as its inode tells; "" when nothing. `size` in bytes, where it is known."""
    try:
        status = os.lstat(disk)
    except (FileNotFoundError, NotADirectoryError):
        return "it is missing"
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file"
    if size is not None and status.st_size != size:
        return f"it has {status.st_size} bytes and should have {size}"
    if status.st_mode & _WRITABLE:
        return f"it can be written (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def mend(disk: Path, problem: str) -> str:
    """The next step for a flaw."""
    if problem.startswith("it can be written"):
        return f"chmod 0444 {disk}, then see that it was not changed: roost doctor storage"
    return f"put {disk} back from a backup, then: roost doctor storage"


def virtual_size(disk: Path) -> int:
    """Bytes that the guest of a qcow2 file sees. Raises Unavailable."""
    try:
        with disk.open("rb") as file:
            return formats.virtual_size(file.read(32))
    except (OSError, Invalid) as error:
        why = error.why if isinstance(error, Invalid) else str(error)
        raise Unavailable(f"{disk} can not be used", why, "roost doctor storage") from error


def hint(disk: DiskFiles, below: Path) -> str:
    """How a disk names the file below it, for people: both move together with the state directory."""
    return os.path.relpath(below, disk.keep)


def _broken(disk: Path, problem: str) -> Unavailable:
    return Unavailable(f"{disk} can not be used, and what stands on it neither", problem, mend(disk, problem))


def _read(path: Path, kind: type[_Found]) -> _Found | None:
    try:
        return msgspec.json.decode(files.read_bounded(path, _LIMIT), type=kind)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (msgspec.MsgspecError, Invalid, OSError) as error:
        why = error.why if isinstance(error, Invalid) else str(error)
        raise Unavailable(f"{path} can not be read", why, f"put {path} back from a backup") from error
