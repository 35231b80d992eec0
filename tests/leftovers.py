"""What a daemon and its machines left on the host: processes, mounts, sockets, control groups, files."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
EMPTY = ("state/machines", "state/building", "state/programs", "state/contents", "run/machines")
"""Directories that hold one entry a machine, or half-made things: empty once all machines and programs are deleted."""


def find(state: Path, run: Path, uids: Iterable[str] = ()) -> list[str]:
    """Everything that belongs to the daemon of these directories, or to the machines with these uids; the daemon itself must have ended."""
    shared = hashlib.sha256(str(run).encode()).hexdigest()[:20]  # in the control groups of what serves all networks
    words = [word.encode() for word in (str(state), str(run), shared, *uids) if word]
    return [*_processes(words), *_mounts(words), *_sockets(words), *_cgroups(words), *_files(state, run)]


def wait_until_none(state: Path, run: Path, uids: Iterable[str] = (), seconds: float = 30.0) -> list[str]:
    """What is still there after at most `seconds`: the kernel takes a moment to end a process and its mounts."""
    names = list(uids)
    deadline = time.monotonic() + seconds
    while (left := find(state, run, names)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _processes(words: list[bytes]) -> Iterator[str]:
    """By command line, environment, control group, or a mount namespace into which our files are bound."""
    own = {os.getpid(), os.getppid()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own or b"State:\tZ" in _read(entry / "status"):
            continue
        command = _read(entry / "cmdline")
        traces = b"\0".join([command, _read(entry / "environ"), _read(entry / "cgroup"), _read(entry / "mountinfo")])
        if any(word in traces for word in words) and not _is_ours(entry):
            yield f"process {entry.name}: {command.replace(bytes(1), b' ').decode(errors='replace').strip()[:200]}"


def _is_ours(entry: Path) -> bool:
    """Whether this is a process of the test run (which names the directories in its own arguments)."""
    parent = int(entry.name)
    while parent > 1:
        if parent == os.getpid():
            return b"pytest" in _read(entry / "cmdline")
        fields = _read(Path(f"/proc/{parent}/stat")).rpartition(b")")[2].split()
        parent = int(fields[1]) if len(fields) > 1 else 0
    return False


def _mounts(words: list[bytes]) -> Iterator[str]:
    for line in _read(Path("/proc/self/mountinfo")).splitlines():
        if any(word in line for word in words):
            yield f"mount {line.decode(errors='replace')}"


def _sockets(words: list[bytes]) -> Iterator[str]:
    for line in _read(Path("/proc/net/unix")).splitlines():
        if any(word in line for word in words):
            yield f"socket {line.decode(errors='replace')}"


def _cgroups(words: list[bytes]) -> Iterator[str]:
    for directory, inner, _ in os.walk(CGROUPS):
        yield from (
            f"control group {directory}/{name}" for name in inner if any(word in name.encode() for word in words)
        )


def _files(state: Path, run: Path) -> Iterator[str]:
    for name in EMPTY:
        top, rest = name.split("/")
        directory = (state if top == "state" else run) / rest
        if directory.is_dir():
            yield from (f"file {entry}" for entry in directory.iterdir())
    for directory, _, names in os.walk(run):
        for path in (Path(directory) / name for name in names):
            if stat.S_ISSOCK(path.lstat().st_mode):
                yield f"file {path} (a socket)"
