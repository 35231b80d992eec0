"""What must not interleave inside one daemon: two decisions on one sum or claim, and creating in a project that is being removed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from roost.errors import Conflict


class Locks:
    """Per-project exclusion; nothing is kept for a project nobody is working in."""

    def __init__(self) -> None:
        self._inside: Counter[str] = Counter()
        self._closing: set[str] = set()
        self._deciding: dict[str, asyncio.Lock] = {}
        self._wanting: Counter[str] = Counter()

    @contextmanager
    def entering(self, project: str) -> Iterator[None]:
        """While something new is made in `project`. Raises Conflict while the project is being removed."""
        if project in self._closing:
            raise Conflict(
                f'nothing can be made in project "{project}"',
                "it is being deleted",
                "choose another project: --project",
            )
        self._inside[project] += 1
        try:
            yield
        finally:
            self._inside[project] -= 1
            if not self._inside[project]:
                del self._inside[project]

    @contextmanager
    def closing(self, project: str) -> Iterator[None]:
        """While `project` is removed. Raises Conflict while something is being made in it."""
        if self._inside[project] or project in self._closing:
            raise Conflict(
                f'project "{project}" was not deleted', "something is being made or deleted in it", "try again"
            )
        self._closing.add(project)
        try:
            yield
        finally:
            self._closing.discard(project)

    @asynccontextmanager
    async def deciding(self, place: str, *, alone: bool) -> AsyncIterator[None]:
        """While a write to `place` (a project) is decided and committed; one at a time if `alone`, as where a quota bounds the sum."""
        if not alone:
            yield
            return
        lock = self._deciding.setdefault(place, asyncio.Lock())
        # A lock that is free may be promised to who waits: it goes when nobody wants it, not when nobody has it.
        self._wanting[place] += 1
        try:
            async with lock:
                yield
        finally:
            self._wanting[place] -= 1
            if not self._wanting[place]:
                del self._wanting[place], self._deciding[place]
