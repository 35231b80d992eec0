"""The agent's framing, built with sanitizers, against frames that are random, valid, cut or damaged: it must live, and answer afterwards."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
import zlib
from collections.abc import Iterator

import pytest

from roost.hypervisor.agentwire import MAX_PAYLOAD, Decoder, Type, encode, encode_command
from roost.hypervisor.base import Command
from tests.guest.native import Native, start
from tests.needs import repetitions

NONCE = bytes(range(16))
HARMLESS = ("true", "cat", "echo", "/no/such/program", "sleep")


@contextlib.contextmanager
def fuzzed_agent() -> Iterator[Native]:
    """An agent that must end cleanly when its port closes."""
    native = start()
    try:
        yield native
        native.port.close()
        assert native.process.wait(20) == 0
    finally:
        native.process.kill()
        native.process.wait()


def random_payload(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 2, 4, 5, 16, 36, 300, 5000]))


def random_exec(chance: random.Random, session: int) -> bytes:
    """A command that does no harm, sometimes with a broken inside."""
    argv = [chance.choice(HARMLESS), *(["0"] if chance.random() < 0.5 else [])]
    command = Command(argv, stdin=chance.random() < 0.5, terminal=chance.choice([None, None, (24, 80)]))
    frame = bytearray(encode_command(session, command))
    if chance.random() < 0.3:
        frame[20 + 10 : 20 + 14] = struct.pack("<HH", chance.randrange(5), chance.randrange(5))
        head = bytes(frame[:16])
        frame[16:20] = zlib.crc32(frame[20:], zlib.crc32(head)).to_bytes(4, "little")
    return bytes(frame)


def random_frame(chance: random.Random) -> bytes:
    """A frame, or something that is nearly one."""
    session = chance.randrange(12)
    kind = chance.choice([kind for kind in Type if kind != Type.RESET])
    frame = random_exec(chance, session) if kind == Type.EXEC else encode(session, kind, random_payload(chance))
    dice = chance.random()
    if dice < 0.05:
        return frame[: chance.randrange(len(frame))]
    if dice < 0.10:
        return chance.randbytes(chance.randrange(200))
    if dice < 0.15:
        at = chance.randrange(len(frame))
        return frame[:at] + chance.randbytes(1) + frame[at + 1 :]
    if dice < 0.25:
        return encode(
            0, Type.RESET, NONCE if chance.random() < 0.5 else chance.randbytes(chance.choice([16, 16, 15, 0]))
        )
    return frame


def answers(port: socket.socket, nonce: bytes) -> bool:
    """Whether the agent answers a reset, whatever it was in the middle of."""
    decoder = Decoder(nonce)
    end = time.monotonic() + 20
    port.settimeout(0.5)
    while time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            port.sendall(encode(0, Type.RESET, nonce))
        with contextlib.suppress(TimeoutError):
            while data := port.recv(1 << 16):
                if any(frame.payload[:16] == nonce for frame in decoder.feed(data)):
                    return True
    return False


def pong(port: socket.socket) -> bytes:
    """Everything that comes up to the answer to a ping."""
    port.settimeout(10)
    port.sendall(encode(0, Type.PING, b"token"))
    seen = b""
    while b"token" not in seen:
        seen += port.recv(1 << 16)
    return seen


def feed(port: socket.socket, data: bytes) -> None:
    """Send, and read what comes, so that neither side fills up."""
    port.settimeout(0.02)
    view = memoryview(data)
    while view:
        with contextlib.suppress(TimeoutError):
            view = view[port.send(view) :]
        with contextlib.suppress(TimeoutError):
            port.recv(1 << 18)


@pytest.mark.parametrize("seed", range(repetitions(20, 2000)))
def test_any_stream_of_frames_leaves_an_agent_that_answers(seed: int) -> None:
    chance = random.Random(seed)
    with fuzzed_agent() as native:
        feed(native.port, encode(0, Type.RESET, NONCE) + b"".join(random_frame(chance) for _ in range(300)))
        assert answers(native.port, chance.randbytes(16))


@pytest.mark.parametrize("cut", [1, 3, 8, 19, 20, 21, 1000, 29_999])
def test_half_a_frame_from_a_dead_host_does_not_hide_the_next_reset(cut: int) -> None:
    with fuzzed_agent() as native:
        feed(native.port, encode(0, Type.RESET, NONCE) + encode(1, Type.INPUT, b"x" * 30_000)[:cut])
        begin = time.monotonic()
        assert answers(native.port, b"n" * 16)
        assert time.monotonic() - begin < 5


def test_a_reset_inside_a_whole_frame_is_only_data() -> None:
    inner = encode(0, Type.RESET, b"e" * 16)
    with fuzzed_agent() as native:
        feed(native.port, encode(0, Type.RESET, NONCE))
        native.port.sendall(encode(99, Type.INPUT, inner))
        assert b"e" * 16 not in pong(native.port)


def test_a_length_beyond_the_bound_is_damage_not_a_wait() -> None:
    head = struct.pack("<4sIII", b"RST1", MAX_PAYLOAD + 1, 1, Type.INPUT) + bytes(4)
    with fuzzed_agent() as native:
        feed(native.port, encode(0, Type.RESET, NONCE) + head)
        assert answers(native.port, b"n" * 16)


def test_input_beyond_the_credit_kills_the_session_alone() -> None:
    flood = b"".join(encode(1, Type.INPUT, bytes(32_000)) for _ in range(20))
    begin = encode(0, Type.RESET, NONCE) + encode_command(1, Command(["sleep", "100"], stdin=True))
    with fuzzed_agent() as native:
        feed(native.port, begin + flood)
        assert pong(native.port)
