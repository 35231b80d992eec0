"""The gate: while it is shut nothing goes to a guest and nothing is taken from it; what was kept goes when it opens."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from roost.host import sockets
from roost.hypervisor import gate
from roost.hypervisor.gate import Gate


@pytest.fixture
def peer(tmp_path: Path) -> socket.socket:
    return sockets.listen_unix(tmp_path / "agent.sock")


async def accept(listener: socket.socket) -> socket.socket:
    connection, _ = await asyncio.get_running_loop().sock_accept(listener)
    connection.setblocking(False)
    return connection


def sent(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except BlockingIOError:
        return b""


async def test_what_is_written_meanwhile_goes_when_it_opens(peer: socket.socket, tmp_path: Path) -> None:
    ours = Gate()
    _, writer = await ours.connect(tmp_path / "agent.sock", 1 << 16)
    with peer, await accept(peer) as guest:
        writer.write(b"before ")
        assert sent(guest) == b"before "
        async with ours.shut():
            writer.write(b"mean")
            writer.write(b"while")
            draining = asyncio.ensure_future(writer.drain())
            await asyncio.sleep(0.01)
            assert (sent(guest), draining.done()) == (b"", False)
        await draining
        assert sent(guest) == b"meanwhile"
        writer.close()


async def test_nothing_is_taken_from_the_guest_meanwhile(peer: socket.socket, tmp_path: Path) -> None:
    ours = Gate()
    reader, writer = await ours.connect(tmp_path / "agent.sock", 1 << 16)
    with peer, await accept(peer) as guest:
        async with ours.shut():
            guest.send(b"answer")
            reading = asyncio.ensure_future(reader.read(100))
            await asyncio.sleep(0.01)
            assert not reading.done()
        assert await reading == b"answer"
        writer.close()


async def test_nobody_connects_meanwhile(peer: socket.socket, tmp_path: Path) -> None:
    ours = Gate()
    with peer:
        async with ours.shut():
            connecting = asyncio.ensure_future(ours.connect(tmp_path / "agent.sock", 1 << 16))
            await asyncio.sleep(0.01)
            assert not connecting.done()
        _, writer = await connecting
        writer.close()


async def test_a_guest_that_takes_nothing_does_not_hold_it_up(
    peer: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "_DRAIN_SECONDS", 0.03)
    ours = Gate()
    _, writer = await ours.connect(tmp_path / "agent.sock", 1 << 16)
    with peer, await accept(peer):
        writer.write(b"x" * 1000)
        async with asyncio.timeout(1), ours.shut():
            pass
        writer.close()


async def test_a_guest_that_is_gone_is_no_failure(peer: socket.socket, tmp_path: Path) -> None:
    ours = Gate()
    reader, writer = await ours.connect(tmp_path / "agent.sock", 1 << 16)
    with peer:
        (await accept(peer)).close()
        assert await reader.read(1) == b""
        async with ours.shut():
            writer.write(b"late")
        writer.close()
