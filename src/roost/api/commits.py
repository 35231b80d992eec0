"""Writes carried out: decide, commit object and outcome together, and again when another write came between."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import NamedTuple

from roost.api.children import Children, stamped
from roost.api.locks import Locks
from roost.api.outcomes import Outcomes
from roost.api.view import View
from roost.api.wire import Answer, Call
from roost.errors import Conflict
from roost.host import failpoints
from roost.log import get
from roost.model import codec
from roost.model.kinds import BY_NAME, Object, key_of
from roost.store.base import Store, Write

_log = get(__name__)
_VOLUMES = ""
"""Where writes are decided that have to do with volumes, of whichever project: no project is called so."""
ATTEMPTS = 20
"""How often a write is tried again because another came between."""


class Change(NamedTuple):
    """A decided write: the answer's status, what is answered, and what to commit (nothing when nothing differs)."""

    status: int
    after: Object | Children
    writes: tuple[Write, ...] = ()


Decide = Callable[[], Awaitable[Change]]


class Commits:
    """The one way in which what users write enters the store."""

    def __init__(self, store: Store, view: View) -> None:
        self._store = store
        self._view = view
        self._outcomes = Outcomes(store)
        self._locks = Locks()

    async def replay(self, call: Call, body: bytes) -> Answer | None:
        """The answer of an earlier request with the same Idempotency-Key, if this one was carried out before. Raises Conflict."""
        return await self._outcomes.replay(call, body)

    def entering(self, project: str) -> AbstractContextManager[None]:
        """While something new is made in `project`. Raises Conflict while the project is being removed."""
        return self._locks.entering(project)

    def closing(self, project: str) -> AbstractContextManager[None]:
        """While `project` is removed. Raises Conflict while something is being made in it."""
        return self._locks.closing(project)

    async def carry_out(
        self, call: Call, body: bytes, decide: Decide, project: str, *, volumes: bool = False
    ) -> Answer:
        """Decide and commit, again when another write came between. The outcome and the objects are one commit. What decides over
        `volumes` is decided alone: a volume has one writer, and lives in a pool that stays."""
        async with (
            self._locks.deciding(project, alone=self._view.limited(project)),
            self._locks.deciding(_VOLUMES, alone=volumes),
        ):
            for _ in range(ATTEMPTS):
                change = await decide()
                record = await self._outcomes.record(call, body, change.status, change.after, time.monotonic())
                await failpoints.reach("api.before-commit")
                try:
                    revision = await self._commit(change.writes + record)
                except Conflict:
                    if (replayed := await self._outcomes.replay(call, body)) is not None:
                        return replayed
                    continue
                await failpoints.reach("api.after-commit")
                if change.writes:
                    _tell(call, change.after, revision)
                return Answer(codec.encode(stamped(change.after, revision)), change.status)
        raise Conflict("the request was not carried out", f"{ATTEMPTS} other writes came between", "try again")

    async def _commit(self, writes: tuple[Write, ...]) -> int:
        if not writes:
            return 0
        revision = await self._store.commit(writes)
        for write in writes:
            self._view.apply(write.key, write.value, revision)
        return revision


def _tell(call: Call, after: Object | Children, revision: int) -> None:
    """One line an object; never a spec, which may hold secrets."""
    made = [child.machine for child in after.items if child.machine] if isinstance(after, Children) else [after]
    for thing in made:
        key = key_of(BY_NAME[thing.kind], thing.project, thing.name)
        _log.info(
            "written", method=call.method, object=key, uid=thing.meta.uid, by=call.principal.name, revision=revision
        )
