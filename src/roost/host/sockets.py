"""Unix sockets by path, also where the path is longer than the 107 bytes that the kernel's address holds."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from roost.errors import Conflict

_LONGEST = 107  # sizeof(sun_path) is 108 with the final zero: unix(7)


def listen_unix(path: Path, mode: int = 0o600, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A listening, non-blocking socket (SOCK_STREAM or SOCK_SEQPACKET) at `path`; a dead one there is replaced. Raises Conflict for a live one.

    The mode holds from the moment the name exists: the kernel takes it from the unbound socket (unix_bind_bsd in
    net/unix/af_unix.c).
    """
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), mode)
        with _address(path) as address:
            _remove_dead(path, address, kind)
            listener.bind(address)
        path.chmod(mode)  # the umask took its part at bind
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def connect_unix(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A connected, non-blocking socket; never waits.

    Raises OSError: FileNotFoundError, ConnectionRefusedError (nobody listens), BlockingIOError (the other side does not
    accept and its queue is full).
    """
    connection = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        with _address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def _remove_dead(path: Path, address: str, kind: int) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Conflict(f"no socket can be made at {path}", "a file of another kind is there", f"rm {path}")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass
    raise Conflict(f"no socket can be made at {path}", "a running process listens there")


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """An address for `path` that is short enough; valid inside the context only."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def free_port() -> int:
    """A TCP port of the loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
