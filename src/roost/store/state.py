"""What a store holds (values, history, leases) and how a change is decided: data without I/O, the same for every store."""

from __future__ import annotations

import re
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from roost.errors import Conflict, Invalid, NotFound
from roost.store.base import Entry, Write

MAX_KEY = 512
"""Bytes of a key."""

MAX_VALUE = 1 << 20
"""Bytes of a value: an object with its user data and its history of conditions is a few kB."""

MAX_WRITES = 1000
"""Writes of one commit."""

HISTORY_REVISIONS = 10_000
"""Revisions that stay watchable; older ones are compacted by themselves."""

HISTORY_BYTES = 8 << 20
"""Bytes of keys and values that the history may hold, whatever the number of revisions."""

SLACK = 1.25
"""Compaction starts when the history is over its bounds by this factor, and brings it back to them."""

LEASE = "\x00lease/"
"""Where a lease is recorded: below a byte that no key of a caller has, so that leases share the one log of changes."""

_BAD = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Row(NamedTuple):
    """One write of one commit; (`revision`, `ordinal`) is its identity. `value` None deletes."""

    revision: int
    ordinal: int
    key: str
    value: bytes | None
    lease: int | None = None

    @property
    def entry(self) -> Entry:
        """What a caller sees of it."""
        return Entry(self.key, self.value, self.revision)

    @property
    def size(self) -> int:
        """Bytes it holds."""
        return len(self.key) + len(self.value or b"")


Commit = tuple[Row, ...]
"""All rows of one revision; never empty."""


class Compaction(NamedTuple):
    """What forgetting the history up to `revision` means for who keeps rows: `drop` goes, `keep` is still somebody's value."""

    revision: int
    drop: tuple[Row, ...]
    keep: tuple[Row, ...]


class State:
    """The values at the last revision, and the changes since `compacted`."""

    def __init__(self, compacted: int = 0) -> None:
        self.revision = compacted
        self.compacted = compacted
        self.leases: dict[int, float] = {}
        """Seconds that each lease lives without being renewed."""
        self._rows: dict[str, Row] = {}
        self._entries: dict[str, Entry] = {}
        """What readers get, made once: a list of 10,000 makes no 10,000 objects."""
        self._keys: list[str] = []
        self._history: dict[int, Commit] = {}
        self._history_bytes = 0
        self._superseded: list[Row] = []
        self._leased: dict[int, set[str]] = {}

    def row(self, key: str) -> Row | None:
        """The live row of a key."""
        return self._rows.get(key)

    def get(self, key: str) -> Entry:
        """The entry of a key. Raises NotFound."""
        entry = self._entries.get(key)
        if entry is None:
            raise NotFound(f"{key!r} does not exist")
        return entry

    def list(self, prefix: str) -> list[Entry]:
        """The entries below a prefix, in key order."""
        first = bisect_left(self._keys, prefix)
        end = bisect_left(self._keys, True, first, key=lambda key: not key.startswith(prefix))
        return [self._entries[key] for key in self._keys[first:end]]

    def changes(self, revision: int) -> Commit:
        """The rows of one revision after `compacted`. Raises Conflict when it is forgotten."""
        rows = self._history.get(revision)
        if rows is None:
            raise Conflict(
                f"the changes since revision {revision - 1} are not known any more",
                why=f"the history begins after revision {self.compacted}, the last revision is {self.revision}",
                fix="list again, and watch from the revision that the list gives",
            )
        return rows

    def leased(self, lease: int) -> Iterable[str]:
        """The keys that live as long as a lease."""
        return self._leased.get(lease, ())

    def apply(self, commit: Commit) -> None:
        """Take in the next revision, or, while a store is loaded, one that was compacted but for its last values."""
        revision = commit[0].revision
        for row in commit:
            self._replace(row)
        self.revision = max(self.revision, revision)
        if revision > self.compacted:
            self._history[revision] = commit
            self._history_bytes += sum(row.size for row in commit)

    def compaction(self, revision: int) -> Compaction:
        """What would be forgotten with the history up to `revision` (at most the last); nothing is changed yet."""
        revision = min(revision, self.revision)
        rows = [row for number in range(self.compacted + 1, revision + 1) for row in self._history[number]]
        keep = tuple(row for row in rows if self._is_live(row))
        gone = (row for row in rows if not self._is_live(row))
        return Compaction(revision, (*self._superseded, *gone), keep)

    def compact(self, compaction: Compaction) -> None:
        """Forget what `compaction` found."""
        for number in range(self.compacted + 1, compaction.revision + 1):
            self._history_bytes -= sum(row.size for row in self._history.pop(number))
        self.compacted = max(self.compacted, compaction.revision)
        self._superseded.clear()

    def compaction_due(self) -> int | None:
        """The revision to compact to when the history is over its bounds."""
        length = self.revision - self.compacted
        if length > HISTORY_REVISIONS * SLACK:
            return self.revision - HISTORY_REVISIONS
        if self._history_bytes <= HISTORY_BYTES * SLACK:
            return None
        revision, excess = self.compacted, self._history_bytes - HISTORY_BYTES
        while excess > 0:
            revision += 1
            excess -= sum(row.size for row in self._history[revision])
        return revision

    def _is_live(self, row: Row) -> bool:
        if row.key.startswith(LEASE):
            return row.value is not None and int(row.key.removeprefix(LEASE)) in self.leases
        return self._rows.get(row.key) is row

    def _replace(self, row: Row) -> None:
        if row.key.startswith(LEASE):
            self._replace_lease(row)
            return
        old = self._supersede(row.key)
        if row.value is None:
            if old is not None:
                del self._keys[bisect_left(self._keys, row.key)], self._entries[row.key]
            return
        if old is None:
            insort(self._keys, row.key)
        self._rows[row.key], self._entries[row.key] = row, row.entry
        if row.lease is not None:
            self._leased.setdefault(row.lease, set()).add(row.key)

    def _supersede(self, key: str) -> Row | None:
        old = self._rows.pop(key, None)
        if old is not None and old.lease is not None:
            self._leased[old.lease].discard(key)
        if old is not None and old.revision <= self.compacted:
            self._superseded.append(old)
        return old

    def _replace_lease(self, row: Row) -> None:
        lease = int(row.key.removeprefix(LEASE))
        if row.value is not None:
            self.leases[lease] = float(row.value)
            return
        self._leased.pop(lease, None)
        # None while a store is loaded whose compaction forgot the grant before the end of the lease.
        seconds = self.leases.pop(lease, None)
        if seconds is not None and lease <= self.compacted:
            self._superseded.append(lease_row(lease, seconds))


