"""The network of a program: connections that it makes inside to what `--net` names, and that others make to what `--publish` names.

Nothing is routed. A connection ends at a listening socket in the program's own network namespace; we open the other half outside, to the
address that the name had when the run began, and move bytes. Imported only by runs that have a network.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import time
from collections import deque

from roost.errors import Invalid, NotStarted
from roost.light import Callable, Iterable
from roost.model.addresses import is_own
from roost.runtimes.base import Peer, Published
from roost.runtimes.loop import ENDED, READ, WRITE, Loop

CONNECTIONS = 256
"""Connections of one program at a time; more wait in the kernel's queue until one has ended."""
_ADDRESSES = 8
"""Addresses of one name that are used."""
_BUFFER = 1 << 16
_BACKLOG = 64
_PAUSE = 0.1
"""Seconds until we look again whether there are descriptors for a connection."""
_ABORT = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 s; close then resets the connection

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def pin(peers: Iterable[Peer]) -> dict[str, tuple[str, ...]]:
    """The addresses of each host in `--net`, asked for once: what the name leads to later does not matter.

    A name must not lead to this host or to the link (127.0.0.1, 169.254.169.254): whoever answers for the name would choose what of ours the
    program reaches. Who means such an address writes it, or "localhost". Raises Invalid.
    """
    return {host: _addresses(host) for host in dict.fromkeys(peer.host for peer in peers)}


def _addresses(host: str) -> tuple[str, ...]:
    if "*" in host or not host:
        raise Invalid(
            f"--net {host or '(empty)'} is not possible",
            "a program may reach named services only",
            "give each as --net HOST:PORT",
        )
    literal = _parse(host)
    if literal is not None:
        return (str(literal),)
    found = list(dict.fromkeys(_look_up(host)))[:_ADDRESSES]
    fit = found if _is_local_name(host) else [address for address in found if not is_own(address)]
    if not fit:
        why = f"the name leads to {', '.join(map(str, found))}, which is this host or its link and not a service of the network"
        raise Invalid(
            f"--net {host} is not possible", why, f"give the address itself if you mean it: --net {found[0]}:PORT"
        )
    return tuple(map(str, fit))


def _look_up(host: str) -> list[Address]:
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else "it is no name of a host"
        raise Invalid(
            f"--net {host} is not possible", f"the name does not resolve: {why}", f"getent hosts {host}"
        ) from error
    found = (_parse(str(answer[4][0])) for answer in answers)
    return [address for address in found if address is not None]


