"""Starting the daemon when a command or program needs one and none runs: exactly one wins, the others wait for it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from roost.client.endpoint import UNIT, Endpoint, connect
from roost.client.protocol import error_of
from roost.config import Config
from roost.errors import NotStarted, Unavailable
from roost.host import system
from roost.host.paths import Paths
from roost.host.service import group_id, private_directory

IDLE_EXIT = 300
"""Seconds without machines and callers after which a daemon that was started this way ends itself."""

COMMAND = (sys.executable, "-P", "-m", "roost.cli.main", "serve", "--idle-exit", str(IDLE_EXIT), "--ready-fd")
PATIENCE = 60.0
"""Seconds a daemon may take until it listens."""

_started: list[system.Child] = []
"""Daemons that this process started: kept, because a forgotten child would be waited for at exit."""


def start(config: Config, command: Sequence[str] = COMMAND) -> None:
    """Start a daemon for `config` unless one runs; returns when it listens. `command` is told the descriptor to speak up on.

    Raises Unavailable when the system's own unit is in charge, Forbidden when the directory is not ours alone, and what
    kept the daemon from starting.
    """
    if config.run == Path("/run/roost") and os.path.lexists(UNIT):
        raise Unavailable(
            "the daemon does not listen",
            "the unit roost.service is active and in charge",
            "sudo systemctl restart roost",
        )
    private_directory(config.run, group_id())
    private_directory(config.state)
    paths = Paths.of(config)
    with _alone(paths.starting):
        if not _listens(config):
            _launch(paths, command)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Only one of all who want to start a daemon is in here; the kernel lets go of the lock however its holder ends."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _listens(config: Config) -> bool:
    try:
        connect(Endpoint(config.socket)).close()
    except NotStarted:
        return False
    return True


def _launch(paths: Paths, command: Sequence[str]) -> None:
    ours, theirs = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    log = os.open(paths.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    argv = [*command, str(theirs)]
    try:
        child = system.start(argv, (nothing, log, log), env=os.environ, cwd="/", pass_fds=(theirs,))
        _started.append(child)
    finally:
        for descriptor in (theirs, nothing, log):
            os.close(descriptor)
    with open(ours, "rb", buffering=0) as pipe:
        _await_ready(pipe.fileno(), paths)


def _await_ready(pipe: int, paths: Paths) -> None:
    """The daemon writes one line when it listens ("ready"), or the error that keeps it from it; its death closes the pipe."""
    line = b""
    deadline = time.monotonic() + PATIENCE
    poller = select.poll()
    poller.register(pipe, select.POLLIN)
    while not line.endswith(b"\n"):
        if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise Unavailable(
                "the daemon did not start", f"it did not listen within {PATIENCE:g} s", f"see {paths.log}"
            )
        piece = os.read(pipe, 65536)
        if not piece:
            raise Unavailable(
                "the daemon did not start", f"it ended at once; its last words are in {paths.log}", "roost doctor"
            )
        line += piece
    if line.strip() != b"ready":
        raise error_of(json.loads(line)["error"])
