"""WebSockets: a command inside a guest, and the guest's console. Whoever goes away ends what they started; whoever does not read stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, cast

import msgspec
from litestar.exceptions import WebSocketException
from litestar.types import Receive, Send

from roost.api.streams import Streams
from roost.api.wire import Call, Gone, document, first_of, refusal
from roost.errors import Invalid, Problem, RoostError
from roost.hypervisor.base import Command, Console, Session
from roost.model import codec
from roost.model.meta import Seconds, Struct

FIRST_SECONDS = 30.0
"""Time from the upgrade to the first message."""
HANGUP_SECONDS = 2.0
"""How often a session looks whether its client still exists, which the event loop can not see while it does not read."""
STDIN, STDOUT, STDERR = b"\x00", b"\x01", b"\x02"
"""The first byte of a binary message of `exec`."""
PAYLOAD = 64 << 10
"""Bytes of output in one message."""

Lines = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class ExecRequest(Struct, frozen=True, kw_only=True):
    """The first message of `exec`."""

    argv: tuple[str, ...]
    env: dict[str, str] = msgspec.field(default_factory=dict)
    cwd: str = ""
    user: str = ""
    stdin: bool = False
    terminal: tuple[Lines, Lines] | None = None
    timeout: Seconds | None = None

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types; values themselves are not repeated, they may be secret."""
        if not self.argv or not self.argv[0]:
            yield Problem("argv", "names no program")
        if any("\0" in text for text in (*self.argv, *self.env.values(), self.cwd, self.user)):
            yield Problem("", "holds a NUL character")
        if any(not name or "=" in name or "\0" in name for name in self.env):
            yield Problem("env", "has a name that is empty or holds '='")


class Control(Struct, frozen=True, kw_only=True):
    """A text message of the client while the command runs."""

    signal: Annotated[int, msgspec.Meta(ge=1, le=64)] | None = None
    resize: tuple[Lines, Lines] | None = None
    eof: bool = False


class TimedOut(RoostError):
    """The command's time was over; it was killed."""

    code = "timeout"


class Channel:
    """One WebSocket, before and after its upgrade."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._open = False
        self.status = 101

    async def accept(self) -> None:
        """Agree to the upgrade."""
        await self._receive()
        await self.send({"type": "websocket.accept", "subprotocol": None, "headers": []})
        self._open = True

    async def receive(self) -> str | bytes:
        """The next message. Raises Gone."""
        try:
            message = cast("dict[str, Any]", await self._receive())
        except WebSocketException:
            raise Gone from None
        if message["type"] != "websocket.receive":
            raise Gone
        data = message.get("bytes")
        return cast("bytes", data) if data is not None else str(message.get("text") or "")

    async def send(self, message: Any) -> None:
        """Send an ASGI message; waits while the client does not read. Raises Gone."""
        try:
            await self._send(message)
        except (OSError, WebSocketException):
            raise Gone from None

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message."""
        await self.send({"type": "websocket.send", "bytes": data, "text": None})

    async def send_json(self, value: Any) -> None:
        """Send a text message."""
        await self.send({"type": "websocket.send", "bytes": None, "text": codec.encode(value).decode()})

    async def close(self) -> None:
        """Say goodbye."""
        await self.send({"type": "websocket.close", "code": 1000, "reason": ""})

    async def fail(self, error: Exception) -> None:
        """Tell an error: as an HTTP answer before the upgrade, as the last message after it."""
        status, body = refusal(error)
        if self._open:
            await self.send_json(body)
            await self.close()
            return
        self.status = status
        text = codec.encode(body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(text)),
            (b"connection", b"close"),
        ]
        await self._receive()
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self.send({"type": "websocket.http.response.body", "body": text, "more_body": False})


class Sessions:
    """The WebSocket routes."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def execute(self, call: Call, channel: Channel) -> None:
        """Run one command. Everything that can be refused before the upgrade is."""
        machine, guest = await self._streams.inside(call)
        await channel.accept()
        request = await _first(channel)
        try:
            async with asyncio.timeout(request.timeout) as limit:
                agent = await self._streams.agent(machine, guest)
                await _run(call, channel, await agent.execute(_command(request)))
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimedOut(f"the command was killed after {request.timeout:g} s", "its timeout was over") from None
        await channel.close()

    async def console(self, call: Call, channel: Channel) -> None:
        """The serial console, both ways, until one side ends."""
        guest = await self._streams.guest(call, "console")
        await channel.accept()
        await first_of(_print(channel, guest.console), _type(channel, guest.console), _hangup(call))
        await channel.close()


async def _first(channel: Channel) -> ExecRequest:
    what = "the command was not started"
    try:
        async with asyncio.timeout(FIRST_SECONDS):
            message = await channel.receive()
    except TimeoutError:
        raise Invalid(what, f"its description did not come within {FIRST_SECONDS:.0f} s") from None
    if not isinstance(message, str):
        raise Invalid(what, "the first message is not text", 'send {"argv": [...]}')
    return codec.decode(document(message.encode()), ExecRequest, what)


def _command(request: ExecRequest) -> Command:
    return Command(request.argv, request.env, request.cwd, request.user, request.stdin, request.terminal)


async def _run(call: Call, channel: Channel, session: Session) -> None:
    """Carry the session's streams until the command ends; the session never outlives its channel."""
    try:
        await channel.send_json({"started": True})
        await first_of(_output(channel, session), _input(channel, session), _hangup(call))
    finally:
        await session.close()


async def _output(channel: Channel, session: Session) -> None:
    """Send what the command prints: the next chunk is asked of the guest only when the socket has taken this one."""
    async for chunk in session.output():
        if chunk.stream == "exit":
            await channel.send_json({"exit": chunk.code})
            return
        prefix = STDOUT if chunk.stream == "stdout" else STDERR
        for start in range(0, len(chunk.data), PAYLOAD):
            await channel.send_bytes(prefix + chunk.data[start : start + PAYLOAD])


async def _input(channel: Channel, session: Session) -> None:
    """Carry standard input and control messages; ends by Gone only. A command that closed its input just gets no more."""
    listening = True
    while True:
        message = await channel.receive()
        if isinstance(message, str):
            await _control(session, message)
        elif message[:1] != STDIN:
            raise Invalid("the message was not understood", "its first byte is not the channel 0 of standard input")
        elif listening:
            try:
                await session.write(message[1:])
            except (RoostError, OSError):
                listening = False


async def _control(session: Session, message: str) -> None:
    control = codec.decode(document(message.encode()), Control, "the message was not understood")
    if control.signal is not None:
        await session.signal(control.signal)
    if control.resize is not None:
        await session.resize(*control.resize)
    if control.eof:
        await session.end_input()


async def _hangup(call: Call) -> None:
    """Raises Gone when the client no longer exists: while its input waits for the guest, nobody reads from it and nobody notices."""
    while True:
        await asyncio.sleep(HANGUP_SECONDS)
        if call.hung_up():
            raise Gone


async def _print(channel: Channel, console: Console) -> None:
    async for data in console.follow():
        for start in range(0, len(data), PAYLOAD):
            await channel.send_bytes(data[start : start + PAYLOAD])


async def _type(channel: Channel, console: Console) -> None:
    while True:
        message = await channel.receive()
        await console.write(message if isinstance(message, bytes) else message.encode())
