"""What is done inside a machine: commands, the console, files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import TypedDict, Unpack

from roost.client.aio.execution import AsyncConsole, AsyncExecution, Input
from roost.client.aio.session import AsyncSession
from roost.client.aio.transfer import copy_in, copy_out
from roost.client.protocol import Request, path
from roost.client.websocket import Start
from roost.errors import Invalid
from roost.model.completed import Completed
from roost.model.machine import Machine


class How(TypedDict, total=False):
    """How a command runs: environment added to the guest's own, working directory, user, seconds until it is killed."""

    env: Mapping[str, str]
    cwd: str
    user: str
    timeout: float | None


class AsyncInside:
    """A machine as a place to work in. `object` is as it was when last seen."""

    def __init__(self, session: AsyncSession, seen: Machine) -> None:
        self._session = session
        self.object = seen

    @property
    def name(self) -> str:
        """Its name."""
        return self.object.name

    @property
    def project(self) -> str:
        """The project that owns it."""
        return self.object.project

    async def run(self, *argv: str, input: Input = None, **how: Unpack[How]) -> Completed:
        """Run a command (no shell) to its end. Raises NotStarted when nothing happened, OutcomeUnknown when it may have; see `check()`."""
        async with self.stream(*argv, input=input, **how) as execution:
            return await execution.completed()

    def stream(self, *argv: str, input: Input = None, **how: Unpack[How]) -> AsyncExecution:
        """A command to iterate over: it starts with the first step, gives `Output` as it comes, and leaving the loop kills it."""
        return AsyncExecution(self._session, self._place, _start(argv, how, stdin=input is not None), input)

    async def execute(
        self, *argv: str, stdin: bool = False, terminal: tuple[int, int] | None = None, **how: Unpack[How]
    ) -> AsyncExecution:
        """Start a command, to talk to it: with `stdin` write to it, with `terminal` (rows, columns) it gets one."""
        start = _start(argv, how, stdin=stdin)._replace(terminal=terminal)
        return await AsyncExecution(self._session, self._place, start).open()

    async def console(self) -> AsyncConsole:
        """The serial console."""
        return await AsyncConsole.open(self._session, self._place)

    async def logs(self, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What the serial console printed; with `follow` also what it prints from now on."""
        target = path("machines", *self._place, "logs", follow="true" if follow else None)
        answer = await self._session.open(Request("GET", target))
        try:
            async for piece in answer.pieces():
                yield piece
        finally:
            answer.close()

    async def copy_in(self, source: str | Path, target: str) -> None:
        """Copy a file or directory of this computer into the machine, with modes. Into `target` when that is a directory or ends
        with "/", else under that name. Raises NotFound, Conflict (it does not run)."""
        await copy_in(self._session, self._place, Path(source), target)

    async def copy_out(self, source: str, target: str | Path) -> list[str]:
        """Copy a file or directory out of the machine. Returns what was left out (devices, links that point elsewhere), and why."""
        return await copy_out(self._session, self._place, source, Path(target))

    @property
    def _place(self) -> tuple[str, str]:
        return self.project, self.name


def _start(argv: tuple[str, ...], how: How, *, stdin: bool) -> Start:
    if not argv:
        raise Invalid("no command was given", "argv is empty", 'name a program: run("uname", "-a")')
    return Start(
        argv, dict(how.get("env", {})), how.get("cwd", ""), how.get("user", ""), stdin, None, how.get("timeout")
    )
