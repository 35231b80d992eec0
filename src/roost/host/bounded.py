"""A piece of work on hostile input in a process of its own, that can do nothing but compute within its bounds."""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Callable, Collection

from roost.host import kernel, landlock, seccomp, workers
from roost.host.sandbox import FIRST_UID

_PR_SET_PDEATHSIG = 1


class Bounds:
    """What the work may use: `memory` and `output` (of each file it writes) in bytes, `cpu` and `wall` in seconds."""

    def __init__(self, memory: int, output: int, cpu: int, wall: float) -> None:
        self.memory, self.output, self.cpu, self.wall = memory, output, cpu, wall


def run(main: Callable[[], int], keep: Collection[int], bounds: Bounds) -> int:
    """Run `main` in a forked child that keeps only the descriptors `keep`; its value, or -N when signal N ended it.

    It has no files, no network, no privileges, and where we are root no identity of ours. Raises TimeoutError after `bounds.wall`, when nothing of
    it is left; OSError.
    """

    parent = os.getpid()

    def work() -> int:
        _lock_up(set(keep), bounds)
        # A change of identity takes back what `fork_worker` asked for: to end with us.
        kernel.prctl(_PR_SET_PDEATHSIG, 9)
        if os.getppid() != parent:
            return 1
        return main()

    worker = workers.fork_worker(work)
    poll = select.poll()
    poll.register(worker.pidfd, select.POLLIN)
    ended = False
    try:
        ended = bool(poll.poll(bounds.wall * 1000))
    finally:
        if not ended:
            worker.signal(9)
        status = os.waitstatus_to_exitcode(worker.wait())
    if not ended:
        raise TimeoutError(f"not done after {bounds.wall:g} seconds")
    return status


def _lock_up(keep: set[int], bounds: Bounds) -> None:
    _keep_only(keep)
    taken = _address_space()
    for kind, most in (
        (resource.RLIMIT_AS, taken + bounds.memory),
        (resource.RLIMIT_FSIZE, bounds.output),
        (resource.RLIMIT_CPU, bounds.cpu),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    if os.geteuid() == 0:
        uid = FIRST_UID + os.getpid()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    landlock.restrict([], network=False)
    machine = os.uname().machine
    if machine in seccomp.ARCHITECTURES:
        kernel.load_filter(seccomp.build(machine))


def _keep_only(keep: set[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in {0, 1, 2} - keep:
        os.dup2(nothing, number)
    last = 2
    for number in [*sorted(number for number in keep if number > 2), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(last + 1, number)
        last = number


def _address_space() -> int:
    """Bytes of address space that are taken already: a runtime in our process may have reserved hundreds of GiB, which cost nothing."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
