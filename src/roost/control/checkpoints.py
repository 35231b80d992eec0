"""Instants of machines: kept sealed on disk, loaded once and verified, given to machines that go on from them."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from roost import log
from roost.errors import NotFound, Unavailable
from roost.host import files
from roost.host.paths import Paths
from roost.hypervisor import saved as sealed
from roost.hypervisor.base import Saved
from roost.hypervisor.saved import release
from roost.model.machine import Traits
from roost.model.meta import Struct
from roost.storage.layers import Base

_KEY_BYTES = 32


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One instant of a machine.

    `base` is what the disk of a machine that starts from it stands on (None: it has no disk), `virtual_size` its size in bytes.
    `saved` None: disks only. `variables`, `tpm` and `access` are the contents of the small files beside the disk, the latter two by
    name. `origin` tells people what it was taken of. It belongs to `project` alone: pages of memory shared with others would
    tell them of it.
    """

    id: str
    project: str
    shape: str
    traits: Traits
    base: Base | None
    virtual_size: int = 0
    saved: Saved | None = None
    variables: bytes | None = None
    tpm: Mapping[str, bytes] = field(default_factory=dict)
    access: Mapping[str, bytes] = field(default_factory=dict)
    origin: str = ""
    taken: str = ""
    pause: float = 0.0


Purpose: TypeAlias = Literal["snapshot", "warm"]


class _Record(Struct, frozen=True, kw_only=True):
    """A checkpoint's note on disk: all of it but the memory."""

    id: str
    purpose: Purpose
    project: str
    shape: str
    traits: Traits
    base: Base | None
    virtual_size: int
    variables: bytes | None
    tpm: dict[str, bytes]
    access: dict[str, bytes]
    origin: str
    taken: str
    pause: float

    @classmethod
    def of(cls, checkpoint: Checkpoint, purpose: Purpose) -> _Record:
        fields = {name: getattr(checkpoint, name) for name in cls.__struct_fields__ if name != "purpose"}
        return cls(**{**fields, "tpm": dict(checkpoint.tpm), "access": dict(checkpoint.access)}, purpose=purpose)

    def checkpoint(self, saved: Saved | None) -> Checkpoint:
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "purpose"}
        return Checkpoint(**fields, saved=saved)


