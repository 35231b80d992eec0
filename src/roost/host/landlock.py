"""Landlock, the file access list that a process puts upon itself; stand-alone, for the launcher."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from roost.host import kernel

# include/uapi/linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_MAKE_DEVICES = 1 << 6 | 1 << 11  # character and block devices
_READ = _READ_FILE | _READ_DIR
_ACCESS = {
    "read": _READ,
    "execute": _READ | _EXECUTE,
    "write": _READ | _WRITE_FILE | _TRUNCATE,
    "device": _READ_FILE | _WRITE_FILE | _IOCTL_DEV,
    "tree": (1 << 16) - 1 - _IOCTL_DEV - _MAKE_DEVICES,
    "devices": _READ | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV,
}
"""Rights by kind: "tree" is a directory in which everything may be made, renamed, removed and executed; "devices" one of nodes."""
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# The access rights that a version of the interface knows: version 2 refer, 3 truncate, 5 ioctl on devices.
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}


def version() -> int:
    """The version of the kernel's interface; 0 when it has none or it is switched off."""
    try:
        return kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict(rules: list[tuple[str, str]], *, network: bool, opened: tuple[int, ...] = ()) -> int:
    """Refuse this process every access to files but (path, kind of `_ACCESS`), for a directory with
    all that is below; and as far as the kernel can, TCP unless `network`, abstract sockets and signals to others.

    The files of descriptors that are `opened` may be opened again in the same way. Needs no_new_privs.
    Returns the version in force; 0 means that the kernel has none. Raises OSError.
    """
    known = version()
    if known < 1:
        return 0
    handled = next(rights for since, rights in sorted(_HANDLED.items(), reverse=True) if known >= since)
    attributes = [handled]
    if known >= 4:
        attributes.append(0 if network else 3)  # TCP bind and connect
    if known >= 6:
        attributes.append(3)  # abstract unix sockets, signals
    ruleset = kernel.syscall(
        kernel.LANDLOCK_CREATE_RULESET, struct.pack(f"={len(attributes)}Q", *attributes), 8 * len(attributes), 0
    )
    try:
        for path, kind in rules:
            _allow(ruleset, path, _ACCESS[kind] & handled)
        for descriptor in opened:
            _allow_again(ruleset, descriptor, handled)
        kernel.syscall(kernel.LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return known


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not os.path.isdir(path):
            rights &= _ON_FILES
        kernel.syscall(kernel.LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _allow_again(ruleset: int, descriptor: int, handled: int) -> None:
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    rights = (0 if mode == os.O_WRONLY else _READ_FILE) | (0 if mode == os.O_RDONLY else _WRITE_FILE | _TRUNCATE)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        rights = _READ
    try:
        kernel.syscall(kernel.LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & handled, descriptor), 0)
    except OSError as error:
        if error.errno != errno.EBADFD:  # a pipe or a socket, which Landlock leaves alone
            raise
