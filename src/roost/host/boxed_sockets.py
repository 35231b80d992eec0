"""What the sockets of a box hold in the kernel's memory, by netlink: no limit of a process bounds that, and no file of /proc tells it."""

from __future__ import annotations

import _socket
import struct

_SOCK_DIAG = (
    4  # NETLINK_SOCK_DIAG; the structures are in include/uapi/linux/{sock_diag,inet_diag,unix_diag,netlink_diag}.h
)
_BY_FAMILY, _DUMP = 20, 0x301
_ERROR, _DONE = 2, 3
_MEMORY = 5  # UNIX_DIAG_MEMINFO
_PEER, _QUEUE = 2, 4  # UNIX_DIAG_PEER, UNIX_DIAG_RQLEN
_LISTENS, _DATAGRAMS = 10, 2
_ANY = 0xFFFFFFFF
_LOST = 416 << 10
"""What may wait at a socket whose sender has closed, and which then counts nowhere: the largest buffer that a socket may ask for."""
_QUEUED = 11
"""Datagrams that may wait at a socket, each from a sender of its own (net.unix.max_dgram_qlen, and one)."""

_UNIX = struct.pack("=BBHIIIII", 1, 0, 0, _ANY, 0, 0x34, _ANY, _ANY), 16, _MEMORY
_NETLINK = struct.pack("=BBHIIII", 16, 0xFF, 0, 0, 1, _ANY, _ANY), 28, 0
_IP = tuple(
    (struct.pack("=BBBBI48x", family, protocol, 0x40, 0, _ANY), 72, 7) for family in (2, 10) for protocol in (6, 17)
)


def memory(limit: int) -> int:
    """Bytes that wait in the buffers of all sockets of this network namespace; may stop counting above `limit`.

    Raises OSError where the kernel does not tell.
    """
    total = 0
    channel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _SOCK_DIAG)
    try:
        for request, size, kind in (_UNIX, *_IP, _NETLINK):
            channel.send(struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
            total += _sum(channel, size, kind)
            if total > limit:
                break
    finally:
        channel.close()
    return total


def _sum(channel: _socket.socket, size: int, kind: int) -> int:
    total = 0
    while True:
        data = channel.recv(1 << 16)
        while len(data) >= 16:
            length, answer = struct.unpack_from("=IH", data)
            if answer == _ERROR:
                raise OSError(-int(struct.unpack_from("=i", data, 16)[0]), "sock_diag")
            if answer == _DONE:
                return total
            total += _held(data[16:length], size, kind)
            data = data[length + 3 & ~3 :]


def _held(message: bytes, size: int, kind: int) -> int:
    """What one socket holds."""
    attributes = _attributes(message[size:])
    received, _, sent, _, ahead, queued, _, backlog, *_ = struct.unpack_from("=9I", attributes.get(kind, bytes(36)))
    held = int(received + max(sent, queued) + ahead + backlog)
    if kind != _MEMORY or message[2] == _LISTENS:
        return held
    waiting, peer = (int.from_bytes(attributes.get(name, b"")[:4], "little") for name in (_QUEUE, _PEER))
    if waiting and not peer:
        held += _LOST * (_QUEUED if message[1] == _DATAGRAMS else 1)
    return held


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind] = data[4:length]
        data = data[length + 3 & ~3 :]
    return found
