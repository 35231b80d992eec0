"""What a sandbox is asked for: plain values, so that whoever plans one needs nothing of the system."""

from __future__ import annotations

from roost.light import Callable, Mapping, NamedTuple, Protocol


class Limits(NamedTuple):
    """What the program may use: `memory` and `file_size` in bytes, `cpu_time` in seconds for each process, `processes` counts threads, `files`
    descriptors."""

    memory: int | None = None
    cpu_time: float | None = None
    processes: int = 256
    files: int = 1024
    file_size: int | None = None


Receive = Callable[[bytes, tuple[int, ...]], int]
"""Takes what `Handover.pack` gave, and does the call; the exit code."""


class Handover(Protocol):
    """A `call` that may be handed to a sandbox which was made before anybody knew what for (`sandbox.prepare`)."""

    def pack(self) -> tuple[bytes, tuple[int, ...]]:
        """What it is, and descriptors that it needs, which are closed when they are handed over."""

    def settle(self) -> None:
        """It will be called in a fork of this process instead: get ready for that. Raises RoostError."""


class Box(NamedTuple):
    """One program to be run in a sandbox.

    Either `argv` (argv[0] is a path inside; `program` is the file to execute where that differs) or `call`, whose value is the exit code.
    `mounts` are (source, target, kind, lent) as in `runtimes.base.Mount`, an inner one after the one around it. `files` are made with mode 0444.
    `system` shows the host's programs and libraries. `tmp` is the size in bytes of /tmp and /dev/shm together. `fds` maps a descriptor inside to
    one of ours. `doors` are (address, port) on which sockets listen in its network. `watch`: "connect" reports connects by IP, "learn" file access
    as well. `calls` opens system calls beyond the usual ones. `uid` is its host uid where we are root (0: FIRST_UID + our pid). `tty` shows it
    /dev/tty. `handlers` are lines of binfmt_misc that hold in the box alone. `require` names layers of the sandbox without which it must not start.
    `handover` is `call` once more, where it can be handed over.
    `keeps` are descriptors of ours that `call` finds open under the same numbers, if they are of this file (device, inode) still.
    """

    name: str
    argv: tuple[str, ...] = ()
    call: Callable[[], int] | None = None
    env: Mapping[str, str] = {}
    mounts: tuple[tuple[str, str, str, bool], ...] = ()
    files: Mapping[str, bytes] = {}
    system: bool = False
    cwd: str = "/"
    tmp: int = 256 << 20
    limits: Limits = Limits()
    fds: Mapping[int, int] = {0: 0, 1: 1, 2: 2}
    doors: tuple[tuple[str, int], ...] = ()
    watch: str = ""
    calls: tuple[str, ...] = ()
    uid: int = 0
    tty: bool = False
    handlers: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    program: str = ""
    handover: Handover | None = None
    keeps: Mapping[int, tuple[int, int]] = {}
