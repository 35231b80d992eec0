# Derived from aio/session.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Requests to the daemon: connections kept and opened at need, a daemon started at need, one safe retry, errors by their meaning."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Callable, Iterable
from typing import Any

from roost.build import build_id
from roost.client.blocking.connection import Connection
from roost.client.blocking.wait import apart
from roost.client.endpoint import Endpoint, connect
from roost.client.protocol import MAX_BODY, SAFE, Head, Lost, Request, dumps, failure, loads, lost
from roost.client.sse import Parser, ServerEvent
from roost.errors import NotStarted, OutcomeUnknown, Unavailable

ANSWER = 60.0
"""Seconds within which the daemon must begin to answer an ordinary request."""

HEARTBEAT = 60.0
"""Seconds of silence after which a watch counts as lost; the daemon sends a heartbeat every 15."""


class Answer:
    """An answer whose head came. Read it to the end or close it."""

    def __init__(self, session: Session, connection: Connection, head: Head, request: Request) -> None:
        self._session = session
        self._connection = connection
        self._request = request
        self.head = head

    def pieces(self, silence: float | None = None) -> Iterator[bytes]:
        """The body as it comes. Raises OutcomeUnknown when it breaks off, or nothing comes for `silence` seconds."""
        try:
            while True:
                piece = self._connection.piece(None if silence is None else time.monotonic() + silence)
                if piece is None:
                    break
                yield piece
        except Lost as error:
            target = self._request.target.partition("?")[0]
            raise OutcomeUnknown(f"{target}: the answer broke off", str(error), "try again") from error
        finally:
            self._session.release(self._connection)

    def read(self, limit: int = MAX_BODY) -> bytes:
        """The whole body, at most `limit` bytes. Raises OutcomeUnknown."""
        whole = bytearray()
        for piece in self.pieces():
            whole += piece
            if len(whole) > limit:
                self.close()
                raise OutcomeUnknown(
                    f"{self._request.target}: the answer was not read", f"it is longer than {limit} bytes"
                )
        return bytes(whole)

    def close(self) -> None:
        """Hang up: what comes is of no interest any more."""
        self._connection.close()


def warn_of_build(message: str) -> None:
    """How a program is told that the daemon is another build than its SDK."""
    warnings.warn(message, stacklevel=2)


class Session:
    """The connections to one daemon. `autostart` starts it when none runs and it is ours to start."""

    def __init__(
        self, endpoint: Endpoint, *, autostart: bool = True, on_other_build: Callable[[str], None] = warn_of_build
    ) -> None:
        self.endpoint = endpoint
        self._autostart = autostart
        self._idle: list[Connection] = []
        self._on_other_build: Callable[[str], None] | None = on_other_build

    def call(self, method: str, target: str, body: Any = None, *, timeout: float = ANSWER) -> Any:
        """The JSON that a request gives. A write carries an idempotency key, so that it is tried again once when its answer is lost.

        Raises what the daemon raised, NotStarted when nothing happened, OutcomeUnknown when it may have.
        """
        key = "" if method in SAFE else os.urandom(16).hex()
        request = Request(method, target, b"" if body is None else dumps(body), key=key)
        answer = self.open(request, timeout=timeout)
        return loads(answer.read(), target)

    def open(self, request: Request, *, timeout: float | None = ANSWER) -> Answer:
        """Send a request; the answer when it is a success. Raises like `call`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        sent = False
        for last in (False, True):
            try:
                connection = self.connection(fresh=last)
            except (NotStarted, Unavailable):
                if sent and request.method not in SAFE:
                    raise lost(request, sent=True, reason="the daemon is gone") from None
                raise
            try:
                head = connection.request(request, deadline)
            except Lost as error:
                connection.close()
                sent = sent or connection.sent
                harmless = not sent or request.method in SAFE or request.key
                if last or not harmless or (deadline is not None and time.monotonic() > deadline):
                    raise lost(request, sent=sent, reason=str(error)) from error
            except BaseException:
                connection.close()
                raise
            else:
                return self._checked(Answer(self, connection, head, request))
        raise AssertionError("the last attempt returns or raises")

    def upload(self, target: str, pieces: Iterable[bytes], content_type: str) -> Any:
        """PUT a body of any length. Raises like `call`; it is not tried again by itself."""
        request = Request("PUT", target, content_type=content_type, streamed=True)
        connection = self.connection(fresh=True)
        try:
            head = connection.upload(request, pieces)
        except Lost as error:
            connection.close()
            raise lost(request, sent=connection.sent, reason=str(error)) from error
        except BaseException:
            connection.close()
            raise
        answer = self._checked(Answer(self, connection, head, request))
        return loads(answer.read(), target)

    def events(self, target: str) -> Iterator[ServerEvent]:
        """Server-sent events, until the daemon ends them. Raises OutcomeUnknown when the connection breaks."""
        answer = self.open(Request("GET", target))
        parser = Parser()
        try:
            for piece in answer.pieces(HEARTBEAT):
                for event in parser.feed(piece):
                    yield event
        finally:
            answer.close()

    def connection(self, *, fresh: bool = False) -> Connection:
        """A connection: one that is idle, else a new one. Raises NotStarted, Forbidden, Unavailable."""
        if self._idle and not fresh:
            return self._idle.pop()
        try:
            return Connection(connect(self.endpoint))
        except NotStarted:
            if not self._autostart or self.endpoint.config is None:
                raise
        apart(self._start)
        return Connection(connect(self.endpoint))

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request, if one may follow."""
        if connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Hang up everywhere."""
        while self._idle:
            self._idle.pop().close()

    def _start(self) -> None:
        from roost.client.autostart import start

        if self.endpoint.config is not None:
            start(self.endpoint.config)

    def _checked(self, answer: Answer) -> Answer:
        self._compare(answer.head.headers.get("roost-build", ""))
        if answer.head.status >= 400:
            body = answer.read(1 << 20)
            raise failure(answer.head.status, body, answer.head.headers.get("roost-request", "the request"))
        return answer

    def _compare(self, theirs: str) -> None:
        """Say once that the daemon is another build, and what to do."""
        notify, self._on_other_build = self._on_other_build, None
        if notify is not None and theirs and theirs != build_id():
            fix = "`roost serve --stop`; the next command starts this build, and machines go on running meanwhile"
            if self.endpoint.config is None:
                fix = "`systemctl restart roost` on the daemon's host, or install the same version here"
            notify(f"the daemon is build {theirs}, this is build {build_id()}: {fix}")
