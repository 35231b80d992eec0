"""All objects in memory, already as JSON and in order: lists and membership are answered from here, and a watch keeps it true."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import msgspec

from roost.errors import Conflict
from roost.log import get
from roost.model import codec
from roost.model.kinds import BY_NAME, Kind, Object, prefix_of
from roost.model.project import Project, Quota, Role
from roost.store.base import Entry, Store

_log = get(__name__)


class Item(NamedTuple):
    """One object: its key, the revision of its last change, and its JSON with that revision in `meta.revision`."""

    key: str
    revision: int
    body: bytes


def load(kind: Kind, entry: Entry) -> Object:
    """The object of a store entry, `meta.revision` filled in."""
    found = codec.stored(cast("bytes", entry.value), kind.type)
    return stamp(found, entry.revision)


def stamp(found: Object, revision: int) -> Object:
    """The object as it stands at `revision`."""
    return msgspec.structs.replace(found, meta=msgspec.structs.replace(found.meta, revision=revision))


class View:
    """The objects of the store. `apply` makes the API's own writes visible at once, before the watch reports them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._items: dict[str, Item] = {}
        self._keys: list[str] = []
        self._projects: dict[str, Project] = {}
        self._removed: dict[str, int] = {}
        self.revision = 0
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Read everything, then follow the store until it closes."""
        while True:
            entries, self.revision = await self._store.list("")
            self._reset(entries)
            self.ready.set()
            try:
                return await self._follow()
            except Conflict:
                _log.warning("history was compacted away under the API's view: reading all again")

    async def _follow(self) -> None:
        async for entry in self._store.watch("", since=self.revision):
            self.apply(entry.key, entry.value, entry.revision)
            self.revision = entry.revision
            if self._removed.get(entry.key, entry.revision + 1) <= entry.revision:
                del self._removed[entry.key]

    def _reset(self, entries: list[Entry]) -> None:
        self._items.clear()
        self._keys.clear()
        self._projects.clear()
        self._removed.clear()
        for entry in entries:
            self.apply(entry.key, entry.value, entry.revision)

    def apply(self, key: str, value: bytes | None, revision: int) -> None:
        """Take over one change unless a newer one of that key is already here."""
        kind = BY_NAME.get(key.partition("/")[0])
        current = self._items.get(key)
        if kind is None or revision <= max(current.revision if current else 0, self._removed.get(key, 0)):
            return
        if value is None:
            self._remove(key, revision)
            return
        found = load(kind, Entry(key, value, revision))
        if current is None:
            insort(self._keys, key)
        self._items[key] = Item(key, revision, codec.encode(found))
        if isinstance(found, Project):
            self._projects[found.name] = found

    def _remove(self, key: str, revision: int) -> None:
        self._removed[key] = revision
        if self._items.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]
            if key.startswith("projects/"):
                self._projects.pop(key.removeprefix("projects/"), None)

    def get(self, key: str) -> Item | None:
        """The object at `key`."""
        return self._items.get(key)

    def members(self, project: str) -> Mapping[str, Role] | None:
        """Who is in the project; None when there is no such project."""
        found = self._projects.get(project)
        return None if found is None else found.spec.members

    def limited(self, project: str) -> bool:
        """Whether a quota bounds the project."""
        found = self._projects.get(project)
        return found is not None and found.spec.quota != Quota()

    def below(self, prefix: str, after: str = "") -> Iterator[Item]:
        """The objects whose keys begin with `prefix`, in order, those up to the key `after` left out. Do not await between two of them."""
        start = bisect_right(self._keys, after) if after > prefix else bisect_left(self._keys, prefix)
        for index in range(start, len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                return
            yield self._items[key]

    def count(self, kind: Kind) -> int:
        """How many objects of a kind there are."""
        prefix = prefix_of(kind)
        return bisect_left(self._keys, prefix[:-1] + "0") - bisect_left(self._keys, prefix)
