# Derived from aio/connection.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""One connection to the daemon: bytes through a non-blocking socket, and what of a request had left us when it broke."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from roost.client.blocking.wait import ready
from roost.client.protocol import Head, Lost, Protocol, Request

CHUNK = 256 << 10
"""Bytes read at once, and about what waits to be sent at most."""

GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ESHUTDOWN, errno.ENOTCONN, errno.EBADF})


class Connection:
    """A socket with the HTTP state of its exchange. `sent` says whether the whole request has left us."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._protocol = Protocol()
        self.sent = False

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._protocol.reusable

    def request(self, request: Request, deadline: float | None) -> Head:
        """Send a whole request; returns when the head of its answer came. Raises Lost."""
        self.sent = False
        self.send(self._protocol.begin(request), deadline)
        self.sent = True
        return self._head(deadline)

    def upload(self, request: Request, pieces: Iterable[bytes]) -> Head:
        """Send a request with a streamed body. Stops early when the daemon does not want more, and gives its answer. Raises Lost."""
        self.sent = False
        try:
            self.send(self._protocol.begin(request), None)
            self.sent = True  # a part of the body may be enough for the daemon to begin
            for piece in pieces:
                if piece:
                    self.send(self._protocol.chunk(piece), None)
            self.send(self._protocol.finish(), None)
        except Lost:
            if not self.sent:
                raise
        return self._head(None)

    def piece(self, deadline: float | None) -> bytes | None:
        """The next piece of the answer's body; None at its end. Raises Lost."""
        while True:
            event = self._protocol.next_event()
            if event is None:
                self._protocol.feed(self.receive(deadline))
            elif isinstance(event, bytes):
                return event
            else:
                return None

    def send(self, data: bytes, deadline: float | None) -> None:
        """Send all of `data`. Raises Lost."""
        view = memoryview(data)
        while view:
            count = self.send_now(view)
            view = view[count:]
            if view and not ready((), (self.fileno(),), deadline):
                raise Lost("the daemon takes nothing more")

    def receive(self, deadline: float | None) -> bytes:
        """What came; empty when the daemon has closed. Raises Lost when nothing came in time."""
        while True:
            data = self.receive_now()
            if data is not None:
                return data
            if not ready((self.fileno(),), (), deadline):
                raise Lost("no answer came in time")

    def send_now(self, data: memoryview) -> int:
        """Send what goes without waiting; returns the number of bytes. Raises Lost."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise _lost(error) from error

    def receive_now(self) -> bytes | None:
        """What is there without waiting: None for nothing, empty for closed. Raises Lost."""
        try:
            return self._socket.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _lost(error) from error

    def fileno(self) -> int:
        """The socket's descriptor. Raises Lost when it is closed already."""
        number = self._socket.fileno()
        if number < 0:
            raise Lost("the connection was closed")
        return number

    def close(self) -> None:
        """Hang up; may be called twice."""
        self._socket.close()

    def _head(self, deadline: float | None) -> Head:
        while True:
            event = self._protocol.next_event()
            if isinstance(event, Head):
                return event
            if event is None:
                self._protocol.feed(self.receive(deadline))


def _lost(error: OSError) -> Exception:
    return Lost(error.strerror or str(error)) if error.errno in GONE else error
