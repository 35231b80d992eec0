"""The hostile stand-in: a program that tries to get out of the very jail that a hypervisor gets, and what came of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from roost.errors import NotStarted
from roost.host import jail, sockets, system
from roost.host.jail import Bind, Jail, Limits

MiB = 1 << 20
_TIMEOUT = 60.0
_INSIDE = "/escape"
_MEMORY = 256 * MiB
_LIMITS = Limits(memory=_MEMORY, processes=64, files=1024, file_size=1024 * MiB, heap=_MEMORY)
_DEADLY = {"x86_64": (("x32",), ("int80",))}
"""Attempts that the filter answers by death, so each needs a process of its own."""


class Attempt(NamedTuple):
    """One way out that was tried; `held` when the jail did not let it pass, `detail` says by which error."""

    name: str
    held: bool
    detail: str


class Report(NamedTuple):
    """What was tried, and the layers that the jail had and lacked ("name: why")."""

    attempts: tuple[Attempt, ...]
    layers: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def escapes(self) -> tuple[Attempt, ...]:
        """The attempts that got out; none is as it should be."""
        return tuple(attempt for attempt in self.attempts if not attempt.held)


class _Bait(NamedTuple):
    words: tuple[str, ...]
    fds: dict[int, int]


async def probe(binary: Path, *, binds: Sequence[Bind] = (), uid: int = jail.FIRST_UID) -> Report:
    """Run the stand-in `binary` (guest/escape.c) in the jail of a hypervisor with these binds and this uid.

    Around it are a victim process, a private file, listening sockets and a terminal left open. Raises what `jail.enter`
    raises, and NotStarted when the stand-in said nothing.
    """
    program = Jail(f"probe-{uuid.uuid4()}", [_INSIDE], [*binds, Bind(binary, _INSIDE)], limits=_LIMITS, uid=uid)
    async with _bait() as bait:
        tried = program._replace(argv=[_INSIDE, *bait.words], fds=bait.fds)
        jailed, finished = await jail.run_to_end(tried, _TIMEOUT)
    attempts = _parse(finished.stdout)
    if not attempts:
        raise NotStarted("the hostile stand-in did not run", f"it ended with {finished.code} and printed nothing")
    # The C library is a program too, and a file that the jail holds for reading only.
    libraries = [("execute", bind.target) for bind in binds if Path(bind.target).name == "libc.so.6"]
    for words in (*_DEADLY.get(os.uname().machine, ()), ("memory", str(4 * _MEMORY)), *libraries):
        attempts += await _try_alone(program._replace(argv=[_INSIDE, *words]))
    return Report(tuple(attempts), jailed.layers, jailed.missing)


async def _try_alone(program: Jail) -> list[Attempt]:
    _, finished = await jail.run_to_end(program, _TIMEOUT)
    said = _parse(finished.stdout)
    if said:
        return said
    if finished.code < 0:
        return [Attempt(f"alone: {program.argv[1]}", True, f"killed by {signal.Signals(-finished.code).name}")]
    return [Attempt(f"alone: {program.argv[1]}", False, "it became another program")]


def _parse(output: bytes) -> list[Attempt]:
    lines = [line.split("\t") for line in output.decode(errors="replace").splitlines()]
    return [Attempt(words[0], words[1] == "held", words[2]) for words in lines if len(words) == 3]


@contextlib.asynccontextmanager
async def _bait() -> AsyncIterator[_Bait]:
    """All that a host may have left lying around, as open to everybody as it can be: only the jail stands before it."""
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-bait-")))
        directory.chmod(0o755)
        secret, disk = directory / "secret", directory / "disk"
        for path in (secret, disk):
            path.write_bytes(bytes(4096))
            path.chmod(0o666)
        listeners = [sockets.listen_unix(directory / "socket", 0o777), _listen(socket.AF_INET, ("127.0.0.1", 0))]
        name = f"roost-bait-{uuid.uuid4()}"
        listeners.append(_listen(socket.AF_UNIX, f"\0{name}\0"))
        for listener in listeners:
            stack.enter_context(listener)
        victim = system.start(["sleep", "600"], (system.NOTHING, system.NOTHING, system.NOTHING))
        stack.push_async_callback(victim.end)
        opened = [os.open(secret, os.O_RDONLY), os.open(disk, os.O_RDWR), *os.openpty()]
        for descriptor in opened:
            stack.callback(os.close, descriptor)
        port = str(listeners[1].getsockname()[1])
        words = (str(victim.pid), port, str(secret), str(directory / "socket"), name, "3", "4", "5")
        yield _Bait(words, {3: opened[0], 4: opened[1], 5: opened[3]})


def _listen(family: socket.AddressFamily, address: tuple[str, int] | str) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(8)
    return listener
