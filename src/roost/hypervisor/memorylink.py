"""The connection to the library that maps memory inside QEMU: one request, one answer, descriptors both ways."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
from pathlib import Path
from typing import TypeVar

from roost.errors import OutcomeUnknown, Unavailable
from roost.host import sockets
from roost.hypervisor.memfd import Range
from roost.hypervisor.memorywire import (
    HEADER_SIZE,
    MAX_LAYERS,
    RANGE_SIZE,
    Broken,
    Command,
    Region,
    Reply,
    Request,
    decode,
    decode_ranges,
    encode,
)
from roost.model.meta import MiB

_SECONDS = 30.0
"""To copy 1 GiB that the guest has written takes half a second; a host that swaps needs longer."""
_GREETING_SECONDS = 5.0
_WHAT = "a guest's memory can not be mapped"

_T = TypeVar("_T")


class MemoryLink:
    """One conversation at a time with the library in process `pid`. Whatever goes wrong closes the connection."""

    def __init__(self, path: Path, pid: int) -> None:
        self._path = path
        self._pid = pid
        self._socket: socket.socket | None = None

    @property
    def closed(self) -> bool:
        """Whether there is no connection (any more)."""
        return self._socket is None

    def moved(self, path: Path) -> None:
        """The library's socket has another name from now on."""
        self._path = path

    async def connect(self) -> None:
        """Connect. Raises Unavailable when the library is not in that process, OutcomeUnknown when it does not answer."""
        try:
            self._socket = connection = sockets.connect_unix(self._path)
        except OSError as error:
            raise Unavailable(_WHAT, f"{self._path}: {error.strerror}") from None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            # Until the library listens on it, the socket's peer is whoever made it: the daemon itself.
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid != self._pid:
                raise Unavailable(
                    _WHAT, "the library for it is not in QEMU: it was linked statically, or for another C library"
                )
            try:
                async with asyncio.timeout(_GREETING_SECONDS):
                    reply, _, descriptors = await _receive(connection, 0)
            except (OSError, TimeoutError):
                raise OutcomeUnknown(_WHAT, "the library in QEMU does not answer") from None
            except Broken as error:
                raise Unavailable(_WHAT, str(error)) from None
            close_all(descriptors)
            if reply.command != Command.HELLO:
                raise Unavailable(_WHAT, "the library in QEMU does not greet")
            undo.pop_all()

    async def exchange(self, request: Request, region: Region) -> tuple[Reply, tuple[Range, ...], list[int]]:
        """The answer, its ranges, and its descriptors, which are the caller's. Raises Unavailable, OutcomeUnknown."""
        if self._socket is None:
            raise Unavailable(_WHAT, "the connection to the library in QEMU has ended")
        try:
            connection, data = self._socket, encode(request, region)
        except ValueError as error:
            raise Unavailable(_WHAT, str(error), "stop and start the machine") from None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            try:
                # A guest must not go on before it is known that nothing is mapped any more: only QEMU's end cuts that short.
                async with asyncio.timeout(None if request.command == Command.MAP else _SECONDS):
                    # The connection is idle, so at least the first bytes, with which the descriptors go, find room.
                    sent = socket.send_fds(connection, [data], request.fds)
                    await asyncio.get_running_loop().sock_sendall(connection, data[sent:])
                    answer = await _receive(connection, region.length)
            except Broken as error:
                raise Unavailable(_WHAT, str(error)) from None
            except (OSError, TimeoutError) as error:
                why = str(error) or f"no answer within {_SECONDS:g} s"
                raise OutcomeUnknown("the library in QEMU did not answer", why) from None
            undo.pop_all()
            return answer

    def close(self) -> None:
        """End the connection; the library waits for the next one."""
        connection, self._socket = self._socket, None
        if connection is not None:
            connection.close()


def close_all(descriptors: list[int] | tuple[int, ...]) -> None:
    """Close every one of them."""
    for descriptor in descriptors:
        os.close(descriptor)


async def to_the_end(task: asyncio.Task[_T]) -> _T:
    """Wait for it, and let nobody cancel it; who tried has his way afterwards."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise


async def _receive(connection: socket.socket, size: int) -> tuple[Reply, tuple[Range, ...], list[int]]:
    await _readable(connection)
    head, descriptors, _, _ = socket.recv_fds(connection, HEADER_SIZE, MAX_LAYERS, socket.MSG_CMSG_CLOEXEC)
    try:
        if not head:
            raise ConnectionResetError(errno.ECONNRESET, "it has closed the connection")
        reply = decode(head + await _read(connection, HEADER_SIZE - len(head)))
        if reply.layers != len(descriptors):
            raise Broken("descriptors are missing from the answer of the library in QEMU")
        return reply, decode_ranges(await _read(connection, reply.ranges * RANGE_SIZE), size), descriptors
    except BaseException:
        close_all(descriptors)
        raise


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(connection, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(connection)


async def _read(connection: socket.socket, length: int) -> bytes:
    """Exactly so many bytes. Raises ConnectionResetError at the end of the connection."""
    data = bytearray()
    while len(data) < length:
        piece = await asyncio.get_running_loop().sock_recv(connection, min(length - len(data), MiB))
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "it has closed the connection")
        data += piece
    return bytes(data)
