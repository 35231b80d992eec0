"""The chain of revisions: hashes by which a store notices that changes are missing, altered or out of order."""

from __future__ import annotations

from hashlib import blake2b

from roost.store.state import Commit, Row

SIZE = 32
"""Bytes of a hash."""

_MODULUS = 1 << (8 * SIZE)


def following(chain: bytes, commit: Commit) -> bytes:
    """The hash of everything up to `commit`, from the hash of everything before it."""
    return blake2b(chain + b"".join(digest(row) for row in commit), digest_size=SIZE).digest()


def digest(row: Row) -> bytes:
    """The hash of one row; every field counts, and no two rows run together."""
    head = f"{row.revision} {row.ordinal} {row.lease} {row.value is None} {len(row.key.encode())} {row.key}"
    return blake2b(head.encode() + (row.value or b""), digest_size=SIZE).digest()


class Total:
    """The sum of the hashes of a set of rows: rows come and go in any order, and one that is missing or altered shows."""

    def __init__(self, value: bytes = bytes(SIZE)) -> None:
        self._value = int.from_bytes(value, "big")

    @property
    def value(self) -> bytes:
        """The sum, to be kept."""
        return self._value.to_bytes(SIZE, "big")

    def add(self, row: Row) -> None:
        """A row joins the set."""
        self._value = (self._value + int.from_bytes(digest(row), "big")) % _MODULUS

    def remove(self, row: Row) -> None:
        """A row leaves the set."""
        self._value = (self._value - int.from_bytes(digest(row), "big")) % _MODULUS
