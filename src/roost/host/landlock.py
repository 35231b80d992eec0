"""Landlock, the file access list that a process puts upon itself; stand-alone, for the launcher."""

# pathlib would cost the launcher milliseconds:
# ruff: noqa: PTH112

from __future__ import annotations

import os
import struct

from roost.host import kernel

# include/uapi/linux/landlock.h
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_DIR
_ACCESS = {
    "read": _READ,
    "execute": _READ | _EXECUTE,
    "write": _READ | _WRITE_FILE | _TRUNCATE,
    "device": _READ_FILE | _WRITE_FILE | _IOCTL_DEV,
}
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
# The access rights that a version of the interface knows: version 2 refer, 3 truncate, 5 ioctl on devices.
_HANDLED = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}


def version() -> int:
    """The version of the kernel's interface; 0 when it has none or it is switched off."""
    try:
        return kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict(rules: list[tuple[str, str]], *, network: bool) -> int:
    """Refuse this process every access to files but (path, "read" | "execute" | "write" | "device"), for a directory with
    all that is below; and as far as the kernel can, TCP unless `network`, abstract sockets and signals to others.

    Needs no_new_privs. Returns the version in force; 0 means that the kernel has none. Raises OSError.
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