def lease_row(lease: int, seconds: float) -> Row:
    """The row that grants a lease; its id is the revision it was granted at, so that ids never repeat."""
    return Row(lease, 0, f"{LEASE}{lease}", repr(seconds).encode())


class Draft:
    """Commits that are decided but not made yet: each sees what those before it will have done."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._changed: dict[str, Row] = {}
        self._revoked: set[int] = set()
        self._granted: set[int] = set()
        self.revision = state.revision
        self.commits: list[Commit] = []

    def commit(self, writes: Sequence[Write]) -> int:
        """Decide a commit and say its revision; deleting what is absent is no change. Raises Conflict, Invalid, NotFound (lease)."""
        _check(writes)
        for write in writes:
            self._check_expected(write)
            if write.lease is not None and not self._lives(write.lease):
                raise NotFound(f"lease {write.lease} has expired", fix="grant a new one and write again")
        return self._add([w for w in writes if w.value is not None or self._row(w.key) is not None])

    def grant(self, seconds: float) -> int:
        """Decide a new lease and say its id."""
        row = lease_row(self.revision + 1, seconds)
        self._granted.add(row.revision)
        return self._add([Write(row.key, row.value)])

    def revoke(self, lease: int) -> int:
        """Decide the end of a lease and of what was written with it. Raises NotFound."""
        if not self._lives(lease):
            raise NotFound(f"lease {lease} has expired")
        self._revoked.add(lease)
        keys = {key for key in self._state.leased(lease) if key not in self._changed}
        keys |= {key for key, row in self._changed.items() if row.lease == lease and row.value is not None}
        return self._add([Write(key, None) for key in [*sorted(keys), f"{LEASE}{lease}"]])

    def _add(self, writes: Sequence[Write]) -> int:
        if not writes:
            return self.revision
        self.revision += 1
        commit = tuple(Row(self.revision, n, w.key, w.value, w.lease) for n, w in enumerate(writes))
        self._changed.update((row.key, row) for row in commit)
        self.commits.append(commit)
        return self.revision

    def _row(self, key: str) -> Row | None:
        row = self._changed.get(key)
        if row is None:
            return self._state.row(key)
        return row if row.value is not None else None

    def _lives(self, lease: int) -> bool:
        return lease not in self._revoked and (lease in self._state.leases or lease in self._granted)

    def _check_expected(self, write: Write) -> None:
        row = self._row(write.key)
        found = row.revision if row else 0
        if write.expect is None or write.expect == found:
            return
        why = f"it is at revision {found}" if found else "it does not exist"
        wanted = f"revision {write.expect} was expected" if write.expect else "it was expected not to exist"
        raise Conflict(f"{write.key!r} was not written", why=f"{why}, {wanted}", fix="read it again and decide anew")


def _check(writes: Sequence[Write]) -> None:
    if not 0 < len(writes) <= MAX_WRITES:
        raise Invalid(f"a commit has 1 to {MAX_WRITES} writes, not {len(writes)}")
    if len({write.key for write in writes}) != len(writes):
        raise Invalid("a commit may write each key once")
    for write in writes:
        check_key(write.key)
        if write.value is not None and len(write.value) > MAX_VALUE:
            raise Invalid(
                f"the value of {write.key!r} is too long", why=f"{len(write.value)} bytes, at most {MAX_VALUE}"
            )


def check_key(key: str) -> None:
    """Raises Invalid unless `key` is 1 to 512 bytes of UTF-8 without control characters."""
    if _BAD.search(key):
        raise Invalid(f"{key[:80]!r} is no key", why="it has control characters or unpaired surrogates")
    if not 0 < len(key.encode()) <= MAX_KEY:
        raise Invalid(f"{key[:80]!r} is no key", why=f"a key has 1 to {MAX_KEY} bytes")
