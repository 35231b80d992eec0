"""The network of a box: `lo` with the pinned addresses and listening sockets on them, by netlink."""

from __future__ import annotations

import _socket
import struct

_NEW_LINK, _NEW_ADDRESS = 16, 20  # RTM_*: include/uapi/linux/rtnetlink.h
_REQUEST, _ACKNOWLEDGE, _CREATE = 0x1, 0x4, 0x400
_LO = 1  # the first interface of every network namespace
_UP = 1
_NO_DAD = 0x02  # IFA_F_NODAD: usable at once
_LOCAL = 2  # IFA_LOCAL
_HOST = 254  # RT_SCOPE_HOST
_BACKLOG = 128


def open_doors(doors: tuple[tuple[str, int], ...]) -> list[_socket.socket]:
    """Bring lo up, give it the addresses, and listen on each (address, port). Raises OSError."""
    channel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        _ask(channel, _NEW_LINK, 0, struct.pack("=BxHiII", 0, 0, _LO, _UP, _UP))
        for address in dict.fromkeys(address for address, _ in doors):
            _add(channel, address)
    finally:
        channel.close()
    return [_listen(address, port) for address, port in doors]


def _family(address: str) -> int:
    return _socket.AF_INET6 if ":" in address else _socket.AF_INET


def _add(channel: _socket.socket, address: str) -> None:
    family = _family(address)
    packed = _socket.inet_pton(family, address)
    header = struct.pack("=BBBBi", family, 8 * len(packed), _NO_DAD if family == _socket.AF_INET6 else 0, _HOST, _LO)
    attribute = struct.pack("=HH", 4 + len(packed), _LOCAL) + packed
    try:
        _ask(channel, _NEW_ADDRESS, _CREATE, header + attribute)
    except FileExistsError:
        return  # 127.0.0.1 and ::1 are there


def _ask(channel: _socket.socket, kind: int, flags: int, body: bytes) -> None:
    """Send a request and hear that it was done."""
    channel.send(struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACKNOWLEDGE | flags, 1, 0) + body)
    reply = channel.recv(4096)
    error = int(struct.unpack_from("=i", reply, 16)[0])
    if error:
        raise OSError(-error, f"netlink request {kind}")


def _listen(address: str, port: int) -> _socket.socket:
    family = _family(address)
    listener = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind((address, port))
    listener.listen(_BACKLOG)
    return listener


def connect(port: int) -> _socket.socket:
    """A non-blocking socket on its way to a port of the loopback. Raises OSError when it is refused at once."""
    there = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
    try:
        there.connect(("127.0.0.1", port))
    except BlockingIOError:
        return there
    except OSError:
        there.close()
        raise
    return there