class Checkpoints:
    """All checkpoints of this host.

    Memory of those used lately stays, verified and sealed, up to `budget` bytes, so that the next use costs nothing. Whatever is
    `pinned`, or was not written down, stays whatever the budget.
    """

    def __init__(self, paths: Paths, budget: int) -> None:
        self._paths = paths
        self._budget = budget
        self._key = b""
        self._kept: dict[str, _Record] = {}
        self._loaded: dict[str, Checkpoint] = {}
        self._loading: dict[str, asyncio.Task[Checkpoint]] = {}
        self._pins: Counter[str] = Counter()
        self._doomed: set[str] = set()
        self._damaged: set[str] = set()
        self._besides: list[Callable[[], Iterable[Base]]] = []

    async def begin(self, owned: Set[str] = frozenset()) -> None:
        """At daemon start: find what is kept, and remove what an earlier daemon left half written. What was written whole and can not be read
        any more stays when its id is among the `owned`: somebody may have a backup of the file, and want the rest."""
        self._paths.checkpoints.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._key = await asyncio.to_thread(_read_key, self._paths.checkpoint_key)
        for directory in sorted(self._paths.checkpoints.iterdir()):
            place = self._paths.checkpoint(directory.name)
            record = _decode(await asyncio.to_thread(sealed.peek, place))
            if record is not None and record.id == directory.name:
                self._kept[record.id] = record
            elif directory.name in owned and place.manifest.exists():
                self._damaged.add(directory.name)
                log.get(__name__).error("a snapshot is damaged", file=str(place.manifest))
            else:
                await asyncio.to_thread(files.remove_tree, directory)

    @property
    def damaged(self) -> Set[str]:
        """The ids of those that can not be read: what they stand on is not known, so that no layer can be told to be of no use."""
        return self._damaged

    def close(self) -> None:
        """At the daemon's end: let go of all memory."""
        for checkpoint in self._loaded.values():
            _close(checkpoint)
        self._loaded.clear()

    def hold(self, checkpoint: Checkpoint) -> None:
        """The register owns it from now on; until `forget`, but no longer than the daemon lives."""
        self._loaded[checkpoint.id] = checkpoint

    async def keep(self, checkpoint: Checkpoint, purpose: Purpose) -> int:
        """Write it down, durable and sealed by a keyed hash; returns its bytes on disk. The register owns it from now on.

        On failure (Unavailable: disk full) nothing of it stays on disk; it is held all the same.
        """
        self.hold(checkpoint)
        record = _Record.of(checkpoint, purpose)
        place = self._paths.checkpoint(checkpoint.id)
        with self.pinned(checkpoint.id):
            saved = checkpoint.saved or Saved(None, None)
            size = await sealed.write(saved, place, msgspec.json.encode(record), self._key)
        self._kept[checkpoint.id] = record
        self._make_room()
        return size

    async def load(self, uid: str) -> Checkpoint:
        """The checkpoint kept or held under this id; its `saved` belongs to the register: pin it while you use it.

        Raises NotFound, Unavailable (it does not match its seal: it must not be used).
        """
        if uid in self._doomed:
            raise NotFound(f"checkpoint {uid} does not exist", "it was deleted")
        if (found := self._loaded.get(uid)) is not None:
            self._loaded[uid] = self._loaded.pop(uid)  # the last used is the last to go
            return found
        if uid in self._damaged:
            file = self._paths.checkpoint(uid).manifest
            raise Unavailable(
                f"checkpoint {uid} can not be used", f"{file} is damaged", "put back a backup of that file"
            )
        if uid not in self._kept:
            raise NotFound(f"checkpoint {uid} does not exist")
        if uid not in self._loading:
            self._loading[uid] = log.spawn_task(self._read(uid), f"load checkpoint {uid}")
        return await asyncio.shield(self._loading[uid])

    async def _read(self, uid: str) -> Checkpoint:
        try:
            saved, note = await sealed.read(self._paths.checkpoint(uid), self._key)
            record = _decode(note)
            if uid not in self._kept:
                release(saved)
                raise NotFound(f"checkpoint {uid} does not exist", "it was deleted meanwhile")
            if record is None or record.id != uid:
                release(saved)
                raise Unavailable(f"checkpoint {uid} can not be used", "its description is of another one")
            self._loaded[uid] = record.checkpoint(saved if saved.device is not None else None)
            self._make_room(but=uid)
            return self._loaded[uid]
        finally:
            del self._loading[uid]

    @contextlib.contextmanager
    def pinned(self, uid: str) -> Iterator[Checkpoint]:
        """A loaded checkpoint, whose memory stays meanwhile. Raises NotFound for one that is not loaded."""
        checkpoint = self._loaded.get(uid)
        if checkpoint is None:
            raise NotFound(f"checkpoint {uid} is not loaded")
        self._pins[uid] += 1
        try:
            yield checkpoint
        finally:
            self._pins[uid] -= 1
            if not self._pins[uid] and uid in self._doomed:
                self._drop(uid)

    async def verify(self, uid: str) -> None:
        """Read all of a kept checkpoint and compare it with its seal, whether it is loaded or not. Raises Unavailable."""
        saved, _ = await sealed.read(self._paths.checkpoint(uid), self._key)
        release(saved)

    def in_use(self, uid: str) -> bool:
        """Whether somebody has it pinned."""
        return self._pins[uid] > 0

    def find(self, uid: str) -> Checkpoint | None:
        """The checkpoint without its memory, None when there is none."""
        record = self._kept.get(uid)
        return record.checkpoint(None) if record is not None else None

    def kept(self, purpose: Purpose) -> Mapping[str, Checkpoint]:
        """Every kept checkpoint of this purpose by its id, without `saved`."""
        return {uid: record.checkpoint(None) for uid, record in self._kept.items() if record.purpose == purpose}

    def size(self, uid: str) -> int:
        """Bytes that it takes on disk; 0 when it is not kept."""
        return sum(_bytes(file) for file in self._paths.checkpoint(uid).directory.glob("*"))

    async def forget(self, uid: str) -> None:
        """Remove it; nothing when it is not there. Its memory goes when nobody has it pinned any more."""
        record = self._kept.pop(uid, None)
        if uid in self._loaded:
            self._doomed.add(uid)
            if not self._pins[uid]:
                self._drop(uid)
        if record is not None or uid in self._damaged:
            self._damaged.discard(uid)
            await asyncio.to_thread(files.remove_tree, self._paths.checkpoint(uid).directory)

    def count(self, besides: Callable[[], Iterable[Base]]) -> None:
        """What `besides` tells of counts among the roots from now on: layers of checkpoints that are still being made."""
        self._besides.append(besides)

    def roots(self) -> Iterable[Base]:
        """What all checkpoints, kept or held, stand on."""
        kept = [record.base for record in self._kept.values()]
        held = [checkpoint.base for checkpoint in self._loaded.values()]
        coming = [base for besides in self._besides for base in besides()]
        return [base for base in (*kept, *held, *coming) if base is not None]

    def _drop(self, uid: str) -> None:
        self._doomed.discard(uid)
        _close(self._loaded.pop(uid))

    def _make_room(self, but: str = "") -> None:
        """Let go of the memory of those used longest ago."""
        used = {uid: _resident(checkpoint) for uid, checkpoint in self._loaded.items()}
        for uid in list(used):
            if sum(used.values()) <= self._budget:
                return
            if uid in self._kept and uid != but and not self._pins[uid]:
                del used[uid]
                self._drop(uid)


def _read_key(path: Path) -> bytes:
    """The key of this host, made when there is none. Another one makes every checkpoint unusable, not less safe."""
    with contextlib.suppress(FileNotFoundError):
        key = files.read_bounded(path, 4096)
        if len(key) == _KEY_BYTES:
            return key
    key = secrets.token_bytes(_KEY_BYTES)
    files.atomic_write(path, key, 0o600)
    return key


def _decode(note: bytes | None) -> _Record | None:
    if note is None:
        return None
    try:
        return msgspec.json.decode(note, type=_Record)
    except msgspec.MsgspecError:
        return None


def _resident(checkpoint: Checkpoint) -> int:
    memory = checkpoint.saved.memory if checkpoint.saved is not None else None
    return memory.resident() if memory is not None else 0


def _close(checkpoint: Checkpoint) -> None:
    if checkpoint.saved is not None:
        release(checkpoint.saved)


def _bytes(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_blocks * 512
    return 0
