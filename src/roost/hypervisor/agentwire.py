"""The guest agent's framing without I/O: bytes in, frames out; everything from the guest is hostile, so everything has a bound.

Rules. A frame is a header of 20 bytes (magic, payload length, session, type, CRC-32 of the rest) and at most 256 KiB of payload.
A decoder starts *lost*: whatever an earlier connection left in the channel is skipped until a reset frame that carries our nonce.
From then on nothing may be wrong any more: the channel is reliable, so damage means a broken or hostile peer. See guest/PROTOCOL.md.
"""

from __future__ import annotations

import zlib
from base64 import b64encode
from collections.abc import Generator, Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from roost.hypervisor.base import CardSetup, Command, Setup

MAGIC = b"RST1"
MAX_PAYLOAD = 256 * 1024
DATA_SIZE = 32 * 1024
"""Payload of the frames we make: what virtio_console copies in one go."""
NONCE_SIZE = 16
MAX_ANSWER = 1024
"""Longest reset answer: a bound on the work that junk in front of it can cause."""
MAX_JUNK = 16 * 1024 * 1024
"""Bytes skipped before the reset answer: virtio_console holds at most 4 MiB, the sockets less."""
WINDOW = 256 * 1024
"""Bytes of one stream that may be on their way to us or wait for a reader."""
MAX_CREDIT = 1024 * 1024
"""Bytes of standard input that we send ahead, whatever the guest grants."""

_HEADER = Struct("<4sIIII")
_CHECKED = Struct("<4sIII")
_EXEC = Struct("<HHHIHH")
_CREDIT = Struct("<BI")
_STDIN, _PTY, _BUILTIN = 1, 2, 4


class Type(IntEnum):
    """What a frame is; the values are guest/frame.h's."""

    RESET = ord("R")
    PING = ord("P")
    WINDOW = ord("W")
    FREEZE = ord("Q")
    THAW = ord("T")
    IDENTITY = ord("U")
    EXEC = ord("X")
    INPUT = ord("I")
    END = ord("E")
    SIGNAL = ord("S")
    RESIZE = ord("Z")
    CLOSE = ord("K")
    HELLO = ord("H")
    STARTED = ord("Y")
    FAILED = ord("F")
    STDOUT = ord("O")
    STDERR = ord("e")
    EXIT = ord("C")


class Frame(NamedTuple):
    """One frame; `type` is a plain number because the guest may send any."""

    session: int
    type: int
    payload: bytes


class Broken(Exception):
    """The peer does not speak the protocol (any more): the connection is of no use."""


