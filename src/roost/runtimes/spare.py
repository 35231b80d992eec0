"""What stands ready for the next run of the program that was run last: its sandbox, and in it what its runtime can start beforehand.

It is used once, holds nothing of a run but the names of the program's file and directory, and serves only a run that would get just this sandbox:
arguments, environment and standard descriptors are told when it is taken, everything else is compared.
"""

from __future__ import annotations

import os
import select

from roost.errors import RoostError
from roost.host import sandbox, workers
from roost.host.box import Receive
from roost.light import suppress
from roost.runtimes import detect, execution, plan
from roost.runtimes.base import GiB, Request

_LEAST = GiB
"""Bytes of memory that the host must have left: a spare is a luxury."""
_PRESSURE = 10.0
"""Percent of the last 10 s in which something waited for memory (PSI, `some avg10`): above it none is made."""
_PATIENCE = 2000
"""Milliseconds that what is started beforehand has until it serves."""


def stand_by(file: str, cwd: str) -> None:
    """Make the sandbox for the next run of this file from this directory in this process, where the host can spare it."""
    if not affordable(_text("/proc/meminfo"), _text("/proc/pressure/memory")):
        return
    with suppress(RoostError, OSError, ValueError):
        _prepare(Request(file, cwd=cwd, name=file))


def affordable(memory: str, pressure: str) -> bool:
    """Whether the host has memory left, by /proc/meminfo and /proc/pressure/memory ("" where there is none). Pure."""
    available = next((line.split()[1] for line in memory.splitlines() if line.startswith("MemAvailable:")), "0")
    waited = pressure.partition("some avg10=")[2].split()
    return int(available) << 10 >= _LEAST and (not waited or float(waited[0]) < _PRESSURE)


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""


def _prepare(request: Request) -> None:
    found = detect.detect(request.file)
    if found.refusal:
        return
    runtime = execution.choose(found)
    prepared = runtime.prepare(found, request)
    command = runtime.command(found, request, prepared)
    if command.call is not None:
        return
    facts = plan.Facts(os.getpid(), {0: 0, 1: 1, 2: 2}, certificates=os.path.isdir(plan.CERTIFICATES))
    box = plan.box(request, command, facts)
    beforehand = getattr(runtime, "beforehand", None)
    words: tuple[str, ...] = () if beforehand is None else beforehand(prepared)

    def ready() -> Receive:
        if words:
            _finish(workers.spawn_worker(words, box.env, {}))
        return lambda message, descriptors: 0

    sandbox.prepare(box, ready)


def _finish(worker: workers.Worker) -> None:
    """A run may wait for it already."""
    poll = select.poll()
    poll.register(worker.pidfd, select.POLLIN)
    if not poll.poll(_PATIENCE):
        worker.signal(9)
    worker.wait()
