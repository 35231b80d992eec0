"""qemu-img over disks of ours, in the jail: every driver and every file named, passphrases through pipes that nobody else can open."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import struct
import termios
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Literal, NamedTuple

from roost import log
from roost.errors import Forbidden, OutcomeUnknown, Unavailable
from roost.host import files, jail
from roost.host.system import Finished
from roost.model import size as sizes
from roost.model.meta import GiB, MiB
from roost.storage import overlays
from roost.storage.formats import HEAD

_MEMORY = GiB
_CACHE = 4 * MiB
"""For the tables of each file (32 GiB of it): a chain of many large ones would take gigabytes with QEMU's default."""
_RESERVE = GiB // 2
"""Bytes of disk that no copy may take: the store and running guests need them more."""
_SLOWEST = 10 * MiB
"""Bytes a second that any host manages; with _PATIENCE seconds it bounds how long a tool may take."""
_PATIENCE = 600.0
_QUICK = 120.0
"""Seconds for what reads or writes headers alone."""
_LOOK = 0.01
"""Seconds between two looks at whether the tool has read its passphrase."""
_TARGET = "/target"
_STRETCH = 10
"""Milliseconds that QEMU takes to derive a key: ours are random, there is nothing to guess; its least number of rounds holds."""
_HASH = "sha512"
"""Slower than QEMU's default where the processor helps with that: see `_measured`."""
_ATTEMPTS = 20


class Chain(NamedTuple):
    """A disk to be read: its `files`, the nearest first, all qcow2 or one raw, and the passphrase of those that are encrypted."""

    files: tuple[Path, ...]
    format: Literal["qcow2", "raw"] = "qcow2"
    key: bytes | None = None


async def make_locked(target: Path, size: int, key: bytes, pipes: Path) -> None:
    """A new, empty encrypted disk of `size` bytes, durable. Raises Unavailable."""
    options = f"encrypt.format=luks,encrypt.key-secret=key,encrypt.hash-alg={_HASH},encrypt.iter-time={_STRETCH}"
    argv = ["create", "-q", "-f", "qcow2", "-o", options, _TARGET, str(size)]

    async def attempt() -> Finished:
        await asyncio.to_thread(_touch, target)
        return await _run(argv, {}, {_TARGET: target}, {"key": key}, pipes)

    finished = await _measured(attempt)
    _check(finished, f"{target.parent.name} can not be made")
    await asyncio.to_thread(files.sync_file, target)


async def check_key(chain: Chain, pipes: Path) -> None:
    """Whether the key opens every file of the chain: nothing is read beyond the headers. Raises Forbidden, Unavailable."""
    if not await asyncio.to_thread(_is_locked, chain.files):
        if chain.key is not None:
            raise Forbidden(f"{chain.files[0]} can not be opened", "a key is given, and it is not encrypted")
        return
    if chain.key is None:
        raise Forbidden(f"{chain.files[0]} can not be opened", "it is encrypted and no key is given")
    places = {f"/{number}": file for number, file in enumerate(chain.files)}
    argv = ["map", "-U", "--output=json", "--max-length=512", node(places, "qcow2", "key")]
    finished = await _run(argv, places, {}, {"key": chain.key}, pipes)
    _check(finished, f"{chain.files[0]} can not be opened")


async def opens(disk: Path, key: bytes, pipes: Path) -> bool:
    """Whether the key opens this one file. Raises Unavailable."""
    try:
        await check_key(Chain((disk,), key=key), pipes)
    except Forbidden:
        return False
    return True


async def change_key(disk: Path, key: bytes, new: bytes, pipes: Path) -> None:
    """Let `new` open an encrypted disk that nobody uses, and then `key` no more. Killed in between, either opens it; then do it again.

    Raises Forbidden when neither opens it, Unavailable.
    """
    secrets = {"key": key, "new": new}
    add = f"encrypt.state=active,encrypt.new-secret=new,encrypt.iter-time={_STRETCH}"
    if await opens(disk, new, pipes):
        if not await opens(disk, key, pipes):
            return
    else:
        finished = await _measured(lambda: _amend(disk, "key", add, secrets, pipes))
        _check(finished, f"the key of {disk} was not changed")
        await asyncio.to_thread(files.sync_file, disk)
    finished = await _amend(disk, "new", "encrypt.state=inactive,encrypt.old-secret=key", secrets, pipes)
    _check(finished, f"the old key of {disk} was not forgotten")
    await asyncio.to_thread(files.sync_file, disk)


async def copy(chain: Chain, target: Path, key: bytes | None, pipes: Path, progress: Callable[[float], None]) -> None:
    """Write what a guest sees of `chain` into `target`, a new, empty qcow2 at least as large, encrypted by `key` when that is given. Holes stay
    holes. Durable when it returns. Raises Forbidden (key), Unavailable; `target` is then of no use."""
    what = f"{chain.files[0]} can not be copied"
    room = files.free_space(target.parent) - _RESERVE
    if room <= 0:
        raise Unavailable(what, f"the disk is too full: {sizes.show(_RESERVE)} must stay free", _fix(target))
    length = sum(file.stat().st_blocks * 512 for file in chain.files)
    places = {f"/{number}": file for number, file in enumerate(chain.files)}
    secrets = {"key": chain.key, "new": key}
    options = f"driver=qcow2,file.driver=file,file.filename={_TARGET},l2-cache-size={_CACHE}"
    options += ",encrypt.format=luks,encrypt.key-secret=new" if key is not None else ""
    source = node(places, chain.format, "key" if chain.key is not None else "")
    argv = ["convert", "-n", "--target-is-zero", "--target-image-opts", source, options]
    given = {name: value for name, value in secrets.items() if value is not None}
    async with _told(target, length, progress):
        finished = await _run(
            argv, places, {_TARGET: target}, given, pipes, timeout=_PATIENCE + length / _SLOWEST, file_size=room
        )
    _check(finished, what)
    await asyncio.to_thread(files.sync_file, target)


