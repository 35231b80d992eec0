"""The only door to other programs: no shell, a clean environment, bounded output, nothing left after a timeout."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

from roost import log
from roost.errors import OutcomeUnknown, Unavailable
from roost.host import processes

MiB = 1 << 20
_LONGEST_LINE = 64 << 10
NOTHING = subprocess.DEVNULL
"""In place of a descriptor for `start`: /dev/null."""
_DRAIN = 1.0
"""Seconds that output may still come after the program ended: a process it detached may hold the pipe for ever."""

_PACKAGES = {
    "apt-get": "apt", "grub-mkimage": "grub-common", "ldd": "libc-bin", "mformat": "mtools", "mkfs.ext4": "e2fsprogs",
    "mkfs.fat": "dosfstools", "mkfs.vfat": "dosfstools", "mmdebstrap": "mmdebstrap", "newuidmap": "uidmap",
    "passt": "passt", "qemu-img": "qemu-utils", "qemu-io": "qemu-utils",
    "qemu-nbd": "qemu-utils", "qemu-system-aarch64": "qemu-system-arm", "qemu-system-riscv64": "qemu-system-misc",
    "qemu-system-x86_64": "qemu-system-x86", "sfdisk": "fdisk", "ssh": "openssh-client", "ssh-keygen": "openssh-client",
    "systemctl": "systemd", "zstd": "zstd",
}  # fmt: skip
"""The Debian package that holds a program, where the name differs or the program is one we use."""


class Finished(NamedTuple):
    """How a program ended: exit code (minus the signal's number when one killed it) and what it printed."""

    code: int
    stdout: bytes
    stderr: bytes


class Setting(TypedDict, total=False):
    """What a program finds: its environment (default: the clean one), directory, and descriptors by our numbers."""

    env: Mapping[str, str] | None
    cwd: Path | str | None
    pass_fds: Sequence[int]


def clean_environment() -> dict[str, str]:
    """PATH (ours, and the sbin directories that users' paths lack), LANG=C.UTF-8 and HOME; nothing else of ours."""
    path = os.environ.get("PATH") or os.defpath
    missing = [directory for directory in ("/usr/sbin", "/sbin") if directory not in path.split(":")]
    return {"PATH": ":".join([path, *missing]), "LANG": "C.UTF-8", "HOME": os.environ.get("HOME") or "/"}


def find_program(name: str) -> Path:
    """The path of an installed program. Raises Unavailable with the line that installs it."""
    found = shutil.which(name, path=clean_environment()["PATH"])
    if found is None:
        raise _not_installed(name)
    return Path(found)


def _not_installed(name: str) -> Unavailable:
    program = Path(name).name
    package = _PACKAGES.get(program)
    fix = f"sudo apt-get install --no-install-recommends {package}" if package else f"install {program}"
    return Unavailable(f"{program} is not installed", f"no executable {name!r} was found", fix)


class Child:
    """A process that leads its own process group. It stays a zombie until we reap it, so its pid is never another's."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid
        self.pidfd = os.pidfd_open(process.pid)

    async def wait(self) -> int:
        """Wait until it has ended, kill what is left of its group, reap it. Returns the exit code or minus a signal."""
        if self._process.returncode is None:
            await processes.wait_exit(self.pidfd)
            self._reap()
        return self._process.returncode

    def _reap(self) -> None:
        if self._process.returncode is None:
            self._kill_group()
            self._process.wait()
            os.close(self.pidfd)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and its whole process group, and reap it; also under repeated cancellation."""
        if self._process.returncode is None:
            self._kill_group()
            processes.signal_pidfd(self.pidfd, signal.SIGKILL)  # should it have left its group
            await asyncio.shield(log.spawn_task(self.wait(), f"reap {self.pid}"))


def start(argv: Sequence[str], stdio: tuple[int, int, int], **setting: Unpack[Setting]) -> Child:
    """Start a program with these three descriptors as its standard ones. The caller owns the child: `wait` or `end` it.

    Raises Unavailable when the program is missing or may not be executed.
    """
    environment = setting.get("env")
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=stdio[0],
            stdout=stdio[1],
            stderr=stdio[2],
            env=clean_environment() if environment is None else dict(environment),
            cwd=setting.get("cwd"),
            pass_fds=tuple(setting.get("pass_fds", ())),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if error.filename != argv[0]:
            raise
        raise _not_installed(argv[0]) from error
    except PermissionError as error:
        raise Unavailable(
            f"{argv[0]} was not started", str(error), f"make it executable: chmod +x {argv[0]}"
        ) from error
    return Child(process)


def foreground(argv: Sequence[str]) -> int:
    """Run a program on the caller's own terminal (an editor), as a shell does; its exit code. Raises Unavailable when it is missing."""
    try:
        return subprocess.call(list(argv))
    except (FileNotFoundError, PermissionError) as error:
        raise _not_installed(argv[0]) from error


async def run(
    argv: Sequence[str], *, timeout: float, stdin: bytes = b"", limit: int = 16 * MiB, **setting: Unpack[Setting]
) -> Finished:
    """Run a program to its end and take what it prints.

    Raises Unavailable when it is missing, OutcomeUnknown when it did not end within `timeout` seconds or printed more
    than `limit` bytes on one stream. Then, and when cancelled, it and its process group are gone.
    """
    output, errors = Collector(argv[0], limit), Collector(argv[0], limit)
    code = await _attend(argv, timeout, stdin, (output, errors), setting)
    return Finished(code, bytes(output.data), bytes(errors.data))


async def stream(
    argv: Sequence[str],
    *,
    timeout: float,
    on_line: Callable[[str], None],
    stdin: bytes = b"",
    **setting: Unpack[Setting],
) -> int:
    """Run a long program and hand on each line of either output as it comes (a carriage return ends a line too).

    Returns its exit code. Raises what `run` raises, but never for the amount of output: a line is cut at 64 KiB.
    """
    return await _attend(argv, timeout, stdin, (_Lines(on_line), _Lines(on_line)), setting)


async def _attend(
    argv: Sequence[str], timeout: float, stdin: bytes, readers: tuple[Reader, Reader], setting: Setting
) -> int:
    try:
        async with asyncio.timeout(timeout), _attended(argv, stdin, readers, setting) as child:
            ended = log.spawn_task(child.wait(), f"wait for {argv[0]}")
            await watch(ended, readers)
            return await child.wait()
    except TimeoutError as error:
        raise OutcomeUnknown(f"{argv[0]} was stopped", f"it did not end within {timeout:g} s") from error


async def watch(ended: asyncio.Future[Any], readers: Sequence[Reader]) -> None:
    """Wait until the program has ended and what it printed has been read; raises what a reader could not take."""
    failed = [reader.failed for reader in readers]
    await asyncio.wait([ended, *failed], return_when=asyncio.FIRST_COMPLETED)
    for failure in failed:
        if failure.done():
            raise failure.result()
    await asyncio.wait([reader.closed for reader in readers], timeout=_DRAIN)


@contextlib.asynccontextmanager
async def _attended(
    argv: Sequence[str], stdin: bytes, readers: tuple[Reader, Reader], setting: Setting
) -> AsyncIterator[Child]:
    """A started program whose output goes to the readers; at the end it is gone and everything is closed."""
    async with contextlib.AsyncExitStack() as stack:
        with contextlib.ExitStack() as theirs:
            output, errors = [await pipe_into(reader, stack, theirs) for reader in readers]
            child = start(argv, (_input(stdin, theirs), output, errors), **setting)
        stack.push_async_callback(child.end)
        yield child


async def pipe_into(reader: asyncio.BaseProtocol, ours: contextlib.AsyncExitStack, theirs: contextlib.ExitStack) -> int:
    """The write end of a new pipe into the reader; each stack closes its end."""
    read_end, write_end = os.pipe()
    theirs.callback(os.close, write_end)
    pipe = io.FileIO(read_end, "rb")
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: reader, pipe)
    ours.callback(transport.close)
    return write_end


