"""Jailed processes that belong to a machine, held by pidfd: their end, and what they said before."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
from typing import NamedTuple

from roost.host import processes
from roost.host.cgroups import CGroup
from roost.model.machine import Process

_STDERR = 64 << 10


class ErrorFile:
    """Where QEMU's messages go: memory of a fixed size, which needs no reader, takes no more when full, and outlives us."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        os.ftruncate(descriptor, _STDERR)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    def fileno(self) -> int:
        """The descriptor to pass on."""
        return self._file.fileno()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def read(self) -> str:
        """What was written, without control characters, at most the last 2000 characters."""
        text = os.pread(self.fileno(), _STDERR, 0).rstrip(b"\0").decode(errors="replace").strip()
        return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)[-2000:]


class Inmate(NamedTuple):
    """A jailed process that we hold by its pidfd, and its control group."""

    process: Process
    pidfd: int
    cgroup: CGroup | None

    async def end(self) -> int | None:
        """Kill it, wait until it is gone, remove its control group, close the pidfd. Returns how it ended, if that can be known."""
        processes.signal_pidfd(self.pidfd, signal.SIGKILL)
        code = await processes.wait_pidfd(self.pidfd)
        os.close(self.pidfd)
        if self.cgroup is not None:
            await self.cgroup.remove()
        return code

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed in its control group for its memory limit (memory.events, or version 1's memory.oom_control)."""
        for directory in self.cgroup.directories if self.cgroup else ():
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    if re.search(r"^oom_kill [1-9]", (directory / name).read_text(), re.M):
                        return True
        return False


class Held(NamedTuple):
    """All that belongs to a running machine: QEMU, the processes that are its network and its TPM, and QEMU's standard error if we have it."""

    qemu: Inmate
    beside: tuple[Inmate, ...]
    errors: ErrorFile | None

    def last_words(self) -> str:
        """What QEMU wrote to its standard error, "" when an earlier daemon started it."""
        return self.errors.read() if self.errors else ""

    def forget(self) -> None:
        """Close what we hold of it; the processes are not touched."""
        for inmate in (self.qemu, *self.beside):
            os.close(inmate.pidfd)
        if self.errors is not None:
            self.errors.close()
