"""Processes that are this one once more, or that nobody waits for; light, for the way of a short run."""

from __future__ import annotations

import os

from roost.host import kernel
from roost.light import Callable, Iterable, Mapping, NamedTuple, Sequence

_PR_SET_PDEATHSIG = 1


class Worker(NamedTuple):
    """A child of this process; its pid is its own until it is waited for."""

    pid: int
    pidfd: int

    def signal(self, number: int) -> None:
        """Send it a signal; does nothing when it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return

    def wait(self) -> int:
        """How it ended, as `os.waitpid` tells it; its descriptor is closed."""
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.pidfd)
        return status


def fork_worker(main: Callable[[], int]) -> Worker:
    """Run `main` in a forked child that is killed when this process ends; its value is the exit code, 125 when it raises.

    In a process with threads `main` must not need what they may be importing. Raises OSError.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return Worker(pid, os.pidfd_open(pid))
    code = 125
    try:
        kernel.prctl(_PR_SET_PDEATHSIG, 9)
        if os.getppid() == parent:
            code = main()
    except BaseException:
        import traceback  # costs milliseconds

        traceback.print_exc()
    finally:
        os._exit(code)


def spawn_worker(argv: Sequence[str], env: Mapping[str, str], descriptors: Mapping[int, int]) -> Worker:
    """Start a program that inherits exactly these descriptors: its number to ours. Raises OSError."""
    actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items()]
    pid = os.posix_spawn(argv[0], list(argv), dict(env), file_actions=[*actions, *_closing(descriptors)])
    return Worker(pid, os.pidfd_open(pid))


def start_detached(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Start a program in a session of its own, with /dev/null for its input and output; it is nobody's child once we end. Raises OSError."""
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1, 2)]
    usual, actions = range(1, 32), [*nothing, *_closing(())]
    os.posix_spawn(argv[0], list(argv), dict(env), file_actions=actions, setsid=True, setsigmask=(), setsigdef=usual)


def _closing(kept: Iterable[int]) -> list[tuple[int, int]]:
    """What closes all but these and the standard ones: also those that our caller left open for us, whose other end may wait for theirs."""
    numbers = (int(name) for name in os.listdir("/proc/self/fd"))
    return [(os.POSIX_SPAWN_CLOSE, number) for number in numbers if number > 2 and number not in set(kept)]
