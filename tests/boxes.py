"""Runs a box to its end, as its supervisor would, and keeps what it wrote."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from roost.host.sandbox import Box, Boxed, start


class Ran(NamedTuple):
    """What init said of the end, and what the program wrote to stdout and stderr together."""

    ended: str
    output: str
    boxed: Boxed


def box(*argv: str, **changes: Any) -> Box:
    """A box with the host's programs in it and nothing else."""
    return Box("test", argv, env={"PATH": "/usr/bin:/bin"}, system=True)._replace(**changes)


def run(wanted: Box) -> Ran:
    """Start it with nothing on stdin, wait for the program's end, and end what it left."""
    read, write = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        boxed = start(wanted._replace(fds={0: nothing, 1: write, 2: write}))
    finally:
        os.close(write)
        os.close(nothing)
    with open(read, "rb") as file:
        output = file.read()
    ended = boxed.link.recv(512).decode()
    end(boxed)
    return Ran(ended, output.decode(errors="replace"), boxed)


def end(boxed: Boxed) -> None:
    """Let the box die, and reap it."""
    boxed.link.close()
    os.waitpid(boxed.pid, 0)
    for descriptor in (boxed.pidfd, *boxed.listeners, boxed.notify):
        if descriptor >= 0:
            os.close(descriptor)


def children(pid: int) -> list[int]:
    """The processes that this one started, those of its threads left out."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status_of(pid: int) -> dict[str, str]:
    """What /proc says of a process, by field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def until_asleep(pid: int) -> None:
    """Return when the process waits for something other than a disk."""
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
        assert time.monotonic() < end
        os.sched_yield()
