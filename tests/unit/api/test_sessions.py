"""WebSockets: commands and consoles, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from roost.api import sessions
from roost.errors import NotStarted
from roost.hypervisor.base import Chunk, Command
from tests.unit.api.world import Running, Socket, World, machine, world

EXEC = "/v1/machines/alice/web/exec"


class Recorded:
    """A session that gives what it is told to and remembers everything done to it."""

    def __init__(self, chunks: list[Chunk], *, endless: bool = False) -> None:
        self.chunks, self.endless = chunks, endless
        self.given = 0
        self.done: list[Any] = []
        self.closed = asyncio.Event()
        self.more: asyncio.Queue[Chunk] = asyncio.Queue()

    async def output(self) -> AsyncIterator[Chunk]:
        for chunk in self.chunks:
            self.given += 1
            yield chunk
        while True:
            if self.endless:
                self.given += 1
                await asyncio.sleep(0)
                yield Chunk("stdout", b"y" * 1024)
            else:
                yield await self.more.get()

    async def write(self, data: bytes) -> None:
        self.done.append(data)

    async def end_input(self) -> None:
        self.done.append("eof")

    async def signal(self, number: int) -> None:
        self.done.append(("signal", number))

    async def resize(self, rows: int, columns: int) -> None:
        self.done.append(("resize", rows, columns))

    async def close(self) -> None:
        self.closed.set()


class Answering:
    """An agent with one session to give."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.command: Command | None = None

    async def execute(self, command: Command) -> Any:
        self.command = command
        if isinstance(self.session, Exception):
            raise self.session
        return self.session


async def started(w: World, session: Any, **request: Any) -> tuple[Socket, Answering]:
    """A command that was accepted."""
    await w.call("POST", "/v1/machines", machine())
    running = w.guests.running["web"] = Running()
    running.answering = Answering(session)
    socket = w.socket(EXEC, hung_up=request.pop("hung_up", lambda: False))
    assert await socket.opened() is None
    await socket.send({"argv": ["cat"]} | request)
    return socket, running.answering


async def test_output_and_exit_code_come_apart() -> None:
    async with world() as w:
        session = Recorded([Chunk("stdout", b"out\x00"), Chunk("stderr", b"err"), Chunk("exit", code=3)])
        socket, agent = await started(w, session, env={"A": "b"}, cwd="/", user="root", terminal=[24, 80])
        heard = [await socket.receive() for _ in range(5)]
        assert heard == [{"started": True}, b"\x01out\x00", b"\x02err", {"exit": 3}, None]
        assert agent.command == Command(("cat",), {"A": "b"}, "/", "root", False, (24, 80))
        await socket.task
        assert session.closed.is_set()


async def test_input_signals_and_sizes_go_in() -> None:
    async with world() as w:
        session = Recorded([])
        socket, _ = await started(w, session, stdin=True)
        await socket.receive()
        for message in (b"\x00hello", {"resize": [30, 90]}, {"signal": 15}, {"eof": True}):
            await socket.send(message)
        await asyncio.sleep(0.01)
        assert session.done == [b"hello", ("resize", 30, 90), ("signal", 15), "eof"]
        await socket.close()


async def test_a_client_that_goes_away_kills_its_command() -> None:
    async with world() as w:
        session = Recorded([])
        socket, _ = await started(w, session)
        await socket.receive()
        await socket.close()
        assert session.closed.is_set()


async def test_a_client_that_goes_away_while_its_input_is_stuck_kills_its_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sessions, "HANGUP_SECONDS", 0.01)
    gone = False

    class Stuck(Recorded):
        async def write(self, data: bytes) -> None:
            await asyncio.Event().wait()

    async with world() as w:
        session = Stuck([])
        socket, _ = await started(w, session, stdin=True, hung_up=lambda: gone)
        await socket.send(b"\x00data")
        await asyncio.sleep(0.02)
        assert not session.closed.is_set()
        gone = True
        async with asyncio.timeout(1):
            await session.closed.wait()


async def test_whoever_does_not_read_stops_the_command() -> None:
    async with world() as w:
        session = Recorded([], endless=True)
        socket, _ = await started(w, session)
        await asyncio.sleep(0.05)
        stopped = session.given
        await asyncio.sleep(0.02)
        assert session.given == stopped < 20
        await socket.close()


async def test_a_timeout_kills_the_command_and_says_so() -> None:
    async with world() as w:
        session = Recorded([])
        socket, _ = await started(w, session, timeout=0.01)
        heard = [await socket.receive() for _ in range(3)]
        assert (heard[1]["error"]["code"], heard[2]) == ("timeout", None)
        assert session.closed.is_set()


async def test_a_command_that_can_not_start_is_an_error_of_the_stream() -> None:
    async with world() as w:
        socket, _ = await started(w, NotStarted("the command did not start", "no such file", "check the name"))
        told = await socket.receive()
        assert (told["error"]["code"], told["error"]["why"]) == ("not-started", "no such file")


@pytest.mark.parametrize(
    "request_",
    [
        {"argv": []},
        {"argv": ["a\0b"]},
        {"argv": "ls"},
        {"argv": ["ls"], "shell": True},
        {"argv": ["ls"], "env": {"A=B": "c"}},
    ],
)
async def test_a_wrong_description_is_refused(request_: dict[str, Any]) -> None:
    async with world() as w:
        socket, agent = await started(w, Recorded([]), **request_)
        told = await socket.receive()
        assert (told["error"]["code"], agent.command) == ("invalid", None)


async def test_a_machine_that_does_not_run_refuses_the_upgrade() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        refused = await w.socket(EXEC).opened()
        assert refused is not None
        assert (refused.status, refused.error["code"]) == (409, "conflict")


async def test_a_console_goes_both_ways_and_ends_with_the_machine() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        running = w.guests.running["web"] = Running()
        socket = w.socket("/v1/machines/alice/web/console")
        assert await socket.opened() is None
        assert await socket.receive() == b"booting\n"
        await running.console.lines.put(b"login: ")
        assert await socket.receive() == b"login: "
        await socket.send(b"root\n")
        await asyncio.sleep(0)
        await running.console.lines.put(None)
        assert await socket.receive() is None
        assert running.console.typed == b"root\n"


async def test_logs_of_a_running_and_of_a_stopped_machine() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        assert (await w.call("GET", "/v1/machines/alice/web/logs")).body == b"an older boot\n"
        running = w.guests.running["web"] = Running()
        assert (await w.call("GET", "/v1/machines/alice/web/logs")).body == b"booting\n"
        running.console.lines.put_nowait(b"more\n")
        running.console.lines.put_nowait(None)
        assert (await w.call("GET", "/v1/machines/alice/web/logs?follow=true")).body == b"booting\nmore\n"


async def test_files_go_in_and_out_as_tar() -> None:
    async with world() as w:
        await w.call("POST", "/v1/machines", machine())
        w.guests.running["web"] = Running()
        sent = await w.call("PUT", "/v1/machines/alice/web/files?path=/srv", b"tar" * 100_000)
        assert (sent.status, sent.body) == (204, b"")
        assert (await w.call("GET", "/v1/machines/alice/web/files?path=/srv")).body == b"tar" * 100_000
        assert (await w.call("GET", "/v1/machines/alice/web/files?path=srv")).status == 400
