"""A process of ours with a control socket: requests and answers of one message each, with descriptors."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path
from typing import Self

from roost.errors import NotStarted
from roost.host import sockets

_SECONDS = 5.0
_LONGEST = 1 << 17


class Controlled:
    """A control connection. One request at a time."""

    def __init__(self, name: str, connection: socket.socket) -> None:
        self._name = name
        self._connection = connection
        self._turn = asyncio.Lock()

    @classmethod
    def connect(cls, name: str, path: Path) -> Self:
        """`name` is for messages. Raises NotStarted when none listens there."""
        try:
            return cls(name, sockets.connect_unix(path, socket.SOCK_SEQPACKET))
        except OSError as error:
            raise _broken(name, str(error)) from error

    def close(self) -> None:
        """Let go; the process goes on."""
        self._connection.close()

    async def ask(self, request: str, *descriptors: int) -> tuple[str, int]:
        """The answer, and the descriptor that came with it (the caller owns it) or -1. Raises NotStarted, also for an "error" answer."""
        async with self._turn:
            try:
                async with asyncio.timeout(_SECONDS):
                    socket.send_fds(self._connection, [request.encode()], descriptors)
                    text, came = await self._receive()
            except (OSError, TimeoutError) as error:
                raise _broken(self._name, str(error) or "it did not answer") from error
        if text.startswith("error"):
            for descriptor in came:
                os.close(descriptor)
            raise _broken(self._name, f"{request.split()[0]}: {text[6:]}")
        return text, came[0] if came else -1

    async def _receive(self) -> tuple[str, list[int]]:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._connection, _settle, ready)
        try:
            await ready
        finally:
            loop.remove_reader(self._connection)
        data, came, _, _ = socket.recv_fds(self._connection, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "it ended")
        return data.decode(errors="replace"), came


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _broken(name: str, why: str) -> NotStarted:
    return NotStarted(f"{name} did not do what it was asked", why, "try again")
