"""Objects in the store, read and changed by reconcilers: decode, change, compare-and-swap, again when someone was quicker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from roost.control.events import now
from roost.errors import Conflict
from roost.model import codec
from roost.model.forward import Forward
from roost.model.image import Image
from roost.model.kinds import BY_NAME, prefix_of
from roost.model.machine import Machine
from roost.model.network import Network
from roost.model.pool import Pool
from roost.model.program import Program
from roost.model.ruleset import RuleSet
from roost.model.snapshot import Snapshot
from roost.model.volume import Volume, VolumeSnapshot
from roost.store.base import Entry, Store

T = TypeVar("T", Machine, Program, Network, RuleSet, Forward, Image, Snapshot, Pool, Volume, VolumeSnapshot)


class Records:
    """Typed access for reconcilers."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def machine(self, key: str) -> Machine:
        """The machine at `key`. Raises NotFound."""
        return read(await self.store.get(key), Machine)

    async def machine_uids(self) -> set[str]:
        """The uids of all machines of all projects."""
        return {machine.meta.uid for machine in await self.all(Machine)}

    async def image(self, key: str) -> Image:
        """The image at `key`. Raises NotFound."""
        return read(await self.store.get(key), Image)

    async def snapshot(self, key: str) -> Snapshot:
        """The snapshot at `key`. Raises NotFound."""
        return read(await self.store.get(key), Snapshot)

    async def program(self, key: str) -> Program:
        """The program at `key`. Raises NotFound."""
        return read(await self.store.get(key), Program)

    async def network(self, key: str) -> Network:
        """The network at `key`. Raises NotFound."""
        return read(await self.store.get(key), Network)

    async def pool(self, key: str) -> Pool:
        """The pool at `key`. Raises NotFound."""
        return read(await self.store.get(key), Pool)

    async def volume(self, key: str) -> Volume:
        """The volume at `key`. Raises NotFound."""
        return read(await self.store.get(key), Volume)

    async def volumesnapshot(self, key: str) -> VolumeSnapshot:
        """The snapshot of a volume at `key`. Raises NotFound."""
        return read(await self.store.get(key), VolumeSnapshot)

    async def all(self, type_: type[T], project: str | None = None) -> list[T]:
        """Every object of a kind (in one project)."""
        entries, _ = await self.store.list(prefix_of(BY_NAME[type_.__name__.lower()], project))
        return [read(entry, type_) for entry in entries]

    async def update(self, key: str, change: Callable[[Machine], Machine]) -> Machine:
        """Apply `change` to the machine at `key` until no other write comes between. Writes nothing when nothing changes."""
        return await self.change(key, Machine, change)

    async def change(self, key: str, type_: type[T], change: Callable[[T], T]) -> T:
        """Like `update`, for an object of any kind."""
        while True:
            before = read(await self.store.get(key), type_)
            after = change(before)
            if after == before:
                return before
            try:
                revision = await self.store.put(key, codec.encode(after), expect=before.meta.revision)
            except Conflict:
                continue
            return with_revision(after, revision)

    async def delete(self, key: str) -> None:
        """Mark the machine at `key` for deletion."""
        await self.update(key, marked)

    async def remove(self, key: str, revision: int) -> None:
        """Remove the object. Raises Conflict when it is not at `revision`."""
        await self.store.put(key, None, expect=revision)


def read(entry: Entry, type_: type[T]) -> T:
    """An entry as an object that knows its revision."""
    assert entry.value is not None
    return with_revision(codec.stored(entry.value, type_), entry.revision)


def marked(thing: T) -> T:
    """The same object, marked for deletion."""
    meta = msgspec.structs.replace(thing.meta, deleting=thing.meta.deleting or now())
    return msgspec.structs.replace(thing, meta=meta)


def with_revision(thing: T, revision: int) -> T:
    """The same object at a revision."""
    return msgspec.structs.replace(thing, meta=msgspec.structs.replace(thing.meta, revision=revision))
