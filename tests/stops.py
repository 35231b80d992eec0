"""Stopping the process before its Nth change of a file, as a kill would: from then on it changes nothing more, not even to clear up.

The operating system's calls are seen by an audit hook (PEP 578), so no call is missed because a test did not know of it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

CHANGES = {
    "os.rename",
    "os.link",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.truncate",
    "os.symlink",
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Stopped(BaseException):
    """The process is dead: no `except Exception` hears of it."""


class _Count:
    """How many changes were asked for, and how many may happen; None: this is nobody's concern."""

    allowed: int | None = None
    asked = 0


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _Count.allowed is None or not (event in CHANGES or (event == "open" and _writes(arguments[2]))):
        return
    _Count.asked += 1
    if _Count.asked > _Count.allowed:
        raise Stopped(f"{event} {arguments}")


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & _WRITING)


sys.addaudithook(_watch)


@contextlib.contextmanager
def stopped_after(changes: int) -> Iterator[None]:
    """What is done inside is stopped after this many changes of files; fewer are an error of the test, which must not pass by doing nothing."""
    _Count.allowed, _Count.asked = changes, 0
    try:
        yield
    except Stopped:
        pass
    else:
        raise AssertionError(f"it ended with {_Count.asked} changes, so {changes} do not stop it")
    finally:
        _Count.allowed = None


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """How many changes were made inside, afterwards."""
    result: list[int] = []
    _Count.allowed, _Count.asked = 1 << 30, 0
    try:
        yield result
    finally:
        _Count.allowed = None
        result.append(_Count.asked)
