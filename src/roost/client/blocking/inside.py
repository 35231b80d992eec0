# Derived from aio/inside.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""What is done inside a machine: commands, the console, files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypedDict, Unpack

from roost.client.blocking.execution import Console, Execution, Input
from roost.client.blocking.session import Session
from roost.client.blocking.transfer import copy_in, copy_out
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


class Inside:
    """A machine as a place to work in. `object` is as it was when last seen."""

    def __init__(self, session: Session, seen: Machine) -> None:
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

    def run(self, *argv: str, input: Input = None, **how: Unpack[How]) -> Completed:
        """Run a command (no shell) to its end. Raises NotStarted when nothing happened, OutcomeUnknown when it may have; see `check()`."""
        with self.stream(*argv, input=input, **how) as execution:
            return execution.completed()

    def stream(self, *argv: str, input: Input = None, **how: Unpack[How]) -> Execution:
        """A command to iterate over: it starts with the first step, gives `Output` as it comes, and leaving the loop kills it."""
        return Execution(self._session, self._place, _start(argv, how, stdin=input is not None), input)

    def execute(
        self, *argv: str, stdin: bool = False, terminal: tuple[int, int] | None = None, **how: Unpack[How]
    ) -> Execution:
        """Start a command, to talk to it: with `stdin` write to it, with `terminal` (rows, columns) it gets one."""
        start = _start(argv, how, stdin=stdin)._replace(terminal=terminal)
        return Execution(self._session, self._place, start).open()

    def console(self) -> Console:
        """The serial console."""
        return Console.open(self._session, self._place)

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        """What the serial console printed; with `follow` also what it prints from now on."""
        target = path("machines", *self._place, "logs", follow="true" if follow else None)
        answer = self._session.open(Request("GET", target))
        try:
            for piece in answer.pieces():
                yield piece
        finally:
            answer.close()

    def copy_in(self, source: str | Path, target: str) -> None:
        """Copy a file or directory of this computer into the machine, with modes. Into `target` when that is a directory or ends
        with "/", else under that name. Raises NotFound, Conflict (it does not run)."""
        copy_in(self._session, self._place, Path(source), target)

    def copy_out(self, source: str, target: str | Path) -> list[str]:
        """Copy a file or directory out of the machine. Returns what was left out (devices, links that point elsewhere), and why."""
        return copy_out(self._session, self._place, source, Path(target))

    @property
    def _place(self) -> tuple[str, str]:
        return self.project, self.name


def _start(argv: tuple[str, ...], how: How, *, stdin: bool) -> Start:
    if not argv:
        raise Invalid("no command was given", "argv is empty", 'name a program: run("uname", "-a")')
    return Start(
        argv, dict(how.get("env", {})), how.get("cwd", ""), how.get("user", ""), stdin, None, how.get("timeout")
    )