async def resize(disk: Path, size: int, key: bytes | None, pipes: Path) -> None:
    """Grow a disk that nobody uses, durable. Raises Forbidden (key), Unavailable."""
    argv = ["resize", "-q", node({_TARGET: disk}, "qcow2", "key" if key is not None else ""), str(size)]
    finished = await _run(argv, {}, {_TARGET: disk}, {"key": key} if key is not None else {}, pipes)
    _check(finished, f"{disk} was not resized")
    await asyncio.to_thread(files.sync_file, disk)


def node(names: Mapping[str, Path], format: str, secret: str) -> str:
    """A chain as QEMU's tools take it: every driver and every file named, so that no header is believed. Raises OSError."""
    found: dict[str, object] = {}
    for name, path in reversed(tuple(names.items())):
        file = {"driver": "file", "filename": name}
        if format == "raw":
            found = {"driver": "raw", "file": file}
            continue
        found = {"driver": "qcow2", "file": file, "backing": found or None, "l2-cache-size": _CACHE}
        if secret and _is_locked((path,)):
            found["encrypt"] = {"format": "luks", "key-secret": secret}
    return "json:" + json.dumps(found)


def _is_locked(chain: Sequence[Path]) -> bool:
    """Whether a file of the chain is encrypted."""

    def head(path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read(HEAD)

    return any(overlays.is_locked(head(path)) for path in chain)


async def _measured(attempt: Callable[[], Awaitable[Finished]]) -> Finished:
    """Let QEMU measure how quickly it derives keys until it can: where the clock of a thread is coarse it fails now and then (up to 9.1)."""
    finished = await attempt()
    for _ in range(_ATTEMPTS):
        if b"accurate CPU usage" not in finished.stderr:
            break
        finished = await attempt()
    return finished


async def _amend(disk: Path, opener: str, change: str, secrets: Mapping[str, bytes], pipes: Path) -> Finished:
    opened = f"driver=qcow2,file.driver=file,file.filename={_TARGET},encrypt.format=luks,encrypt.key-secret={opener}"
    return await _run(["amend", "--image-opts", "-o", change, opened], {}, {_TARGET: disk}, secrets, pipes)


async def _run(
    argv: Sequence[str],
    readable: Mapping[str, Path],
    writable: Mapping[str, Path],
    secrets: Mapping[str, bytes],
    pipes: Path,
    **bounds: float,
) -> Finished:
    """Run qemu-img with `secrets` by their names. Raises Unavailable."""
    try:
        async with contextlib.AsyncExitStack() as stack:
            given, words = dict(readable), ["qemu-img", argv[0]]
            for name, secret in secrets.items():
                given[f"/secret-{name}"] = await stack.enter_async_context(_passage(secret, pipes))
                words += ["--object", f"secret,id={name},file=/secret-{name}"]
            return await jail.run_in_jail(
                [*words, *argv[1:]],
                readable=given,
                writable=writable,
                timeout=bounds.get("timeout", _QUICK),
                memory=_MEMORY,
                file_size=int(bounds.get("file_size", 64 * MiB)) if argv[0] != "resize" else 1 << 62,
            )
    except OutcomeUnknown as error:
        raise Unavailable("a disk can not be changed", error.why, "try again when the host has less to do") from error


@contextlib.asynccontextmanager
async def _passage(secret: bytes, pipes: Path) -> AsyncIterator[Path]:
    """A named pipe that gives `secret` once: it is in no file, no argument and no environment."""
    pipes.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = pipes / uuid.uuid4().hex
    os.mkfifo(path, 0o600)
    try:
        with open(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), "wb", buffering=0) as pipe:
            pipe.write(secret)
            handing = log.spawn_task(_hand_over(pipe), "hand a key to qemu-img")
            try:
                yield path
            finally:
                handing.cancel()
                await asyncio.wait((handing,))
    finally:
        path.unlink(missing_ok=True)


async def _hand_over(pipe: FileIO) -> None:
    """Close our end when all was read: the reader sees the end then."""
    while True:
        await asyncio.sleep(_LOOK)
        if not struct.unpack("i", fcntl.ioctl(pipe.fileno(), termios.FIONREAD, bytes(4)))[0]:
            pipe.close()
            return


@contextlib.asynccontextmanager
async def _told(target: Path, length: int, progress: Callable[[float], None]) -> AsyncIterator[None]:
    """Tell how much of about `length` bytes has been written, as long as the context lasts."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(0.5)
            progress(min(0.99, target.stat().st_blocks * 512 / max(length, 1)))

    telling = log.spawn_task(tell(), "tell of a copy")
    try:
        yield
    finally:
        telling.cancel()
        await asyncio.wait((telling,))
    progress(1.0)


def _check(finished: Finished, what: str) -> None:
    if not finished.code:
        return
    why = (finished.stderr or finished.stdout).decode(errors="replace").strip()[-300:]
    if "Invalid password" in why or "cannot unlock" in why:
        raise Forbidden(what, "the key does not open it", "roost volume show NAME tells the key's name")
    full = os.strerror(errno.ENOSPC) in why or os.strerror(errno.EFBIG) in why
    raise Unavailable(what, why or f"qemu-img ended with code {finished.code}", "make room" if full else "")


def _touch(target: Path) -> None:
    target.unlink(missing_ok=True)
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _fix(target: Path) -> str:
    return f"make room: du -xh --max-depth=2 {target.parent.parent.parent}"
