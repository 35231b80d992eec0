"""Zygotes of a test's own, and what is seen of them from outside."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conformance.laboratory import ROOST, environment

SERVE = (sys.executable, "-P", "-c", "from roost.cli.run import serve; serve()")


class World:
    """A private run directory, and the zygotes in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = environment(ROOST_RUN=str(directory), ROOST_ZYGOTE="1")
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """A zygote that serves."""
        zygote = subprocess.Popen(SERVE, env=self.environment, stdin=subprocess.DEVNULL)
        self.started.append(zygote)
        within(lambda: bool(self.sockets()))
        return zygote

    def sockets(self, end: str = "") -> list[Path]:
        """That for modules, or another one by the end of its name."""
        found = [path for path in self.directory.glob("zygote/*") if path.is_socket()]
        return [path for path in found if path.suffix == end]

    def run(self, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
        how = {"input": b"", "env": self.environment, **how}
        return subprocess.run([*ROOST, "run", *words], capture_output=True, timeout=30, check=False, **how)

    def popen(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([*ROOST, "run", *words], env=self.environment, **streams, **how)

    def holder(self) -> int:
        """The process that holds the lock: the zygote."""
        (lock,) = self.directory.glob("zygote/*.lock")
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return int(words[4])
        return 0

    def standby(self, end: str = ".system") -> int:
        """The standby that takes callers at the socket whose name ends so; 0: there is none."""
        return next((pid for pid in children(self.holder()) if listens(pid, end)), 0)

    def spare(self) -> int:
        """The sandbox that is ready for the next run of a program of the system, by the pid of its init on the host; 0: there is none."""
        waiting = [pid for pid in children(self.standby()) if children(pid)]
        return waiting[0] if waiting else 0

    def served(self) -> int:
        """How many runs it has begun: each takes the standby, and another one takes its place."""
        return max(children(self.holder()), default=0)


def children(pid: int) -> list[int]:
    """Of a process; none of one that is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def within(condition: Any, seconds: float = 10.0) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.01)


def listens(pid: int, end: str) -> bool:
    """Whether a process has the socket open that callers find under a name with this end."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    inodes = {words[6] for words in lines if words[3] == "00010000" and words[-1].endswith(end)}
    try:
        held = {str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:
        return False
    return any(f"socket:[{inode}]" in held for inode in inodes)


@contextmanager
def a_world(directory: Path) -> Iterator[World]:
    """With all that it started gone at the end."""
    directory.chmod(0o700)
    made = World(directory)
    yield made
    holder = made.holder() if list(directory.glob("zygote/*.lock")) else 0
    if holder:
        os.kill(holder, signal.SIGKILL)
    for zygote in made.started:
        zygote.kill()
        zygote.wait()


def by_zygote(world: World, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    """A run that the zygote must have made: it has another standby afterwards."""
    before = world.served()
    done = world.run(*words, **how)
    within(lambda: world.served() != before)
    return done


def first_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 20)[0]
    return process.stdout.readline()
