"""A WebSocket and the messages of `exec` without I/O: bytes in, messages out (wsproto does RFC 6455)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from roost.client.protocol import Lost, dumps, failure, loads
from roost.errors import OutcomeUnknown, RoostError

MAX_MESSAGE = 2 << 20
"""Bytes that one message may have: twice what the daemon sends."""

PIECE = 64 << 10
"""Bytes of standard input sent in one message."""

STDIN, STDOUT, STDERR = 0, 1, 2
"""The first byte of a binary message of `exec`: the channel."""


class Opened(NamedTuple):
    """The daemon accepted the WebSocket."""


class Closed(NamedTuple):
    """The daemon closed it in order."""

    code: int
    reason: str


Received = Opened | Closed | bytes | str


class WebSocket:
    """One WebSocket's state. What must be answered (pings, close) gathers in `outgoing`; send it whenever something is sent or came."""

    def __init__(self, target: str) -> None:
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._target = target
        self._parts: list[bytes] = []
        self._size = 0
        self._refused: int | None = None
        self.outgoing = self._connection.send(Request(host="roost", target=target))

    def binary(self, data: bytes) -> bytes:
        """The frame of a binary message; empty once the daemon has said goodbye, which `feed` tells."""
        return self._send(BytesMessage(data=data))

    def text(self, message: Any) -> bytes:
        """The frame of a message in JSON; empty once the daemon has said goodbye, which `feed` tells."""
        return self._send(TextMessage(data=dumps(message).decode()))

    def feed(self, data: bytes) -> Iterator[Received]:
        """The messages that `data` completes; empty data: the other side has closed. Raises the daemon's refusal, or Lost."""
        try:
            self._connection.receive_data(data or None)
            for event in self._connection.events():
                received = self._event(event)
                if received is not None:
                    yield received
        except RemoteProtocolError as error:
            raise Lost(str(error)) from error

    def _send(self, event: Event) -> bytes:
        try:
            return self._connection.send(event)
        except LocalProtocolError:
            return b""

    def _event(self, event: Event) -> Received | None:
        if isinstance(event, Message):
            return self._message(event)
        if isinstance(event, AcceptConnection):
            return Opened()
        if isinstance(event, Ping):
            self.outgoing += self._send(event.response())
        elif isinstance(event, CloseConnection):
            return Closed(event.code, event.reason or "")
        elif isinstance(event, RejectConnection | RejectData):
            self._rejected(event)
        return None

    def _message(self, event: Message[Any]) -> bytes | str | None:
        piece = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
        self._parts.append(piece)
        self._size += len(piece)
        if self._size > MAX_MESSAGE:
            raise OutcomeUnknown(
                f"{self._target} was ended", f"a message is longer than {MAX_MESSAGE} bytes", "roost doctor"
            )
        if not event.message_finished:
            return None
        whole, self._parts, self._size = b"".join(self._parts), [], 0
        return whole.decode() if isinstance(event, TextMessage) else whole

    def _rejected(self, event: RejectConnection | RejectData) -> None:
        """An ordinary HTTP answer instead of an upgrade: gather its body, then raise what it says."""
        if isinstance(event, RejectConnection):
            self._refused = event.status_code
            if event.has_body:
                return
        else:
            self._parts.append(bytes(event.data))
            self._size += len(event.data)
            if not event.body_finished and self._size < MAX_MESSAGE:
                return
        raise failure(self._refused or 0, b"".join(self._parts), self._target)


class Start(NamedTuple):
    """What `exec` begins with: argv (no shell), and how it runs. `timeout` is in seconds; `terminal` is (rows, columns)."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = MappingProxyType({})
    cwd: str = ""
    user: str = ""
    stdin: bool = False
    terminal: tuple[int, int] | None = None
    timeout: float | None = None

    def message(self) -> dict[str, Any]:
        """The first message."""
        return {**self._asdict(), "env": dict(self.env)}


class Ended(NamedTuple):
    """The command ended."""

    code: int


def exec_message(received: bytes | str) -> tuple[Literal["stdout", "stderr"], bytes] | Ended | None:
    """What a message of `exec` says: output, the end, or nothing of interest. Raises the error that the daemon sent."""
    if isinstance(received, bytes):
        return ("stderr" if received[:1] == bytes([STDERR]) else "stdout"), received[1:]
    message = loads(received.encode(), "exec")
    if "error" in message:
        raise failure(0, received.encode(), "exec")
    return Ended(int(message["exit"])) if "exit" in message else None


def is_timeout(error: RoostError) -> bool:
    """Whether the daemon ended the command because its time was up."""
    return error.code == "timeout"
