"""The init of a box: starts nothing and owns nothing; it reaps, passes signals on, and tells how the program ended."""

from __future__ import annotations

import _socket
import os
import select

from roost.host import boxed_network, boxed_sockets
from roost.light import signal, suppress

_MOST = 512  # bytes of a message


def serve(link: _socket.socket, program: int, *, alone: bool) -> None:
    """Serve the link until it closes, which is our end and, by the kernel, that of every process in our pid namespace.

    `alone` means that we have no such namespace, and must end them ourselves.
    """
    wake, woken = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(wake, select.POLLIN)
    poll.register(link.fileno(), select.POLLIN)
    alive = _reap(link, program)
    while True:
        ready = dict(poll.poll())
        if wake in ready:
            os.read(wake, 4096)
            alive = _reap(link, program if alive else 0) and alive
        if link.fileno() in ready:
            message = link.recv(_MOST)
            if not message:
                break
            _obey(link, message.decode().split(), program if alive else 0)
    if alone:
        _end_all()


def _end_all() -> None:
    """Kill our children, and theirs when they have become ours, until there are none."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            for pid in file.read().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _reap(link: _socket.socket, program: int) -> bool:
    """Take all that ended; False when the program was among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid == 0:
            return True
        if pid == program:
            _tell(link, status)
            _reap(link, 0)
            return False


def _tell(link: _socket.socket, status: int) -> None:
    how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
    _send(link, f"ended {how}")


def _obey(link: _socket.socket, words: list[str], program: int) -> None:
    if words[0] == "signal" and program:
        os.kill(program, int(words[1]))
    if words[0] == "sockets":
        with suppress(OSError):  # a kernel without sock_diag: nobody can tell
            _send(link, f"sockets {boxed_sockets.memory(int(words[1]))}")
    if words[0] == "connect":
        try:
            there = boxed_network.connect(int(words[1]))
        except OSError as error:
            _send(link, f"refused {words[1]} {error.errno}")
        else:
            _send(link, f"connected {words[1]}", there.fileno())
            there.close()


def _send(link: _socket.socket, text: str, *descriptors: int) -> None:
    rights = b"".join(number.to_bytes(4, "little") for number in descriptors)
    try:
        link.sendmsg([text.encode()], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else [])
    except OSError:
        os._exit(0)  # the supervisor is gone
