"""The client of Roost's own guest agent: many commands at once over one unix socket, each stream with its own credit.

A guest is hostile: what it sends is bounded by what we granted, and whatever breaks the protocol ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from roost import log
from roost.errors import CommandFailed, Invalid, NotFound, NotStarted, OutcomeUnknown, RoostError
from roost.hypervisor import agentwire
from roost.hypervisor.agentwire import Broken, Decoder, Frame, Type, readable
from roost.hypervisor.base import Chunk, Command, Setup
from roost.hypervisor.gate import Gate

_RESEND = 2.0
"""Seconds until an unanswered reset is sent again: a guest that restarts may have swallowed it. Repeating does no harm."""
_FRAME_TIME = 10.0
"""Seconds within which a frame that was begun must be whole."""
_START_TIME = 60.0
"""Seconds until a guest must have said whether a command started."""
_FREEZE_TIME = 12.0
"""Seconds until a guest must have answered a freeze or a thaw: it gives up after 10 (guest/freeze.c)."""
_BUILTIN_TIME = 300.0
"""Seconds until a set-up, a sealing or a shutdown must be done: emulated, a slow host may grow a large disk in it."""
_ABSENT = 44
"""Exit code of the built-in `archive` when the path does not exist (guest/builtin.h)."""
_COMPLAINTS = 8 * 1024
"""Bytes of a built-in's standard error that are kept."""

_STREAMS: dict[int, tuple[int, Literal["stdout", "stderr"]]] = {Type.STDOUT: (1, "stdout"), Type.STDERR: (2, "stderr")}


async def connect(path: Path, gate: Gate | None = None) -> RoostAgent:
    """The agent behind QEMU's socket for its port, once it answers; waits without bound (the guest may still be booting).

    Raises NotStarted when nothing listens at `path`, or what answers does not speak the protocol.
    """
    try:
        reader, writer = await (gate or Gate()).connect(path, agentwire.MAX_PAYLOAD)
    except OSError as error:
        raise NotStarted("the guest agent cannot be reached", f"{path}: {error.strerror}") from error
    agent = RoostAgent(reader, writer)
    try:
        await agent.greet()
    except BaseException:
        await agent.close()
        raise
    return agent


class AgentSession:
    """A command that runs in the guest: see `base.Session`."""

    def __init__(self, agent: RoostAgent, number: int) -> None:
        self._agent = agent
        self._number = number
        self._pending = {"stdout": bytearray(), "stderr": bytearray()}
        self._allowed = {1: agentwire.WINDOW, 2: agentwire.WINDOW}
        self._consumed = {1: 0, 2: 0}
        self._exit: int | None = None
        self._error: RoostError | None = None
        self._credit = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # -- what the guest says --

    def take(self, frame: Frame) -> None:
        """A frame for this session. Raises Broken."""
        if frame.type in _STREAMS:
            self._take_output(*_STREAMS[frame.type], frame.payload)
        elif frame.type == Type.WINDOW:
            self._credit = min(agentwire.MAX_CREDIT, self._credit + agentwire.decode_credit(frame.payload))
            self._room.set()
        elif frame.type == Type.STARTED:
            self._settle(None)
        elif frame.type == Type.FAILED:
            self._settle(os.strerror(agentwire.decode_number(frame.payload) & 0xFFF))
        elif frame.type == Type.EXIT:
            self._settle(None)
            self._exit = agentwire.decode_exit(frame.payload)
            self._wake()

    def _take_output(self, stream: int, name: str, data: bytes) -> None:
        self._allowed[stream] -= len(data)
        if self._allowed[stream] < 0:
            raise Broken("the guest sent more output than it was allowed to")
        self._pending[name] += data
        self._changed.set()

    def _settle(self, refusal: str | None) -> None:
        if self.started.done():
            return
        if refusal is None:
            self.started.set_result(None)
        else:
            self.started.set_exception(NotStarted("the command did not start in the guest", refusal))

    def fail(self, error: RoostError) -> None:
        """The connection is gone: nobody knows what becomes of the command."""
        if self._exit is None:
            self._error = error
        if not self.started.done():
            self.started.set_exception(error)
            self.started.exception()  # a caller who was cancelled does not come to fetch it
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._room.set()

    @property
    def _over(self) -> bool:
        return self._exit is not None or self._error is not None

    # -- base.Session --

    async def output(self) -> AsyncGenerator[Chunk, None]:
        """See `base.Session.output`. Raises OutcomeUnknown when the connection breaks."""
        while True:
            for kind, (stream, name) in _STREAMS.items():
                if self._pending[name]:
                    data = bytes(self._pending[name])
                    self._pending[name].clear()
                    self._grant(stream, len(data))
                    yield Chunk("stdout" if kind == Type.STDOUT else "stderr", data)
            if any(self._pending.values()):
                continue
            if self._exit is not None:
                self._agent.forget(self._number)
                yield Chunk("exit", code=self._exit)
                return
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()

    def _grant(self, stream: int, amount: int) -> None:
        """Give credit back in few, large frames."""
        self._consumed[stream] += amount
        if self._consumed[stream] >= agentwire.WINDOW // 4 and not self._over:
            self._agent.send(agentwire.encode_credit(self._number, stream, self._consumed[stream]))
            self._allowed[stream] += self._consumed[stream]
            self._consumed[stream] = 0

    async def write(self, data: bytes) -> None:
        """See `base.Session.write`. Data for a command that has ended is dropped."""
        view = memoryview(data)
        while view and self._exit is None:
            if self._error is not None:
                raise self._error
            size = min(len(view), self._credit, agentwire.DATA_SIZE)
            if not size:
                self._room.clear()
                await self._room.wait()
                continue
            self._credit -= size
            self._agent.send(agentwire.encode(self._number, Type.INPUT, bytes(view[:size])))
            view = view[size:]
            await self._agent.drain()

    async def end_input(self) -> None:
        """See `base.Session.end_input`."""
        await self._tell(Type.END)

    async def signal(self, number: int) -> None:
        """See `base.Session.signal`. Raises Invalid."""
        if not 0 < number < 65:
            raise Invalid(f"there is no signal {number}", "signals are 1 to 64")
        await self._tell(Type.SIGNAL, bytes([number]))

    async def resize(self, rows: int, columns: int) -> None:
        """See `base.Session.resize`."""
        await self._tell(Type.RESIZE, (rows & 0xFFFF).to_bytes(2, "little") + (columns & 0xFFFF).to_bytes(2, "little"))

    async def close(self) -> None:
        """See `base.Session.close`."""
        if not self._over:
            self._agent.send(agentwire.encode(self._number, Type.CLOSE))
        self._exit = self._exit if self._exit is not None else 137
        self._agent.forget(self._number)
        self._wake()

    async def _tell(self, kind: Type, payload: bytes = b"") -> None:
        if not self._over:
            self._agent.send(agentwire.encode(self._number, kind, payload))
            await self._agent.drain()


