"""What a program prints, carried through us where it is to be counted or kept; else it has our own descriptors and we see nothing."""

from __future__ import annotations

import os
import select
import stat

from roost.light import Callable
from roost.runtimes.loop import READ, WRITE, Loop

_FILE_CHUNK = 1 << 16
_PIPE_CHUNK = 4096
"""A pipe that poll(2) calls writable takes a page; more might block us, and a limit of time would not be kept."""


class Budget:
    """The bytes that stdout and stderr may still carry together; `over` is called once, when there is one more."""

    def __init__(self, bytes_left: int | None, over: Callable[[], None]) -> None:
        self._left = bytes_left
        self._over = over

    def take(self, data: bytes) -> bytes:
        """As much of it as fits."""
        if self._left is None:
            return data
        kept = data[: self._left]
        self._left -= len(kept)
        if len(kept) < len(data):
            self._over()
        return kept


class Stream:
    """Reads one pipe: into memory (`sink` -1, then `kept` holds it), or to a descriptor of ours, no faster than that takes it.

    `wants` is the program's end; `started` closes it here. The pipe is read to its end, which is there when all that hold it are gone.
    """

    def __init__(self, loop: Loop, budget: Budget, sink: int = -1) -> None:
        self.kept = bytearray()
        self._source, self.wants = os.pipe()
        os.set_blocking(self._source, False)
        self._loop = loop
        self._budget = budget
        self._sink = os.dup(sink) if sink >= 0 else -1  # both streams may lead to one descriptor
        self._keeps = sink < 0
        self._finishing = False
        self._pending = b""
        plain = sink < 0 or stat.S_ISREG(os.fstat(sink).st_mode)
        self._chunk = _FILE_CHUNK if plain else _PIPE_CHUNK

    def started(self) -> None:
        """The program has its end of the pipe."""
        os.close(self.wants)
        self.wants = -1
        self._loop.watch(self._source, READ, self._read)

    @property
    def open(self) -> bool:
        """Whether more may come."""
        return self._source >= 0

    def finish(self) -> None:
        """All that could write has ended: what the pipe holds now is all there will be, also when its end was given to somebody else."""
        self._finishing = True
        while self._source >= 0 and not self._pending and self._poll(self._source, READ):
            self._read(READ)
        if not self._pending:
            self.close()

    def close(self) -> None:
        """Carry no more. The program then gets SIGPIPE, as with a reader that went away."""
        if self.wants >= 0:
            os.close(self.wants)
            self.wants = -1
        if self._source >= 0:
            self._loop.forget(self._source)
            os.close(self._source)
            self._source = -1
        if self._sink >= 0:
            self._loop.forget(self._sink)
            os.close(self._sink)
            self._sink = -1
        self._pending = b""

    def _read(self, _: int) -> None:
        try:
            data = os.read(self._source, self._chunk)
        except BlockingIOError:
            return
        data, ended = self._budget.take(data), not data
        if ended:
            self.close()
        elif self._keeps:
            self.kept += data
        elif data:
            self._pending = data
            self._loop.forget(self._source)
            self._watch_sink()

    def _watch_sink(self) -> None:
        try:
            self._loop.watch(self._sink, WRITE, self._write)
        except OSError:
            self.close()

    def _write(self, _: int) -> None:
        if not self._poll(self._sink, WRITE):  # both streams may lead to one pipe, and the other one filled it just now
            return
        try:
            self._pending = self._pending[os.write(self._sink, self._pending) :]
        except OSError:  # nobody reads it any more
            self.close()
            return
        if not self._pending:
            self._loop.forget(self._sink)
            self._loop.watch(self._source, READ, self._read)
            if self._finishing:
                self.finish()

    @staticmethod
    def _poll(descriptor: int, events: int) -> bool:
        poll = select.poll()
        poll.register(descriptor, events)
        return bool(poll.poll(0))
