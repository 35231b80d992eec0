"""The jail: a program that may turn hostile reaches nothing but the files and descriptors that it was given."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, TypedDict, Unpack

from roost import log
from roost.errors import NotStarted, OutcomeUnknown, Unavailable
from roost.host import binaries, cgroups, confinement, processes, seccomp, system
from roost.host.cgroups import CGroup
from roost.host.system import Finished
from roost.model.machine import Process

FIRST_UID = 300000
"""Host uids from here on belong to jails when root runs them; 300000 itself to tools."""

_LAUNCHER = Path(__file__).with_name("launcher.py")
_DEADLINE = 20.0
"""Seconds from the start of the launcher to the exec: 25 ms are usual, but a host may be overloaded."""
_LAST_WORDS = 5.0
"""Seconds for a child that we no longer want to arrive at its closed gate."""
_OUTPUT = 1 << 20
_TOOL_THREADS = 128
"""QEMU's tools read and write with up to 64 threads besides their own, and end when one can not be made."""
_OOM_SCORE = 500
"""The kernel's killer should take a guest before the daemon."""


class Bind(NamedTuple):
    """A file or directory of the host that exists in the jail at `target`; nothing else does.

    Read-only unless `writable`; a `device` is a node such as /dev/kvm. Where root runs the daemon the directories above
    the source may be private, but the file's own mode must let the jail's uid in.
    """

    source: Path
    target: str
    writable: bool = False
    device: bool = False


class Limits(NamedTuple):
    """What the program may use: `memory` and `file_size` in bytes, `processes` counts threads, `files` descriptors.

    `cpus` is CPU seconds per second. `memory` and `cpus` need a control group; without one `Jailed.missing` says so.
    `heap`, in bytes, bounds the private memory (RLIMIT_DATA) on every host; memory shared by memfd does not count.
    """

    memory: int | None = None
    processes: int = 64
    files: int = 1024
    file_size: int | None = None
    cpus: float | None = None
    heap: int | None = None


class Entrance(NamedTuple):
    """Namespaces that are there already, by descriptors of ours, and in which the program is to live.

    Without `capabilities` (numbers) it only gets into the network namespace `network`, in a user namespace of its own. With them it
    lives in the user namespace `user`, which must know its uid by the same number or as 0, and has these there: over what belongs
    to that namespace, and nothing else. With a path `at` it stays in the host's network, and finds the other one's file there.
    """

    user: int
    network: int
    capabilities: tuple[int, ...] = ()
    at: str = ""


class Jail(NamedTuple):
    """One program to be jailed.

    `name` names the control group. `argv[0]` is a path inside. `fds` maps a descriptor inside to one of ours: all others
    are closed, 0 to 2 are /dev/null unless given. `uid` is its uid and gid on the host when we are root (FIRST_UID and
    up), else it runs as ours. `sandboxes_itself` is for a program such as passt that must still make namespaces; one that
    `forks` may make processes. Without `huge_pages` its memory comes in small pages only, so that nothing is resident that
    it has not touched.
    """

    name: str
    argv: Sequence[str]
    binds: Sequence[Bind]
    fds: Mapping[int, int] = {}
    env: Mapping[str, str] = {}
    limits: Limits = Limits()
    network: Literal["none", "host"] = "none"
    uid: int = FIRST_UID
    sandboxes_itself: bool = False
    huge_pages: bool = True
    entrance: Entrance | None = None
    forks: bool = False


class Jailed(NamedTuple):
    """The program after its exec: who it is on the host, the layers that hold, and those missing here ("name: why").

    The caller owns the pidfd and the control group.
    """

    process: Process
    pidfd: int
    layers: tuple[str, ...]
    missing: tuple[str, ...]
    cgroup: CGroup | None


class Bounds(TypedDict):
    """Bytes of memory, and of the longest file that it may write."""

    memory: int
    file_size: int


Recorder: TypeAlias = Callable[[Process], Awaitable[None]]


async def enter(jail: Jail, record: Recorder | None = None) -> Jailed:
    """Start the program; returns when its exec has happened. Close your copies of its descriptors right after.

    `record` is awaited just before the exec, with the jail complete around the process. If it writes the process down, a
    daemon killed at any instant leaves either no process (it does not pass the gate without us) or one that the next
    daemon finds. It may also wait for what the program must find ready.

    The process is our child: `processes.wait_pidfd` reaps it. Raises Unavailable when the host lacks what the jail needs,
    NotStarted when the program did not come to its exec, Conflict when the control group has processes, and what `record`
    raises. Then, and when cancelled, no process and no control group is left.
    """
    # The launcher needs two processes for a moment.
    bounds = cgroups.Bounds(jail.limits.memory, max(jail.limits.processes, 2), jail.limits.cpus)
    group, why = cgroups.create(jail.name, bounds)
    birth = _Birth(jail.argv[0], group, record)
    if group is None:
        birth.missing.append(f"control group: {why}")
    try:
        async with asyncio.timeout(_DEADLINE):
            return await birth.attend(_spec(jail), jail.fds)
    except TimeoutError as error:
        await birth.undo()
        raise birth.failure(f"it was not ready within {_DEADLINE:g} s") from error
    except BaseException:
        await birth.undo()
        raise


