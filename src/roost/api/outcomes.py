"""Idempotency keys: the outcome of a write is stored in the same commit as the write, so that a retry finds it or does it, never both."""

from __future__ import annotations

import hashlib
from typing import cast

import msgspec

from roost.api.children import Children, stamped
from roost.api.wire import Answer, Call, compact
from roost.errors import Conflict, Invalid, NotFound, Problem
from roost.model import codec
from roost.model.kinds import Object, find
from roost.store.base import Store, Write

KEEP = 24 * 3600.0
"""Seconds an outcome is kept."""
CLONES = "clones"
"""What stands for a kind where several machines were made at once."""
_SPAN = 3600.0
"""Outcomes of one hour share a lease, so that a busy host does not hold one lease a write."""


class Outcome(msgspec.Struct, frozen=True):
    """What a write answered. `kind` is that of the object in `body`, or CLONES. Revisions of 0 in it: that of the commit which stored this."""

    fingerprint: str
    status: int
    kind: str
    body: msgspec.Raw


class Outcomes:
    """The outcomes of the last day, one a principal and key."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lease: tuple[int, float] | None = None

    async def replay(self, call: Call, body: bytes) -> Answer | None:
        """The stored answer, if this very request was carried out before. Raises Conflict when the key was used for another one."""
        key = key_of(call)
        if key is None:
            return None
        try:
            entry = await self._store.get(key)
        except NotFound:
            return None
        outcome = msgspec.json.decode(cast("bytes", entry.value), type=Outcome)
        if outcome.fingerprint != fingerprint(call, body):
            raise Conflict(
                "the request was not carried out",
                "its Idempotency-Key was used for another request",
                "use a fresh key for each request",
            )
        type_: type[Object | Children] = Children if outcome.kind == CLONES else find(outcome.kind).type
        answer = codec.encode(stamped(codec.stored(bytes(outcome.body), type_), entry.revision))
        return Answer(answer, outcome.status, headers=[(b"idempotency-replayed", b"true")])

    async def record(
        self, call: Call, body: bytes, status: int, outcome: Object | Children, now: float
    ) -> tuple[Write, ...]:
        """The write that remembers this outcome, to go into the same commit; nothing without a key."""
        key = key_of(call)
        if key is None:
            return ()
        if self._lease is None or self._lease[1] <= now:
            self._lease = (await self._store.grant(KEEP + _SPAN), now + _SPAN)
        kind = CLONES if isinstance(outcome, Children) else outcome.kind
        stored = Outcome(fingerprint(call, body), status, kind, msgspec.Raw(codec.encode(outcome)))
        return (Write(key, codec.encode(stored), expect=0, lease=self._lease[0]),)


def key_of(call: Call) -> str | None:
    """Where the outcome of a call is kept; None when it brought no key. Raises Invalid."""
    given = call.header(b"idempotency-key")
    if given is None:
        return None
    if not (1 <= len(given) <= 128 and given.isascii() and given.isprintable()):
        raise Invalid(
            "the request is wrong", problems=[Problem("Idempotency-Key", "is not 1 to 128 printable characters")]
        )
    # Hashed with who asks: keys of different principals can not meet, and no client chooses a name in the store.
    return "outcomes/" + hashlib.sha256(f"{call.principal.name}\0{given}".encode()).hexdigest()


def fingerprint(call: Call, body: bytes) -> str:
    """What tells two requests apart: method, path and body (as it was sent)."""
    return hashlib.sha256(compact([call.method, call.path]) + b"\0" + body).hexdigest()
