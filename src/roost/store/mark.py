"""The high-water mark beside a database: the last acknowledged revision, so that a lost tail is told apart from a clean end.

Two slots are written in turn, each with a checksum: a torn write spoils only the slot of a revision nobody was told of.
"""

from __future__ import annotations

import contextlib
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

SLOT = 4096
"""Bytes from slot to slot: two blocks of the disk, so that one torn or rotten block never takes both."""

_RECORD = struct.Struct(">8sQ32s")
_MAGIC = b"roostmk1"
_CHECK = 16


class Point(NamedTuple):
    """A place in the chain of revisions; `chain` hashes everything up to it (32 bytes)."""

    revision: int
    chain: bytes


START = Point(0, bytes(32))
"""Before the first revision."""


class Damaged(Exception):
    """The file is there but neither slot can be read."""


def read(path: Path) -> Point | None:
    """The newest readable mark, None when there is no file. Raises Damaged, OSError."""
    try:
        with open(path, "rb") as file:
            data = file.read(2 * SLOT)
    except FileNotFoundError:
        return None
    points = [point for offset in (0, SLOT) if (point := _unpack(data[offset : offset + SLOT])) is not None]
    if not points:
        raise Damaged
    return max(points)


class Mark:
    """The open file. `write` returns when the mark is on the disk."""

    def __init__(self, path: Path, point: Point) -> None:
        """Take over the file (made when missing) and set both slots to `point`. Raises OSError."""
        if not path.exists():
            _create(path, point)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._slot = 0
        try:
            self.write(point)
            self.write(point)
        except BaseException:
            self.close()
            raise

    def write(self, point: Point) -> None:
        """Say durably that `point` is about to be acknowledged. Raises OSError; then never trust the file again."""
        data = _pack(point)
        if os.pwrite(self._fd, data, self._slot * SLOT) != len(data):
            raise OSError("short write of the mark")
        os.fdatasync(self._fd)
        self._slot = 1 - self._slot

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def _create(path: Path, point: Point) -> None:
    """Make the file whole under another name first: one that is there is never half-made."""
    building = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        building.unlink()
    fd = os.open(building, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(_pack(point).ljust(SLOT, b"\0") * 2)
        file.flush()
        os.fsync(file.fileno())
    building.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pack(point: Point) -> bytes:
    record = _RECORD.pack(_MAGIC, point.revision, point.chain)
    return record + blake2b(record, digest_size=_CHECK).digest()


def _unpack(data: bytes) -> Point | None:
    record, check = data[: _RECORD.size], data[_RECORD.size : _RECORD.size + _CHECK]
    if len(record) < _RECORD.size or blake2b(record, digest_size=_CHECK).digest() != check:
        return None
    magic, revision, chain = _RECORD.unpack(record)
    return Point(revision, chain) if magic == _MAGIC else None
