"""The Agent protocol over qemu-guest-agent, for images that bring only that: no terminal, no streaming, output up to 16 MiB.

The guest is hostile: an answer is bounded in bytes, time and depth and decoded into the fields we expect; after any disorder the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from roost import log
from roost.errors import CommandFailed, Invalid, NotFound, NotStarted, OutcomeUnknown
from roost.hypervisor.agentwire import readable
from roost.hypervisor.base import Chunk, Command, Setup
from roost.hypervisor.gate import Gate, Writer
from roost.hypervisor.setupscript import seal_script, setup_script, within

MAX_LINE = 48 << 20
"""Longest answer: qemu-guest-agent captures 16 MiB each of standard output and error, in base64."""
MAX_INPUT = 8 << 20
"""Most bytes of standard input, which must all be there when the command starts."""
MAX_JUNK = 64 << 20
_ANSWER_SECONDS = 30.0
_FROZEN_SECONDS = 10.0
_RESEND_SECONDS = 5.0
_FIRST_POLL, _LAST_POLL = 0.01, 0.5
_PIECE = 256 << 10
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CUT = b"roost: qemu-guest-agent cut the output at 16 MiB\n"

T = TypeVar("T")


class _Refusal(msgspec.Struct):
    desc: str = ""


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.field(name="return", default=msgspec.Raw(b"null"))
    error: _Refusal | None = None


class _Started(msgspec.Struct):
    pid: int


class _Status(msgspec.Struct, rename="kebab"):
    exited: bool
    exitcode: int | None = None
    signal: int | None = None
    out_data: str = ""
    err_data: str = ""
    out_truncated: bool = False
    err_truncated: bool = False


class _Read(msgspec.Struct, rename="kebab"):
    count: int
    eof: bool
    buf_b64: str = ""


class Refused(Exception):
    """The guest agent answered with an error; nothing was done."""


async def connect(path: Path, gate: Gate | None = None) -> GuestAgent:
    """qemu-guest-agent behind QEMU's socket for its port, once it answers; waits without bound.

    Raises NotStarted when nothing listens at `path`, or what answers is not a guest agent.
    """
    try:
        reader, writer = await (gate or Gate()).connect(path, MAX_LINE)
    except OSError as error:
        raise NotStarted("qemu-guest-agent cannot be reached", f"{path}: {error.strerror}") from error
    agent = GuestAgent(reader, writer)
    try:
        await agent.synchronise()
        with contextlib.suppress(CommandFailed):
            # An earlier daemon may have been killed in between.
            await asyncio.shield(log.spawn_task(agent.thaw(), "thaw guest"))
    except asyncio.CancelledError:
        log.spawn_task(agent.leave(), "leave qemu-guest-agent")
        raise
    except BaseException:
        await agent.close()
        raise
    return agent


class GuestSession:
    """A command run by qemu-guest-agent. One with standard input starts when its input ends: the agent takes it only as a whole."""

    def __init__(self, agent: GuestAgent, command: Command) -> None:
        self._agent = agent
        self._command = command
        self._input = bytearray()
        self._pid: int | None = None
        self._begun = asyncio.Event()

    async def start(self) -> None:
        """Raises NotStarted, OutcomeUnknown, Invalid."""
        command = self._command
        try:
            argv = within(command, switch_user=("runuser", "-u"))
        except ValueError as error:
            raise Invalid("the command cannot be sent to the guest", "its arguments are not UTF-8") from error
        arguments: dict[str, Any] = {"path": argv[0], "arg": argv[1:], "capture-output": True}
        if command.env:
            arguments["env"] = [f"{k}={v}" for k, v in {"PATH": _PATH, "HOME": "/root", **command.env}.items()]
        if self._input:
            arguments["input-data"] = b64encode(self._input).decode()
        try:
            self._pid = (await self._agent.ask("guest-exec", _Started, **arguments)).pid
        except Refused as error:
            raise NotStarted(f"{argv[0]} did not start in the guest", str(error)) from None
        self._begun.set()

    async def output(self) -> AsyncGenerator[Chunk, None]:
        """See `base.Session.output`: all of it when the command has ended."""
        await self._begun.wait()
        delay = _FIRST_POLL
        while not (status := await self._agent.ask("guest-exec-status", _Status, pid=self._pid)).exited:
            await asyncio.sleep(delay)
            delay = min(_LAST_POLL, delay * 1.5)
        self._pid = None
        if status.out_data:
            yield Chunk("stdout", _unpack(status.out_data))
        if status.err_data:
            yield Chunk("stderr", _unpack(status.err_data))
        if status.out_truncated or status.err_truncated:
            yield Chunk("stderr", _CUT)
        code = status.exitcode if status.exitcode is not None else 128 + (status.signal or 0)
        yield Chunk("exit", code=code & 0xFF)

    async def write(self, data: bytes) -> None:
        """See `base.Session.write`. Raises Invalid above MAX_INPUT."""
        if len(self._input) + len(data) > MAX_INPUT:
            raise Invalid(
                "too much standard input", f"qemu-guest-agent takes at most {MAX_INPUT} bytes", "roost copy it in"
            )
        self._input += data

    async def end_input(self) -> None:
        """See `base.Session.end_input`: starts the command."""
        if self._command.stdin and not self._begun.is_set():
            await self.start()

    async def signal(self, number: int) -> None:
        """Send a signal to the command itself; qemu-guest-agent knows no process groups."""
        if self._pid is not None:
            with contextlib.suppress(Refused):
                await self._agent.ask("guest-exec", _Started, path="kill", arg=[f"-{number:d}", str(self._pid)])

    async def resize(self, rows: int, columns: int) -> None:
        """There is no terminal to resize."""

    async def close(self) -> None:
        """See `base.Session.close`."""
        if self._pid is not None and not self._agent.closed:
            with contextlib.suppress(NotStarted, OutcomeUnknown):
                await self.signal(9)
        self._pid = None


class GuestAgent:
    """qemu-guest-agent in one guest: one request at a time."""

    kind: Literal["roost", "qemu-ga", "ssh"] = "qemu-ga"

    def __init__(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        self._number = secrets.randbits(31)
        self._unanswered = 0
        self._turn = asyncio.Lock()
        self._lost = ""
        self._thawing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """The connection is gone; a new one must be made with `connect`."""
        return bool(self._lost)

    async def synchronise(self) -> None:
        """Skip what an earlier client left, up to the answer to our own number. Raises NotStarted."""
        number = self._number
        request = {"execute": "guest-sync-delimited", "arguments": {"id": number}}
        skipped = 0
        while True:
            if self._writer.transport.get_write_buffer_size() == 0:
                self._writer.write(b"\xff" + msgspec.json.encode(request) + b"\n")  # 0xff: empties the guest's parser
                self._unanswered += 1
            try:
                async with asyncio.timeout(_RESEND_SECONDS):
                    while not _is_sync(line := await self._line(), number):
                        skipped += len(line)
                        if skipped > MAX_JUNK:
                            raise NotStarted(
                                "qemu-guest-agent does not answer", f"{skipped} bytes of something else came"
                            )
                    self._unanswered -= 1
                    return
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """Close, but hear first what was asked for: qemu-guest-agent that finds nobody to answer tries again at once, for ever, and takes a whole
        processor for that; in every copy of the guest too."""
        with contextlib.suppress(NotStarted, TimeoutError):
            async with asyncio.timeout(_ANSWER_SECONDS):
                async with self._turn:
                    # What QEMU has not taken from us goes with the connection: no agent has opened its port.
                    while self._unanswered and not self._writer.pending():
                        self._unanswered -= _is_sync(await self._line(), self._number)
        await self.close()

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            raise NotStarted("qemu-guest-agent does not answer", "the connection was closed") from None
        except asyncio.LimitOverrunError:
            raise NotStarted("qemu-guest-agent does not answer", f"it sent a line above {MAX_LINE} bytes") from None
        except OSError as error:
            raise NotStarted("qemu-guest-agent does not answer", error.strerror or "") from error
        return line

    async def ask(self, verb: str, kind: type[T], **arguments: Any) -> T:
        """One request and its answer. Raises Refused, NotStarted (not sent), OutcomeUnknown (no sound answer; the connection is given up)."""
        async with self._turn:
            if self._lost:
                raise NotStarted(
                    "qemu-guest-agent cannot be reached", self._lost, "retry: the next call connects again"
                )
            try:
                self._writer.write(msgspec.json.encode({"execute": verb, "arguments": arguments}) + b"\n")
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._writer.drain()
                    return _decode(await self._line(), kind)
            except Refused:
                raise
            except BaseException as error:
                why = error.why if isinstance(error, NotStarted) else _why(error)
                self._give_up(why)
                if isinstance(error, Exception):
                    raise OutcomeUnknown(f"qemu-guest-agent did not answer {verb}", why) from None
                raise

    def _give_up(self, why: str) -> None:
        self._lost = self._lost or why
        self._writer.close()

    async def ping(self, timeout: float) -> None:
        """See `base.Agent.ping`."""
        try:
            async with asyncio.timeout(timeout):
                await self.ask("guest-ping", dict)
        except TimeoutError:
            raise NotStarted("qemu-guest-agent does not answer", f"no answer within {timeout:g} s") from None
        except OutcomeUnknown as error:
            raise NotStarted(error.what, error.why) from None

    async def execute(self, command: Command) -> GuestSession:
        """See `base.Agent.execute`. Raises NotStarted for a terminal, which qemu-guest-agent does not have."""
        if command.terminal is not None:
            raise NotStarted(
                "no terminal in this guest", "it has only qemu-guest-agent", "roost console NAME, or exec without -t"
            )
        session = GuestSession(self, command)
        if not command.stdin:
            await session.start()
        return session

    async def _run(self, what: str, *argv: str, script: str = "") -> None:
        session = await self.execute(Command(argv, stdin=bool(script)))
        if script:
            await session.write(script.encode())
            await session.end_input()
        said = b""
        async for chunk in session.output():
            said = (said + chunk.data)[:8192]
            if chunk.stream == "exit" and chunk.code:
                raise CommandFailed(what, readable(said) or f"exit code {chunk.code}")

    async def setup(self, setup: Setup) -> None:
        """See `base.Agent.setup`. Raises CommandFailed."""
        await self._run("the first-boot set-up is incomplete", "/bin/sh", script=setup_script(setup))

    async def seal(self) -> None:
        """See `base.Agent.seal`."""
        await self._run("the guest can not be made ready to be copied", "/bin/sh", script=seal_script())

    async def freeze(self) -> None:
        """See `base.Agent.freeze`. It has no clock of its own for that: we thaw when the time is over, and whoever connects next."""
        try:
            await self.ask("guest-fsfreeze-freeze", int)
        except (Refused, OutcomeUnknown) as error:
            with contextlib.suppress(CommandFailed, NotStarted, OutcomeUnknown):
                await self.thaw()
            raise CommandFailed("the guest's file systems were not frozen", str(error)) from None
        self._thawing = log.spawn_task(self._thaw_later(), "thaw guest")

    async def _thaw_later(self) -> None:
        await asyncio.sleep(_FROZEN_SECONDS)
        self._thawing = None
        with contextlib.suppress(CommandFailed, NotStarted, OutcomeUnknown):
            await self._thaw()

    async def thaw(self) -> None:
        """See `base.Agent.thaw`. Raises CommandFailed."""
        if self._thawing is not None:
            self._thawing.cancel()
            self._thawing = None
        await self._thaw()

    async def _thaw(self) -> None:
        try:
            await self.ask("guest-fsfreeze-thaw", int)
        except (Refused, OutcomeUnknown) as error:
            raise CommandFailed("the guest did not say that its file systems go on", str(error)) from None

    async def power(self, action: Literal["off", "reboot"]) -> None:
        """See `base.Agent.power`; guest-shutdown gives no answer when it works."""
        mode = "powerdown" if action == "off" else "reboot"
        with contextlib.suppress(OutcomeUnknown, NotStarted):
            await self.ask("guest-shutdown", object, mode=mode)

    async def _spool(self) -> str:
        return f"/tmp/roost-{secrets.token_hex(8)}.tar"

    async def send_archive(self, path: str, stream: AsyncIterator[bytes]) -> None:
        """See `base.Agent.send_archive`: through a file in the guest's /tmp. Raises CommandFailed."""
        spool = await self._spool()
        try:
            handle = await self.ask("guest-file-open", int, path=spool, mode="w")
            try:
                async for data in stream:
                    for at in range(0, len(data), _PIECE):
                        piece = b64encode(data[at : at + _PIECE]).decode()
                        await self.ask("guest-file-write", dict, handle=handle, **{"buf-b64": piece})
            finally:
                await self.ask("guest-file-close", dict, handle=handle)
            script = 'mkdir -p "$1" && tar -xf "$0" -C "$1"'
            await self._run(f"not everything was copied to {path}", "/bin/sh", "-c", script, spool, path)
        except Refused as error:
            raise CommandFailed(f"not everything was copied to {path}", str(error)) from None
        finally:
            await self._remove(spool)

    async def receive_archive(self, path: str) -> AsyncGenerator[bytes, None]:
        """See `base.Agent.receive_archive`: through a file in the guest's /tmp. Raises CommandFailed."""
        spool = await self._spool()
        absolute = os.path.normpath(path)
        try:
            await self._find(absolute)
            parent, name = os.path.split(absolute)
            await self._run(f"{path} was not copied", "tar", "-cf", spool, "-C", parent or "/", "--", name or ".")
            handle = await self.ask("guest-file-open", int, path=spool, mode="r")
            while True:
                piece = await self.ask("guest-file-read", _Read, handle=handle, count=_PIECE)
                if piece.buf_b64:
                    yield _unpack(piece.buf_b64)
                if piece.eof or not piece.count:
                    break
            await self.ask("guest-file-close", dict, handle=handle)
        except Refused as error:
            raise CommandFailed(f"not everything of {path} was copied", str(error)) from None
        finally:
            await self._remove(spool)

    async def _find(self, path: str) -> None:
        try:
            await self._run("", "/bin/sh", "-c", 'test -e "$0" || test -L "$0"', path)
        except CommandFailed:
            raise NotFound(f"there is no {path} in the guest") from None

    async def _remove(self, spool: str) -> None:
        with contextlib.suppress(NotStarted, OutcomeUnknown, CommandFailed):
            await self._run("", "rm", "-f", spool)

    async def close(self) -> None:
        """See `base.Agent.close`."""
        if self._thawing is not None and not self._lost:
            with contextlib.suppress(CommandFailed, NotStarted):
                await self.thaw()
        self._give_up("it was closed by us")
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def _is_sync(line: bytes, number: int) -> bool:
    """The answer to guest-sync-delimited stands behind a 0xff, where no JSON can hold one."""
    _, mark, text = line.rpartition(b"\xff")
    if not mark or len(text) > 256:
        return False
    try:
        return _decode(text, int) == number
    except (msgspec.MsgspecError, RecursionError, Refused):
        return False


def _decode(line: bytes, kind: type[T]) -> T:
    answer = msgspec.json.decode(line, type=_Answer)
    if answer.error is not None:
        raise Refused(readable(answer.error.desc.encode()))
    return msgspec.json.decode(answer.result, type=kind)


def _unpack(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        raise OutcomeUnknown("qemu-guest-agent sent no sound output", "it is not base64") from None


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole answer within {_ANSWER_SECONDS:.0f} s"
    if isinstance(error, (msgspec.MsgspecError, RecursionError)):
        return "what it sent is not the answer to what was asked"
    return "the request was interrupted"
