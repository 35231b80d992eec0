"""The zygote: a process of one user that has loaded all that WebAssembly runs need, and forks one for each; gone when nobody wants it.

The standby, a child forked beforehand, takes the next caller itself: it reads what is to be run, becomes like the caller (directory,
environment, descriptors, limits), says "begun" and runs it as `roost run` does. Whoever can not be served exactly as if it ran the program
itself gets an "odd" before anything ran. The parent keeps the connection: it hands on signals, and kills a run whose caller is gone.
"""

from __future__ import annotations

import _socket
import fcntl
import gc
import os
import resource
import select
import sys
import time

from roost.errors import RoostError
from roost.host import sandbox, workers
from roost.light import Callable, Iterable, NamedTuple, import_module, suppress
from roost.runtimes.loop import READ, Loop
from roost.runtimes.zygote_client import FORWARDED, LONGEST, MODULES, SYSTEM, peer, place

IDLE = 60.0
"""Seconds without a run after which it ends itself."""
MOST = 64
"""Runs at once; who comes then runs the program itself."""
_GARBAGE = 100_000  # objects until the collector looks for rings of them: no short run is to wait for it
_PAUSE = 0.02
"""Seconds that a run has the processors for itself, if it takes so long, before the next standby is made."""
_PATIENCE = 1.0  # seconds a caller has to say what it wants
_OTHER_BUILD = 3  # exit code of a standby that finds the installation changed
_ALIKE = frozenset({
    "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters",
})  # fmt: skip
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


class _OtherBuildError(Exception):
    """The installation is no longer the one that we have loaded."""


class Accepted(NamedTuple):
    """A run that is for the zygote: the file of the program, and what runs it and gives the exit code."""

    file: str
    run: Callable[[], int]


class Work(NamedTuple):
    """What the zygote is for. `accept` makes a run of the words after `roost run`, or None of what is not for it, and runs nothing yet; `keep`
    is told in the parent which file was run, so that later runs find ready what can be kept of it; `stand_by` does in the standby what can be
    done before it is known what will run. `spare` makes in another standby, for programs of other kinds, what the next run of this file from
    this directory can use. None of them may start a thread."""

    accept: Callable[[list[str]], Accepted | None]
    keep: Callable[[str], None]
    stand_by: Callable[[], None]
    spare: Callable[[str, str], None]


def serve(work: Work, idle: float = IDLE) -> None:
    """Serve until nobody comes for `idle` seconds or the installation changes; returns at once when another one serves.

    The caller has imported everything that runs need. Raises OSError.
    """
    os.chdir("/")
    os.umask(0o077)
    try:
        lock = _lock()
    except BlockingIOError:
        return
    try:
        _Zygote(work, idle).run(os.path.join(*place()))
    finally:
        os.close(lock)


def start(command: tuple[str, ...]) -> None:
    """Start one in the background unless one serves, by a command that comes to `serve`; of this process only its environment goes along."""
    with suppress(OSError):
        _likeness("self")
        os.close(_lock())
        kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
        workers.start_detached(command, kept)


def _lock() -> int:
    """A descriptor that holds the lock of the one that serves. Raises BlockingIOError when another process has it, OSError."""
    directory, name = place()
    os.makedirs(directory, mode=0o700, exist_ok=True)
    path = os.path.join(directory, f"{name}.lock")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


_KEPT = frozenset({"PATH", "HOME", "LANG"})
_KEPT_PREFIXES = ("PYTHON", "XDG_", "LC_", "ROOST_")


class _Run:
    def __init__(self, worker: workers.Worker, connection: _socket.socket, place: _Place) -> None:
        self.worker = worker
        self.connection = connection
        self.place = place


