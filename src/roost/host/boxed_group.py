"""The control group of a program, version 2 first and version 1 where the host has that: for a start that must not wait, light."""

from __future__ import annotations

import os

from roost.light import NamedTuple, suppress

_MOUNT = "/sys/fs/cgroup"
_PREFIX = "program-"
_PARENT = "roost"  # as for the guests' groups
_LEGACY = ("memory", "pids")


class Group(NamedTuple):
    """A group of ours: one directory under version 2, one for each controller under version 1."""

    directories: tuple[str, ...]

    def join(self, pid: int) -> None:
        """Move an init and all that it started into it. Raises OSError. Blocks for tens of milliseconds under version 1."""
        inside: set[int] = set()
        while self.join_next(pid, inside):
            pass

    def join_next(self, pid: int, inside: set[int]) -> bool:
        """Move one more of them, the oldest that is not `inside`, which grows; False when all are in it. Raises OSError."""
        found = _family(pid) - inside
        if not found:
            return False
        self._move(min(found))
        inside.add(min(found))
        return True

    def _move(self, pid: int) -> None:
        for directory in self.directories:
            with suppress(ProcessLookupError):
                _write(f"{directory}/cgroup.procs", str(pid))

    def kills(self) -> int:
        """How often the kernel killed a process in it because its memory was used up."""
        for directory in self.directories:
            for name in ("memory.events", "memory.oom_control"):
                for line in _read(f"{directory}/{name}").splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    def used(self) -> int:
        """Bytes of memory in use, the most so far where the kernel tells."""
        for directory in self.directories:
            for name in ("memory.peak", "memory.max_usage_in_bytes", "memory.current"):
                text = _read(f"{directory}/{name}").strip()
                if text.isdigit():
                    return int(text)
        return 0

    def remove(self) -> bool:
        """Remove it, once its processes are reaped; what is gone is fine. False when a process is in it."""
        gone = True
        for directory in self.directories:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


def create(pid: int, memory: int | None, processes: int) -> tuple[Group | None, str]:
    """A new empty group for the init `pid` with these bounds (memory in bytes), or None and why this host gives us none."""
    parents = _parents()
    if not parents:
        return None, "no controller is mounted, or none is delegated to us"
    group = Group(tuple(f"{parent}/{_PREFIX}{pid}" for parent in parents))
    try:
        for directory in group.directories:
            _clear(os.path.dirname(directory))
            os.mkdir(directory)
            for name, value in _bounds(memory, processes + 1):
                if os.path.exists(f"{directory}/{name}"):
                    _write(f"{directory}/{name}", value)
    except OSError as error:
        group.remove()
        return None, f"{error.strerror}: {error.filename}"
    return group, ""


def _bounds(memory: int | None, processes: int) -> list[tuple[str, str]]:
    bounds = [("pids.max", str(processes)), ("memory.oom.group", "1")]
    if memory is not None:
        bounds += [(name, str(memory)) for name in ("memory.max", "memory.limit_in_bytes")]
        bounds += [("memory.swap.max", "0"), ("memory.memsw.limit_in_bytes", str(memory))]
    return bounds


def _clear(parent: str) -> None:
    """Remove the groups of inits that were shot down with their supervisors."""
    os.makedirs(parent, exist_ok=True)
    for name in os.listdir(parent):
        number = name.removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and number.isdigit() and _has_ended(number):
            with suppress(OSError):
                os.rmdir(os.path.join(parent, name))


def _has_ended(pid: str) -> bool:
    """Whether there is no such process, or nobody has taken its end yet."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2][1:2] in ("", "Z", "X")


def _parents() -> list[str]:
    """The directories that hold our groups: they or their parents are writable to us."""
    if _read(f"{_MOUNT}/cgroup.controllers").strip():
        root = _unified()
        given = _read(f"{root}/cgroup.subtree_control").split()
        return [f"{root}/{_PARENT}"] if "memory" in given and _enable(root) else []
    roots = [f"{_MOUNT}/{name}" for name in _LEGACY if os.path.exists(f"{_MOUNT}/{name}/cgroup.procs")]
    parents = [f"{root}/{_PARENT}" for root in roots]
    return [path for path in parents if os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK)]


def _unified() -> str:
    """Under version 2: the top for root, else the group above our own, which a service manager delegates to its user."""
    if os.geteuid() == 0:
        return _MOUNT
    line = next((line for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), "0::/")
    return os.path.dirname(_MOUNT + line[3:]) or _MOUNT


def _enable(root: str) -> bool:
    """Give the groups in our parent the controllers."""
    try:
        os.makedirs(f"{root}/{_PARENT}", exist_ok=True)
        _write(f"{root}/{_PARENT}/cgroup.subtree_control", "+memory +pids")
    except OSError:
        return False
    return True


def _family(pid: int) -> set[int]:
    """A process and all its descendants."""
    found, new = set(), {pid}
    while new:
        found |= new
        children: set[int] = set()
        for parent in new:
            with suppress(OSError):
                for task in os.listdir(f"/proc/{parent}/task"):
                    children |= {int(child) for child in _read(f"/proc/{parent}/task/{task}/children").split()}
        new = children - found
    return found


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from error
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
