"""The client of the zygote: hands it a run and waits for the exit code, or says that nothing was run.

What such a run costs is for the most part the start of this process: nothing is imported here that the interpreter has not loaded anyway,
but for `_socket` (what `socket` adds to it takes longer than the whole run).
"""

import _socket
import os
import stat
import sys

LONGEST = 128 << 10
"""Bytes of arguments and environment that fit into one message: a socket takes 208 KiB (net.core.wmem_default) with its own bookkeeping."""
FORWARDED = (1, 2, 3, 10, 12, 15, 18, 20)
"""SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGTERM, SIGCONT, SIGTSTP: what we are sent is sent on to the run."""
MODULES, SYSTEM = "", ".system"
"""How the names of the two sockets end: that for WebAssembly modules, and that for programs which see the host's programs and libraries."""
_MODULE = b"\0asm"
_PATIENCE = 2.0  # seconds until the run has begun; then it takes what it takes


def place() -> tuple[str, str]:
    """Directory and name of the socket: one for each user, installation and interpreter."""
    run = os.environ.get("ROOST_RUN")
    if not run:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        uid = os.getuid()
        run = "/run/roost" if uid == 0 else f"{runtime}/roost" if runtime else f"/tmp/roost-{uid}"
    package = os.stat(os.path.dirname(os.path.dirname(__file__)))
    name = f"{package.st_dev:x}-{package.st_ino:x}-{sys.hexversion:x}"
    return os.path.join(os.path.abspath(run), "zygote"), name


def wanted(words: list[str]) -> str:
    """Which of the zygote's sockets should be asked, by the end of its name; "no" for none: the words name no file, or a terminal is to be read.

    A program that reads the terminal must be in the caller's session, where Ctrl-Z and `bg` mean it; one that is no WebAssembly module may
    ask more of a terminal than to be written to.
    """
    if os.environ.get("ROOST_ZYGOTE") == "0" or sys.getfilesystemencoding() != "utf-8" or os.isatty(0):
        return "no"
    starts = [start for start in map(_start_of, words[:64]) if start]
    if _MODULE in starts:
        return MODULES
    return SYSTEM if starts and not os.isatty(1) and not os.isatty(2) else "no"


def offer(words: list[str]) -> int | None:
    """The exit code of `roost run WORDS` by the zygote; None when nothing was run, for whatever reason.

    Raises OutcomeUnknown when it began and then was lost, and KeyboardInterrupt.
    """
    end = wanted(words)
    if end == "no":
        return None
    directory, name = place()
    try:
        connection = _connect(directory, name + end)
    except OSError:
        return None
    try:
        return _run(connection, words)
    finally:
        connection.close()


def _start_of(word: str) -> bytes:
    """The first bytes of a file, where the word names one."""
    if word.startswith("-"):
        return b""
    try:
        if not stat.S_ISREG(os.stat(word).st_mode):
            return b""
        file = os.open(word, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError):
        return b""
    try:
        return os.read(file, len(_MODULE))
    except OSError:
        return b""
    finally:
        os.close(file)


def _connect(directory: str, name: str) -> _socket.socket:
    """Connected to a process of our own uid, by a socket in a directory that is ours alone. Raises OSError."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seen = os.fstat(descriptor)
        if seen.st_uid != os.getuid() or seen.st_mode & 0o077:
            raise PermissionError(f"{directory} is not ours alone")
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        connection.settimeout(_PATIENCE)
        connection.connect(f"/proc/self/fd/{descriptor}/{name}")
        if peer(connection)[1] != os.getuid():
            raise PermissionError("the zygote is another user's")
        return connection
    finally:
        os.close(descriptor)


def peer(connection: _socket.socket) -> tuple[int, int]:
    """Pid and uid of the process at the other end."""
    credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    return int.from_bytes(credentials[:4], sys.byteorder), int.from_bytes(credentials[4:8], sys.byteorder)


def _run(connection: _socket.socket, words: list[str]) -> int | None:
    signals = _Signals(connection)
    try:
        answer = connection.recv(64)
        if answer == b"ready":  # it has looked at us: only now it gets our descriptors
            _send(connection, words)
            answer = connection.recv(64)
    except OSError:
        answer = _given_up(connection)
    if answer != b"begun":
        signals.give_back()
        return None
    connection.settimeout(None)
    try:
        answer = connection.recv(64)
    except OSError:
        answer = b""
    if answer.startswith(b"exit "):
        return int(answer[5:])
    from roost.errors import OutcomeUnknown

    raise OutcomeUnknown(
        "the end of the program is not known", "the process that ran it was killed", "ROOST_ZYGOTE=0 runs it without"
    )


def _send(connection: _socket.socket, words: list[str]) -> None:
    arguments = [os.fsencode(word) for word in words]
    environment = [name + b"=" + value for name, value in os.environb.items()]
    message = b"\0".join([b"%d" % len(arguments), *arguments, *environment])
    if len(message) > LONGEST:
        raise OSError("too long for one message")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        numbers = b"".join(number.to_bytes(4, sys.byteorder) for number in (0, 1, 2, here))
        connection.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, numbers)])
    finally:
        os.close(here)


def _given_up(connection: _socket.socket) -> bytes:
    """The last word of a zygote that we no longer wait for: after this it can say none, and so it can not begin."""
    try:
        connection.shutdown(_socket.SHUT_RD)
        return connection.recv(64)
    except OSError:
        return b""


class _Signals:
    """From now on the run gets our signals, before it can say that it is ready for one; one that is ignored here (nohup) stays so."""

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._module = sys.modules["_signal"]  # loaded by every interpreter; `signal` would add 3 ms to it
        self._taken: list[int] = []
        self._before = {number: self._module.getsignal(number) for number in FORWARDED}
        for number, action in self._before.items():
            if action != self._module.SIG_IGN:
                self._module.signal(number, self._forward)

    def give_back(self) -> None:
        """Nothing was run: they are ours again, also those that came meanwhile."""
        for number, action in self._before.items():
            self._module.signal(number, action)
        for number in self._taken:
            os.kill(os.getpid(), number)

    def _forward(self, number: int, _: object) -> None:
        self._taken.append(number)
        try:
            self._connection.send(bytes([number]))
        except OSError:
            return  # it has just ended
        if number == 20:
            os.kill(os.getpid(), 19)  # SIGSTOP: the shell is to see a stopped job
