"""What a program and all its processes use, read from /proc; for limits that no kernel mechanism holds here."""

from __future__ import annotations

import os

_TICKS = os.sysconf("SC_CLK_TCK")
_TABLES = b"VmPTE:"
_DEEPEST = 1 << 16
"""Processes that are looked at: more than any limit on them lets there be."""


def processes(init: int) -> list[int]:
    """Everything that descends from `init`, and it first: what loses its parent becomes init's child."""
    found, place = [init], 0
    while place < len(found) < _DEEPEST:
        found += _children(found[place])
        place += 1
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def memory(pids: list[int], limit: int) -> int:
    """Bytes of memory that these use together, files not counted. Exact once it might be over `limit`: pages in common count once.

    Until then each is asked for what it has mapped, which is quick. Memory files (memfd) count also where nobody has mapped them.
    """
    mapped = sum(_mapped(pid) for pid in pids)
    held = _held(pids)
    if mapped + held <= limit:
        return mapped + held
    shares = [_share(pid) for pid in pids]
    return sum(private for private, _ in shares) + max(held, sum(shared for _, shared in shares))


def _mapped(pid: int) -> int:
    """Page tables too: reading one byte in every 2 MiB of nothing costs a page of them each, and no other memory."""
    return _kilobytes(_read(f"/proc/{pid}/status"), (b"RssAnon:", b"RssShmem:", _TABLES))


def _share(pid: int) -> tuple[int, int]:
    """What is its own and its part of what it shares, without files, and of files in memory; where the kernel does not say, all that it has
    mapped."""
    rollup = _read(f"/proc/{pid}/smaps_rollup")
    if not rollup:
        return _mapped(pid), 0
    tables = _kilobytes(_read(f"/proc/{pid}/status"), (_TABLES,))
    return tables + _kilobytes(rollup, (b"Pss_Anon:",)), _kilobytes(rollup, (b"Pss_Shmem:",))


def _held(pids: list[int]) -> int:
    """Bytes of the memory files that these have open, each file once."""
    found: dict[int, int] = {}
    for pid in pids:
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for descriptor in descriptors:
            _measure(f"/proc/{pid}/fd/{descriptor}", found)
    return sum(found.values())


def _measure(path: str, found: dict[int, int]) -> None:
    try:
        if os.readlink(path).startswith("/memfd:"):
            status = os.stat(path)
            found[status.st_ino] = status.st_blocks * 512
    except OSError:  # just closed
        return


def sockets(pid: int) -> int:
    """How many sockets there are in the network namespace of a process."""
    words = _read(f"/proc/{pid}/net/sockstat").split(maxsplit=3)  # "sockets: used N"
    return int(words[2]) if len(words) > 2 else 0


def _kilobytes(text: bytes, names: tuple[bytes, ...]) -> int:
    return sum(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(names))


def cpu_seconds(pids: list[int]) -> float:
    """CPU seconds of these and of all their children that have ended and were waited for."""
    ticks = 0
    for pid in pids:
        fields = (
            _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        )  # field 2, the name, may hold spaces and brackets: proc_pid_stat(5)
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS


def _read(path: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it has just ended
        return b""
    try:
        text = b""
        while part := os.read(descriptor, 1 << 16):
            text += part
        return text
    except OSError:
        return b""
    finally:
        os.close(descriptor)
