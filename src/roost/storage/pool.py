"""The seam to pools: what control asks of a place where volumes live, and what it gets back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, NamedTuple, Protocol


class Capacity(NamedTuple):
    """Bytes of the whole place, and of what is taken of it by whomever."""

    size: int
    used: int


class Usage(NamedTuple):
    """Bytes: `virtual` is what a guest sees, `own` goes when it goes, `shared` others stand on too."""

    virtual: int
    own: int
    shared: int


class Origin(NamedTuple):
    """What a new volume is a copy of: an image by its digest, or a volume or snapshot of the same pool by its uid."""

    kind: Literal["image", "volume", "snapshot"]
    id: str


class Opened(NamedTuple):
    """How QEMU or one of its tools reaches a volume: by a `file` of this host (opened by us, passed by descriptor) that stands on the read-only
    qcow2 files `below`, the nearest first; or by the unix `socket` of an NBD server and its `export`. `key` is the passphrase of a LUKS layer
    in it: it goes by descriptor or QMP, never in argv."""

    format: Literal["qcow2", "raw"]
    file: Path | None = None
    below: tuple[Path, ...] = ()
    socket: Path | None = None
    export: str = ""
    key: bytes | None = None


class Cover(NamedTuple):
    """An empty overlay that is to cover a volume that is in use: the snapshot it stands for, its file, and a name for QEMU's node."""

    snapshot: str
    file: Path
    node: str


class Abilities(NamedTuple):
    """What a pool can do at once: `clones` without copying, `snapshots`, snapshots while `covered` by QEMU, encryption."""

    clones: bool = True
    snapshots: bool = True
    covers: bool = True
    encryption: bool = True


class Pool(Protocol):
    """A place for volumes. uids are UUIDs; keys of volumes are bytes that the caller knows. Every verb is whole or did nothing, may be cut at any
    instant and done again, and raises Unavailable for what the place does (disk full, server away), Conflict for what stands on something,
    Invalid for a size or an origin that can not be."""

    abilities: Abilities

    async def prepare(self) -> None:
        """Make ready at daemon start: remove what is half-made, go on with what was decided. Raises Conflict when the place is another pool's,
        Unavailable when it is not there (its file system is not mounted)."""
        ...

    async def discard(self) -> None:
        """The pool is given up: remove our mark on the place and what is empty in it. Raises Conflict while there is a volume or a snapshot."""
        ...

    async def capacity(self) -> Capacity:
        """How large and how full it is."""
        ...

    async def create(self, uid: str, size: int | None, origin: Origin | None = None, key: bytes | None = None) -> None:
        """A new volume, empty or a copy of `origin` at once; of `size` bytes or as large as that. Nothing when it is there already.

        Raises Invalid for an origin that is encrypted otherwise than the volume is to be, by `key` or not: `fill` copies it. An origin that is
        a volume must not be in use: Conflict."""
        ...

    async def fill(
        self, uid: str, source: Opened, size: int, key: bytes | None, progress: Callable[[float], None]
    ) -> None:
        """A new volume with the content of `source`, which nobody writes meanwhile; holes stay holes."""
        ...

    def opened(self, uid: str, key: bytes | None = None) -> AbstractAsyncContextManager[Opened]:
        """The volume for reading and writing, or a snapshot for reading, as long as the context lasts. A volume that is attached to a machine
        stays open by `hold` instead. Raises NotFound, and Forbidden for a wrong or missing key, before anything has read it."""
        ...

    async def hold(self, uid: str, key: bytes | None = None) -> Opened:
        """The same until `release`, also across a restart of the daemon: what serves it outlives that."""
        ...

    async def release(self, uid: str) -> None:
        """The volume is in use no more; nothing when it was not."""
        ...

    async def resize(self, uid: str, size: int, key: bytes | None = None) -> None:
        """Grow a volume that nobody uses. Raises Invalid for a smaller size."""
        ...

    async def snapshot(self, uid: str, snapshot: str) -> None:
        """Keep a volume that nobody uses as `snapshot`. Nothing when that is there already."""
        ...

    async def cover(self, uid: str, snapshot: str) -> Cover:
        """The overlay for `snapshot` of a volume that is in use; then QEMU puts it on, and `settle`."""
        ...

    async def settle(self, uid: str, *, covered: bool) -> None:
        """End what `cover` began, however far it came; an overlay that holds data was covering, whatever `covered` says."""
        ...

    async def rekey(self, uid: str, key: bytes, new: bytes) -> None:
        """From now on `new` is the passphrase of a volume that nobody uses, and `key` opens it no more; nothing when it is already. What it shared
        with its snapshots is copied for it: they keep their key. Raises Forbidden when neither opens it."""
        ...

    async def tend(self, uid: str, key: bytes | None = None) -> None:
        """What can wait and may take long: note the digests of what a volume stands on and, when nobody uses it, make a chain that has become too
        long short. To be called after a snapshot, and when a machine gave the volume back."""
        ...

    async def remove(self, uid: str) -> None:
        """Remove a volume; what others stand on stays for them. Nothing when there is none. Raises Conflict while it is in use."""
        ...

    async def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot likewise."""
        ...

    async def usage(self) -> Mapping[str, Usage]:
        """What every volume and snapshot takes, by uid: also of those that no object knows (orphans)."""
        ...

    def images(self) -> set[str]:
        """The digests of all images that something in it stands on: they must stay. Raises Unavailable when that can not be known."""
        ...

    def verify(self, *, thorough: bool) -> AsyncIterator[str]:
        """What is wrong, a line each, for `roost doctor storage`: references, sizes, and, when `thorough`, digests."""
        ...
