"""Files: written whole or not at all, read with a bound, removed with all that is below them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from roost.errors import Invalid


def atomic_write(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace `path` by `data`: whenever the host stops, either the old or the new content is there. Raises OSError.

    The parent directory must exist; a symbolic link at `path` is replaced, not followed. Not `durable` is for what means
    nothing once the host has stopped: then only other processes see the one or the other, and no disk is waited for.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file. Raises Invalid for one of more than `limit` bytes or of another kind, and OSError."""
    # O_NONBLOCK: a named pipe in place of the file must not hang us.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Invalid(f"{path} can not be read", "it is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Invalid(f"{path} can not be read", f"it is longer than {limit} bytes")
    return data


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory with all below it; what is gone is fine. Links are removed, never followed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    shutil.rmtree(path, onerror=_force)


def _force(function: Callable[..., object], name: str, info: object) -> None:
    """Try once more with the directories opened up: an owner who is not root can not remove from a read-only one."""
    parent = Path(name).parent
    with contextlib.suppress(FileNotFoundError):
        for directory in (parent, Path(name)):
            if not directory.is_symlink() and directory.is_dir():
                directory.chmod(0o700)
        if Path(name).is_dir() and not Path(name).is_symlink():
            shutil.rmtree(name)
        else:
            Path(name).unlink()


def free_space(path: Path) -> int:
    """Bytes that the caller may still write on the file system of `path`."""
    usage = os.statvfs(path)
    return usage.f_bavail * usage.f_frsize


def sync_file(path: Path) -> None:
    """Make the content of a file durable, whoever wrote it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path, offset: int, length: int) -> bool:
    """Whether another open file description, of any process, holds a lock (F_OFD_SETLK) in this part of a file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        asked = struct.pack("@hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, offset, length, 0)
        kind: int = struct.unpack_from("@h", fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK
    finally:
        os.close(descriptor)
