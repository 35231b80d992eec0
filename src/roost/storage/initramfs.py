"""An initramfs as bytes: the kernel's "newc" cpio format (Documentation/driver-api/early-userspace/buffer-format.rst), pure and reproducible."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from roost.storage.kernels import Module

_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "var", "bin", "sbin", "usr/bin", "usr/sbin", "etc")


class Archive:
    """A cpio archive in the making. Parents are made at need; adding a name again is refused; every time stamp is 0."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._names: set[str] = set()

    def directory(self, name: str, mode: int = 0o755) -> None:
        """A directory."""
        self._add(name, stat.S_IFDIR | mode)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """A symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """A character device."""
        self._add(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def finish(self) -> bytes:
        """The whole archive."""
        return b"".join((*self._parts, _member("TRAILER!!!", 0, 0)))

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if name in self._names:
            raise ValueError(f"{name} is in the archive already")
        parent = str(PurePosixPath(name).parent)
        if parent != "." and parent not in self._names:
            self.directory(parent)
        self._names.add(name)
        self._parts.append(_member(name, len(self._names), mode, data, device))


def _member(name: str, inode: int, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    return _padded(b"070701" + b"".join(b"%08X" % field for field in fields) + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def accelerator(init: bytes, modules: Sequence[Module]) -> Archive:
    """What a disk image needs for direct boot: `init` loads the modules, mounts the root and switches to it."""
    archive = Archive()
    for name in ("dev", "proc", "sys", "run", "root"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("init", init, 0o755)
    _add_modules(archive, modules, ())
    return archive


class Programs(NamedTuple):
    """What tiny consists of; `dhcp` is the script of busybox's DHCP client."""

    init: bytes
    agent: bytes
    busybox: bytes
    dhcp: bytes


def tiny(programs: Programs, early: Sequence[Module], late: Sequence[Module]) -> Archive:
    """A whole small system. The agent is started after the modules `early`, before those `late`."""
    archive = Archive()
    for name in _DIRECTORIES:
        archive.directory(name, 0o1777 if name == "tmp" else 0o755)
    archive.device("dev/console", 5, 1)
    archive.file("init", programs.init, 0o755)
    archive.file("roost/agent", programs.agent, 0o755)
    archive.file("bin/busybox", programs.busybox, 0o755)
    for applet in applets(programs.busybox):
        archive.link(f"bin/{applet}", "busybox")
    archive.file("etc/udhcpc.script", programs.dhcp, 0o755)
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n")
    archive.file("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
    archive.file("etc/os-release", b'ID=tiny\nNAME="Roost tiny"\nPRETTY_NAME="Roost tiny"\n')
    _add_modules(archive, early, late)
    return archive


def _add_modules(archive: Archive, early: Sequence[Module], late: Sequence[Module]) -> None:
    """The modules, and the list of them that init reads: a line "-" divides early from late ones."""
    for module in (*early, *late):
        archive.file(f"lib/modules/{module.name}.ko", module.data)
    lines = [
        *(f"/lib/modules/{module.name}.ko" for module in early),
        "-",
        *(f"/lib/modules/{module.name}.ko" for module in late),
    ]
    archive.file("roost/modules", "".join(f"{line}\n" for line in lines).encode())


def applets(busybox: bytes) -> list[str]:
    """The names that a busybox binary answers to, from its own table: NUL-separated, sorted, "[" first; works for a foreign architecture."""
    start = busybox.find(b"[\0[[\0")
    if start < 0:
        return ["sh"]
    names = busybox[start : busybox.index(b"\0\0", start)].decode("ascii").split("\0")
    return [name for name in names if name != "busybox"]
