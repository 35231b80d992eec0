"""What passes a port, as a pcap file (draft-ietf-opsawg-pcap): a header, then each frame as it comes."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncIterator

LONGEST = 1 << 16
"""Bytes of a frame that are kept; a frame that segmentation is left to may be that long."""

_HEADER = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, LONGEST, 1)  # microseconds; LINKTYPE_ETHERNET


async def record(descriptor: int, frames: int | None = None) -> AsyncIterator[bytes]:
    """The file, piece by piece, of what an AF_PACKET socket hears, until `frames` came; the descriptor is closed at the end."""
    with socket.socket(fileno=descriptor) as heard:
        heard.setblocking(False)
        yield _HEADER
        left = frames
        while left is None or left > 0:
            frame = await asyncio.get_running_loop().sock_recv(heard, LONGEST)
            now = time.time_ns() // 1000
            yield struct.pack("<IIII", now // 1_000_000, now % 1_000_000, len(frame), len(frame)) + frame
            left = left - 1 if left is not None else None
