"""The processes beside a machine's QEMU: those that are its network and its TPM. They start while QEMU's jail does, and end with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from roost import log
from roost.errors import RoostError
from roost.host import jail
from roost.host.jail import Jailed
from roost.hypervisor import record, tpm
from roost.hypervisor.base import Launch
from roost.hypervisor.inmates import Inmate
from roost.model.facts import HostFacts
from roost.model.machine import Publish

FIRST_ACCOUNT, ACCOUNTS = jail.FIRST_UID + 1, 60_000
"""Machine N runs as the host's uid FIRST_ACCOUNT + N, its network ACCOUNTS above that, its TPM twice as much."""


class Network(Protocol):
    """Makes a machine's network: whoever builds the daemon hands one in, so that engines need not know each other."""

    async def connect(
        self, uid: str, account: int, publish: Sequence[Publish], ends: tuple[socket.socket, socket.socket]
    ) -> tuple[tuple[Jailed, ...], tuple[str, ...]]:
        """Start the processes that are the network of machine `uid`, as the host's uid `account`, and see that they answer.

        `ends` are the machine's and the network's end of a pair of stream sockets; both stay the caller's, and nobody
        else may use the machine's end meanwhile. Returns the processes and the machine's addresses. Raises Conflict
        (port taken), Unavailable; then nothing is left behind.
        """
        ...


class Present(NamedTuple):
    """The processes that are there, and the addresses the machine has in its network."""

    processes: tuple[Inmate, ...] = ()
    addresses: tuple[str, ...] = ()


class Beside:
    """What is beside one machine, on its way. `link` and `tpm` are QEMU's ends of the sockets, None where there is none."""

    def __init__(self, network: Network, facts: HostFacts, launch: Launch, account: int) -> None:
        self.link: socket.socket | None = None
        self.tpm: socket.socket | None = None
        self._network = network
        self._facts = facts
        self._launch = launch
        self._account = account
        self._tasks: list[asyncio.Task[Present | RoostError | OSError]] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def started(
        cls, network: Network, facts: HostFacts, launch: Launch, account: int, undo: contextlib.AsyncExitStack
    ) -> AsyncIterator[Beside]:
        """Begin to start all of it. QEMU's ends close with the context: by then it has its own, and must be the only one to hold them.
        The processes end with `undo`."""
        beside = cls(network, facts, launch, account)
        with contextlib.ExitStack() as ours:
            undo.push_async_callback(beside._end)
            if launch.network == "user":
                beside.link, far = socket.socketpair()
                ours.enter_context(beside.link)
                beside._start(beside._connect(beside.link, far), "network")
            if launch.tpm:
                beside.tpm, far = socket.socketpair()
                ours.enter_context(beside.tpm)
                beside._start(beside._connect_tpm(beside.tpm, far), "TPM")
            yield beside

    async def present(self) -> Present:
        """All of it, once it answers. Raises why something does not start."""
        if self._tasks:
            await asyncio.wait(self._tasks)
        parts = [_result(task.result()) for task in self._tasks]
        return Present(
            tuple(inmate for part in parts for inmate in part.processes),
            tuple(address for part in parts for address in part.addresses),
        )

    async def needed(self, launch: Launch) -> Present:
        """What must be there before QEMU starts: one that goes on from a saved state gets its network later, and its TPM at once."""
        if launch.saved is not None and self.tpm is None:
            return Present()
        return await self.present()

    def _start(self, connecting: Coroutine[Any, Any, Present | RoostError | OSError], name: str) -> None:
        self._tasks.append(log.spawn_task(connecting, f"{name} of {self._launch.uid}"))

    async def _connect(self, link: socket.socket, far: socket.socket) -> Present | RoostError | OSError:
        """The network or why there is none: an error that is an answer is not one the log should hold."""
        account = self._account + ACCOUNTS
        with far:
            try:
                connect = self._network.connect
                jailed, addresses = await connect(self._launch.uid, account, self._launch.publish, (link, far))
            except (RoostError, OSError) as error:
                return error
        return Present(tuple(map(record.hold, jailed)), addresses)

    async def _connect_tpm(self, link: socket.socket, far: socket.socket) -> Present | RoostError | OSError:
        account, directory = self._account + 2 * ACCOUNTS, self._launch.files.tpm
        with far:
            try:
                jailed = await tpm.connect(self._facts.swtpm, self._launch.uid, account, directory, (link, far))
            except (RoostError, OSError) as error:
                return error
        return Present((record.hold(jailed),))

    async def _end(self) -> None:
        """End it, however far its start has come."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for task in self._tasks:
            if not task.cancelled() and task.exception() is None:
                part = task.result()
                for inmate in part.processes if isinstance(part, Present) else ():
                    await inmate.end()


def _result(answer: Present | RoostError | OSError) -> Present:
    if isinstance(answer, Present):
        return answer
    raise answer