class _Place:
    """A socket at which callers are taken, and the standby that takes the next of them."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.standby: workers.Worker | None = None
        self.word = self.theirs = self.listener = _socket.socket()
        self.last: tuple[str, str] | None = None
        """File and directory of the last run."""

    def listen(self, directory: int, name: str) -> None:
        self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        self.listener.bind(f"/proc/self/fd/{directory}/{name}{self.end}")
        self.listener.listen(MOST)


class _Zygote:
    def __init__(self, work: Work, idle: float) -> None:
        self._work = work
        self._idle = idle
        self._loop = Loop()
        self._runs: set[_Run] = set()
        self._stop = False
        self._build = _installation()
        self._modules, self._system = self._places = (_Place(MODULES), _Place(SYSTEM))

    def run(self, path: str) -> None:
        import_module("socket")  # for `_stand_by`
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _check_private(directory)
            for each in self._places:
                _unlink(path + each.end)  # a dead one's: the lock is ours
                each.listen(directory, os.path.basename(path))
            gc.freeze()
            gc.set_threshold(_GARBAGE)
            self._replace_standby(self._modules)
            self._await_first(self._system)
            self._rest()
            while not self._stop or self._runs:
                self._loop.turn()
        finally:
            for each in self._places:
                _unlink(path + each.end)
                if each.standby is not None:
                    each.standby.signal(9)

    def _rest(self) -> None:
        """Begin to be idle."""
        self._loop.at(time.monotonic() + self._idle, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self._stop = self._stop or not self._runs

    def _end(self) -> None:
        """Take nobody any more."""
        self._stop = True
        for each in self._places:
            self._loop.forget(each.listener.fileno())
            each.listener.close()

    def _await_first(self, place: _Place) -> None:
        """Its standby is made for the first caller: most users have none, and while a program runs it is not to compete with it."""

        if not self._stop:
            self._loop.watch(place.listener.fileno(), READ, lambda _: self._replace_standby(place))

    def _replace_standby(self, place: _Place) -> None:
        if self._stop or place.standby is not None:
            return
        self._loop.forget(place.listener.fileno())
        if len(self._runs) >= MOST:
            return
        place.word, place.theirs = _pair()
        place.standby = workers.fork_worker(lambda: self._stand_by(place))
        place.theirs.close()
        self._loop.watch(place.word.fileno(), READ, lambda _: self._standby_speaks(place))
        self._loop.watch(place.standby.pidfd, READ, lambda _: self._standby_ended(place))

    def _standby_speaks(self, place: _Place) -> None:
        """It has taken a caller; here is the connection."""
        standby = place.standby
        words, descriptors = b"", list[int]()
        with suppress(ConnectionResetError):  # it has ended before it heard us
            words, descriptors = _receive(place.word)
        if standby is None or not descriptors:
            self._loop.forget(place.word.fileno())
            return
        run = _Run(standby, _socket.socket(fileno=descriptors[0]), place)
        self._forget_standby(place)
        self._runs.add(run)
        self._loop.watch(run.connection.fileno(), READ, lambda _: self._caller_speaks(run))
        self._loop.watch(run.worker.pidfd, READ, lambda _: self._run_ended(run))
        file, cwd = words.split(b"\0")
        place.last = os.fsdecode(file), os.fsdecode(cwd)
        if place is self._system:
            self._await_first(place)
        else:
            self._loop.at(time.monotonic() + _PAUSE, self._refresh)

    def _refresh(self) -> None:
        """Get ready for the next run of a module."""
        if self._modules.standby is None:
            if self._modules.last is not None:
                self._keep(self._modules.last[0])
            self._replace_standby(self._modules)

    def _keep(self, path: str) -> None:
        with suppress(RoostError, OSError):
            self._work.keep(path)
        gc.freeze()  # what is there stays: a child's collector must not touch, and so copy, all of its memory
        if len(os.listdir("/proc/self/task")) > 1:
            self._end()  # no fork of a process with threads

    def _forget_standby(self, place: _Place) -> None:
        if place.standby is not None:
            self._loop.forget(place.word.fileno())
            self._loop.forget(place.standby.pidfd)
            place.word.close()
            place.standby = None

    def _standby_ended(self, place: _Place) -> None:
        """Without having taken anybody: it refused one, or the installation is another."""
        if place.standby is None:
            return
        status = place.standby.wait()
        self._forget_standby(place)
        if os.waitstatus_to_exitcode(status) != 0:
            self._end()
        self._replace_standby(place)

    def _caller_speaks(self, run: _Run) -> None:
        try:
            words = run.connection.recv(64)
        except OSError:
            words = b""
        if not words:
            run.worker.signal(9)  # its end is that of all it runs: they live by a socket that it holds
            self._loop.forget(run.connection.fileno())
        for number in words:
            if number in FORWARDED:
                run.worker.signal(number)

    def _run_ended(self, run: _Run) -> None:
        self._loop.forget(run.connection.fileno())
        self._loop.forget(run.worker.pidfd)
        run.worker.wait()
        run.connection.close()
        self._runs.discard(run)
        self._rest()
        self._refresh()
        if run.place is self._system:
            self._refresh_system()

    def _refresh_system(self) -> None:
        """Get ready for the next run of another program, with a spare when none runs that it would slow down."""
        if any(run.place is self._system for run in self._runs):
            if self._system.standby is None:
                self._await_first(self._system)
            return
        self._replace_standby(self._system)
        with suppress(OSError):  # it has just ended
            if self._system.standby is not None:
                self._system.word.send(b"spare")

    def _stand_by(self, place: _Place) -> int:
        """The standby's life: wait for a caller that can be served, and serve it."""
        accept = self._settle(place)
        ourselves = _likeness("self")
        os.setsid()
        if place is self._modules:
            self._work.stand_by()
        while True:
            if place is self._system:
                self._await_caller(place)
            connection = accept()
            try:
                run = self._take(connection, ourselves)
            except _OtherBuildError:
                return _OTHER_BUILD
            except (OSError, ValueError, IndexError, RoostError):
                run = None
            if run is None:
                with suppress(OSError):
                    connection.send(b"odd")
                return 0  # half of it may be like the caller already
            return self._serve(place, connection, run)

    def _settle(self, place: _Place) -> Callable[[], _socket.socket]:
        """Keep what is for us alone; what accepts a caller."""
        import socket  # not for `start`: it costs milliseconds

        place.word.close()
        for each in self._places:
            if each is not place:
                each.listener.close()
        place.listener = listener = socket.socket(fileno=place.listener.detach())
        return lambda: listener.accept()[0]

    def _await_caller(self, place: _Place) -> None:
        """And make the spare when we are told to; after it nobody tells us anything."""
        poll = select.poll()
        poll.register(place.listener.fileno(), select.POLLIN)
        poll.register(place.theirs.fileno(), select.POLLIN)
        while place.listener.fileno() not in dict(poll.poll()):
            poll.unregister(place.theirs.fileno())
            place.theirs.recv(64)
            if place.last is not None:
                self._work.spare(*place.last)

    def _take(self, connection: _socket.socket, ourselves: tuple[str, ...]) -> Accepted | None:
        """Become like the caller and look at what it wants; None when that is not for us."""
        pid, uid = peer(connection)
        if uid != os.getuid() or _likeness(str(pid)) != ourselves:
            return None
        connection.settimeout(_PATIENCE)
        connection.send(b"ready")
        # Now, while the caller packs what it wants.
        if _seen(self._build) != self._build:
            raise _OtherBuildError
        changed = _adopt(pid)
        message, descriptors = _receive(connection)
        count, *words = message.split(b"\0")
        arguments, variables = words[: int(count)], words[int(count) :]
        os.fchdir(descriptors[3])
        for number in (0, 1, 2):
            os.dup2(descriptors[number], number)
        for number in descriptors:
            os.close(number)
        if changed:
            sandbox.discard()  # what was made ahead has our limits, and not the caller's
        os.environb.clear()
        for variable in variables:
            name, _, value = variable.partition(b"=")
            os.environb[name] = value
        return self._work.accept([os.fsdecode(word) for word in arguments])

    def _serve(self, place: _Place, connection: _socket.socket, accepted: Accepted) -> int:
        descriptor = connection.fileno().to_bytes(4, sys.byteorder)
        words = os.fsencode(f"{accepted.file}\0{os.getcwd()}")
        place.theirs.sendmsg([words], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor)])
        place.listener.close()  # the other socket stays open: with something unread in it, closing it would take back what we sent
        connection.settimeout(_PATIENCE)
        connection.send(b"begun")  # raises when the caller no longer waits: then nothing may run
        code = accepted.run()
        with suppress(OSError):
            connection.send(b"exit %d" % code)
        return 0


