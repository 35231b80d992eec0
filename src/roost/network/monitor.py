"""What the kernel tells of changes of a namespace, read for one question: was it somebody else?"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_LINKS = (16, 17)  # RTM_NEWLINK, RTM_DELLINK
_NAMES = (20, 21)  # RTM_NEWADDR, RTM_DELADDR
_ROUTES = (24, 25)  # RTM_NEWROUTE, RTM_DELROUTE
_RULES = 10  # NFNL_SUBSYS_NFTABLES
_LOST = -1
_PID = 0x3FFFFF


class Notice(NamedTuple):
    """One change: who made it (a pid; 0: it is told in nobody's name; -1: messages were lost), what of, the link's index if it is about one,
    and the table if it is about rules."""

    pid: int
    kind: int
    link: int
    table: str


class Monitor:
    """Reads the two sockets of links.open_monitors, which it owns, and hands on each notice."""

    def __init__(self, descriptors: tuple[int, ...], notice: Callable[[Notice], None]) -> None:
        self._descriptors = descriptors
        self._notice = notice
        loop = asyncio.get_running_loop()
        for descriptor in descriptors:
            loop.add_reader(descriptor, self._read, descriptor)

    def drain(self) -> None:
        """Hand on what has come by now: the kernel tells of a change before whoever made it goes on."""
        for descriptor in self._descriptors:
            self._read(descriptor)

    def close(self) -> None:
        """Read no more."""
        for descriptor in self._descriptors:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
        self._descriptors = ()

    def _read(self, descriptor: int) -> None:
        with socket.socket(fileno=os.dup(descriptor)) as door:
            while True:
                try:
                    data = door.recv(1 << 18, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    return
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._notice(Notice(_LOST, 0, 0, ""))
                    continue
                for notice in parse(data, rules=descriptor == self._descriptors[-1]):
                    self._notice(notice)


def parse(data: bytes, *, rules: bool) -> Iterator[Notice]:
    """The notices in a datagram of the kernel's."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, pid = _HEADER.unpack_from(data, at)
        if length < _HEADER.size:
            return
        body = data[at + _HEADER.size : at + length]
        # A process's first socket has its pid for a name; the upper bits count its others (netlink(7); pyroute2).
        pid &= _PID
        if rules:
            yield Notice(pid, kind & 0xFF, 0, _table(body) if kind >> 8 == _RULES else "")
        else:
            yield Notice(pid, kind, _index(kind, body), "")
        at += (length + 3) & ~3


def is_foreign(notice: Notice, links: Container[int]) -> bool:
    """Whether it needs a look, unless `pid` turns out to be ours. What the kernel tells in nobody's name matters for these links only."""
    return notice.pid != 0 or (notice.kind in _LINKS and notice.link in links)


def is_address(notice: Notice) -> bool:
    """Whether an address came or went."""
    return notice.kind in _NAMES and not notice.table


def _index(kind: int, body: bytes) -> int:
    if kind in (*_LINKS, *_NAMES) and len(body) >= 8:
        return int(struct.unpack_from("=i", body, 4)[0])  # struct ifinfomsg, struct ifaddrmsg
    return 0


def _table(body: bytes) -> str:
    """The name of the table that the message is about: attribute 1 of all but the generation's, after struct nfgenmsg."""
    if len(body) < 9:
        return ""
    size, kind = struct.unpack_from("=HH", body, 4)
    return body[8 : 4 + size].rstrip(b"\0").decode(errors="replace") if kind & 0x3FFF == 1 else ""
