"""A guest's agent that means harm, or is broken: limits hold, and the error says what it did."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from roost.errors import CommandFailed, NotStarted, OutcomeUnknown
from roost.hypervisor import agent as agent_module
from roost.hypervisor.agent import AgentSession, RoostAgent
from roost.hypervisor.agentwire import DATA_SIZE, MAX_CREDIT, WINDOW, Decoder, Frame, Type, encode
from roost.hypervisor.base import Chunk, Command

pytestmark = pytest.mark.fault(65)
EXIT = (0).to_bytes(1, "little") + (3).to_bytes(4, "little")


class Peer:
    """The guest's end of the port: reads frames, sends what the test wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.frames: list[Frame] = []
        self.nonce = b""

    async def answer_reset(self, info: bytes = b"agent=fake\n") -> None:
        """Play the greeting of a good agent."""
        data = await self.reader.readexactly(36)
        self.nonce = data[20:]
        self._decoder = Decoder(self.nonce)
        list(self._decoder.feed(data))
        self.send(encode(0, Type.RESET, self.nonce + info))

    async def next(self, kind: Type) -> Frame:
        """The next frame of a kind; others are dropped."""
        while True:
            while self.frames:
                if (frame := self.frames.pop(0)).type == kind:
                    return frame
            self.frames += self._decoder.feed(await self.reader.read(1 << 16))

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))


