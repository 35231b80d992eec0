"""Where one network is: its namespaces, the process that keeps them, and how both are found again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from roost.errors import Unavailable
from roost.host import files, jail, namespaces, processes
from roost.host.failpoints import reach
from roost.host.namespaces import Namespaces
from roost.host.paths import NetworkFiles
from roost.model.machine import Process

FIRST_ACCOUNT, ACCOUNTS = jail.FIRST_UID + 180_001, 60_000
"""Host uids that stand for uid 0 of a network's user namespace, where root runs the daemon; below them are those of machines."""
_LIMIT = 64 << 10


class _Record(msgspec.Struct, frozen=True):
    """`NetworkFiles.holder`: the holder, the inodes of the user and the network namespace, and the account."""

    process: Process
    identity: tuple[int, int]
    account: int


class Place:
    """A network's namespaces, held open, and their holder."""

    def __init__(self, record: _Record, pidfd: int, held: Namespaces) -> None:
        self.account = record.account
        self.namespaces = held
        self._record = record
        self._pidfd = pidfd
        self._watched = False

    @property
    def is_alive(self) -> bool:
        """Whether the holder has not ended."""
        return self._pidfd >= 0 and processes.is_alive(self._pidfd)

    @classmethod
    async def enter(
        cls, name: str, where: NetworkFiles, known: Place | None, taken: Collection[int]
    ) -> tuple[Place, bool]:
        """The place of the network, and whether it is new: adopted with its holder, or with a new holder while anything keeps the namespaces.

        `known` is this daemon's, whose holder has ended. Raises Unavailable, NotStarted.
        """
        record = await asyncio.to_thread(_read, where.holder)
        if known is None and record is not None:
            known = _adopt(record)
        if known is not None and known.is_alive:
            return known, False
        old = known.namespaces if known is not None else await asyncio.to_thread(_inhabited, record)
        if old is None or record is None:
            return await cls._hold(name, where, _choose(name, taken), None), True
        try:
            return await cls._hold(name, where, record.account, old), False
        finally:
            if known is not None:
                known.close()
            else:
                old.close()

    @classmethod
    async def _hold(cls, name: str, where: NetworkFiles, account: int, old: Namespaces | None) -> Place:
        holder = await namespaces.hold(f"network {name}", account, old)
        with contextlib.ExitStack() as undo:
            try:
                held = namespaces.enter(holder.process.pid)
                undo.callback(held.close)
                record = _Record(holder.process, namespaces.identity(held), account)
                await reach("network.held")
                await asyncio.to_thread(_write, where, record)
                await reach("network.recorded")
            except BaseException:
                await holder.discard()
                raise
            undo.pop_all()
        return cls(record, holder.release(), held)

    @classmethod
    async def find(cls, path: Path) -> Place | None:
        """The place that is recorded there, if its holder lives."""
        record = await asyncio.to_thread(_read, path)
        return _adopt(record) if record is not None else None

    @staticmethod
    def accounts(directory: Path) -> set[int]:
        """The accounts of all networks that are recorded."""
        return {record.account for path in directory.glob("*/holder.json") if (record := _read(path)) is not None}

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call once when the holder has ended."""
        if self._watched or self._pidfd < 0:
            return
        self._watched = True
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(self._pidfd)
            self._watched = False
            callback()

        loop.add_reader(self._pidfd, ended)

    async def end(self) -> None:
        """Kill the holder, and let go."""
        if self._pidfd >= 0:
            self._unwatch()
            processes.signal_pidfd(self._pidfd, signal.SIGKILL)
            await processes.wait_pidfd(self._pidfd)
        self.close()

    def close(self) -> None:
        """Let go; the holder stays."""
        self._unwatch()
        if self._pidfd >= 0:
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
            os.close(self._pidfd)
            self._pidfd = -1
            self.namespaces.close()

    def _unwatch(self) -> None:
        if self._watched:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            self._watched = False


def _adopt(record: _Record) -> Place | None:
    pidfd = processes.open_process(record.process)
    if pidfd is None:
        return None
    try:
        return Place(record, pidfd, namespaces.enter(record.process.pid))
    except OSError:
        os.close(pidfd)
        return None


def _inhabited(record: _Record | None) -> Namespaces | None:
    if record is None or record.process.boot != processes.boot_id():
        return None
    return namespaces.inhabited(record.identity)


def _choose(name: str, taken: Collection[int]) -> int:
    if os.geteuid() != 0:
        return os.geteuid()
    first = int(name.replace("-", "")[:8] or "0", 16) if _is_hexadecimal(name) else 0
    return next(_free(first, taken))


def _free(first: int, taken: Collection[int]) -> Iterator[int]:
    for step in range(ACCOUNTS):
        if (number := FIRST_ACCOUNT + (first + step) % ACCOUNTS) not in taken:
            yield number
    raise Unavailable("the network was not made", f"{ACCOUNTS} networks are there", "roost delete a network")


def _is_hexadecimal(name: str) -> bool:
    return all(letter in "0123456789abcdef" for letter in name.replace("-", "")[:8])


def _read(path: Path) -> _Record | None:
    try:
        return msgspec.json.decode(files.read_bounded(path, _LIMIT), type=_Record)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _write(where: NetworkFiles, record: _Record) -> None:
    where.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.atomic_write(where.holder, msgspec.json.encode(record), durable=False)
