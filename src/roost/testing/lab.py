"""Where the conformance suite of runtimes runs its probe programs: what a test framework must bring, and what cases say of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PATIENCE = 30.0
"""Seconds after which a run that should have ended fails its case."""


class Ran(NamedTuple):
    """A run that ended: exit code, both streams, and the status document."""

    code: int
    out: bytes
    err: bytes
    status: Mapping[str, Any]

    @property
    def lines(self) -> list[str]:
        """The lines it printed, whatever ends them on its platform."""
        return self.out.decode(errors="replace").splitlines()


class Running(Protocol):
    """A run under way."""

    def line(self) -> str:
        """The next line of its output."""
        ...

    def say(self, data: bytes) -> None:
        """More for its standard input."""
        ...

    def signal(self, number: int) -> None:
        """Send `roost run` a signal."""
        ...

    def leave(self) -> None:
        """Stop reading its output."""
        ...

    def wait(self) -> Ran:
        """Its end; AssertionError after PATIENCE."""
        ...


class Lab(Protocol):
    """One runtime, its probe program, and an empty directory in which it is run."""

    runtime: str
    place: Path
    program: Path
    """The probe; `run` and `start` put what the interpreter of a script or a jar needs before it."""

    def run(
        self, *arguments: str, flags: Sequence[str] = (), stdin: bytes | None = b"", program: Path | None = None
    ) -> Ran:
        """`roost run FLAGS PROGRAM ARGUMENTS` to its end. stdin None: closed. The caller's environment holds SECRET and PASSED."""
        ...

    def start(self, *arguments: str, flags: Sequence[str] = ()) -> Running:
        """The same, under way."""
        ...

    def on_terminal(self, *arguments: str) -> Ran:
        """The same with a terminal for all three streams."""
        ...

    def leftovers(self) -> list[str]:
        """Processes of runs of this lab that still live, a moment after they should not."""
        ...


Case = Callable[[Lab], None]


def fine(ran: Ran) -> Ran:
    """It ended with 0."""
    assert ran.code == 0, (ran.code, ran.out[-500:], ran.err[-2000:])
    return ran


def refused(ran: Ran) -> Ran:
    """It tried, was refused, and ended in its own way."""
    assert ran.code == 1, (ran.code, ran.out[-500:], ran.err[-2000:])
    assert b"SECRET" not in ran.out
    return ran
