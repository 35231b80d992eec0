"""Watches over one running program: its limits, its signals, its connections and its end."""

from __future__ import annotations

import os
import time

from roost.host.sandbox import Boxed
from roost.light import Callable, NamedTuple, signal, suppress
from roost.runtimes import usage
from roost.runtimes.late_group import LateGroup
from roost.runtimes.loop import READ, Loop
from roost.runtimes.signals import Signals, stop_ourselves
from roost.runtimes.streams import Stream

INSIST = 2.0
"""Seconds within which a second Ctrl-C means that the first one did not help."""
_LAST = 2.0
"""Seconds for init to end by itself, where no pid namespace ends everything with it; and for what was printed to be taken, after a limit."""
_RATE = 4 << 30
"""Bytes a second that a program may come to use, about: the less is left to its limit the sooner the next look."""
_OFTEN, _SELDOM = 0.01, 0.1
"""Seconds between two looks at the memory, at least and at most."""
_LEAST = 0.05
"""Seconds between two looks at the CPU time, at least."""
_FEW_SOCKETS = 2
"""Sockets that can not hold enough to matter."""
_MESSAGE = 256
_KEYS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Bounds(NamedTuple):
    """What is watched from outside: seconds of wall time, bytes of memory and CPU seconds of all processes together; None for no limit."""

    wall: float | None = None
    memory: int | None = None
    cpu_time: float | None = None


class End(NamedTuple):
    """How it went: `code` when it ended by itself, `signal` when one killed it; `limit` names what ended it otherwise; `failure` says why it could
    not be executed after all. `cpu` in seconds, `memory` its peak in bytes."""

    code: int = 0
    signal: int = 0
    limit: str = ""
    interrupted: bool = False
    failure: str = ""
    cpu: float = 0.0
    memory: int = 0


