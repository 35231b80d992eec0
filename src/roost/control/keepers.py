"""The keepers of programs as the daemon sees them: started, found again by a later daemon, asked how far they are and how it ended."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import msgspec

from roost.control.base import Retry
from roost.control.contents import Contents
from roost.control.programplan import Outcome
from roost.errors import RoostError
from roost.host import files, processes, system
from roost.host.paths import Paths, ProgramFiles
from roost.log import spawn_task
from roost.model.machine import Process
from roost.model.meta import Trouble
from roost.model.program import Program, ProgramExit, ProgramSpec

LIMIT = 4 << 20
"""Bytes that a file of a keeper may have; it is our own, but what a program made it say may be long."""

MESSAGE = 4000
"""Characters of a text that a program may have had a part in."""

PASSED = ("DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "XDG_RUNTIME_DIR")
"""What a keeper needs of our environment for programs with a screen."""


class Begun(msgspec.Struct, frozen=True):
    """As much of `ProgramFiles.request` as is read again: what the last start is called, the wish for a restart that it fulfils, and the
    `shape_of` what it runs."""

    run: str
    restarts: int = 0
    shape: str = ""


def shape_of(spec: ProgramSpec) -> str:
    """A hash over all that decides what runs, and not whether it does."""
    what = (spec.file, spec.sha256, spec.arguments, spec.vm, spec.policy, spec.cwd)
    return hashlib.sha256(msgspec.json.encode(what)).hexdigest()


class State(msgspec.Struct, frozen=True):
    """`ProgramFiles.state`: which keeper it is, and how far."""

    run: str
    process: Process
    phase: str = "starting"
    runtime: str = ""
    layers: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    started: float = 0.0


class _Result(msgspec.Struct, frozen=True):
    """`ProgramFiles.result`."""

    run: str
    exit: ProgramExit
    started: float = 0.0
    ended: float = 0.0
    runtime: str = ""
    layers: tuple[str, ...] | None = None
    missing: tuple[str, ...] | None = None
    refusals: tuple[str, ...] = ()
    usage: dict[str, float] = {}
    error: Trouble | None = None


class Keeper(Protocol):
    """A keeper that lives, or has just ended."""

    process: Process

    def alive(self) -> bool:
        """Whether it has not ended."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; nothing when it has ended."""
        ...

    async def wait(self) -> None:
        """Return when it has ended."""
        ...

    def close(self) -> None:
        """Let go of it without touching it."""
        ...


class Keepers(Protocol):
    """Where programs run. By uid of the program."""

    async def start(self, program: Program, run: str) -> Keeper:
        """Begin the start `run`. Raises Unavailable, Retry (an earlier keeper is still ending), OSError."""
        ...

    async def find(self, uid: str) -> Keeper | None:
        """The keeper that an earlier daemon started, if it lives. Raises Retry while that can not be told."""
        ...

    def begun(self, uid: str) -> Begun | None:
        """The last start that was begun."""
        ...

    def state(self, uid: str) -> State | None:
        """What the keeper says."""
        ...

    def outcome(self, uid: str, name: str) -> Outcome | None:
        """How the last run ended; None when nobody wrote that down. `name` is the program's, for the message."""
        ...

    def has_content(self, program: Program) -> bool:
        """Whether the file of the program is there."""
        ...

    def has_files(self, uid: str) -> bool:
        """Whether anything of the program is on disk."""
        ...

    async def remove(self, uid: str) -> None:
        """Remove all of the program's files. Raises Retry while a keeper lives."""
        ...


