"""How detection reads: at most 64 KiB of a file, by position, counted; and the words that all formats share."""

from __future__ import annotations

import os
import stat

from roost.errors import Forbidden, NotFound, RoostError
from roost.light import Any, Mapping
from roost.runtimes.base import Found

KiB = 1 << 10
BUDGET = 64 * KiB
"""Bytes that are read of one file, whatever it is."""
HEAD = 4 * KiB
MOST_READS = 512
"""Reads of one file: a format that is a chain of small headers is followed so far."""


class Damaged(Exception):
    """The file is not as its format demands; the text says where."""


class Bounded(Exception):
    """What is looked for lies beyond what may be read."""


class File:
    """A file that is read within the budget. `head` is its start."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.left = BUDGET
        self._reads = MOST_READS
        self._fd = _opened(path)
        status = os.fstat(self._fd)
        self.size = status.st_size
        self.regular = stat.S_ISREG(status.st_mode)
        self.directory = stat.S_ISDIR(status.st_mode)
        self.head = b""

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def start(self) -> bytes:
        """Read the head. Raises NotFound when the file can not be read."""
        self.head = self._read(0, HEAD)
        return self.head

    def at(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes. Raises Damaged when the file ends before them, Bounded when they are more than may still be read."""
        data = self.some(offset, count) if count <= self.left or offset + count <= len(self.head) else b""
        if len(data) == count:
            return data
        if 0 <= offset <= self.size - count:
            raise Bounded
        raise Damaged(f"it ends at byte {self.size}, and should hold {count} bytes at {offset}")

    def some(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes: fewer at the end of the file and of the budget."""
        if offset >= 0 and offset + count <= len(self.head):
            return self.head[offset : offset + count]
        if not 0 <= offset < self.size or self._reads == 0 or self.left == 0:
            return b""
        return self._read(offset, min(count, self.left))

    def _read(self, offset: int, count: int) -> bytes:
        self._reads -= 1
        try:
            data = os.pread(self._fd, count, offset)
        except OSError as error:
            raise RoostError(f"{self.path!r} can not be read", error.strerror or str(error)) from error
        self.left -= len(data)
        return data


def _opened(path: str) -> int:
    """A descriptor of the file; a pipe or a device does not keep us waiting."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except PermissionError as error:
        raise Forbidden(f"{path!r} can not be read", "permission is denied", "look at its mode: ls -l") from error
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else str(error)) or str(error)
        raise NotFound(f"there is no program {path!r}", why, "name the file with its path, as in ./app.wasm") from error


def refuse(kind: str, why: str, fix: str = "", arch: str = "", details: Mapping[str, Any] | None = None) -> Found:
    """What can not run, why, and what to do."""
    return Found(kind, arch, details or {}, f"the file {why}", fix)


def text(data: bytes) -> str:
    """What a file says of itself, for people: what is no UTF-8 is replaced."""
    return data.decode("utf-8", "replace")