class Supervisor:
    """Sees a program to its end, which `kill` hastens. One thread; nothing happens but in `loop`."""

    def __init__(self, loop: Loop, boxed: Boxed, bounds: Bounds, streams: list[Stream], signals: Signals) -> None:
        self.answered: Callable[[int, int], None] = _close
        """Told a port and the descriptor of a connection to it inside, or -1."""
        self._loop = loop
        self._boxed = boxed
        self._bounds = bounds
        self._streams = streams
        self._signals = signals
        self._init_runs = True
        self._linked = True
        self._in_our_group = _group(boxed.pid) == os.getpgrp()
        self._interrupt = float("-inf")
        self._end: End | None = None
        self._peak = 0
        self._buffers = 0
        self._cpu = 0.0
        self._stopped = False
        self._closed = False
        self.late: LateGroup | None = None

    def run(self) -> End:
        """Wait for the end, and for what it has printed to be taken; then nothing of it is left."""
        self._watch()
        try:
            while self._init_runs or (any(stream.open for stream in self._streams) and not self._stopped):
                self._loop.turn()
        finally:
            self.close()
        end = self._end or End(signal=int(signal.SIGKILL))
        return end._replace(cpu=self._cpu, memory=self._peak)

    def close(self) -> None:
        """End it if it still runs, and leave nothing of it."""
        if self._closed:
            return
        self._closed = True
        self._loop.forget(self._signals.descriptor)
        self._finish(End(signal=int(signal.SIGKILL)))
        self._kill()
        for stream in self._streams:
            stream.close()
        with suppress(ChildProcessError):  # who ignores SIGCHLD has no children to wait for
            used = os.wait4(self._boxed.pid, 0)[2]
            self._cpu = max(self._cpu, used.ru_utime + used.ru_stime)
            self._peak = max(self._peak, used.ru_maxrss << 10)
        self._close_group()
        self._loop.forget(self._boxed.pidfd)
        os.close(self._boxed.pidfd)

    def ask(self, port: int) -> bool:
        """Have init connect to a port inside; false when it does not listen."""
        return self._send(f"connect {port}")

    def reach(self, limit: str) -> None:
        """End it because it reached a limit."""
        self._finish(End(limit=limit))

    def _watch(self) -> None:
        boxed, bounds = self._boxed, self._bounds
        boxed.link.setblocking(False)
        self._loop.watch(boxed.link.fileno(), READ, self._hear)
        self._loop.watch(boxed.pidfd, READ, self._init_ended)
        if self._signals.descriptor >= 0:
            self._loop.watch(self._signals.descriptor, READ, self._pass_on)
        now = time.monotonic()
        if bounds.wall is not None:
            self._loop.at(now + bounds.wall, lambda: self.reach("wall"))
        if bounds.memory is not None:
            self._loop.at(now + _pause(bounds.memory), self._look_at_memory)
        if bounds.cpu_time is not None:
            self._loop.at(now + bounds.cpu_time / _cpus(), self._look_at_cpu)

    # What init says.

    def _hear(self, _: int) -> None:
        try:
            text, ancillary, _, _ = self._boxed.link.recvmsg(_MESSAGE, _MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            text, ancillary = b"", []
        self._heed(text, ancillary)

    def _heed(self, text: bytes, ancillary: list[tuple[int, int, bytes]]) -> None:
        match text.decode("ascii", "replace").split():
            case ["ended", "exit", code]:
                self._finish(End(code=int(code)))
            case ["ended", "signal", number]:
                self._finish(End(signal=int(number)))
            case ["connected" | "refused", port, *_]:
                self.answered(int(port), _descriptor(ancillary))
            case ["sockets", size]:
                self._buffers = int(size)
            case ["failed", *_]:
                self._finish(End(failure=text.decode("utf-8", "replace").partition(" ")[2]))
            case []:
                self._finish(End(signal=int(signal.SIGKILL)))  # init has ended without a word: it was killed

    def _send(self, text: str) -> bool:
        if not self._linked:
            return False
        try:
            self._boxed.link.send(text.encode())
        except OSError:  # it has ended, or has enough to do
            return False
        return True

    # Its end.

    def _finish(self, end: End) -> None:
        """The first reason counts. Everything inside is killed."""
        if self._end is None:
            self._end = end
        if self._linked:
            if end.limit or end.interrupted:  # what is killed has no parent left that would count it
                self._cpu = usage.cpu_seconds(usage.processes(self._boxed.pid))
            self._linked = False
            self._loop.forget(self._boxed.link.fileno())
            self._boxed.link.close()
            if "pid namespace" in self._boxed.layers:
                self._kill()
            else:
                self._loop.at(time.monotonic() + _LAST, self._kill)

    def _kill(self) -> None:
        if self._init_runs:
            signal.pidfd_send_signal(self._boxed.pidfd, signal.SIGKILL)

    def _init_ended(self, _: int) -> None:
        self._loop.forget(self._boxed.pidfd)
        if self._linked:
            self._hear(READ)  # its last word may still be there
        self._finish(End(signal=int(signal.SIGKILL)))
        self._init_runs = False
        for stream in self._streams:
            stream.finish()
        if self._end is not None and self._end.limit:
            self._loop.at(
                time.monotonic() + _LAST, self._stop
            )  # who takes its last words too slowly does not hold us up for ever

    def _close_group(self) -> None:
        group, end = self._boxed.group or (self.late and self.late.group), self._end
        if not group:
            return
        if self._boxed.group:
            self._peak = group.used()  # one that was joined late has not seen it all, and counts files
        if end is not None and signal.SIGKILL in (end.signal, end.code - 128) and group.kills():
            self._end = End(limit="memory")
        group.remove()

    # Signals.

    def _pass_on(self, _: int) -> None:
        for number, terminal in self._signals.take():
            if number == signal.SIGINT and self._insists():
                return
            if not self._init_runs and number in _ENDING:
                self._stop()  # there is only output left, which nobody takes
            # A key tells the whole foreground group, and the program must not hear it twice. The end of a terminal may tell its leader alone.
            if not (terminal and self._in_our_group and number in _KEYS):
                self._send(f"signal {number}")
            if number == signal.SIGTSTP:
                stop_ourselves()

    def _insists(self) -> bool:
        """Whether this Ctrl-C, the second one in a row, ends it."""
        now = time.monotonic()
        again = now - self._interrupt < INSIST
        self._interrupt = now
        if again:
            self._stop()
            self._finish(End(signal=int(signal.SIGINT), interrupted=True))
        return again

    def _stop(self) -> None:
        self._stopped = True

    # Limits that are looked at.

    def _look_at_memory(self) -> None:
        limit = self._bounds.memory
        if limit is None or not self._linked:
            return
        self._ask_for_buffers(limit)
        used = self._buffers + usage.memory(usage.processes(self._boxed.pid)[1:], limit - self._buffers)
        self._peak = max(self._peak, used)
        if used > limit:
            self.reach("memory")
        else:
            self._loop.at(time.monotonic() + _pause(limit - used), self._look_at_memory)

    def _ask_for_buffers(self, limit: int) -> None:
        """What waits in sockets counts as well, from the next look on. Only init can tell, and only of a network that is the program's own."""
        if "network namespace" in self._boxed.layers and usage.sockets(self._boxed.pid) > _FEW_SOCKETS:
            self._send(f"sockets {limit}")
        else:
            self._buffers = 0

    def _look_at_cpu(self) -> None:
        limit = self._bounds.cpu_time
        if limit is None or not self._linked:
            return
        left = limit - usage.cpu_seconds(usage.processes(self._boxed.pid))
        if left <= 0:
            self.reach("cpu_time")
        else:  # it can not use up the rest before that
            self._loop.at(time.monotonic() + max(_LEAST, left / _cpus()), self._look_at_cpu)


def _pause(left: int) -> float:
    """Seconds until the next look at the memory, where so many bytes of it are left."""
    return min(max(_OFTEN, left / _RATE), _SELDOM)


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int:
    """The descriptor that came with a message, or -1."""
    return next((int.from_bytes(data[:4], "little") for _, _, data in ancillary), -1)


def _close(_: int, descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:  # it has ended already
        return -1


def _cpus() -> int:
    return os.cpu_count() or 1
