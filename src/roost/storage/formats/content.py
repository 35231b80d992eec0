"""Bytes that are judged before any tool sees them: read at places, never run through."""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol


class Unfit(Exception):
    """Why a disk, archive or descriptor is not taken; the text is the `why` of the error that a caller meets."""


class Content(Protocol):
    """Something of `size` bytes."""

    @property
    def size(self) -> int:
        """How many bytes there are."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer at the end, none beyond it."""
        ...


class Text(NamedTuple):
    """Bytes in memory that stand for a file of `size` bytes whose rest nobody looks at."""

    data: bytes
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """What there is of it in memory."""
        return self.data[offset : offset + length]


class Span(NamedTuple):
    """`size` bytes from byte `start` of an open file: a whole file, or a member of an archive where it lies."""

    descriptor: int
    start: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Read them. Raises OSError."""
        return os.pread(self.descriptor, max(min(length, self.size - offset), 0), self.start + offset)


def exactly(content: Content, offset: int, length: int, what: str) -> bytes:
    """`length` bytes from `offset`. Raises Unfit when the file ends before that."""
    data = content.read(offset, length) if offset + length <= content.size else b""
    if len(data) != length:
        raise Unfit(f"its {what} lies beyond the end of the file: it is cut off")
    return data