def encode(session: int, kind: Type, payload: bytes = b"") -> bytes:
    """The bytes of one frame. Raises ValueError for a payload above MAX_PAYLOAD."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a frame holds {MAX_PAYLOAD} bytes, not {len(payload)}")
    head = _CHECKED.pack(MAGIC, len(payload), session, kind)
    return head + zlib.crc32(payload, zlib.crc32(head)).to_bytes(4, "little") + payload


def encode_command(session: int, command: Command, *, builtin: bool = False) -> bytes:
    """The exec frame of a command. Raises ValueError when it is too long or holds a NUL."""
    rows, columns = command.terminal or (0, 0)
    flags = _STDIN * command.stdin | _PTY * (command.terminal is not None) | _BUILTIN * builtin
    env = [f"{name}={value}" for name, value in command.env.items()]
    words = [_bytes(word) for word in (command.user, command.cwd, *env, *command.argv)]
    if any(b"\0" in word for word in words):
        raise ValueError("a command cannot hold a NUL")
    if len(words) > 8000:
        raise ValueError(f"a command holds 8000 words, not {len(words)}")
    head = _EXEC.pack(flags, rows & 0xFFFF, columns & 0xFFFF, WINDOW, len(env), len(command.argv))
    return encode(session, Type.EXEC, head + b"".join(word + b"\0" for word in words))


def encode_setup(setup: Setup, now: float) -> bytes:
    """What the agent is told to become; `now` is for its clock. Raises ValueError when it can not be told."""
    lines = [f"clock {now:.3f}", *_setup_lines(setup)]
    if any(not line.isprintable() for line in lines):
        raise ValueError("a name or key holds a line break or a control character")
    text = "".join(f"{line}\n" for line in lines).encode()
    if len(text) > MAX_PAYLOAD:
        raise ValueError(f"its keys take more than {MAX_PAYLOAD} bytes")
    return text


def _setup_lines(setup: Setup) -> Iterator[str]:
    """The lines that guest/setup.c reads, in the order in which they are to be done."""
    if setup.entropy:
        yield f"entropy {setup.entropy.hex()}"
    yield f"machine-id {setup.machine_id}"
    for key in setup.host_keys:
        yield f"host-key {key.kind} {b64encode(key.private.encode()).decode()} {key.public.strip()}"
    yield f"hostname {setup.hostname}"
    yield from (f"{'plugged' if setup.plugged else 'card'} {' '.join(_card_words(card))}" for card in setup.cards)
    if setup.link:
        yield f"link {' '.join(setup.link)}"
    yield from (f"key {key.strip()}" for key in setup.ssh_keys)
    for name, keys, sudo in setup.users:
        yield f"user {name} {int(sudo)}"
        yield from (f"user-key {name} {key.strip()}" for key in keys)
    if setup.grow_root:
        yield "grow-root"


def _card_words(card: CardSetup) -> Iterator[str]:
    """MAC address, MTU, and lists with commas. Raises ValueError."""
    lists = (card.addresses, card.gateways, card.resolvers, (card.domain,) if card.domain else ())
    for word in (card.mac, str(card.mtu), *(",".join(words) or "-" for words in lists)):
        if not word or any(char.isspace() for char in word):
            raise ValueError("an address of a network card is none")
        yield word


def encode_credit(session: int, stream: int, amount: int) -> bytes:
    """Grants `amount` more bytes of `stream` (1 standard output, 2 standard error)."""
    return encode(session, Type.WINDOW, _CREDIT.pack(stream, amount))


def decode_credit(payload: bytes) -> int:
    """The bytes of standard input a window frame grants. Raises Broken."""
    if len(payload) != _CREDIT.size:
        raise Broken("a window frame of the wrong size")
    stream, amount = _CREDIT.unpack(payload)
    return int(amount) if stream == 0 else 0


def decode_number(payload: bytes) -> int:
    """The number of a started or failed frame. Raises Broken."""
    if len(payload) != 4:
        raise Broken("a number of the wrong size")
    return int.from_bytes(payload, "little")


def decode_verdict(payload: bytes) -> tuple[int, bytes]:
    """The error number of an answer to a request for the agent itself, and what it complained of. Raises Broken."""
    return decode_number(payload[:4]) & 0xFFF, payload[4:]


def decode_exit(payload: bytes) -> int:
    """The exit code, 128 + signal when killed. Raises Broken."""
    if len(payload) != _CREDIT.size:
        raise Broken("an exit frame of the wrong size")
    return int(_CREDIT.unpack(payload)[1]) & 0xFF


def readable(data: bytes, limit: int = 2000) -> str:
    """What a guest said, fit for an error message: bounded, on one line, without control characters."""
    text = data[: 4 * limit].decode("utf-8", "replace").strip().replace("\n", "; ")
    return "".join(c if c.isprintable() else "?" for c in text)[:limit]


def _bytes(word: str | bytes) -> bytes:
    return word if isinstance(word, bytes) else word.encode("utf-8", "surrogateescape")


class Decoder:
    """Bytes in, frames out. Holds at most one frame and what was fed last."""

    def __init__(self, nonce: bytes) -> None:
        self._nonce = nonce
        self._buffer = bytearray()
        self._junk = 0
        self.synchronised = False

    @property
    def partial(self) -> bool:
        """A frame was begun and is not yet whole."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes, the reset answer first of all. Raises Broken (exhaust the iterator)."""
        self._buffer += data
        if not self.synchronised and not (yield from self._search()):
            return
        at = 0
        try:
            while (frame := self._parse(at)) is not None:
                at += _HEADER.size + len(frame.payload)
                if frame.type != Type.RESET:
                    yield frame
        finally:
            del self._buffer[:at]

    def _parse(self, at: int) -> Frame | None:
        if len(self._buffer) - at < _HEADER.size:
            return None
        magic, length, session, kind, checksum = _HEADER.unpack_from(self._buffer, at)
        if magic != MAGIC or length > MAX_PAYLOAD or kind > 0xFF:
            raise Broken("what the guest sent is not a frame")
        if len(self._buffer) - at < _HEADER.size + length:
            return None
        payload = bytes(self._buffer[at + _HEADER.size : at + _HEADER.size + length])
        if zlib.crc32(payload, zlib.crc32(self._buffer[at : at + _CHECKED.size])) != checksum:
            raise Broken("a frame from the guest has a wrong checksum")
        return Frame(session, kind, payload)

    def _search(self) -> Generator[Frame, None, bool]:
        """Yields the reset answer to our nonce when it is there; its value tells whether it was."""
        at = 0
        while (at := self._buffer.find(MAGIC, at)) >= 0:
            frame = self._candidate(at)
            if frame is None:
                break
            if frame.type == Type.RESET and frame.payload.startswith(self._nonce):
                self.synchronised = True
                del self._buffer[: at + _HEADER.size + len(frame.payload)]
                yield frame
                return True
            at += 1
        self._forget(at if at >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1))
        return False

    def _candidate(self, at: int) -> Frame | None:
        """A frame short enough to be the answer; one of type 0 when there is none here, None when bytes are missing."""
        nothing = Frame(0, 0, b"")
        if len(self._buffer) - at < _HEADER.size:
            return None
        _, length, session, kind, _ = _HEADER.unpack_from(self._buffer, at)
        if session or kind != Type.RESET or not NONCE_SIZE <= length <= MAX_ANSWER:
            return nothing
        try:
            return self._parse(at)
        except Broken:
            return nothing

    def _forget(self, count: int) -> None:
        self._junk += count
        del self._buffer[:count]
        if self._junk > MAX_JUNK:
            raise Broken(f"the guest sent {self._junk} bytes without answering")
