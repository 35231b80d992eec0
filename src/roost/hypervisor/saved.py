"""A saved guest on disk, sealed by a keyed hash over devices, memory and note: what does not match its seal never reaches QEMU.

Memory is hashed page by page as it is copied, so that exactly the bytes that were verified are the ones that are used, and zero pages
are neither stored nor hashed: how a file system lays out the file is no part of the seal. Extents of 64 MiB have a digest each, which
two threads make side by side; the seal is a keyed BLAKE2b over the digests and everything else (RFC 7693).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from roost.errors import Conflict, RoostError, Unavailable
from roost.host import files as host_files
from roost.host import memory as host_memory
from roost.host.paths import CheckpointFiles
from roost.hypervisor import memfd
from roost.hypervisor.base import Saved
from roost.hypervisor.memfd import Range
from roost.hypervisor.memory import Memory
from roost.model import size
from roost.model.meta import GiB, MiB, Struct

RESERVE = GiB // 2
"""Bytes of disk that a checkpoint leaves free: guests' disks grow too."""
LONGEST_NOTE = MiB
_LONGEST_MANIFEST = 2 * MiB
_LONGEST_DEVICE = 256 * MiB
"""QEMU's stream has every memory block but the guest's own: a screen's, the firmware's."""
_EXTENT = 64 * MiB
_CHUNK = MiB
_PAGE = 4096
_ZEROS = bytes(_PAGE)
_THREADS = 2

_T = TypeVar("_T")
_Reader = Callable[[memoryview, int], None]
_Extents = list[tuple[int, bytes]]
"""The digest of each extent that has pages, by its number."""


class _Head(Struct, frozen=True, kw_only=True):
    """`memory` and `device` are bytes."""

    version: Literal[1] = 1
    memory: int
    device: int
    pause: float
    method: Literal["in-place", "copy"]
    note: bytes


class _Manifest(Struct, frozen=True, kw_only=True):
    head: _Head
    seal: bytes


def release(saved: Saved) -> None:
    """Close what belongs to a saved guest; guests that went on from it are not touched."""
    if saved.device is not None:
        os.close(saved.device)
    if saved.memory is not None:
        saved.memory.close()


def duplicate(saved: Saved) -> Saved:
    """The same, with descriptors of its own."""
    memory = memory_of(saved)
    device = None if saved.device is None else os.dup(saved.device)
    return saved._replace(device=device, memory=None if memory is None else memory.duplicate())


def memory_of(saved: Saved) -> Memory | None:
    """The memory of a guest that was saved here."""
    assert saved.memory is None or isinstance(saved.memory, Memory)
    return saved.memory


async def write(saved: Saved, files: CheckpointFiles, note: bytes, key: bytes) -> int:
    """Write devices, memory and `note` (at most 1 MiB) into the directory, durable, the manifest last; returns the bytes on disk. A guest
    that did not run has neither, and is its note alone.

    `key` has 16 to 64 bytes. The caller keeps `saved` open meanwhile and owns it afterwards. Raises Conflict when a whole one is there,
    Unavailable (the disk is full, or would be); then, or when cancelled, nothing of it stays.
    """
    if files.manifest.exists():
        raise Conflict(
            f"the checkpoint {files.directory.name} was not written", "there is one already", "roost snapshots"
        )
    try:
        await asyncio.to_thread(_remove, files)
        return await _in_thread(lambda stop: _write(saved, files, note, key, stop), lambda _: None)
    except BaseException:
        await asyncio.to_thread(_remove, files)
        raise


async def read(files: CheckpointFiles, key: bytes) -> tuple[Saved, bytes]:
    """What `write` has written, in sealed memfds that the caller owns, and the note. Raises Unavailable when it does not match its seal, is not
    there, or this host has not enough memory for it."""
    return await _in_thread(lambda stop: _read(files, key, stop), lambda result: release(result[0]))


async def _in_thread(work: Callable[[threading.Event], _T], undo: Callable[[_T], None]) -> _T:
    """Do the work in a thread; when cancelled, tell it to stop, and return only when it has."""
    stop = threading.Event()
    working = asyncio.get_running_loop().run_in_executor(None, work, stop)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(RoostError):
            undo(await working)
        raise


def peek(files: CheckpointFiles) -> bytes | None:
    """The note without a look at the seal: enough to list what there is, never to use it. None when there is no whole checkpoint."""
    with contextlib.suppress(OSError, Unavailable), contextlib.ExitStack() as stack:
        return _manifest(files, stack).head.note
    return None