@contextlib.asynccontextmanager
async def pair(play: Callable[[Peer], Awaitable[None]]) -> AsyncIterator[RoostAgent]:
    """A client, greeted by a peer that then does what `play` says."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    peer = Peer(*await asyncio.open_connection(sock=theirs))
    client = RoostAgent(*await asyncio.open_connection(sock=ours, limit=1 << 18))
    playing = asyncio.ensure_future(_greet_and_play(peer, play))
    try:
        await asyncio.wait_for(client.greet(), 5)
        yield client
    finally:
        playing.cancel()
        await client.close()
        peer.writer.close()


async def _greet_and_play(peer: Peer, play: Callable[[Peer], Awaitable[None]]) -> None:
    await peer.answer_reset()
    await play(peer)


async def started(client: RoostAgent, **fields: bool) -> AgentSession:
    """A session that the peer says has started."""
    return await asyncio.wait_for(client.execute(Command(["true"], **fields)), 5)  # type: ignore[arg-type]


async def begin(peer: Peer, *data: bytes) -> int:
    """Accept the next command, then send `data`."""
    frame = await peer.next(Type.EXEC)
    peer.send(encode(frame.session, Type.STARTED, bytes(4)), *data)
    return frame.session


async def test_more_output_than_was_granted_ends_the_connection() -> None:
    async def play(peer: Peer) -> None:
        number = await begin(peer)
        for _ in range(WINDOW // DATA_SIZE + 1):
            peer.send(encode(number, Type.STDOUT, bytes(DATA_SIZE)))

    async with pair(play) as client:
        session = await started(client)
        await asyncio.wait_for(client._receiver, 5)
        with pytest.raises(OutcomeUnknown, match="more output than it was allowed"):
            [chunk async for chunk in session.output()]
        assert client.closed


async def test_a_million_tiny_pieces_take_no_more_room_than_their_bytes() -> None:
    async def play(peer: Peer) -> None:
        number = await begin(peer)
        peer.send(*[encode(number, kind, b"x") for _ in range(2000) for kind in (Type.STDOUT, Type.STDERR)])
        peer.send(encode(number, Type.EXIT, EXIT))

    async with pair(play) as client:
        session = await started(client)
        await asyncio.sleep(0.05)
        chunks = [chunk async for chunk in session.output()]
        assert chunks == [Chunk("stdout", b"x" * 2000), Chunk("stderr", b"x" * 2000), Chunk("exit", code=3)]


async def test_frames_for_unknown_sessions_and_of_unknown_kinds_are_ignored() -> None:
    async def play(peer: Peer) -> None:
        number = await begin(peer)
        peer.send(*[encode(session, Type.STDOUT, b"x" * 1000) for session in range(1000, 1100)])
        peer.send(encode(number, Type.HELLO), encode(number, Type.EXIT, EXIT))

    async with pair(play) as client:
        session = await started(client)
        assert [chunk async for chunk in session.output()] == [Chunk("exit", code=3)]
        assert not client._sessions


async def test_a_frame_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "_FRAME_TIME", 0.05)

    async def play(peer: Peer) -> None:
        number = await begin(peer)
        for byte in encode(number, Type.STDOUT, bytes(100)):
            peer.send(bytes([byte]))
            await asyncio.sleep(0.01)

    async with pair(play) as client:
        session = await started(client)
        with pytest.raises(OutcomeUnknown, match="did not end it within"):
            async with asyncio.timeout(5):
                [chunk async for chunk in session.output()]


async def test_damage_ends_the_connection() -> None:
    async def play(peer: Peer) -> None:
        await begin(peer, b"\x00" * 64)

    async with pair(play) as client:
        session = await started(client)
        with pytest.raises(OutcomeUnknown, match="not a frame"):
            [chunk async for chunk in session.output()]
        with pytest.raises(NotStarted):
            await client.ping(1)


async def test_endless_credit_is_capped() -> None:
    async def play(peer: Peer) -> None:
        number = await begin(peer)
        peer.send(*[encode(number, Type.WINDOW, b"\0\xff\xff\xff\xff")] * 3)

    async with pair(play) as client:
        session = await started(client, stdin=True)
        await asyncio.sleep(0.02)
        assert session._credit == MAX_CREDIT


async def test_an_agent_that_never_answers_a_ping_is_told_so() -> None:
    async with pair(lambda peer: asyncio.sleep(100)) as client:
        with pytest.raises(NotStarted, match=r"no answer within 0\.05 s"):
            await client.ping(0.05)
        assert not client._pings


async def test_an_agent_that_does_not_say_whether_it_started_leaves_the_outcome_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agent_module, "_START_TIME", 0.05)
    async with pair(lambda peer: asyncio.sleep(100)) as client:
        with pytest.raises(OutcomeUnknown):
            await started(client)
        assert not client._sessions


async def test_an_agent_that_is_started_anew_ends_all_sessions() -> None:
    async def play(peer: Peer) -> None:
        await begin(peer, encode(0, Type.HELLO, b"1"))

    async with pair(play) as client:
        session = await started(client)
        with pytest.raises(OutcomeUnknown, match="anew"):
            [chunk async for chunk in session.output()]


async def test_an_errno_that_does_not_exist_is_only_a_number() -> None:
    async def play(peer: Peer) -> None:
        frame = await peer.next(Type.EXEC)
        peer.send(encode(frame.session, Type.FAILED, b"\xff\xff\xff\xff"))

    async with pair(play) as client:
        with pytest.raises(NotStarted):
            await started(client)


async def test_what_the_guest_says_of_itself_is_bounded_and_printable() -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    peer = Peer(*await asyncio.open_connection(sock=theirs))
    client = RoostAgent(*await asyncio.open_connection(sock=ours, limit=1 << 18))
    greeting = asyncio.ensure_future(client.greet())
    await peer.answer_reset(b"os=\x1b]0;evil\x07" + b"y" * 500 + b"\n" + b"k=v\n" * 100)
    await asyncio.wait_for(greeting, 5)
    assert client.info["os"].startswith("?]0;evil?y") and len(client.info["os"]) == 100
    await client.close()
    peer.writer.close()


async def test_a_connection_that_ends_before_the_answer_was_not_started() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    ours.setblocking(False)
    client = RoostAgent(*await asyncio.open_connection(sock=ours))
    with pytest.raises(NotStarted, match="does not answer"):
        await asyncio.wait_for(client.greet(), 5)
    await client.close()


async def test_answers_that_nobody_asked_for_are_ignored_and_one_too_short_ends_the_connection() -> None:
    async def play(peer: Peer) -> None:
        peer.send(encode(0, Type.FREEZE, b""), encode(0, Type.THAW, bytes(4)), encode(0, Type.IDENTITY, bytes(9000)))
        await peer.next(Type.FREEZE)
        peer.send(encode(0, Type.FREEZE, (16).to_bytes(4, "little")))
        await peer.next(Type.THAW)
        peer.send(encode(0, Type.THAW, b"x"))

    async with pair(play) as client:
        client.info["can"] = "freeze"
        with pytest.raises(CommandFailed, match="busy"):
            await client.freeze()
        with pytest.raises(NotStarted, match="wrong size"):
            await client.thaw()


async def test_an_agent_from_before_that_is_not_asked_to_freeze_or_seal() -> None:
    async def play(peer: Peer) -> None:
        await peer.next(Type.FREEZE)

    async with pair(play) as client:
        for call in (client.freeze, client.seal):
            with pytest.raises(CommandFailed, match="older"):
                await call()
        await client.thaw()
