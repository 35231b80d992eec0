"""Progress on a terminal: one line that is redrawn, only when something takes more than a second, and nothing at all in a pipe."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Self

from roost.cli import render
from roost.client.results import Progress

PATIENCE = 1.0
"""Seconds before anything is shown."""

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class Waiting:
    """Shows how far things are while the verb waits; `report` is what the SDK calls."""

    def __init__(self, *, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty() and not sys.stderr.closed
        self._states: dict[str, Progress] = {}
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def report(self, name: str, now: Progress) -> None:
        """Something named is this far."""
        self._states[name] = now

    def __enter__(self) -> Self:
        if self._shown:
            self._thread = threading.Thread(target=self._draw, name="progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _draw(self) -> None:
        began = time.monotonic()
        frame, drawn = 0, False
        while not self._done.wait(PATIENCE if not drawn else 0.2):
            frame, drawn = frame + 1, True
            sys.stderr.write("\r\x1b[2K" + line(self._states, frame, time.monotonic() - began))
            sys.stderr.flush()
        if drawn:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()


def line(states: dict[str, Progress], frame: int, seconds: float, width: int = 100) -> str:
    """The line for these states: what is said of one, how many of several."""
    if len(states) == 1:
        ((name, now),) = states.items()
        share = f" {now.fraction:.0%}" if now.fraction is not None else ""
        text = now.text + share if name in now.text else f"{name}: {now.text}{share}"
    else:
        counts: dict[str, int] = {}
        for now in states.values():
            counts[now.text] = counts.get(now.text, 0) + 1
        text = ", ".join(f"{count} {what}" for what, count in counts.items()) or "waiting"
    return f"{_FRAMES[frame % len(_FRAMES)]} {render.clean(text).replace(chr(10), ' ')[:width]} ({seconds:.0f}s)"
