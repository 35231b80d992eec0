"""Disks out of Roost: converted by a jailed tool into a file without a name, which is read as a stream and gone with its last reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from roost.errors import Unavailable
from roost.host import files
from roost.model import size as sizes
from roost.model.meta import GiB
from roost.storage import conversion, formats
from roost.storage.conversion import Disk

PIECE = 1 << 20
"""Bytes of a disk read at once."""

_RESERVE = GiB // 2
"""Bytes of disk that no export may take: the store and running guests need them more."""


async def stream(disk: Disk, scratch: Path, format: formats.Format, name: str) -> AsyncIterator[bytes]:
    """The content of `disk` in another format, converted in `scratch`, where nothing stays. Raises Invalid, Unavailable before the first piece."""
    return _pieces(await converted(disk, scratch, format, name))


async def converted(disk: Disk, scratch: Path, format: formats.Format, name: str) -> BinaryIO:
    """The content of `disk` in another format: an open file without a name. Raises Invalid, Unavailable."""
    target = scratch / f"export.{format}"
    target.touch(mode=0o600)
    try:
        await conversion.convert(disk, target, format, name, _room(scratch, name))
        return target.open("rb")
    finally:
        target.unlink()


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece


def _room(scratch: Path, name: str) -> int:
    room = files.free_space(scratch) - _RESERVE
    if room <= 0:
        raise Unavailable(
            f"{name} was not exported",
            f"the disk is too full: {sizes.show(_RESERVE)} must stay free",
            f"make room: du -xh --max-depth=2 {scratch.parent}",
        )
    return room