def _parse(text: str) -> Address | None:
    """An address, in the form in which the kernel means it: ::ffff:127.0.0.1 is 127.0.0.1. None for a name."""
    try:
        address = ipaddress.ip_address(text.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_local_name(host: str) -> bool:
    return host.rstrip(".").lower().rpartition(".")[2] == "localhost"


class Doors:
    """All connections of one program: accepts, opens the other half, moves bytes both ways, and bounds their number."""

    def __init__(self, loop: Loop, ask: Callable[[int], bool]) -> None:
        """`ask` has init connect to a port inside, and says whether it could be asked; the answer comes by `answered`."""
        self._loop = loop
        self._ask = ask
        self._listeners: dict[socket.socket, Callable[[socket.socket], None]] = {}
        self._connections: set[_Connection] = set()
        self._asked: dict[int, deque[socket.socket]] = {}
        self._accepting = True

    def lead_out(self, listeners: Iterable[int], doors: Iterable[tuple[str, int]]) -> None:
        """Connect what arrives at listening sockets of the inside, whose descriptors are ours from now on, to addresses outside."""
        for descriptor, (address, port) in zip(listeners, doors, strict=True):
            self._add(socket.socket(fileno=descriptor), functools.partial(self._connect, address, port))

    def publish(self, listener: socket.socket, port: int) -> None:
        """Connect what arrives at a listening socket of the host, which is ours from now on, to a port inside."""
        self._add(listener, functools.partial(self._request, port))

    def answered(self, port: int, descriptor: int) -> None:
        """Init has opened a connection to that port, or could not (-1)."""
        far = socket.socket(fileno=descriptor) if descriptor >= 0 else None
        if self._asked.get(port):
            self._join(self._asked[port].popleft(), far)
        elif far is not None:
            far.close()

    def close(self) -> None:
        """End every connection and listen no more."""
        for listener in self._listeners:
            self._loop.forget(listener.fileno())
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections):
            connection.abort()
        for waiting in self._asked.values():
            while waiting:
                _reset(waiting.popleft())

    def _add(self, listener: socket.socket, opened: Callable[[socket.socket], None]) -> None:
        listener.setblocking(False)
        self._listeners[listener] = opened
        self._watch(listener)

    def _watch(self, listener: socket.socket) -> None:
        self._loop.watch(listener.fileno(), READ, lambda _: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            near = listener.accept()[0]
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # it stays ready all the time
                self._accept_no_more()
                self._loop.at(time.monotonic() + _PAUSE, self._accept_again)
            return  # it has gone again
        self._listeners[listener](near)
        if len(self._connections) + sum(map(len, self._asked.values())) >= CONNECTIONS:
            self._accept_no_more()

    def _accept_no_more(self) -> None:
        self._accepting = False
        for each in self._listeners:
            self._loop.forget(each.fileno())

    def _connect(self, address: str, port: int, near: socket.socket) -> None:
        self._join(near, _connect(address, port))

    def _request(self, port: int, near: socket.socket) -> None:
        if self._ask(port):
            self._asked.setdefault(port, deque()).append(near)
        else:
            _reset(near)

    def _join(self, near: socket.socket, far: socket.socket | None) -> None:
        if far is None:
            _reset(near)
            self._accept_again()
        else:
            self._connections.add(_Connection(self._loop, near, far, self._ended))

    def _ended(self, connection: _Connection) -> None:
        self._connections.discard(connection)
        self._accept_again()

    def _accept_again(self) -> None:
        if not self._accepting:
            self._accepting = True
            for listener in self._listeners:
                self._watch(listener)


def listen(published: Published) -> socket.socket:
    """The host's end of what is published. Raises NotStarted when the port is taken or not ours to take."""
    family = socket.AF_INET6 if ":" in published.host_ip else socket.AF_INET
    end = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind((published.host_ip, published.host_port))
        end.listen(_BACKLOG)
    except OSError as error:
        end.close()
        what = f"port {published.host_port} could not be published"
        fix = f"publish another port, or end what listens there: ss -ltnp sport = :{published.host_port}"
        raise NotStarted(what, f"{published.host_ip}: {error.strerror}", fix) from error
    return end


def _connect(address: str, port: int) -> socket.socket | None:
    """A connection to be established, from the host to a pinned address; None when that can not be."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        end = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError:  # no descriptors are left
        return None
    try:
        end.connect((address, port))
    except BlockingIOError:
        pass
    except OSError:
        end.close()
        return None
    return end


class _Half:
    """One socket, and the bytes that wait to be written to it."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.waiting = b""
        self.fed = True
        """Whether more may come to be written."""
        self.shut = False
        self.broken = False


class _Connection:
    """Two sockets. Each side is read only while the other has nothing waiting: who reads slowly slows the sender down."""

    def __init__(
        self, loop: Loop, near: socket.socket, far: socket.socket, ended: Callable[[_Connection], None]
    ) -> None:
        self._loop = loop
        self._ended = ended
        near.setblocking(False)
        far.setblocking(False)
        self._near, self._far = _Half(near), _Half(far)
        for end in (near, far):
            _hasten(end)
        loop.watch(far.fileno(), WRITE, self._connected)

    def abort(self) -> None:
        """Reset both sides."""
        for half in (self._near, self._far):
            self._loop.forget(half.end.fileno())
            _reset(half.end)
        self._ended(self)

    def _connected(self, _: int) -> None:
        if self._far.end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()
            return
        self._look()

    def _look(self) -> None:
        """Watch each socket for what there is to do at it."""
        for half, other in ((self._near, self._far), (self._far, self._near)):
            # What is read from here waits at the other side.
            events = (READ if other.fed and not other.waiting else 0) | (WRITE if half.waiting else 0)
            if events:
                self._loop.watch(half.end.fileno(), events, functools.partial(self._move, half, other))
            else:
                self._loop.forget(half.end.fileno())

    def _move(self, half: _Half, other: _Half, events: int) -> None:
        try:
            if half.waiting:
                self._write(half)
            if events & (READ | ENDED) and other.fed and not other.waiting:
                self._read(half, other)
        except OSError:
            self.abort()
            return
        if self._near.shut and self._far.shut:
            self._finish()
        else:
            self._look()

    @staticmethod
    def _write(half: _Half) -> None:
        try:
            half.waiting = half.waiting[half.end.send(half.waiting) :]
        except BlockingIOError:
            return
        _shut_when_done(half)

    def _read(self, half: _Half, other: _Half) -> None:
        try:
            data = half.end.recv(_BUFFER)
        except BlockingIOError:
            return
        other.waiting = data
        other.fed = bool(data)
        if data:
            self._write(other)
        else:
            _shut_when_done(other)

    def _finish(self) -> None:
        for half in (self._near, self._far):
            self._loop.forget(half.end.fileno())
            half.end.close()
        self._ended(self)


def _shut_when_done(half: _Half) -> None:
    """Pass on that the other side has said all."""
    if not half.fed and not half.waiting and not half.shut:
        half.shut = True
        half.end.shutdown(socket.SHUT_WR)


def _hasten(end: socket.socket) -> None:
    """Small messages go at once: the program and its peer decide what waits, not we."""
    if end.family != socket.AF_UNIX:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _reset(end: socket.socket) -> None:
    """Close it so that the other side gets an error and not the end of the data."""
    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    end.close()
