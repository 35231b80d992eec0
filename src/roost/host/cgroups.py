"""Control groups, version 2 first and version 1 where the host has that: memory, processes and CPU time of a jail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from roost.errors import Conflict

_MOUNT = Path("/sys/fs/cgroup")
_CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD = 100_000  # microseconds in which the CPU share is counted; the kernel's default
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_YOUNG = 60.0
"""Seconds for which an empty group may be one that somebody is about to join."""


class Bounds(NamedTuple):
    """Memory in bytes, processes (threads count), CPU seconds per second."""

    memory: int | None
    processes: int
    cpus: float | None


class CGroup(NamedTuple):
    """A group of ours: one directory under version 2, one for each controller under version 1."""

    directories: tuple[Path, ...]

    def join(self, pid: int) -> None:
        """Move a process into it. Raises OSError. Blocks for tens of milliseconds: the kernel waits for all its CPUs."""
        for directory in self.directories:
            (directory / "cgroup.procs").write_text(str(pid))

    def is_empty(self) -> bool:
        """Whether no process is in it."""
        return not any(_read(directory / "cgroup.procs") for directory in self.directories)

    def pids(self) -> frozenset[int]:
        """The processes in it, but those that can not be seen from here."""
        words = [word for directory in self.directories for word in _read(directory / "cgroup.procs").split()]
        return frozenset(map(int, words)) - {0}

    def make_room(self, size: int) -> None:
        """See that the bound of its memory is at least `size` bytes above what is in use; it is never lowered. Raises OSError."""
        for directory in self.directories:
            for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
                bound, used = _read(directory / limit).strip(), _read(directory / usage).strip()
                if bound.isdigit() and used.isdigit() and int(bound) < int(used) + size:
                    (directory / limit).write_text(str(int(used) + size))

    async def remove(self) -> bool:
        """Remove it; what is gone is fine. False when a process is still in it after a second."""
        for _ in range(50):
            if self.try_remove():
                return True
            await asyncio.sleep(0.02)  # nothing wakes us: a group empties a moment after its last process was reaped
        return False

    def try_remove(self) -> bool:
        gone = True
        for directory in self.directories:
            try:
                directory.rmdir()
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
            with contextlib.suppress(OSError):
                directory.parent.rmdir()  # the last one turns out the light
        return gone


def create(name: str, bounds: Bounds) -> tuple[CGroup | None, str]:
    """A new group with these bounds, or None and the reason why this host gives us none.

    Raises Conflict when a group of that name has processes.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a control group")
    parents = _parents()
    if not parents:
        return None, "no controller is mounted, or none is delegated to us"
    group = CGroup(tuple(parent / name for parent in parents))
    if not group.is_empty():
        raise Conflict(f"the control group {name} is in use", "a process is still in it")
    try:
        for directory in group.directories:
            # Once more if another daemon removed its last group, and with it the parent, just now.
            with contextlib.suppress(FileNotFoundError):
                _make(directory, bounds)
                continue
            _make(directory, bounds)
    except OSError as error:
        group.try_remove()
        return None, f"{error.strerror}: {error.filename}"
    return group, ""


def find(name: str) -> tuple[CGroup, ...]:
    """The group of that name and those named after it (NAME-passt) that an earlier daemon made."""
    found: dict[str, list[Path]] = {}
    for parent in _parents() if _NAME.fullmatch(name) else ():
        with contextlib.suppress(OSError):
            for directory in parent.iterdir():
                if (directory.name == name or directory.name.startswith(f"{name}-")) and directory.is_dir():
                    found.setdefault(directory.name, []).append(directory)
    return tuple(CGroup(tuple(directories)) for directories in found.values())


def remove_stale() -> tuple[str, ...]:
    """Remove our groups that have been empty for a minute, of whichever daemon; returns their names."""
    removed = []
    for parent in _parents():
        with contextlib.suppress(OSError):
            for directory in parent.iterdir():
                if directory.is_dir() and time.time() - directory.stat().st_mtime > _YOUNG:
                    with contextlib.suppress(OSError):
                        directory.rmdir()
                        removed.append(directory.name)
    return tuple(dict.fromkeys(removed))


def _make(directory: Path, bounds: Bounds) -> None:
    parent = directory.parent
    parent.mkdir(exist_ok=True)
    unified = (parent / "cgroup.controllers").exists()
    if unified:
        _enable(parent.parent)
        _enable(parent)
    with contextlib.suppress(FileNotFoundError):
        directory.rmdir()  # an empty one of an earlier daemon, with its counters
    directory.mkdir()
    for file, value in (_unified(bounds) if unified else _legacy(bounds)).items():
        path = directory / file
        if path.exists():
            path.write_text(value)


def _enable(directory: Path) -> None:
    """Give the children of a group the controllers that it has."""
    have = _read(directory / "cgroup.controllers").split()
    given = _read(directory / "cgroup.subtree_control").split()
    lacking = [name for name in _CONTROLLERS if name in have and name not in given]
    if lacking:
        (directory / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in lacking))


def _unified(bounds: Bounds) -> dict[str, str]:
    return {
        "memory.max": "max" if bounds.memory is None else str(bounds.memory),
        "memory.oom.group": "1",
        "pids.max": str(bounds.processes),
        "cpu.max": "max" if bounds.cpus is None else f"{int(bounds.cpus * _PERIOD)} {_PERIOD}",
    }


def _legacy(bounds: Bounds) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": "-1" if bounds.memory is None else str(bounds.memory),
        "pids.max": str(bounds.processes),
        "cpu.cfs_quota_us": "-1" if bounds.cpus is None else str(int(bounds.cpus * _PERIOD)),
    }


def _parents() -> tuple[Path, ...]:
    """The directories that hold our groups: they or their parents are writable to us."""
    unified = _unified_root()
    if unified is not None:
        return (unified / "roost",) if os.access(unified, os.W_OK) else ()
    roots = [_MOUNT / controller for controller in _CONTROLLERS]
    parents = [root / "roost" for root in roots if (root / "cgroup.procs").exists()]
    return tuple(parent for parent in parents if os.access(parent if parent.exists() else parent.parent, os.W_OK))


def _unified_root() -> Path | None:
    """Under version 2 with controllers: the top for root, else the highest group delegated to this user."""
    if not _read(_MOUNT / "cgroup.controllers").strip():
        return None
    if os.geteuid() == 0:
        return _MOUNT
    line = next((line for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), "0::/")
    own = _MOUNT / line[3:].lstrip("/")
    owned = [path for path in (own, *own.parents) if path.is_relative_to(_MOUNT) and os.access(path, os.W_OK)]
    return owned[-1] if owned else own


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
