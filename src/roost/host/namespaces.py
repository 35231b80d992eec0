"""Namespaces that outlive the daemon: a user and a network namespace, kept by a process that does nothing else (guest/holder.c)."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from roost import guest
from roost.errors import NotStarted, RoostError, Unavailable
from roost.host import idmap, kernel, processes, system
from roost.model.machine import Process

_SECONDS = 10.0
_SIOCGSKNS, _NS_GET_USERNS = 0x894C, 0xB701  # include/uapi/linux/sockios.h, nsfs.h
_TUN, _TUNGETDEVNETNS = "/dev/net/tun", 0x54E3  # include/uapi/linux/if_tun.h
_WHAT = "the network has no namespaces"


class Namespaces(NamedTuple):
    """Descriptors of a user namespace and of a network namespace that it owns."""

    user: int
    net: int

    def close(self) -> None:
        """Close both."""
        for descriptor in self:
            os.close(descriptor)


class Holder:
    """A holder that waits for its last word: it ends unless `release` is called before this process dies. Owned by the caller."""

    def __init__(self, child: system.Child, gate: socket.socket, process: Process) -> None:
        self.process = process
        self._child = child
        self._gate = gate

    def release(self) -> int:
        """From now on it stays until it is killed: it has been recorded. Returns a pidfd of it, which the caller owns."""
        with self._gate:
            self._gate.send(b"g")
        return self._child.pidfd

    async def discard(self) -> None:
        """End it."""
        self._gate.close()
        await self._child.end()


async def hold(name: str, account: int, old: Namespaces | None = None) -> Holder:
    """A process in new namespaces, or in `old` ones whose holder was killed. `name` shows in the list of processes.

    A new user namespace has one uid and one gid, 0, which are `account` outside (an ordinary user's only choice is his own).
    Raises Unavailable where this host makes no such namespaces, NotStarted when the program fails.
    """
    binary = guest.binary(os.uname().machine, "holder")
    ours, theirs = socket.socketpair()
    inherited = (theirs.fileno(), *(old or ()))
    with theirs:
        nothing = (system.NOTHING, system.NOTHING, system.NOTHING)
        argv = (str(binary), name, *map(str, inherited))
        child = system.start(argv, nothing, env={}, cwd="/", pass_fds=inherited)
    ours.setblocking(False)
    try:
        async with asyncio.timeout(_SECONDS):
            await _prepare(child.pid, ours, account if old is None else -1)
        process = processes.identify(child.pid)
        if process is None:
            raise NotStarted(_WHAT, "their holder ended at once", "try again")
    except BaseException as error:
        ours.close()
        await child.end()
        if isinstance(error, TimeoutError | OSError):
            raise NotStarted(_WHAT, f"their holder was not ready: {error}", "try again") from error
        raise
    return Holder(child, ours, process)


async def _prepare(pid: int, gate: socket.socket, account: int) -> None:
    loop = asyncio.get_running_loop()
    await _hear(gate, b"m")
    if account >= 0:
        Path(f"/proc/{pid}/setgroups").write_text("deny")
        idmap.write_maps(pid, f"0 {account} 1", f"0 {account if os.geteuid() == 0 else os.getegid()} 1")
    await loop.sock_sendall(gate, b"g")
    await _hear(gate, b"r")


async def _hear(gate: socket.socket, word: bytes) -> None:
    said = await asyncio.get_running_loop().sock_recv(gate, 1)
    if said == word:
        return
    why = (await asyncio.get_running_loop().sock_recv(gate, 200)).decode(errors="replace") if said == b"e" else ""
    raise _refused(why or "their holder ended without a word")


def _refused(why: str) -> RoostError:
    fix = "sudo sysctl user.max_net_namespaces=10000 user.max_user_namespaces=10000"
    for path, value in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", path).read_text().strip() == value:
                fix = f"sudo sysctl {path.replace('/', '.')}={1 - int(value)}"
    return Unavailable(_WHAT, f"this host refused {why}", fix)


def enter(pid: int) -> Namespaces:
    """The namespaces of a process. Raises OSError when it has ended or is not ours."""
    user = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Namespaces(user, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    except BaseException:
        os.close(user)
        raise


def identity(namespaces: Namespaces) -> tuple[int, int]:
    """What tells them apart from all others that exist now: the numbers of their inodes."""
    return os.fstat(namespaces.user).st_ino, os.fstat(namespaces.net).st_ino


def of_socket(descriptor: int) -> Namespaces:
    """The namespaces in which a socket was made: they live as long as it does. Raises OSError (before Linux 4.9, or not ours)."""
    net = fcntl.ioctl(descriptor, _SIOCGSKNS)
    try:
        return Namespaces(fcntl.ioctl(net, _NS_GET_USERNS), net)
    except BaseException:
        os.close(net)
        raise


def inhabited(known: tuple[int, int]) -> Namespaces | None:
    """The namespaces with this identity, if a process of ours is still in them or has a tap there; None when they are gone."""
    for pid in _pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino == known[1]:
                found = enter(pid)
                if identity(found) == known:
                    return found
                found.close()
    return next((found for pid in _pids() for found in _tapped(pid, known)), None)


def _tapped(pid: int, known: tuple[int, int]) -> Iterator[Namespaces]:
    """The namespaces, from a tap of them that the process has open: whose machine runs on keeps its network."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as closing:
        taps = [int(name) for name in os.listdir(f"/proc/{pid}/fd") if _is_tap(f"/proc/{pid}/fd/{name}")]
        if not taps:
            return
        pidfd = os.pidfd_open(pid)
        closing.callback(os.close, pidfd)
        for number in taps:
            tap = kernel.syscall(kernel.PIDFD_GETFD, pidfd, number, 0)
            closing.callback(os.close, tap)
            found = of_tap(tap)
            if identity(found) == known:
                yield found
                return
            found.close()


def _is_tap(path: str) -> bool:
    with contextlib.suppress(OSError):  # closed meanwhile
        return os.readlink(path) == _TUN
    return False


def of_tap(descriptor: int) -> Namespaces:
    """The namespaces of a tap: they live as long as it does. Raises OSError (before Linux 5.2, or not ours)."""
    net = fcntl.ioctl(descriptor, _TUNGETDEVNETNS)
    try:
        return Namespaces(fcntl.ioctl(net, _NS_GET_USERNS), net)
    except BaseException:
        os.close(net)
        raise


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())
