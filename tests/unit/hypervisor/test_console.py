"""The console: bounded in memory and on disk, many readers, a guest that prints for ever."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from roost.errors import Unavailable
from roost.host.outputlog import OutputLog
from roost.host.sockets import listen_unix
from roost.hypervisor import console
from roost.hypervisor.console import Ring, SerialConsole


@asynccontextmanager
async def connected(tmp_path: Path) -> AsyncIterator[tuple[SerialConsole, socket.socket]]:
    """A console and the guest's end of it."""
    with listen_unix(tmp_path / "console.sock") as listener:
        serial = SerialConsole(tmp_path / "console.sock", OutputLog(tmp_path / "console.log"))
        serial.open()
        guest, _ = listener.accept()
        guest.setblocking(False)
        with guest:
            try:
                yield serial, guest
            finally:
                await serial.close()


async def printed(serial: SerialConsole, text: bytes) -> None:
    async with asyncio.timeout(2):
        async for _ in serial.follow():
            if text in serial.history():
                return


async def flood(guest: socket.socket) -> int:
    """Print until nothing more is taken for a moment; returns how many bytes went."""
    sent, quiet = 0, 0
    while quiet < 20:
        try:
            sent, quiet = sent + guest.send(b"y" * 4096), 0
        except BlockingIOError:
            quiet += 1
        await asyncio.sleep(0)
    return sent


def test_a_ring_keeps_the_last_bytes() -> None:
    ring = Ring(4)
    for piece in (b"ab", b"cdefghij", b"k", b""):
        ring.add(piece)
    assert ring.read() == b"hijk"


async def test_what_the_guest_prints_is_history_record_and_stream(tmp_path: Path) -> None:
    async with connected(tmp_path) as (serial, guest):
        follower = serial.follow()
        guest.send(b"login: ")
        assert await anext(follower) == b"login: "
        assert serial.history() == b"login: "
        await follower.aclose()
    assert (tmp_path / "console.log").read_bytes() == b"login: "
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


async def test_what_is_typed_reaches_the_guest(tmp_path: Path) -> None:
    async with connected(tmp_path) as (serial, guest):
        await serial.write(b"root\n")
        assert guest.recv(100) == b"root\n"


async def test_a_later_daemon_starts_with_what_was_recorded(tmp_path: Path) -> None:
    async with connected(tmp_path) as (serial, guest):
        guest.send(b"before")
        await printed(serial, b"before")
    async with connected(tmp_path) as (serial, _):
        assert serial.history() == b"before"


async def test_followers_end_with_the_machine(tmp_path: Path) -> None:
    async with connected(tmp_path) as (serial, guest):
        guest.send(b"bye")
        guest.shutdown(socket.SHUT_RDWR)
        assert b"".join([chunk async for chunk in serial.follow()]) == b"bye"
        with pytest.raises(Unavailable):
            await serial.write(b"x")


@pytest.mark.fault(64)
async def test_a_guest_that_prints_for_ever_is_taken_at_a_fixed_rate_and_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_BURST", 64 << 10)
    monkeypatch.setattr(console, "_RATE", 1 << 22)
    async with connected(tmp_path) as (serial, guest):
        buffers = guest.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) * 2
        assert await flood(guest) < (64 << 10) + buffers + (1 << 20)
        assert len(serial.history()) <= console.RING
        await asyncio.sleep(0.05)
        assert await flood(guest) > 0


@pytest.mark.fault(64)
async def test_a_reader_that_does_not_read_misses_bytes_and_holds_up_nobody(tmp_path: Path) -> None:
    async with connected(tmp_path) as (serial, guest):
        stuck = serial.follow()
        guest.send(b"start")
        assert await anext(stuck) == b"start"
        [follower] = serial._followers
        for number in range(200):
            follower.add(b"%d" % number)
        assert (await anext(stuck)) == b"136"
        await stuck.aclose()
        assert not serial._followers


@pytest.mark.fault(64)
def test_the_record_is_bounded_on_disk(tmp_path: Path) -> None:
    record = OutputLog(tmp_path / "log", limit=1000)
    for number in range(100):
        record.write(b"%099d\n" % number)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"log": 1000, "log.1": 1000}
    assert record.tail(100) == b"%099d\n" % 99
    assert len(record.tail(5000)) == 2000


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"intact")
    (tmp_path / "log").symlink_to(victim)
    record = OutputLog(tmp_path / "log")
    record.write(b"evil")
    assert victim.read_bytes() == b"intact"
    assert record.tail(100) == b""


def test_a_pipe_in_place_of_the_record_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    record = OutputLog(tmp_path / "log")
    record.write(b"x")
    assert record.tail(100) == b""
