"""The user's own terminal: raw while a guest has it, put back whatever happens, signals turned into messages."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType

from roost.client.blocking.execution import Console, Execution

PIECE = 64 << 10
LEAVE = b"\x1d"
"""Ctrl-]: leaves a console, as telnet and virsh have it."""

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def size() -> tuple[int, int]:
    """Rows and columns of the terminal."""
    columns, rows = os.get_terminal_size(sys.stdin.fileno())
    return rows, columns


@contextlib.contextmanager
def raw(*, wanted: bool) -> Iterator[None]:
    """Keys as they are pressed, none of them ours; what was set before comes back at the end."""
    if not wanted:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def signals(*numbers: signal.Signals) -> Iterator[int]:
    """Instead of acting, these signals are written as bytes into a pipe: its read end, to wait for together with everything else."""
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    earlier = {number: signal.signal(number, _nothing) for number in numbers}
    wakeup = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in earlier.items():
            signal.signal(number, handler)
        os.close(ours)
        os.close(theirs)


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler that only lets the wake-up pipe speak."""


def write(descriptor: int, data: bytes) -> None:
    """Write all of it, also where somebody made the terminal non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()


def run(execution: Execution, *, stdin: bool, terminal: bool) -> int:
    """Connect a running command with our standard streams until it ends; its exit code."""
    watched = (signal.SIGWINCH, signal.SIGTERM, signal.SIGHUP) if terminal else _FORWARDED
    with raw(wanted=terminal), signals(*watched) as pipe:
        reading = stdin
        if not stdin:
            execution.feed(None)
        while execution.code is None:
            also = (pipe, 0) if reading and not execution.congested else (pipe,)
            outputs, ready = execution.turn(also)
            for output in outputs:
                write(1 if output.stream == "stdout" else 2, output.data)
            if 0 in ready:
                reading = _feed(execution)
            if pipe in ready:
                _forward(execution, os.read(pipe, 64))
    return execution.code


def _feed(execution: Execution) -> bool:
    """Hand on what can be read; False at its end."""
    data = os.read(0, PIECE)
    execution.feed(data or None)
    return bool(data)


def _forward(execution: Execution, numbers: bytes) -> None:
    for number in numbers:
        if number == signal.SIGWINCH:
            execution.resize(*size())
        else:
            execution.signal(number)


def attach(console: Console) -> bool:
    """Connect a console with our standard streams; True when the user left, False when the machine ended."""
    interactive = sys.stdin.isatty()
    reading = True
    with raw(wanted=interactive):
        while True:
            printed, ready = console.turn((0,) if reading else ())
            if printed is None:
                return False
            write(1, printed)
            if 0 in ready:
                typed = os.read(0, PIECE)
                before, leave, _ = typed.partition(LEAVE) if interactive else (typed, b"", b"")
                reading = bool(typed)
                if before:
                    console.write(before)
                if leave:
                    return True
