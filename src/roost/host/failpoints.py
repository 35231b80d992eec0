"""Failpoints: named places where a test makes the daemon die, stall or meet an I/O error (`ROOST_FAILPOINT=name:kill|sleep|eio`)."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Mapping

POINTS: tuple[str, ...] = (
    "daemon.locked",
    "daemon.store-open",
    "daemon.before-serve",
    "daemon.stopping",
    "api.before-commit",
    "api.after-commit",
    "machine.await-networks",
    "machine.await-volumes",
    "machine.wire",
    "machine.attach",
    "machine.hold-back",
    "machine.find-image",
    "machine.await-image",
    "machine.create-disk",
    "machine.find-origin",
    "machine.await-origin",
    "machine.fork",
    "machine.make-disk",
    "machine.start",
    "machine.resume",
    "machine.pause",
    "machine.greet",
    "machine.press-power",
    "machine.await-end",
    "machine.await-space",
    "machine.kill",
    "machine.settle-exit",
    "machine.show-stopped",
    "machine.show-running",
    "machine.show-paused",
    "machine.discard",
    "machine.remove-files",
    "machine.remove-object",
    "machine.started",
    "program.await-content",
    "program.back-off",
    "program.start",
    "program.show-starting",
    "program.await-start",
    "program.show-running",
    "program.terminate",
    "program.await-end",
    "program.kill",
    "program.settle",
    "program.show-stopped",
    "program.remove-files",
    "program.remove-object",
    "program.started",
    "program.uploaded",
    "machine.resumed",
    "machine.wiring",
    "take.begin",
    "take.prepared",
    "take.taken",
    "take.settled",
    "snapshot.kept",
    "snapshot.forgotten",
    "warm.started",
    "warm.sealed",
    "warm.taken",
    "checkpoint.stopped",
    "checkpoint.covered",
    "checkpoint.saved",
    "checkpoint.frozen",
    "checkpoint.resumed",
    "volume.opened",
    "volume.attached",
    "volume.released",
    "volume.overlay",
    "volume.covered",
    "move.opened",
    "move.started",
    "move.ready",
    "move.completing",
    "move.concluded",
    "flatten.started",
    "flatten.pending",
    "flatten.concluded",
    "fork.spawned",
    "fork.mapped",
    "fork.loaded",
    "network.resolved",
    "network.ensured",
    "network.removed",
    "network.held",
    "network.recorded",
    "network.announced",
    "network.guarded",
    "network.arranged",
    "network.outside",
    "network.served",
    "network.applied",
    "network.plugged",
    "network.stopped",
    "network.shut",
    "network.released",
    "mount.attached",
    "mount.attaching",
    "mount.claimed",
    "mount.detached",
    "mount.held",
    "mount.held-back",
    "mount.released",
    "pool.discarded",
    "pool.prepared",
    "volume.cleared",
    "volume.copying",
    "volume.covering",
    "volume.created",
    "volume.creating",
    "volume.growing",
    "volume.grown",
    "volume.kept",
    "volume.limited",
    "volume.mirroring",
    "volume.moved",
    "volume.moving",
    "volume.rekeyed",
    "volume.rekeying",
    "volume.removed",
    "volume.restored",
    "volume.settled",
    "volume.switching",
    "volume.trashed",
    "volumesnapshot.kept",
    "volumesnapshot.removed",
    "volumesnapshot.saving",
)
"""Every name that `reach` is called with; a test enumerates them and an architecture test holds code and list together."""

ACTIONS = ("kill", "sleep", "eio")
SLEEP = 3600.0
"""Seconds that "sleep" stalls: longer than any test waits."""


def parse(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The (name, action) that is armed. Raises ValueError for one that does not exist: a test that arms nothing must not pass."""
    text = environ.get("ROOST_FAILPOINT", "")
    if not text:
        return None
    name, _, action = text.partition(":")
    if name not in POINTS or action not in ACTIONS:
        raise ValueError(
            f"ROOST_FAILPOINT={text!r}: no such failpoint (names: {', '.join(POINTS)}; actions: {', '.join(ACTIONS)})"
        )
    return name, action


_armed = parse(os.environ)


async def reach(name: str) -> None:
    """Nothing, unless this name is armed. Raises OSError (EIO) when armed with "eio"."""
    if _armed is None or _armed[0] != name:
        return
    if _armed[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if _armed[1] == "sleep":
        await asyncio.sleep(SLEEP)
    raise OSError(errno.EIO, os.strerror(errno.EIO), f"failpoint {name}")
