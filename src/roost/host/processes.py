"""Processes that outlive us: told apart from later ones with the same pid, waited for and signalled by pidfd only."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import select
import signal
import time
from pathlib import Path

from roost.model.machine import Process


@functools.cache
def boot_id() -> str:
    """The host's boot id: process numbers and start times mean nothing across it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Process | None:
    """What tells the process `pid` apart from any other, before and after; None when there is none or a zombie."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        # Field 2, the name, may hold spaces and brackets; field 22 is the start: proc_pid_stat(5).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    uid = next(line.split()[1] for line in status.splitlines() if line.startswith("Uid:"))
    return Process(pid=pid, start=int(fields[19]), uid=int(uid), boot=boot_id())


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time that a process has used, all its threads together; 0 when there is no such process."""
    # The clock of a foreign process, as clock_getcpuclockid(3) names it: exact, where /proc counts in steps of 10 ms.
    with contextlib.suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return 0.0


def open_process(process: Process) -> int | None:
    """A pidfd of exactly that process, or None when it has ended or when its pid belongs to another one by now.

    The order is the point: while the pidfd's process lives the pid is its own, so what is read after opening is of it.
    """
    if process.boot != boot_id() or process.pid <= 0:
        return None
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if identify(process.pid) == process and is_alive(pidfd):
        return pidfd
    os.close(pidfd)
    return None


def is_alive(pidfd: int) -> bool:
    """Whether the process has not ended (a pidfd becomes readable when it has)."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


async def wait_exit(pidfd: int) -> None:
    """Wait until the process has ended; it is not reaped."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    # A duplicate, because a loop knows one reader per number and several tasks may wait for the same process.
    own = os.dup(pidfd)
    loop.add_reader(own, _settle, ended)
    try:
        await ended
    finally:
        loop.remove_reader(own)
        os.close(own)


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)


async def wait_pidfd(pidfd: int) -> int | None:
    """Wait until the process has ended, and reap it if it is our child.

    Returns its exit code, minus the signal's number when one killed it, or None when nobody can know: it was an earlier
    daemon's child, or somebody reaped it before.
    """
    await wait_exit(pidfd)
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)  # noqa: ASYNC222 (WNOHANG does not wait)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def signal_pidfd(pidfd: int, number: signal.Signals) -> bool:
    """Send a signal to the pidfd's process; False when it has ended. Raises PermissionError when it is not ours."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
        return True
    return False