def _write(saved: Saved, files: CheckpointFiles, note: bytes, key: bytes, stop: threading.Event) -> int:
    memory, device = memory_of(saved), saved.device
    if (memory is None) != (device is None) or len(note) > LONGEST_NOTE:
        raise AssertionError("a guest has memory and devices, or neither, and a short note")
    try:
        files.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = b"" if device is None else os.pread(device, _LONGEST_DEVICE, 0)
        extents, used = ([], 0) if memory is None else _write_running(memory, state, files, stop)
        length = 0 if memory is None else memory.size
        head = _Head(memory=length, device=len(state), pause=saved.pause, method=saved.method, note=note)
        manifest = msgspec.json.encode(_Manifest(head=head, seal=_seal(head, state, extents, key)))
        host_files.atomic_write(files.manifest, manifest, 0o400)
    except OSError as error:
        raise _no_room(files.directory, error) from None
    return used + len(manifest)


def _write_running(memory: Memory, state: bytes, files: CheckpointFiles, stop: threading.Event) -> tuple[_Extents, int]:
    """The digests of the memory, and the bytes on disk."""
    _check_space(files.directory, memory, state)
    with contextlib.ExitStack() as stack:
        target, below = _create(files.memory, stack), _create(files.device, stack)
        os.ftruncate(target, memory.size)
        extents = _transfer(_layered(memory), _chunks(_stored(memory)), target, stop)
        _write_all(below, memoryview(state), 0)
        for descriptor in (target, below):
            os.fsync(descriptor)
        return extents, sum(map(memfd.resident, (target, below)))


def _read(files: CheckpointFiles, key: bytes, stop: threading.Event) -> tuple[Saved, bytes]:
    what = f"the checkpoint {files.directory.name} can not be used"
    try:
        with contextlib.ExitStack() as stack:
            manifest = _manifest(files, stack)
            head = manifest.head
            state, extents, target = (b"", [], -1) if not head.memory else _read_running(head, files, stack, stop)
            if not hmac.compare_digest(_seal(head, state, extents, key), manifest.seal) or len(state) != head.device:
                why = "it does not match its seal: it was changed, or sealed with another key"
                raise Unavailable(what, why, "delete it")
            if target < 0:
                return Saved(None, None, head.pause, head.method), head.note
            return Saved(_device(state), _sealed(target, head.memory), head.pause, head.method), head.note
    except OSError as error:
        why = f"{error.filename or files.directory}: {error.strerror}"
        raise Unavailable(what, why, "roost doctor storage") from None


def _read_running(
    head: _Head, files: CheckpointFiles, stack: contextlib.ExitStack, stop: threading.Event
) -> tuple[bytes, _Extents, int]:
    """The state of the devices, the digests of the memory, and the file in memory that it was copied to while it was hashed."""
    what = f"the checkpoint {files.directory.name} can not be used"
    source = _open(files.memory, stack)
    if os.fstat(source).st_size != head.memory or head.memory % _PAGE or head.memory < 0:
        raise Unavailable(what, "it does not match its seal: its memory has another size", "delete it")
    _check_memory(what, source)
    state = _read_all(_open(files.device, stack), _LONGEST_DEVICE)
    target = memfd.create("roost-memory", head.memory)
    stack.callback(os.close, target)
    return state, _transfer(_flat(source), _chunks(memfd.data(source)), target, stop), target


