"""The gate between us and a guest's agents: nothing passes while the guest stands still, for QEMU would write it into its memory."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import struct
import termios
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from roost.host.sockets import connect_unix

_DRAIN_SECONDS = 0.3
"""How long a guest gets to take what was sent before."""
_LOOK_SECONDS = 0.005


class Writer(asyncio.StreamWriter):
    """Keeps what is written while the gate is shut, and sends it when it opens."""

    def __init__(
        self, transport: asyncio.Transport, protocol: asyncio.StreamReaderProtocol, reader: asyncio.StreamReader
    ) -> None:
        super().__init__(transport, protocol, reader, asyncio.get_running_loop())
        self._duplex = transport
        self._kept = bytearray()
        self._open = asyncio.Event()
        self._open.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send, or keep."""
        if self._open.is_set():
            super().write(data)
        else:
            self._kept += data

    async def drain(self) -> None:
        """Wait until there is room, which is never while the gate is shut."""
        await self._open.wait()
        await super().drain()

    def shut(self) -> None:
        """Keep what is written from now on, and read no more."""
        self._open.clear()
        if not self.transport.is_closing():
            self._duplex.pause_reading()

    def open(self) -> None:
        """Send what was kept."""
        self._open.set()
        if not self.transport.is_closing():
            self._duplex.resume_reading()
            super().write(bytes(self._kept))
        self._kept.clear()

    def pending(self) -> int:
        """Bytes that QEMU has not taken yet: ours, and the kernel's (SIOCOUTQ of unix(7))."""
        if self.transport.is_closing():
            return 0
        with contextlib.suppress(OSError):
            answer = fcntl.ioctl(self.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
            return self.transport.get_write_buffer_size() + int(struct.unpack("i", answer)[0])
        return 0


class Gate:
    """All connections to one guest's agents."""

    def __init__(self) -> None:
        self._writers: weakref.WeakSet[Writer] = weakref.WeakSet()
        self._opened = asyncio.Event()
        self._opened.set()

    async def connect(self, path: Path, limit: int) -> tuple[asyncio.StreamReader, Writer]:
        """Like asyncio.open_unix_connection. Raises OSError."""
        await self._opened.wait()
        reader = asyncio.StreamReader(limit=limit)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: protocol, sock=connect_unix(path)
        )
        writer = Writer(transport, protocol, reader)
        self._writers.add(writer)
        return reader, writer

    @contextlib.asynccontextmanager
    async def shut(self) -> AsyncIterator[None]:
        """Nothing passes inside of this; what was sent before is in the guest, if the guest takes it."""
        self._opened.clear()
        shut = list(self._writers)
        for writer in shut:
            writer.shut()
        try:
            await self._drained(shut)
            yield
        finally:
            for writer in shut:
                writer.open()
            self._opened.set()

    async def _drained(self, writers: list[Writer]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while any(_pending(writers)):  # noqa: ASYNC110 - the kernel wakes nobody; mostly nothing is left
                    await asyncio.sleep(_LOOK_SECONDS)


def _pending(writers: list[Writer]) -> Iterator[int]:
    return (writer.pending() for writer in writers)
