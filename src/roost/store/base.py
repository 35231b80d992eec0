"""The seam to the truth: named values with compare-and-swap, a watch from a revision, and leases (shaped after etcd)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol


class Entry(NamedTuple):
    """A value as it stood at `revision` (that of its last change). `value` None means it was deleted then."""

    key: str
    value: bytes | None
    revision: int


class Write(NamedTuple):
    """One change of a commit: `value` None deletes. `expect` is the revision the key must have, 0 for "absent", None for any."""

    key: str
    value: bytes | None
    expect: int | None = None
    lease: int | None = None


class Store(Protocol):
    """Durable, ordered, watchable names. Revisions grow by one a commit and never repeat, also after a restart."""

    async def get(self, key: str) -> Entry:
        """The entry of `key`. Raises NotFound."""
        ...

    async def list(self, prefix: str) -> tuple[list[Entry], int]:
        """All entries below `prefix` in key order, and the store's revision at that instant (to watch from)."""
        ...

    async def put(self, key: str, value: bytes | None, *, expect: int | None = None, lease: int | None = None) -> int:
        """Write (None: delete) one value and return the new revision, durable. Raises Conflict when `expect` does not hold."""
        ...

    async def commit(self, writes: Sequence[Write]) -> int:
        """All of `writes` at one revision, or none. Raises Conflict naming the first key whose `expect` does not hold."""
        ...

    def watch(self, prefix: str, *, since: int) -> AsyncIterator[Entry]:
        """Every change below `prefix` after revision `since`, in order, for ever. Raises Conflict when `since` is compacted away."""
        ...

    async def grant(self, seconds: float) -> int:
        """A lease: what was written with it is deleted when it is not renewed within `seconds`. Returns its id."""
        ...

    async def renew(self, lease: int) -> None:
        """Let the lease live for its full time again. Raises NotFound when it has expired."""
        ...

    async def revoke(self, lease: int) -> None:
        """Delete what was written with the lease, now."""
        ...

    async def compact(self, revision: int) -> None:
        """Forget history up to `revision`; the latest value of every key stays."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, then let go."""
        ...