def _pair() -> tuple[_socket.socket, _socket.socket]:
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def _receive(connection: _socket.socket) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it; those close at exec."""
    data, extra, _, _ = connection.recvmsg(LONGEST, _socket.CMSG_SPACE(16), _socket.MSG_CMSG_CLOEXEC)
    numbers = b"".join(content for _, kind, content in extra if kind == _socket.SCM_RIGHTS)
    return data, [int.from_bytes(numbers[at : at + 4], sys.byteorder) for at in range(0, len(numbers) // 4 * 4, 4)]


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _check_private(directory: int) -> None:
    seen = os.fstat(directory)
    if seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        raise PermissionError("the directory of the socket is not ours alone")


def _likeness(pid: str) -> tuple[str, ...]:
    """What a caller must have in common with us, so that a run of ours is confined and accounted for as one of its own. Raises OSError."""
    with open(f"/proc/{pid}/status") as file:
        status = [line for line in file if line.partition(":")[0] in _ALIKE]
    with open(f"/proc/{pid}/cgroup") as file:
        groups = file.read()
    spaces = [os.readlink(f"/proc/{pid}/ns/{name}") for name in _NAMESPACES]
    if "NoNewPrivs:\t1\n" in status:
        raise PermissionError("it may be locked up in ways that can not be seen")  # Landlock
    return (*status, groups, *spaces, os.readlink(f"/proc/{pid}/root"))


def _adopt(pid: int) -> bool:
    """Take on what a child of that process would inherit; whether that changed what ours do. Raises OSError where we may not."""
    with open(f"/proc/{pid}/status") as file:
        umask = next(line for line in file if line.startswith("Umask:"))
    os.umask(int(umask.split()[1], 8))
    if os.sched_getscheduler(pid) != os.sched_getscheduler(0):
        raise PermissionError("another scheduler")
    changed = _adopt_limits(pid)
    nice = os.getpriority(os.PRIO_PROCESS, pid)
    if nice != os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, nice)
        changed = True
    affinity = os.sched_getaffinity(pid)
    if affinity != os.sched_getaffinity(0):
        os.sched_setaffinity(0, affinity)
        changed = True
    with open(f"/proc/{pid}/oom_score_adj") as file, open("/proc/self/oom_score_adj", "r+") as own:
        score = file.read()
        if own.read() != score:
            own.write(score)
            changed = True
    return changed


def _adopt_limits(pid: int) -> bool:
    changed = False
    for number in range(16):  # RLIM_NLIMITS of include/uapi/asm-generic/resource.h
        wanted = resource.prlimit(pid, number)
        if wanted != resource.getrlimit(number):
            resource.setrlimit(number, wanted)
            changed = True
    return changed


def _installation() -> dict[str, tuple[int, int, int]]:
    """What we run from, without the interpreter and its own library: it has loaded those."""
    paths = {str(module.__file__) for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    library = f"{os.path.dirname(os.__file__)}/"
    return _seen(path for path in paths if not path.startswith(library) or "/site-packages/" in path)


def _seen(paths: Iterable[str]) -> dict[str, tuple[int, int, int]]:
    """What these files are; one that is gone is (0, 0, 0)."""
    found = {}
    for path in paths:
        try:
            seen = os.stat(path)
        except FileNotFoundError:
            found[path] = (0, 0, 0)
        else:
            found[path] = (seen.st_ino, seen.st_size, seen.st_mtime_ns)
    return found