class RoostAgent:
    """Roost's own agent in one guest. `info` is what it says of itself: agent, kernel, arch, os (never trusted, made printable)."""

    kind: Literal["roost", "qemu-ga", "ssh"] = "roost"

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._nonce = secrets.token_bytes(agentwire.NONCE_SIZE)
        self._decoder = Decoder(self._nonce)
        self._sessions: dict[int, AgentSession] = {}
        self._next = 0
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._verdicts: dict[int, list[asyncio.Future[tuple[int, bytes]]]]
        self._verdicts = {
            kind: [] for kind in (Type.FREEZE, Type.THAW, Type.IDENTITY)
        }  # answered in order, each by its own kind
        self._answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lost = ""
        self._frame_deadline: float | None = None
        self._receiver = log.spawn_task(self._receive(), "guest agent")
        self.info: dict[str, str] = {}

    @property
    def closed(self) -> bool:
        """The connection is gone; a new one must be made with `connect`."""
        return bool(self._lost)

    # -- the connection --

    async def greet(self) -> None:
        """Take the guest's agent over: what an earlier host started ends. Returns when it has answered."""
        while True:
            if not self._writer.transport.get_write_buffer_size():  # else nobody reads, and it would only pile up
                self.send(agentwire.encode(0, Type.RESET, self._nonce))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESEND):
                    await asyncio.shield(self._answered)
                    return

    def send(self, data: bytes) -> None:
        """Queue bytes; what is queued is bounded by credit and by `drain`."""
        if not self._lost:
            self._writer.write(data)

    async def drain(self) -> None:
        """Wait until the socket has taken what was queued, more or less."""
        if not self._lost:
            with contextlib.suppress(OSError):
                await self._writer.drain()

    def forget(self, number: int) -> None:
        """Frames for this session are ignored from now on."""
        self._sessions.pop(number, None)

    async def _receive(self) -> None:
        try:
            while data := await self._read():
                for frame in self._decoder.feed(data):
                    self._handle(frame)
            self._fail("the connection was closed")
        except Broken as error:
            self._fail(str(error))
        except TimeoutError:
            self._fail(f"the guest began a frame and did not end it within {_FRAME_TIME:.0f} s")
        except OSError as error:
            self._fail(error.strerror or str(error))

    async def _read(self) -> bytes:
        """The next bytes. Raises TimeoutError when a frame does not get whole."""
        waiting = self._decoder.synchronised and self._decoder.partial
        if waiting and self._frame_deadline is None:
            self._frame_deadline = asyncio.get_running_loop().time() + _FRAME_TIME
        async with asyncio.timeout_at(self._frame_deadline if waiting else None):
            return await self._reader.read(agentwire.MAX_PAYLOAD)

    def _handle(self, frame: Frame) -> None:
        self._frame_deadline = None
        if frame.session:
            if session := self._sessions.get(frame.session):
                session.take(frame)
        elif handler := _OWN.get(frame.type):
            handler(self, frame.payload)
        elif waiting := self._verdicts.get(frame.type):
            verdict = agentwire.decode_verdict(frame.payload)
            if not (first := waiting.pop(0)).done():
                first.set_result(verdict)

    def _take_pong(self, token: bytes) -> None:
        if (ping := self._pings.pop(token, None)) and not ping.done():
            ping.set_result(None)

    def _take_hello(self, payload: bytes) -> None:
        raise Broken("the agent in the guest was started anew")

    def _take_info(self, answer: bytes) -> None:
        text = answer[agentwire.NONCE_SIZE :]
        for line in text.decode("utf-8", "replace").splitlines()[:16]:
            key, _, value = line.partition("=")
            self.info[readable(key.encode(), 32)] = readable(value.encode(), 100)
        if not self._answered.done():
            self._answered.set_result(None)

    def _fail(self, why: str) -> None:
        if self._lost:
            return
        self._lost = why
        self._writer.close()
        fix = "look at what the command did before a retry"
        error = OutcomeUnknown("the connection to the guest agent is lost", why, fix)
        for session in [*self._sessions.values()]:
            session.fail(error)
        self._sessions.clear()
        waiting: list[asyncio.Future[Any]] = [self._answered, *self._pings.values(), *chain(*self._verdicts.values())]
        for future in waiting:
            if not future.done():
                future.set_exception(NotStarted("the guest agent does not answer", why))
                future.exception()

    def _check(self) -> None:
        if self._lost:
            raise NotStarted("the guest agent cannot be reached", self._lost, "retry: the next call connects again")

    # -- base.Agent --

    async def ping(self, timeout: float) -> None:
        """See `base.Agent.ping`."""
        self._check()
        token = secrets.token_bytes(16)
        answer = self._pings[token] = asyncio.get_running_loop().create_future()
        self.send(agentwire.encode(0, Type.PING, token))
        try:
            async with asyncio.timeout(timeout):
                await answer
        except TimeoutError:
            raise NotStarted("the guest agent does not answer", f"no answer within {timeout:g} s") from None
        finally:
            self._pings.pop(token, None)

    async def execute(self, command: Command) -> AgentSession:
        """See `base.Agent.execute`. Without arguments it is the user's login shell. Raises Invalid for what no guest could run."""
        return await self._execute(command)

    async def _execute(self, command: Command, *, builtin: bool = False) -> AgentSession:
        self._check()
        self._next += 1
        try:
            request = agentwire.encode_command(self._next, command, builtin=builtin)
        except ValueError as error:
            raise Invalid("the command cannot be sent to a guest", str(error)) from error
        session = self._sessions[self._next] = AgentSession(self, self._next)
        self.send(request)
        try:
            async with asyncio.timeout(_START_TIME):
                await session.started
        except TimeoutError:
            await session.close()
            why = f"the guest did not say so within {_START_TIME:.0f} s"
            raise OutcomeUnknown("the command may or may not run", why) from None
        except NotStarted as error:
            self.forget(session._number)
            name = readable(os.fsencode(command.argv[0]), 200) if command.argv else "the login shell"
            raise NotStarted(f"{name} did not start in the guest", error.why) from None
        except asyncio.CancelledError:
            await session.close()
            raise
        return session

    async def setup(self, setup: Setup) -> None:
        """See `base.Agent.setup`. Done once for each machine id; clock, entropy and cards every time. Raises CommandFailed, Invalid."""
        setup = setup if self._can("cards") else setup._replace(cards=())  # which then lease their addresses
        try:
            text = agentwire.encode_setup(setup, time.time())
        except ValueError as error:
            raise Invalid("the first-boot set-up cannot be sent", str(error)) from error
        what = "the first-boot set-up is incomplete"
        # What takes long is left out, so the agent does it itself, and quickly.
        if setup.host_keys and self._can("identity"):
            if await self._ask(Type.IDENTITY, text, _START_TIME, what, also=errno.EINPROGRESS):
                await self._builtin(what, "grow", setup.machine_id)
        else:
            await self._builtin(what, "setup", text=text)

    async def _builtin(self, what: str, *argv: str, text: bytes | None = None) -> None:
        session = await self._execute(Command(argv, stdin=text is not None), builtin=True)
        if text is not None:
            await session.write(text)
            await session.end_input()
        try:
            async with asyncio.timeout(_BUILTIN_TIME):
                await self._finish(session, what)
        except TimeoutError:
            raise CommandFailed(what, f"it takes longer than {_BUILTIN_TIME:.0f} s") from None

    async def seal(self) -> None:
        """See `base.Agent.seal`. The next `setup` gives the machine an identity again. Raises CommandFailed."""
        what = "the guest can not be made ready to be copied"
        if self._can("seal", what):
            await self._builtin(what, "seal")

    async def freeze(self) -> None:
        """See `base.Agent.freeze`."""
        what = "the guest's file systems were not frozen"
        self._can("freeze", what)
        await self._ask(Type.FREEZE, b"", _FREEZE_TIME, what)

    async def thaw(self) -> None:
        """See `base.Agent.thaw`. Raises CommandFailed."""
        if self._can("freeze"):
            await self._ask(Type.THAW, b"", _FREEZE_TIME, "the guest did not say that its file systems go on")

    def _can(self, feature: str, otherwise: str = "") -> bool:
        """Whether the agent is new enough. Raises CommandFailed saying `otherwise` if not."""
        self._check()
        if otherwise and feature not in self.info.get("can", ""):
            raise CommandFailed(otherwise, "its agent is older than that", "launch a new machine from the template")
        return feature in self.info.get("can", "")

    async def power(self, action: Literal["off", "reboot"]) -> None:
        """Ask the guest to shut down. Raises CommandFailed. That it may be gone before it has answered is what was asked for."""
        with contextlib.suppress(OutcomeUnknown):
            await self._builtin("the guest could not be asked to shut down", "power", action)

    async def _ask(self, kind: Type, payload: bytes, timeout: float, what: str, also: int = 0) -> int:
        """A request to the agent's own process; its answer is 0 or `also`. Raises CommandFailed saying `what`, NotStarted."""
        answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        self._verdicts[kind].append(answer)
        self.send(agentwire.encode(0, kind, payload))
        try:
            async with asyncio.timeout(timeout):
                code, complaints = await answer
        except TimeoutError:
            raise CommandFailed(what, f"no answer within {timeout:.0f} s") from None
        if code not in (0, also):
            raise CommandFailed(what, readable(complaints) or os.strerror(code))
        return code

    async def send_archive(self, path: str, stream: AsyncIterator[bytes]) -> None:
        """See `base.Agent.send_archive`. Nothing is written outside of `path`. Raises CommandFailed."""
        session = await self._execute(Command(["extract", path], stdin=True), builtin=True)

        async def feed() -> None:
            async for data in stream:
                await session.write(data)
            await session.end_input()

        try:
            async with asyncio.TaskGroup() as group:
                feeder = group.create_task(feed())
                await self._finish(session, f"not everything was copied to {path}")
                feeder.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            await session.close()

    async def receive_archive(self, path: str) -> AsyncGenerator[bytes, None]:
        """See `base.Agent.receive_archive`. Raises CommandFailed when not everything could be read."""
        session = await self._execute(Command(["archive", path]), builtin=True)
        complaints = b""
        try:
            async for chunk in session.output():
                if chunk.stream == "stdout":
                    yield chunk.data
                elif chunk.stream == "stderr":
                    complaints = (complaints + chunk.data)[:_COMPLAINTS]
                elif chunk.code == _ABSENT:
                    raise NotFound(f"there is no {path} in the guest", readable(complaints))
                elif chunk.code:
                    raise CommandFailed(f"not everything of {path} was copied", readable(complaints))
        finally:
            await session.close()

    async def _finish(self, session: AgentSession, what: str) -> None:
        """Wait for a built-in's end. Raises CommandFailed with what it complained about."""
        complaints = b""
        try:
            async for chunk in session.output():
                if chunk.stream == "stderr":
                    complaints = (complaints + chunk.data)[:_COMPLAINTS]
                elif chunk.stream == "exit" and chunk.code:
                    raise CommandFailed(what, readable(complaints) or f"exit code {chunk.code}")
        finally:
            await session.close()

    async def close(self) -> None:
        """See `base.Agent.close`."""
        self._fail("it was closed by us")
        self._receiver.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await self._writer.wait_closed()


_OWN: dict[int, Callable[[RoostAgent, bytes], None]] = {
    Type.RESET: RoostAgent._take_info,
    Type.PING: RoostAgent._take_pong,
    Type.HELLO: RoostAgent._take_hello,
}
"""What a frame for no session does."""
