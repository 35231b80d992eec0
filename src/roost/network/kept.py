"""A jailed process that outlives the daemon: started, written down, found again, watched."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from roost import log
from roost.errors import NotStarted, RoostError
from roost.host import cgroups, files, jail, processes
from roost.host.cgroups import CGroup
from roost.host.jail import Jail, Jailed
from roost.model.machine import Process

_LIMIT = 64 << 10
_SHORT_SECONDS, _SHORT_LIVES = 2.0, 5
_log = log.get("roost.network")


class _Record(msgspec.Struct, frozen=True):
    """`purpose` says in short what it was started for; `cgroup` are directories."""

    process: Process
    purpose: str
    cgroup: tuple[str, ...] = ()


class Kept:
    """One such process, recorded in the file `record`; `ended` is called when it ends without having been stopped."""

    def __init__(self, name: str, record: Path, ended: Callable[[], None]) -> None:
        self.name = name
        self._path = record
        self._ended = ended
        self._inmate: Jailed | None = None
        self._purpose = ""
        self._watch: asyncio.Task[None] | None = None
        self._lives: list[float] = []

    @property
    def process(self) -> Process | None:
        """The process, while it lives."""
        return self._inmate.process if self._inmate is not None and processes.is_alive(self._inmate.pidfd) else None

    async def ensure(self, purpose: str, make: Callable[[], AbstractContextManager[Jail]]) -> bool:
        """See that it runs for this purpose (a text that tells all that would need another process); whether it was started just now.

        Raises what `jail.enter` raises, and NotStarted when it ended at once too often.
        """
        purpose = hashlib.sha256(purpose.encode()).hexdigest()
        if self._inmate is None:
            self._adopt()
        if self.process is not None and self._purpose == purpose:
            return False
        await self.stop()
        self._refuse_short_lives()
        self._purpose = purpose
        with make() as wanted:
            await _end_forgotten(wanted.name)
            self._hold(await jail.enter(wanted, self._record))
        if self._inmate is not None and self._inmate.cgroup is not None:
            self._write(self._inmate.process, self._inmate.cgroup)
        return True

    def _refuse_short_lives(self) -> None:
        now = time.monotonic()
        self._lives = [began for began in self._lives if now - began < _SHORT_SECONDS * _SHORT_LIVES]
        if len(self._lives) >= _SHORT_LIVES:
            raise NotStarted(
                f"{self.name} does not stay", f"it ended {len(self._lives)} times in a row", "roost doctor"
            )
        self._lives.append(now)

    async def _record(self, process: Process) -> None:
        self._write(process, None)

    def _write(self, process: Process, cgroup: CGroup | None) -> None:
        directories = tuple(map(str, cgroup.directories)) if cgroup is not None else ()
        files.atomic_write(self._path, msgspec.json.encode(_Record(process, self._purpose, directories)), durable=False)

    def _adopt(self) -> None:
        try:
            record = msgspec.json.decode(files.read_bounded(self._path, _LIMIT), type=_Record)
        except (OSError, RoostError, msgspec.MsgspecError):
            return
        pidfd = processes.open_process(record.process)
        if pidfd is not None:
            self._purpose = record.purpose
            group = CGroup(tuple(map(Path, record.cgroup))) if record.cgroup else None
            self._hold(Jailed(record.process, pidfd, (), (), group))

    def _hold(self, inmate: Jailed) -> None:
        self._inmate = inmate
        self._watch = log.spawn_task(self._await_end(inmate), f"end of {self.name}")

    async def _await_end(self, inmate: Jailed) -> None:
        await processes.wait_exit(inmate.pidfd)
        _log.warning("a process of a network ended", name=self.name, pid=inmate.process.pid)
        self._ended()

    async def find(self) -> bool:
        """Whether it lives, also one that an earlier daemon started."""
        if self._inmate is None:
            self._adopt()
        return self.process is not None

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it lives."""
        if self._inmate is not None:
            processes.signal_pidfd(self._inmate.pidfd, number)

    async def stop(self) -> None:
        """End it, and forget it."""
        if self._inmate is None:
            self._adopt()
        if self.process is not None and self._lives:
            self._lives.pop()  # it would have stayed
        inmate, self._inmate = self._inmate, None
        await self._unwatch()
        if inmate is not None:
            await jail.end(inmate)
        self._path.unlink(missing_ok=True)

    async def close(self) -> None:
        """Let go of it; it goes on."""
        await self._unwatch()
        inmate, self._inmate = self._inmate, None
        if inmate is not None:
            os.close(inmate.pidfd)

    async def _unwatch(self) -> None:
        task, self._watch = self._watch, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


async def _end_forgotten(name: str) -> None:
    """End what is in the control group of this name: what an earlier daemon started there, of which nothing is written down any more."""
    for group in await asyncio.to_thread(cgroups.find, name):
        if all(directory.name == name for directory in group.directories):
            for pid in group.pids():
                await _end(pid)
            await group.remove()


async def _end(pid: int) -> None:
    process = processes.identify(pid)
    pidfd = processes.open_process(process) if process is not None else None
    if pidfd is not None:
        try:
            processes.signal_pidfd(pidfd, signal.SIGKILL)
            await processes.wait_exit(pidfd)
        finally:
            os.close(pidfd)
