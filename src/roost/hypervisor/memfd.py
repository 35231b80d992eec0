"""Files in memory: made, copied, found in a process, and sealed so that the kernel itself lets nobody write to them again."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from roost.errors import Conflict, Unavailable
from roost.model.meta import MiB

FROZEN = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_NOEXEC_SEAL = 0x8  # MFD_NOEXEC_SEAL of linux/memfd.h, Linux 6.3
_MAPS_LIMIT = 16 * MiB
"""65530 mappings of 200 bytes."""
_STEP = 256 * MiB
"""Bytes copied by one system call, so that a thread can be told to stop."""


class Range(NamedTuple):
    """Bytes `start` to `end` (not included) of a guest's memory, whole pages."""

    start: int
    end: int


def create(name: str, size: int) -> int:
    """An empty file of `size` bytes that can be sealed and never executed; the caller owns it. Raises Unavailable."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise Unavailable("no memory was made for a guest", f"memfd_create: {error.strerror}") from None
        descriptor = os.memfd_create(name, flags)
    os.ftruncate(descriptor, size)
    return descriptor


def seal(descriptor: int) -> None:
    """From now on the kernel refuses every write, by whatever descriptor or mapping. Takes a few ms for each GiB.

    Raises Conflict while somebody maps the file shared and writable (F_ADD_SEALS of fcntl(2): EBUSY), or has sealed it against
    our sealing.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, FROZEN)
    except OSError as error:
        if is_frozen(descriptor):
            return
        why = (
            "somebody still maps it for writing"
            if error.errno == errno.EBUSY
            else f"it can not be sealed: {error.strerror}"
        )
        raise Conflict("a guest's memory was not frozen", why, "stop the machine and clone it then") from None


def is_frozen(descriptor: int) -> bool:
    """Whether nobody can write to it ever again; False also for what is no such file."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & FROZEN == FROZEN
    except OSError:
        return False


def is_whole(descriptor: int, size: int) -> bool:
    """Whether it is a file in memory of this size, sealed or not."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) >= 0 and os.fstat(descriptor).st_size == size
    except OSError:
        return False


def data(descriptor: int) -> Iterator[Range]:
    """Where the file has pages, in order; everything else is zero. Only for files that nobody writes to."""
    position, size = 0, os.fstat(descriptor).st_size
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no more data: lseek(2)
                raise
            return
        position = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        yield Range(start, position)


def copy(source: int, target: int, ranges: Iterable[Range]) -> None:
    """Copy these bytes to the same place in `target`, inside the kernel. Raises OSError."""
    for start, end in ranges:
        while start < end:
            done = _copy_some(source, target, start, min(end - start, _STEP))
            if not done:
                raise OSError(errno.EIO, "the file ended early")
            start += done


def _copy_some(source: int, target: int, start: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, length, start, start)
    except OSError as error:
        # Between two file systems only since Linux 5.3, and again not from all: copy_file_range(2).
        if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
            raise
    block = os.pread(source, min(length, 4 * MiB), start)
    return os.pwrite(target, block, start)


def find(mapped: bytes, inode: int, size: int) -> int:
    """The address at which all of the file is mapped, in one piece or in several that lie side by side. Raises Unavailable.

    Only the inode is compared: the device that /proc/PID/maps shows is not always that of stat(2), as on btrfs and overlayfs.
    """
    pattern = rb"^([0-9a-f]{1,16})-([0-9a-f]{1,16}) rw-s ([0-9a-f]{1,16}) [0-9a-f]+:[0-9a-f]+ %d(?: |$)" % inode
    first = end = length = 0
    for match in re.finditer(pattern, mapped, re.MULTILINE):
        start, stop, offset = (int(number, 16) for number in match.groups())
        if offset != length or (length and start != end):
            raise Unavailable("a guest's memory can not be found", "QEMU has mapped it in a way that we do not know")
        first = first if length else start
        end, length = stop, length + stop - start
    if length != size:
        raise Unavailable("a guest's memory can not be found", f"QEMU has mapped {length} bytes of it, not {size}")
    return first


def maps(pid: int) -> bytes:
    """What a process has mapped, for `find`. Raises Unavailable."""
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            return file.read(_MAPS_LIMIT)
    except OSError as error:
        raise Unavailable("a guest's memory can not be found", f"/proc/{pid}/maps: {error.strerror}") from None


def pagemap(pid: int) -> int:
    """A descriptor, the caller's, that tells which pages a process has: in its jail it has no /proc to ask. Raises Unavailable."""
    try:
        return os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        why = f"/proc/{pid}/pagemap: {error.strerror}"
        raise Unavailable("a guest's memory can not be looked at", why) from None


def resident(descriptor: int) -> int:
    """Bytes that it takes, in memory or swapped."""
    return os.fstat(descriptor).st_blocks * 512
