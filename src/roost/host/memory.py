"""How much memory can still be given: by the host, and by the control groups that the daemon lives in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_MOUNT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


class _Files(NamedTuple):
    """What the files of one version of control groups are called."""

    limit: str
    used: str
    reclaimable: str


_UNIFIED = _Files("memory.max", "memory.current", "inactive_file")
_LEGACY = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available(proc: Path = _PROC, mount: Path = _MOUNT) -> int:
    """Bytes that can be given out without swapping: the kernel's estimate for the host (MemAvailable of proc(5)), or less where a control
    group of ours or of our container is nearer to its limit. What a group holds of files read long ago counts as free."""
    return min((_meminfo(proc, "MemAvailable"), *(max(0, limit - used) for limit, used in _groups(proc, mount))))


def total(proc: Path = _PROC, mount: Path = _MOUNT) -> int:
    """Bytes that the host has, or may use where a control group bounds us."""
    return min((_meminfo(proc, "MemTotal"), *(limit for limit, _ in _groups(proc, mount))))


def _meminfo(proc: Path, field: str) -> int:
    for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


def _groups(proc: Path, mount: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each bounded group from our own up to the top that we see."""
    for line in _lines(proc / "self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            yield from _bounded(mount, name, _UNIFIED)
        elif "memory" in controllers.split(","):
            yield from _bounded(mount / "memory", name, _LEGACY)


def _bounded(top: Path, name: str, names: _Files) -> Iterator[tuple[int, int]]:
    # In a container the name may be that of the host, where we see only what is below our own group: then the top is that.
    own = top / name.lstrip("/")
    inside = own.is_dir() and ".." not in own.parts
    for group in (own, *own.parents) if inside else (top,):
        if not group.is_relative_to(top):
            return
        limit = next(iter(_lines(group / names.limit)), "")
        used = next(iter(_lines(group / names.used)), "")
        if limit.isdigit() and used.isdigit():  # "max", and the top of version 2, have none
            yield int(limit), int(used) - _inactive(group, names)


def _inactive(group: Path, names: _Files) -> int:
    fields = (line.split() for line in _lines(group / "memory.stat"))
    return next((int(value) for field, value in fields if field == names.reclaimable), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
