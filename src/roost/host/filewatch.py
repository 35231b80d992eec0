"""Notices that a file has become another: inotify(7) on it, on the links that lead to it, and on the directories in which these are."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

_CLOSE_WRITE, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x8, 0x40, 0x80, 0x100, 0x200  # include/uapi/linux/inotify.h
_WANTED = _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_OVERFLOW = 0x4000
_EVENT = struct.Struct("=iIII")  # struct inotify_event, then the name
_LINKS = 40  # path_resolution(7)
_SETTLE = 0.1
"""Seconds after a change until it is told: a file is often made in several steps."""

_libc = ctypes.CDLL(None, use_errno=True)


class FileWatch:
    """Calls `changed` in the running loop when the file may be another, until it is closed. Raises OSError (the user has too many watches)."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path, self._changed = path, changed
        self._names: dict[int, set[bytes]] = {}
        self._settling: asyncio.TimerHandle | None = None
        self._descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._arm()
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def close(self) -> None:
        """Notice nothing more. Idempotent."""
        if self._settling is not None:
            self._settling.cancel()
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _arm(self) -> None:
        """Watch what leads to the file by now. The file itself, too: one that is mounted there is changed in no directory that we see."""
        self._names.clear()
        for step in _steps(self._path):
            self._add(step.parent, os.fsencode(step.name))
        self._add(self._path, b"")

    def _add(self, place: Path, name: bytes) -> None:
        number = _libc.inotify_add_watch(self._descriptor, os.fsencode(place), _WANTED)
        if number >= 0:  # else it is not there; its directory tells when it comes
            self._names.setdefault(number, set()).add(name)

    def _read(self) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._descriptor, 1 << 16)
        if any(mask & _OVERFLOW or name in self._names.get(number, ()) for number, mask, name in _events(data)):
            self._arm()
            if self._settling is None:
                self._settling = asyncio.get_running_loop().call_later(_SETTLE, self._tell)

    def _tell(self) -> None:
        self._settling = None
        self._changed()


def _steps(path: Path) -> Iterator[Path]:
    """The path, and where it leads while it is a link."""
    for _ in range(_LINKS):
        yield path
        try:
            path = path.parent / os.readlink(path)
        except OSError:
            return


def _events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + _EVENT.size <= len(data):
        number, mask, _, length = _EVENT.unpack_from(data, at)
        yield number, mask, data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
        at += _EVENT.size + length