class _Held:
    """A keeper by its pidfd; `reap` where it is our own child."""

    def __init__(self, process: Process, pidfd: int, reap: Callable[[], Awaitable[int]] | None = None) -> None:
        self.process = process
        self._pidfd = pidfd
        self._reap = reap

    def alive(self) -> bool:
        return self._pidfd >= 0 and processes.is_alive(self._pidfd)

    def signal(self, number: signal.Signals) -> None:
        if self._pidfd >= 0:
            processes.signal_pidfd(self._pidfd, number)

    async def wait(self) -> None:
        if self._pidfd >= 0:
            await processes.wait_exit(self._pidfd)
        if self._reap is not None:
            await self._reap()

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class LocalKeepers:
    """Keepers as processes of this host, each in a session of its own."""

    def __init__(self, paths: Paths, contents: Contents) -> None:
        self._paths = paths
        self._contents = contents

    async def start(self, program: Program, run: str) -> Keeper:
        where = self._paths.program(program.meta.uid)
        request = {
            "run": run,
            "restarts": program.spec.restarts,
            "shape": shape_of(program.spec),
            "file": str(where.content(program.spec.sha256, program.spec.file)),
            "arguments": program.spec.arguments,
            "policy": program.spec.policy,
            "cwd": program.spec.cwd,
            "vm": program.spec.vm,
            "trusted": program.status.trusted,
        }
        await self._contents.keep_only(program.meta.uid, program.spec.sha256)
        with _locked(where) as lock:
            await asyncio.to_thread(files.atomic_write, where.request, msgspec.json.encode(request))
            argv = (sys.executable, "-P", "-m", "roost.runtimes.keeper", str(where.directory), str(lock))
            nothing = system.NOTHING
            child = system.start(argv, (nothing, nothing, nothing), env=self._environment(), cwd="/", pass_fds=(lock,))
        process = processes.identify(child.pid)
        if process is None:
            await child.wait()
            raise Retry("its keeper ended at once: what it wrote down tells why", after=0.0)
        return _Held(process, os.dup(child.pidfd), child.wait)

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in PASSED if name in os.environ}
        # A keeper is of the daemon's own build and finds its libraries, wherever that was started from.
        libraries = os.pathsep.join([str(Path(__file__).parents[2]), *filter(os.path.isabs, sys.path)])
        ours = {"ROOST_CACHE": str(self._paths.program_cache), "PYTHONPATH": libraries}
        return {**system.clean_environment(), **kept, **ours}

    async def find(self, uid: str) -> Keeper | None:
        where = self._paths.program(uid)
        state = self.state(uid)
        pidfd = processes.open_process(state.process) if state is not None else None
        if state is not None and pidfd is not None:
            return _Held(state.process, pidfd)
        if where.directory.exists():
            with _locked(where):  # raises while one lives that has not said who it is
                return None
        return None

    def begun(self, uid: str) -> Begun | None:
        begun: Begun | None = _read(self._paths.program(uid).request, Begun)
        return begun

    def state(self, uid: str) -> State | None:
        state: State | None = _read(self._paths.program(uid).state, State)
        return state

    def outcome(self, uid: str, name: str) -> Outcome | None:
        begun, result = self.begun(uid), _read(self._paths.program(uid).result, _Result)
        if begun is None or result is None or result.run != begun.run:
            return None
        facts: dict[str, Any] = {"runtime": result.runtime, "refusals": _short(result.refusals), "usage": result.usage}
        facts |= {word: _short(told) for word in ("layers", "missing") if (told := getattr(result, word)) is not None}
        exit = msgspec.structs.replace(result.exit, message=result.exit.message[:MESSAGE])
        trouble = result.error or _trouble(name, exit)
        return Outcome(result.run, exit, result.ended - result.started, trouble=trouble, facts=facts)

    def has_content(self, program: Program) -> bool:
        return self._paths.program(program.meta.uid).content(program.spec.sha256, program.spec.file).is_file()

    def has_files(self, uid: str) -> bool:
        return self._paths.program(uid).directory.exists()

    async def remove(self, uid: str) -> None:
        where = self._paths.program(uid)
        if where.directory.exists():
            with _locked(where):  # no keeper lives, and none begins
                await self._contents.forget(uid)

    async def sweep(self, known: set[str]) -> None:
        """At daemon start: end and remove what belongs to no program of `known` uids."""
        top = self._paths.programs
        for uid in sorted({entry.name for entry in top.iterdir()} - known if top.is_dir() else ()):
            with suppress(Retry):
                keeper = await self.find(uid)
                if keeper is not None:
                    keeper.signal(signal.SIGKILL)
                    await keeper.wait()
                    keeper.close()
                await self.remove(uid)
        await self._contents.sweep()


def _trouble(name: str, exit: ProgramExit) -> Trouble | None:
    if exit.code == 0:
        return None
    why = exit.message or f"it ended with exit code {exit.code}"
    return Trouble(what=f'program "{name}" ended', why=why, fix=f"look what it printed: roost logs {name}")


def _short(told: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text[:MESSAGE] for text in told[:100])


def _read(path: Path, type_: type[Any]) -> Any:
    """A keeper's file; None when there is none, or it is broken."""
    try:
        return msgspec.json.decode(files.read_bounded(path, LIMIT), type=type_)
    except (OSError, RoostError, msgspec.MsgspecError):
        return None


@contextmanager
def _locked(where: ProgramFiles) -> Iterator[int]:
    """The lock that a keeper holds for its life, as a descriptor to hand on. Raises Retry while one holds it, OSError."""
    where.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(where.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Retry("a keeper of it is beginning or ending", after=0.1) from None
        yield lock
    finally:
        os.close(lock)


def watch(keeper: Keeper, ended: Callable[[], None], name: str) -> asyncio.Task[Any]:
    """Call `ended` when the keeper has."""

    async def wait() -> None:
        await keeper.wait()
        ended()

    return spawn_task(wait(), name)
