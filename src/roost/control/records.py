"""Objects in the store, read and changed by reconcilers: decode, change, compare-and-swap, again when someone was quicker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from roost.control.events import now
from roost.errors import Conflict
from roost.model import codec
from roost.model.image import Image
from roost.model.kinds import BY_NAME, prefix_of
from roost.model.machine import Machine
from roost.store.base import Entry, Store

T = TypeVar("T", Machine, Image)


class Records:
    """Typed access for reconcilers."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def machine(self, key: str) -> Machine:
        """The machine at `key`. Raises NotFound."""
        return read(await self.store.get(key), Machine)

    async def machine_uids(self) -> set[str]:
        """The uids of all machines of all projects."""
        entries, _ = await self.store.list(prefix_of(BY_NAME["machine"]))
        return {read(entry, Machine).meta.uid for entry in entries}

    async def image(self, key: str) -> Image:
        """The image at `key`. Raises NotFound."""
        return read(await self.store.get(key), Image)

    async def update(self, key: str, change: Callable[[Machine], Machine]) -> Machine:
        """Apply `change` to the machine at `key` until no other write comes between. Writes nothing when nothing changes."""
        while True:
            before = await self.machine(key)
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
        await self.update(
            key,
            lambda machine: msgspec.structs.replace(
                machine, meta=msgspec.structs.replace(machine.meta, deleting=machine.meta.deleting or now())
            ),
        )

    async def remove(self, key: str, revision: int) -> None:
        """Remove the object. Raises Conflict when it is not at `revision`."""
        await self.store.put(key, None, expect=revision)


def read(entry: Entry, type_: type[T]) -> T:
    """An entry as an object that knows its revision."""
    assert entry.value is not None
    return with_revision(codec.stored(entry.value, type_), entry.revision)


def with_revision(thing: T, revision: int) -> T:
    """The same object at a revision."""
    return msgspec.structs.replace(thing, meta=msgspec.structs.replace(thing.meta, revision=revision))
