"""A log of what a guest or a program prints: two files of a bounded size, the newer one appended to, and a reader that follows them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LIMIT = 1 << 20
"""Bytes of the log on disk, unless said otherwise; one older file of the same size is kept beside it."""

PROGRAM_LIMIT = 4 << 20
"""Bytes of each of the two files of a program's log."""

_PIECE = 64 << 10


class OutputLog:
    """A log file of at most `limit` bytes that turns into `NAME.1` when full. What a planted link points to is never written."""

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self._path = path
        self._limit = limit

    @property
    def older(self) -> Path:
        """The file that came before."""
        return self._path.with_name(self._path.name + ".1")

    def write(self, data: bytes) -> None:
        """Append; a full or broken disk loses the record, nothing else. Blocks: call it in a thread."""
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.open(self._path, flags, 0o600)
            try:
                if os.fstat(descriptor).st_size + len(data) > self._limit:
                    self._path.replace(self.older)
                    os.close(descriptor)
                    descriptor = os.open(self._path, flags | os.O_EXCL, 0o600)
                os.write(descriptor, data[-self._limit :])
            finally:
                os.close(descriptor)

    def tail(self, size: int) -> bytes:
        """The last `size` bytes of both files together; b"" when there are none."""
        data = b""
        for path in (self.older, self._path):
            with contextlib.suppress(OSError):
                descriptor = _open(path)
                with open(descriptor, "rb") as file:
                    file.seek(max(0, os.fstat(descriptor).st_size - size))
                    data += file.read(size)
        return data[-size:]


class Tail:
    """Reads a log from its older file on, then what is appended, over every change of files. Whoever reads slower than two whole files are
    written misses what was in between. Blocks: call it in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._reopen()

    def read(self) -> bytes:
        """What follows what was read before, at most 64 KiB; b"" when nothing does yet."""
        data = os.read(self._file, _PIECE) if self._file >= 0 else b""
        if data or not self._replaced():
            return data
        # Between the last read and the change of files more may have come: read to the end before letting go.
        data = os.read(self._file, _PIECE) if self._file >= 0 else b""
        if not data:
            self._reopen()
            data = os.read(self._file, _PIECE) if self._file >= 0 else b""
        return data

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _replaced(self) -> bool:
        with contextlib.suppress(OSError):
            there = self._path.lstat()
            return self._file < 0 or not os.path.samestat(there, os.fstat(self._file))
        return False

    def _reopen(self) -> None:
        """The file that came after the one that was read: the older one of now, unless that is it."""
        following = self._path
        with contextlib.suppress(OSError):
            older = OutputLog(self._path).older
            if self._file < 0 or not os.path.samestat(older.lstat(), os.fstat(self._file)):
                following = older if older.exists() else self._path
        self.close()
        with contextlib.suppress(OSError):
            self._file = _open(following)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
