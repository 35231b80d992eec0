"""The flow log of a network: what the kernel tells of connections that were allowed or refused, as lines of JSON in a bounded file.

Every byte of a packet is the guest's, so nothing is believed of it but numbers at known places. How many are told is bounded by the rules
(ruleset.FLOWS), how much is kept by `MOST_BYTES`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import msgspec

from roost.host import files

MOST_BYTES = 2 << 20
"""Of the file, and of the one before it: some 10,000 connections each."""
_WAITING = 256
"""Batches of lines that wait for somebody who follows and does not read; those that come then are lost to it."""
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_PACKET = 4 << 8  # NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET
_IN, _OUT, _PAYLOAD, _PREFIX = 4, 5, 9, 10  # NFULA_IFINDEX_INDEV, _IFINDEX_OUTDEV, _PAYLOAD, _PREFIX
_MOST_EXTENSIONS = 4
_EXTENSIONS = (0, 43, 60)
"""Hop-by-hop options, routing, destination options (RFC 8200)."""
_FRAGMENT = 44
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp", 132: "sctp"}
_WITH_PORTS = (6, 17, 132)
_PIECE = 64


class Packet(NamedTuple):
    """The first packet of a connection. `entered` and `left` are indexes of interfaces, 0 for none. Ports are 0 where there are none."""

    verdict: str
    entered: int
    left: int
    protocol: str
    source: str
    target: str
    source_port: int = 0
    target_port: int = 0


class Flow(msgspec.Struct, kw_only=True, rename={"sender": "from", "receiver": "to"}):
    """A line of the log: a connection that was allowed or refused, when it was begun; or "lost": here the kernel had more to tell than could be
    read. `sender` and `receiver` are machines, or "gateway", "world", "tunnel"; "" where that is not known."""

    time: str
    verdict: str
    protocol: str = ""
    source: str = ""
    source_port: int = 0
    target: str = ""
    target_port: int = 0
    sender: str = ""
    receiver: str = ""


def parse(data: bytes) -> Iterator[Packet]:
    """The packets in a datagram of the kernel's (nfnetlink_log); what is no whole IP header is left out."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        if kind == _PACKET:
            found = _packet(dict(_attributes(data[at + _HEADER.size + 4 : at + length])))
            if found is not None:
                yield found
        at += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _packet(told: dict[int, bytes]) -> Packet | None:
    data = told.get(_PAYLOAD, b"")
    found = _four(data) if data[:1] and data[0] >> 4 == 4 else _six(data) if data[:1] and data[0] >> 4 == 6 else None
    if found is None:
        return None
    protocol, source, target, rest = found
    ports = struct.unpack_from("!HH", rest) if protocol in _WITH_PORTS and len(rest) >= 4 else (0, 0)
    verdict = told.get(_PREFIX, b"").rstrip(b"\0 ").decode("ascii", "replace")
    name = _PROTOCOLS.get(protocol, str(protocol))
    ends = (str(ip_address(source)), str(ip_address(target)))
    return Packet(verdict, _number(told.get(_IN, b"")), _number(told.get(_OUT, b"")), name, *ends, *ports)


def _number(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")


def _four(data: bytes) -> tuple[int, bytes, bytes, bytes] | None:
    """Protocol, source, target, and what comes after the header (nothing, in a later fragment)."""
    size = (data[0] & 15) * 4
    if len(data) < 20 or size < 20:
        return None
    is_later = bool(int.from_bytes(data[6:8], "big") & 0x1FFF)
    return data[9], data[12:16], data[16:20], b"" if is_later else data[size:]


def _six(data: bytes) -> tuple[int, bytes, bytes, bytes] | None:
    if len(data) < 40:
        return None
    kind, rest = data[6], data[40:]
    for _ in range(_MOST_EXTENSIONS):
        if len(rest) < 8 or kind not in (*_EXTENSIONS, _FRAGMENT):
            break
        is_fragment = kind == _FRAGMENT
        if is_fragment and int.from_bytes(rest[2:4], "big") >> 3:
            return rest[0], data[8:24], data[24:40], b""
        kind, rest = rest[0], rest[8 if is_fragment else (rest[1] + 1) * 8 :]
    return kind, data[8:24], data[24:40], rest


class FlowLog:
    """Reads the socket of links.open_flow_log, which it owns, and keeps what it tells. `whose` says who is at an interface, by its index."""

    def __init__(self, descriptor: int, path: Path, whose: Callable[[int], str]) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._path = path
        self._whose = whose
        self._followers: set[asyncio.Queue[bytes | None]] = set()
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def close(self) -> None:
        """Read no more; whoever follows is at the end."""
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for queue in self._followers:
            with suppress(asyncio.QueueEmpty):
                if queue.full():
                    queue.get_nowait()
            queue.put_nowait(None)

    async def follow(self) -> AsyncIterator[bytes]:
        """What is kept, then each line as it comes, until it is closed."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(_WAITING)
        self._followers.add(queue)
        try:
            yield kept(self._path)
            while (line := await queue.get()) is not None:
                yield line
        finally:
            self._followers.discard(queue)

    def _read(self) -> None:
        """No more at once than leaves the loop to others."""
        lines: list[bytes] = []
        for _ in range(_PIECE):
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lines.append(_line(Flow(time=_now(), verdict="lost")))
                continue
            lines.extend(_line(self._flow(packet)) for packet in parse(data))
        if lines:
            self._keep(b"".join(lines))

    def _flow(self, packet: Packet) -> Flow:
        return Flow(
            time=_now(),
            verdict=packet.verdict,
            protocol=packet.protocol,
            source=packet.source,
            source_port=packet.source_port,
            target=packet.target,
            target_port=packet.target_port,
            sender=self._whose(packet.entered) if packet.entered else "gateway",
            receiver=self._whose(packet.left) if packet.left else "gateway",
        )

    def _keep(self, data: bytes) -> None:
        for queue in self._followers:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(data)
        with suppress(OSError):  # a full disk is no reason to stop looking
            append(self._path, data)


def append(path: Path, data: bytes) -> None:
    """Add lines to the file; when it is full it becomes the one before. Raises OSError."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        if os.fstat(descriptor).st_size + len(data) > MOST_BYTES:
            path.replace(before(path))
            os.close(descriptor)
            descriptor = os.open(path, flags, 0o600)
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def before(path: Path) -> Path:
    """The file that was full."""
    return path.with_name(f"{path.name}.1")


def kept(path: Path) -> bytes:
    """All that is kept of the log."""
    parts: list[bytes] = []
    for one in (before(path), path):
        with suppress(FileNotFoundError):
            parts.append(files.read_bounded(one, 2 * MOST_BYTES))
    return b"".join(parts)


def _line(flow: Flow) -> bytes:
    return msgspec.json.encode(flow) + b"\n"


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
