"""Unpacking of compressed disks, by a process of its own that can do nothing else, within bounds of size, ratio, memory and time."""

from __future__ import annotations

import asyncio
import bz2
import contextlib
import errno
import gzip
import io
import lzma
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from roost import log
from roost.errors import Invalid, Unavailable
from roost.host import bounded, files
from roost.model import size as sizes
from roost.model.meta import GiB, MiB
from roost.storage.formats import MAX_VIRTUAL, Compression, Span

RATIO = 1000
"""Bytes that are not zero which a compressed byte may become, beyond the first FREE: what is no trick stays below 100."""

FREE = 64 * MiB
_MEMORY = 512 * MiB
_WINDOW = 128 * MiB
"""Bytes that zstd may look back: what `zstd --long` uses."""

_CPU, _WALL = 1800, 3600.0
_BLOCK = 256 << 10
_PAGE = 64 << 10
_FEED = 2 << 10  # of zstd at once, whose blocks of a few bytes become 128 KiB each
_LOOK = 0.5
_RESERVE = GiB // 2

_DONE, _BROKEN, _LARGE, _BOMB, _MEMORY_OUT, _FULL, _STOPPED = range(7)
_WHY = {
    _BROKEN: "it is damaged or cut off",
    _BOMB: f"it becomes more than {RATIO} times as large: it is built to fill disks",
    _MEMORY_OUT: f"it needs more than {sizes.show(_MEMORY)} of memory to be unpacked",
}


async def unpack(
    source: Span, target: Path, kind: Compression, name: str, limit: int, progress: Callable[[float], None]
) -> None:
    """Write the content of the compressed `source` to the new file `target`, at most `limit` bytes of it on the host; zeros become holes.

    Raises Invalid when it is damaged, a bomb, or larger; Unavailable when the host's disk is full. Then `target` is gone.
    """
    room = files.free_space(target.parent) - _RESERVE
    with target.open("xb") as file:
        try:
            code = await _in_a_process(source, file.fileno(), kind, min(limit, max(room, 0)), progress)
        except BaseException:
            target.unlink()
            raise
    if code == _DONE:
        return
    target.unlink()
    if code == _FULL or (code == _LARGE and room < limit):
        raise Unavailable(f"{name} was not unpacked", "the disk is too full", "remove images: roost image delete NAME")
    why = f"it becomes more than the {sizes.show(limit)} allowed" if code == _LARGE else _WHY.get(code, "")
    raise Invalid(
        f"{name} can not be unpacked", why or "it is built to stall its readers", "unpack it yourself, and look at it"
    )


async def _in_a_process(
    source: Span, target: int, kind: Compression, limit: int, progress: Callable[[float], None]
) -> int:
    """The exit code of a process that unpacks. It ends when we do, and when we are cancelled."""
    stop, going = os.pipe()
    done, doing = os.pipe()
    keep = {source.descriptor, target, stop, doing}

    def run() -> int:
        bounds = bounded.Bounds(_MEMORY, MAX_VIRTUAL, _CPU, _WALL)
        try:
            return bounded.run(lambda: _work(source, target, kind, limit, (stop, doing)), keep, bounds)
        except TimeoutError:
            return _STOPPED

    work = log.spawn_task(asyncio.to_thread(run), "unpack")
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=_LOOK)
            if select.select([done], [], [], 0)[0]:
                progress(int.from_bytes(os.read(done, _BLOCK)[-8:], "big") / max(source.size, 1))
        code: int = await work
        return code
    finally:
        os.close(going)
        await asyncio.shield(asyncio.wait({work}))
        for descriptor in (stop, done, doing):
            os.close(descriptor)


def _work(source: Span, target: int, kind: Compression, limit: int, ends: tuple[int, int]) -> int:
    """Unpack. Runs in a process of its own, without files and rights; its exit code."""
    os.set_blocking(ends[1], False)
    reader = _Reader(source)
    try:
        return _copy(reader, target, kind, limit, ends)
    except MemoryError:
        return _MEMORY_OUT
    except OSError as error:
        return _FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else _BROKEN
    except (EOFError, lzma.LZMAError, zstandard.ZstdError, ValueError) as error:
        return _MEMORY_OUT if "memory" in str(error).lower() else _BROKEN


def _copy(reader: _Reader, target: int, kind: Compression, limit: int, ends: tuple[int, int]) -> int:
    zeros, offset, written = bytes(_PAGE), 0, 0
    for block in _BLOCKS[kind](reader):
        for start in range(0, len(block), _PAGE):
            page = block[start : start + _PAGE]
            if page != zeros[: len(page)]:
                os.pwrite(target, page, offset)
                written += len(page)
            offset += len(page)
        if written > limit or offset > MAX_VIRTUAL:
            return _LARGE
        if written > FREE + RATIO * reader.place:
            return _BOMB
        if select.select([ends[0]], [], [], 0)[0]:
            return _STOPPED
        _tell(ends[1], reader.place)
    os.ftruncate(target, offset)
    return _DONE


def _tell(pipe: int, place: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.write(pipe, place.to_bytes(8, "big"))


class _Reader(io.RawIOBase):
    """A part of a file as the standard library's readers take it; `place` is how far they came."""

    def __init__(self, source: Span) -> None:
        super().__init__()
        self._source = source
        self.place = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        view = memoryview(buffer).cast("B")
        data = self._source.read(self.place, len(view))
        view[: len(data)] = data
        self.place += len(data)
        return len(data)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def _gzip(reader: _Reader) -> Iterator[bytes]:
    return _read(cast(IO[bytes], gzip.GzipFile(fileobj=io.BufferedReader(reader, _BLOCK), mode="rb")))


def _bzip2(reader: _Reader) -> Iterator[bytes]:
    return _read(cast(IO[bytes], bz2.BZ2File(io.BufferedReader(reader, _BLOCK))))


def _xz(reader: _Reader) -> Iterator[bytes]:
    return _read(cast(IO[bytes], lzma.LZMAFile(io.BufferedReader(reader, _BLOCK), format=lzma.FORMAT_XZ)))


def _zstd(reader: _Reader) -> Iterator[bytes]:
    """Frame after frame; the library's own reader does not tell a frame that breaks off."""
    rest = reader.read(_FEED)
    while rest:
        unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        while True:
            if not rest:
                raise EOFError
            yield unpacker.decompress(rest)
            if unpacker.eof:
                break
            rest = reader.read(_FEED)
        rest = unpacker.unused_data or reader.read(_FEED)


_BLOCKS: dict[Compression, Callable[[_Reader], Iterator[bytes]]] = {
    "gzip": _gzip, "bzip2": _bzip2, "xz": _xz, "zstd": _zstd
}  # fmt: skip
