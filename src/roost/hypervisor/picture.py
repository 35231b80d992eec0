"""What the screen of a guest shows, as a PNG that QEMU writes into a file in memory, which counts as QEMU's own."""

from __future__ import annotations

import asyncio
import contextlib
import os

from roost.errors import Conflict, RoostError, Unavailable
from roost.hypervisor.monitor import Monitor

_MOST = 16 << 20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


async def take(monitor: Monitor, nodes: asyncio.Lock) -> bytes:
    """A PNG of at most 16 MiB. Raises Conflict where there is no screen, Unavailable. `nodes` is held while descriptor sets are numbered."""
    memory = os.memfd_create("picture", os.MFD_CLOEXEC)
    try:
        async with nodes:
            await _draw(monitor, memory)
        return _whole(os.pread(memory, _MOST, 0))
    finally:
        os.close(memory)


async def _draw(monitor: Monitor, memory: int) -> None:
    number = 1 + max(await monitor.query_fdsets(), default=0)
    # QEMU takes a descriptor of exactly the mode that it opens with.
    writing = os.open(f"/proc/self/fd/{memory}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        await monitor.add_fd(writing, number, "picture")
    finally:
        os.close(writing)
    try:
        await monitor.screendump(f"/dev/fdset/{number}")
    except Unavailable as error:
        if "no console" in error.why.lower() or "no graphic" in error.why.lower():
            raise Conflict("there is no picture", "the machine has no screen") from None
        raise
    finally:
        with contextlib.suppress(RoostError):
            await monitor.remove_fd(number)


def _whole(data: bytes) -> bytes:
    """The PNG at the start of `data`: its chunks (length, type, content, checksum) up to the last, as RFC 2083 says."""
    at = len(_SIGNATURE)
    if data.startswith(_SIGNATURE):
        while at + 12 <= len(data):
            length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
            at += 12 + length
            if kind == b"IEND" and at <= len(data):
                return data[:at]
    raise Unavailable("there is no picture", "QEMU wrote none that is whole")
