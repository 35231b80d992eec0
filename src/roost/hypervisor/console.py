"""The serial console: a ring in memory, a bounded record on disk, any number of readers; a guest that prints for ever costs a fixed rate.

The reader takes at most `_RATE` bytes a second. Above that the socket fills up and QEMU's serial port waits: the guest is
slowed down, never stopped for good, and neither our memory, nor the disk, nor our CPU follows what it prints.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from roost import log
from roost.errors import Unavailable
from roost.host import sockets
from roost.host.outputlog import LIMIT, OutputLog

RING = 256 << 10
"""Bytes of history kept in memory."""
RECORD = LIMIT
"""Bytes of the record on disk; one older file of the same size is kept beside it."""
_CHUNK = 16 << 10
_RATE = 1 << 20
"""Bytes per second taken from a guest that prints more than it should: 90 times a real serial port."""
_BURST = 512 << 10
_FOLLOWER_CHUNKS = 64
"""Chunks a reader may be behind before it misses some."""
_FLUSH_SECONDS = 0.25


class Ring:
    """The last bytes of a stream, at most `size`."""

    def __init__(self, size: int = RING) -> None:
        self._size = size
        self._data = bytearray()

    def add(self, data: bytes) -> None:
        """Append, forgetting the oldest bytes above twice the size at once, so that each byte moves once."""
        self._data += data[-self._size :]
        if len(self._data) > 2 * self._size:
            del self._data[: -self._size]

    def read(self) -> bytes:
        """What is remembered."""
        return bytes(self._data[-self._size :])


class SerialConsole:
    """The console of one running QEMU. `close` lets go of it; what the guest prints while nobody is connected is lost."""

    def __init__(self, path: Path, record: OutputLog) -> None:
        self._path = path
        self._record = record
        self._ring = Ring()
        self._pending = bytearray()
        self._followers: set[_Follower] = set()
        self._connection: socket.socket | None = None
        self._typing = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._flusher: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Connect and read from now on; the history starts with what an earlier daemon recorded. Raises OSError."""
        self._ring.add(self._record.tail(RING))
        self._connection = sockets.connect_unix(self._path)
        self._reader = log.spawn_task(self._read(self._connection), "console reader")

    async def close(self) -> None:
        """End every follower, write what is not written yet, let go of the socket."""
        for task in (self._reader, self._flusher):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)  # wakes a writer who waits for the guest
            async with self._typing:
                self._connection.close()
                self._connection = None
        self._end_followers()
        await self._flush()

    def history(self) -> bytes:
        """The last bytes printed, at most RING."""
        return self._ring.read()

    async def follow(self) -> AsyncIterator[bytes]:
        """History, then what is printed from now on; ends with the console. Whoever is too slow misses bytes."""
        follower = _Follower(self._ring.read())
        self._followers.add(follower)
        if self._reader is None or self._reader.done():
            follower.end()
        try:
            async for chunk in follower:
                yield chunk
        finally:
            self._followers.discard(follower)

    async def write(self, data: bytes) -> None:
        """Type; waits while the guest takes nothing. Raises Unavailable when the machine has ended."""
        if self._connection is None:
            raise Unavailable("the console takes no input", "the machine has ended")
        async with self._typing:
            try:
                await asyncio.get_running_loop().sock_sendall(self._connection, data)
            except OSError as error:
                raise Unavailable("the console takes no input", str(error)) from None

    async def _read(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        allowance, last = float(_BURST), loop.time()
        try:
            while data := await loop.sock_recv(connection, _CHUNK):
                self._take(data)
                now = loop.time()
                allowance = min(_BURST, allowance + (now - last) * _RATE) - len(data)
                last = now
                if allowance < 0:
                    await asyncio.sleep(-allowance / _RATE)
        except OSError:
            pass  # QEMU is gone
        finally:
            self._end_followers()

    def _take(self, data: bytes) -> None:
        self._ring.add(data)
        self._pending += data
        del self._pending[:-RECORD]  # only a disk that hangs lets it come to that
        for follower in self._followers:
            follower.add(data)
        if self._flusher is None or self._flusher.done():
            self._flusher = log.spawn_task(self._flush_soon(), "console record")

    async def _flush_soon(self) -> None:
        """One write for all that came in a while; the rate limit above bounds what that can be."""
        await asyncio.sleep(_FLUSH_SECONDS)
        await self._flush()

    async def _flush(self) -> None:
        data, self._pending = bytes(self._pending), bytearray()
        if data:
            await asyncio.to_thread(self._record.write, data)

    def _end_followers(self) -> None:
        for follower in self._followers:
            follower.end()


class _Follower:
    """What one reader has not read yet; the oldest chunks are dropped when it falls behind."""

    def __init__(self, history: bytes) -> None:
        self._chunks = collections.deque([history] if history else [], maxlen=_FOLLOWER_CHUNKS)
        self._changed = asyncio.Event()
        self._ended = False

    def add(self, data: bytes) -> None:
        self._chunks.append(data)
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            while self._chunks:
                yield self._chunks.popleft()
            if self._ended:
                return
            self._changed.clear()
            await self._changed.wait()