class _Birth:
    """The time between the launcher's start and the program's exec."""

    def __init__(self, program: str, group: CGroup | None, record: Recorder | None) -> None:
        self.layers: list[str] = []
        self.missing: list[str] = []
        self._program = program
        self._group = group
        self._record = record
        self._launcher: system.Child | None = None
        self._joined: asyncio.Task[str] | None = None
        self._status = asyncio.StreamReader()
        self._closing = contextlib.ExitStack()
        self._gate = -1
        self._pidfd = -1
        self._pid = 0
        self._process: Process | None = None
        self._error = ""

    def failure(self, why: str) -> NotStarted:
        return NotStarted(f"{self._program} was not started in its jail", why, "roost doctor jail")

    async def attend(self, spec: confinement.Spec, fds: Mapping[int, int]) -> Jailed:
        launcher = self._launcher = await self._start(spec, fds)
        await self._join(launcher.pid)
        async for line in self._status:
            if self._hear(line):
                await self._release()
        if self._error or self._process is None:
            raise self.failure(self._error or "the launcher ended without a word")
        if spec.filter:
            self.layers.append("seccomp")
        else:
            self.missing.append(f"seccomp: there is no filter for {os.uname().machine}")
        await launcher.wait()
        self._closing.close()
        return Jailed(self._process, self._pidfd, tuple(self.layers), tuple(self.missing), self._group)

    async def _join(self, pid: int) -> None:
        """Put the launcher into the control group, while its interpreter starts."""
        if self._group is not None:
            self._joined = log.spawn_task(asyncio.to_thread(_try_to_join, self._group, pid), f"control group of {pid}")
            why = await asyncio.shield(self._joined)
            if why:
                self.missing.append(f"control group: {why}")
                if self._group.is_empty():
                    await self._group.remove()
                    self._group = None
            else:
                self.layers.append("control group")
        self._open_gate(b"j")

    async def _start(self, spec: confinement.Spec, fds: Mapping[int, int]) -> system.Child:
        with contextlib.ExitStack() as theirs:
            read_end, status = os.pipe()
            theirs.callback(os.close, status)
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(self._status), os.fdopen(read_end, "rb", buffering=0)
            )
            self._closing.callback(transport.close)
            gate, self._gate = os.pipe()
            theirs.callback(os.close, gate)
            self._closing.callback(self._shut_gate)
            file = theirs.enter_context(os.fdopen(os.memfd_create("spec"), "w+b", buffering=0))
            file.write(spec.pack())
            file.seek(0)
            numbers = [file.fileno(), status, gate]
            argv = [sys.executable, "-I", "-S", str(_LAUNCHER), *map(str, numbers)]
            stdio = (system.NOTHING, system.NOTHING, system.NOTHING)
            numbers += [*fds.values(), spec.entrance[0], spec.entrance[1]]
            return system.start(argv, stdio, env={}, cwd="/", pass_fds=[number for number in numbers if number >= 0])

    def _hear(self, line: bytes) -> bool:
        """Take a line of the status; whether it says that the process is at its gate."""
        word, _, text = line.decode(errors="replace").rstrip("\n").partition(" ")
        match word:
            case "pid":
                self._pidfd = os.pidfd_open(int(text))  # ours and not reaped, so the number is still its own
                self._pid = int(text)
            case "layer":
                self.layers.append(text)
            case "missing":
                self.missing.append(text)
            case "error":
                self._error = text
        return word == "ready"

    async def _release(self) -> None:
        """By now it has its identity for good: an exec changes neither pid nor start time."""
        self._process = processes.identify(self._pid)
        if self._process is not None and self._gate >= 0:
            if self._record is not None:
                await self._record(self._process)
            self._open_gate(b"g")

    def _open_gate(self, word: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has ended, which the end of the status tells
            os.write(self._gate, word)

    async def undo(self) -> None:
        """Leave nothing, also when cancelled again meanwhile."""
        await asyncio.shield(log.spawn_task(self._undo(), f"undo the start of {self._program}"))

    async def _undo(self) -> None:
        self._shut_gate()
        if self._joined is not None:
            await self._joined
        if self._launcher is not None:
            await self._launcher.end()
            await self._hear_the_rest()
            # A child that the launcher had just made is still in its process group, and has not told its pid.
            with contextlib.suppress(ChildProcessError):
                await asyncio.to_thread(os.waitid, os.P_PGID, self._launcher.pid, os.WEXITED)
        if self._pidfd >= 0:
            processes.signal_pidfd(self._pidfd, signal.SIGKILL)
            await processes.wait_pidfd(self._pidfd)
            os.close(self._pidfd)
        self._closing.close()
        if self._group is not None:
            await self._group.remove()

    async def _hear_the_rest(self) -> None:
        """A child that is on its way to the gate ends there; until then its pid may still come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                async for line in self._status:
                    self._hear(line)

    def _shut_gate(self) -> None:
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1


def _try_to_join(group: CGroup, pid: int) -> str:
    """Why it was not possible, or nothing."""
    try:
        group.join(pid)
    except OSError as error:
        return str(error)
    return ""


async def run_in_jail(
    argv: Sequence[str],
    *,
    readable: Mapping[str, Path],
    writable: Mapping[str, Path],
    timeout: float,
    **bounds: Unpack[Bounds],
) -> Finished:
    """Run a tool over untrusted files to its end, in a jail that holds only the tool and these files (keys: paths inside).

    `memory` bounds its private memory and `file_size` what it writes, in bytes. Writable files must exist; where root runs
    the daemon, files that the jail's uid may not open belong to it meanwhile. Raises what `enter` raises, Unavailable when
    the tool is missing, and OutcomeUnknown after `timeout` seconds or 1 MiB of output; then the tool is gone.
    """
    program = system.find_program(argv[0])
    binds = [*program_binds(program), *(Bind(path, target) for target, path in readable.items())]
    binds += [Bind(path, target, writable=True) for target, path in writable.items()]
    limits = Limits(bounds["memory"], _TOOL_THREADS, heap=bounds["memory"], file_size=bounds["file_size"])
    tool = Jail(f"tool-{uuid.uuid4()}", [str(program), *argv[1:]], binds, limits=limits)
    with contextlib.ExitStack() as lent:
        for path in readable.values():
            lent.enter_context(_lend(path, 0o004))
        for path in writable.values():
            lent.enter_context(_lend(path, 0o006))
        return (await run_to_end(tool, timeout))[1]


async def run_to_end(tool: Jail, timeout: float) -> tuple[Jailed, Finished]:
    """Start a program, take what it prints, and clear up when it has ended. Raises what `run_in_jail` raises."""
    output, errors = (system.Collector(tool.argv[0], _OUTPUT) for _ in range(2))
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.ExitStack() as theirs:
            fds = {
                number: await system.pipe_into(reader, stack, theirs) for number, reader in ((1, output), (2, errors))
            }
            jailed = await enter(tool._replace(fds={**tool.fds, **fds}))
        ended = log.spawn_task(processes.wait_pidfd(jailed.pidfd), f"wait for {tool.argv[0]}")
        stack.push_async_callback(_clear, jailed, ended)
        try:
            async with asyncio.timeout(timeout):
                await system.watch(ended, (output, errors))
        except TimeoutError as error:
            raise OutcomeUnknown(f"{tool.argv[0]} was stopped", f"it did not end within {timeout:g} s") from error
        code = await ended
        finished = Finished(-1 if code is None else code, bytes(output.data), bytes(errors.data))
        return jailed, finished


async def _clear(jailed: Jailed, ended: asyncio.Task[int | None]) -> None:
    processes.signal_pidfd(jailed.pidfd, signal.SIGKILL)
    await asyncio.shield(log.spawn_task(_clear_after(jailed, ended), f"clear {jailed.process.pid}"))


async def _clear_after(jailed: Jailed, ended: asyncio.Task[int | None]) -> None:
    await ended
    await _give_back(jailed)


async def end(jailed: Jailed) -> None:
    """Kill the program, wait for its end, and give back its descriptor and its control group."""
    processes.signal_pidfd(jailed.pidfd, signal.SIGKILL)
    await processes.wait_pidfd(jailed.pidfd)
    await _give_back(jailed)


async def _give_back(jailed: Jailed) -> None:
    os.close(jailed.pidfd)
    if jailed.cgroup is not None:
        await jailed.cgroup.remove()


@contextlib.contextmanager
def _lend(path: Path, needed: int) -> Iterator[None]:
    """Let the jail's uid open a file of ours: it owns it meanwhile. Nothing to do where it is ours, or its mode gives all what is `needed`."""
    status = path.stat()
    if os.geteuid() != 0 or status.st_uid != 0 or (status.st_mode & needed) == needed:
        yield
        return
    os.chown(path, FIRST_UID, -1, follow_symlinks=False)
    try:
        yield
    finally:
        os.chown(path, 0, -1, follow_symlinks=False)


def _spec(jail: Jail) -> confinement.Spec:
    if min(jail.fds.values(), default=3) < 3:
        raise ValueError("a descriptor for a jail must be none of our standard ones")
    spec = confinement.Spec()
    spec.argv, spec.env, spec.fds = list(jail.argv), dict(jail.env), dict(jail.fds)
    spec.binds = _binds(jail)
    spec.uid = jail.uid
    spec.groups = _device_groups(jail.binds)
    spec.oom_score = _OOM_SCORE
    spec.limits = _resource_limits(jail.limits)
    spec.processes = jail.limits.processes
    spec.network = jail.network == "host" or jail.entrance is not None
    spec.sandboxes_itself = jail.sandboxes_itself
    spec.huge_pages = jail.huge_pages
    spec.entrance = jail.entrance or spec.entrance
    enters = jail.sandboxes_itself and jail.entrance is not None
    spec.filter = _filter(os.uname().machine, spec.network, spec.sandboxes_itself, enters, jail.forks)
    return spec


@functools.cache
def _filter(machine: str, network: bool, sandboxes_itself: bool, enters: bool, forks: bool) -> bytes:
    if machine not in seccomp.ARCHITECTURES:
        return b""
    return seccomp.build(machine, network=network, sandboxes_itself=sandboxes_itself, enters=enters, forks=forks)


def _binds(jail: Jail) -> list[tuple[str, str, str]]:
    """Outer targets first, the last one where two have the same target; only the program and its interpreter are executable."""
    binds = {bind.target: bind for bind in jail.binds}
    program = binds.get(jail.argv[0])
    if program is None:
        raise ValueError(f"{jail.argv[0]} is no target of a bind")
    executable = {jail.argv[0], str(_needs(program.source).interpreter)}

    def kind(bind: Bind) -> str:
        if bind.device or bind.writable:
            return "device" if bind.device else "write"
        return "execute" if bind.target in executable else "read"

    return [(str(bind.source), target, kind(bind)) for target, bind in sorted(binds.items())]


def _device_groups(binds: Sequence[Bind]) -> list[int]:
    """The groups that own the devices which are not open to everybody, as /dev/kvm is to "kvm"."""
    found = [bind.source.stat() for bind in binds if bind.device]
    return sorted({status.st_gid for status in found if status.st_gid and status.st_mode & 0o006 != 0o006})


def _resource_limits(limits: Limits) -> dict[int, int]:
    numbers = {resource.RLIMIT_CORE: 0, resource.RLIMIT_MEMLOCK: 0, resource.RLIMIT_MSGQUEUE: 0}
    numbers[resource.RLIMIT_NOFILE] = limits.files
    if limits.file_size is not None:
        numbers[resource.RLIMIT_FSIZE] = limits.file_size
    if limits.heap is not None:
        numbers[resource.RLIMIT_DATA] = limits.heap
    return numbers


def program_binds(binary: Path) -> tuple[Bind, ...]:
    """What a program needs to start: itself, its interpreter and libraries, QEMU's modules and data, and /dev/null.

    Raises Unavailable when it or a library is missing. Remembered until the binary changes.
    """
    status = _status(binary)
    return _program_binds(binary.absolute(), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _program_binds(binary: Path, changed: int, size: int) -> tuple[Bind, ...]:
    needs = _needs(binary)
    binds = {str(binary): binary.resolve(), **needs.libraries}
    if needs.interpreter is not None:
        binds[str(needs.interpreter)] = needs.interpreter
    if binary.name.startswith("qemu-system-"):
        libraries = {Path(target).parent for target in needs.libraries}
        for directory in (*(place / "qemu" for place in libraries), Path("/usr/share/qemu")):
            if directory.is_dir():
                binds.update({str(place): place for place in (directory, *_linked_from(directory))})
    files = tuple(Bind(source.resolve(), target) for target, source in binds.items())
    return (*files, Bind(Path("/dev/null"), "/dev/null", device=True))


def _linked_from(directory: Path) -> Iterator[Path]:
    """The directories of other packages (SeaBIOS, iPXE, firmware) that links in QEMU's data directory lead to."""
    for entry in directory.iterdir():
        if entry.is_symlink() and entry.exists():
            target = entry.resolve().parent
            if not target.is_relative_to(directory) and len(target.parts) > 3:
                yield target
    for usual in (Path("/usr/share/seabios"), Path("/usr/lib/ipxe/qemu")):
        if usual.is_dir():
            yield usual


def _needs(binary: Path) -> binaries.Needs:
    status = _status(binary)
    return _known_needs(binary, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _known_needs(binary: Path, changed: int, size: int) -> binaries.Needs:
    return binaries.needs(binary)


def _status(binary: Path) -> os.stat_result:
    try:
        return binary.stat()
    except FileNotFoundError:
        system.find_program(binary.name)
        raise Unavailable(f"{binary} is not installed", "there is no such file") from None