def _transfer(reader: _Reader, chunks: Iterable[int], target: int, stop: threading.Event) -> _Extents:
    """Copy the chunks (their offsets) to `target` but for zero pages; the digest of each extent that has any, by its number."""
    extents: dict[int, list[int]] = {}
    for offset in chunks:
        extents.setdefault(offset // _EXTENT, []).append(offset)
    length = os.fstat(target).st_size
    with ThreadPoolExecutor(_THREADS, "checkpoint") as pool:
        digests = pool.map(lambda offsets: _copy_extent(reader, offsets, target, length, stop), extents.values())
        return [(number, digest) for number, digest in zip(extents, digests, strict=True) if digest]


def _copy_extent(reader: _Reader, offsets: list[int], target: int, length: int, stop: threading.Event) -> bytes:
    """The digest over (offset, length, bytes) of every run of pages that are not zero, no run longer than a chunk; empty without any."""
    digest, any_data = blake2b(digest_size=32, person=b"roost extent"), False
    buffer = bytearray(_CHUNK)
    for offset in offsets:
        if stop.is_set():
            raise Unavailable("a checkpoint was not finished", "it is not wanted any more")
        view = memoryview(buffer)[: min(_CHUNK, length - offset)]
        reader(view, offset)
        for start, end in _runs(buffer, len(view)):
            digest.update((offset + start).to_bytes(8, "little") + (end - start).to_bytes(8, "little"))
            digest.update(view[start:end])
            _write_all(target, view[start:end], offset + start)
            any_data = True
    return digest.digest() if any_data else b""


def _runs(buffer: bytearray, length: int) -> Iterator[tuple[int, int]]:
    """Where pages are that are not zero, side by side taken together."""
    start = -1
    for at in range(0, length, _PAGE):
        if not buffer.startswith(_ZEROS, at):
            start = at if start < 0 else start
        elif start >= 0:
            yield start, at
            start = -1
    if start >= 0:
        yield start, length


def _chunks(ranges: Iterable[Range]) -> list[int]:
    """The offsets of all chunks that have some of the bytes."""
    return sorted({offset for start, end in ranges for offset in range(start - start % _CHUNK, end, _CHUNK)})


def _stored(memory: Memory) -> Iterator[Range]:
    for index in range(len(memory.layers)):
        yield from memory.ranges(index)


def _flat(source: int) -> _Reader:
    def read_chunk(view: memoryview, offset: int) -> None:
        if os.preadv(source, [view], offset) != len(view):
            raise OSError(errno.EIO, "it ended early")

    return read_chunk


def _layered(memory: Memory) -> _Reader:
    """Reads what a guest sees: of each layer what no later one hides."""
    base = _flat(memory.layers[0])
    by_chunk: dict[int, list[tuple[int, Range]]] = {}
    for index in range(1, len(memory.layers)):
        for start, end in memory.ranges(index):
            for offset in range(start - start % _CHUNK, end, _CHUNK):
                found = Range(max(start, offset), min(end, offset + _CHUNK))
                by_chunk.setdefault(offset, []).append((memory.layers[index], found))

    def read_chunk(view: memoryview, offset: int) -> None:
        base(view, offset)
        for layer, (start, end) in by_chunk.get(offset, ()):
            _flat(layer)(view[start - offset : end - offset], start)

    return read_chunk


def _seal(head: _Head, state: bytes, extents: _Extents, key: bytes) -> bytes:
    """Every part has a fixed length or its length in front."""
    seal = blake2b(key=key, digest_size=32, person=b"roost checkpoint")
    words = msgspec.json.encode(head)
    seal.update(len(words).to_bytes(8, "little") + words)
    seal.update(blake2b(state, digest_size=32, person=b"roost device").digest())
    for number, digest in extents:
        seal.update(number.to_bytes(8, "little") + digest)
    return seal.digest()


def _manifest(files: CheckpointFiles, stack: contextlib.ExitStack) -> _Manifest:
    try:
        return msgspec.json.decode(_read_all(_open(files.manifest, stack), _LONGEST_MANIFEST), type=_Manifest)
    except msgspec.MsgspecError:
        what = f"the checkpoint {files.directory.name} can not be used"
        raise Unavailable(what, "it does not match its seal: its manifest can not be read", "delete it") from None


def _device(state: bytes) -> int:
    descriptor = memfd.create("roost-device", 0)
    try:
        _write_all(descriptor, memoryview(state), 0)
        memfd.seal(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _sealed(descriptor: int, length: int) -> Memory:
    memfd.seal(descriptor)
    return Memory(length, [os.dup(descriptor)])


def _check_space(directory: Path, memory: Memory, state: bytes) -> None:
    needs = min(memory.size, memory.resident()) + len(state) + RESERVE
    free = host_files.free_space(directory)
    if free < needs:
        why = f"{directory} has {size.show(free)} free, and {size.show(needs)} are needed, {size.show(RESERVE)} of them as a reserve"
        raise Unavailable(
            "a guest's memory was not saved", why, "make room: roost snapshots, then roost delete snapshot NAME"
        )


def _check_memory(what: str, source: int) -> None:
    needs, free = memfd.resident(source), host_memory.available()
    if free < needs:
        why = f"it takes {size.show(needs)} of memory, and this host has {size.show(free)} left"
        raise Unavailable(what, why, "stop another machine: roost list")


def _no_room(directory: Path, error: OSError) -> Unavailable:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    why = f"the disk of {directory} is full" if full else f"{error.filename or directory}: {error.strerror}"
    return Unavailable(
        "a guest's memory was not saved",
        why,
        "make room: roost snapshots, then roost delete snapshot NAME" if full else "",
    )


def _create(path: Path, stack: contextlib.ExitStack) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o400)
    stack.callback(os.close, descriptor)
    return descriptor


def _open(path: Path, stack: contextlib.ExitStack) -> int:
    # O_NONBLOCK: a named pipe in place of the file must not hang us.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def _read_all(descriptor: int, limit: int) -> bytes:
    length = os.fstat(descriptor).st_size
    if length > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit} bytes")
    return b"".join(iter(lambda: os.read(descriptor, MiB), b""))[:length]


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def _remove(files: CheckpointFiles) -> None:
    for path in (files.manifest, files.memory, files.device):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    with contextlib.suppress(OSError):  # others may have files there
        files.directory.rmdir()
