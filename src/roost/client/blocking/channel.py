# Derived from aio/channel.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""A WebSocket over a connection: frames queued, sent when there is room, and messages taken as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection
from typing import Self

from roost.client.blocking.connection import CHUNK, Connection
from roost.client.blocking.wait import ready
from roost.client.protocol import Lost
from roost.client.websocket import Closed, Opened, Received, WebSocket
from roost.errors import NotStarted

PATIENCE = 60.0
"""Seconds within which the daemon must accept."""


class Channel:
    """A WebSocket over a connection. One task may write while another reads; not two of a kind."""

    def __init__(self, connection: Connection, target: str) -> None:
        self._connection = connection
        self.core = WebSocket(target)
        self._outgoing = bytearray(self.core.outgoing)
        self.core.outgoing = b""
        self._writing = False
        self.received: deque[Received] = deque()

    @classmethod
    def open(cls, connection: Connection, target: str) -> Self:
        """A WebSocket that the daemon accepted. Raises its refusal, or NotStarted."""
        channel = cls(connection, target)
        try:
            channel._accepted(target)
        except BaseException:
            channel.close()
            raise
        return channel

    def _accepted(self, target: str) -> None:
        deadline = time.monotonic() + PATIENCE
        try:
            while not self.received:
                self.exchange(deadline)
        except Lost as error:
            raise NotStarted(f"{target}: the connection to the daemon was lost", str(error), "try again") from error
        first = self.received.popleft()
        if not isinstance(first, Opened):
            reason = first.reason if isinstance(first, Closed) else "something else came than its acceptance"
            raise NotStarted(f"{target}: the daemon opened no WebSocket", reason, "try again")

    @property
    def waiting(self) -> int:
        """Bytes queued that the daemon has not taken yet."""
        return len(self._outgoing)

    def queue(self, frame: bytes) -> None:
        """Have a frame sent with what is sent next."""
        self._outgoing += frame

    def flush(self, deadline: float | None = None) -> None:
        """Return when all that is queued was sent. Raises Lost."""
        self._writing = True
        try:
            while self._outgoing:
                self._send_some()
                if self._outgoing and not ready((), (self._connection.fileno(),), deadline):
                    raise Lost("the daemon takes nothing more")
        finally:
            self._writing = False

    def exchange(self, deadline: float | None = None, also: Collection[int] = ()) -> frozenset[int]:
        """Wait until something came, could be sent, or one of the descriptors `also` can be read; which of those can.

        What came is in `received`. Raises Lost when the connection ended, or nothing happened before the monotonic deadline.
        """
        number = self._connection.fileno()
        write = (number,) if self._outgoing and not self._writing else ()
        happened = ready((number, *also), write, deadline)
        if not happened:
            raise Lost("nothing came in time")
        if number in happened:
            if write:
                self._send_some()
            self._receive_some()
        return happened - {number}

    def close(self) -> None:
        """Hang up; may be called twice."""
        self._connection.close()

    def _send_some(self) -> None:
        count = self._connection.send_now(memoryview(bytes(self._outgoing[:CHUNK])))
        del self._outgoing[:count]

    def _receive_some(self) -> None:
        data = self._connection.receive_now()
        if data is None:
            return
        self.received.extend(self.core.feed(data))
        if self.core.outgoing:
            self._outgoing += self.core.outgoing
            self.core.outgoing = b""
        if not data and not self.received:
            raise Lost("the daemon has hung up")