def _input(data: bytes, stack: contextlib.ExitStack) -> int:
    """A descriptor to read the data from: memory, not a pipe, so that nobody has to write while others read."""
    if not data:
        descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, descriptor)
        return descriptor
    file = stack.enter_context(os.fdopen(os.memfd_create("stdin"), "w+b", buffering=0))
    file.write(data)
    file.seek(0)
    return file.fileno()


class Reader(asyncio.Protocol):
    """Takes one output; `closed` ends with it, `failed` holds the error that makes going on pointless."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.failed: asyncio.Future[Exception] = loop.create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


class Collector(Reader):
    """Keeps what a program prints, up to a limit in bytes."""

    def __init__(self, program: str, limit: int) -> None:
        super().__init__()
        self.data = bytearray()
        self._program = program
        self._limit = limit

    def data_received(self, data: bytes) -> None:
        room = self._limit - len(self.data)
        self.data += data[:room]
        if len(data) > room and not self.failed.done():
            why = f"it printed more than {self._limit} bytes"
            self.failed.set_result(OutcomeUnknown(f"{self._program} was stopped", why))


class _Lines(Reader):
    def __init__(self, on_line: Callable[[str], None]) -> None:
        super().__init__()
        self._on_line = on_line
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        while len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest[:_LONGEST_LINE])
            self._rest = self._rest[_LONGEST_LINE:]
        for line in filter(None, lines):
            self._on_line(line[:_LONGEST_LINE].decode(errors="replace"))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
        super().connection_lost(exc)
