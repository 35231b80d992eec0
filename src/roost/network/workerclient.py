"""The daemon's side of the worker of networks: started at the first need, started again when it has died, and asked."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import msgspec

from roost.errors import NotStarted, OutcomeUnknown
from roost.host import system
from roost.host.namespaces import Namespaces
from roost.network.requests import Answer, Request

_SECONDS = 60.0
_AT_ONCE = 8
_CHUNK = 1 << 20
_MOST_DESCRIPTORS = 4


class Worker:
    """Asks one worker process (roost.network.worker), which ends with this object or with this process."""

    def __init__(self) -> None:
        self._child: system.Child | None = None
        self._control: socket.socket | None = None
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def ask(self, request: Request, namespaces: Namespaces | None = None) -> tuple[Answer, tuple[int, ...]]:
        """Its answer, and the descriptors that come with it, which the caller owns. Without `namespaces` the host's are meant.

        Raises what it raised; NotStarted when it can not be started, OutcomeUnknown when it does not answer within a minute.
        """
        data = msgspec.json.encode(request)
        async with self._room:
            try:
                async with asyncio.timeout(_SECONDS):
                    # Once more: every request may be made twice, and a worker may be killed at any moment.
                    answer = await self._try(data, namespaces) or await self._try(data, namespaces)
            except TimeoutError:
                raise OutcomeUnknown("the network may not be as it should", "the worker did not answer", "") from None
        if answer is None:
            raise NotStarted(
                "the network was not changed", "the worker of networks ends at once", "see the daemon's log"
            )
        return answer[0].check(), answer[1]

    async def close(self) -> None:
        """End it."""
        self._hang_up()
        if self._child is not None:
            await self._child.end()
            self._child = None

    async def _try(self, data: bytes, namespaces: Namespaces | None) -> tuple[Answer, tuple[int, ...]] | None:
        """None when the worker is dead; then there will be a new one."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                if not await self._send([theirs.fileno(), *(namespaces or ())]):
                    return None
            ours.setblocking(False)
            try:
                await loop.sock_sendall(ours, data)
                ours.shutdown(socket.SHUT_WR)
                return await _receive(ours)
            except (BrokenPipeError, ConnectionResetError):
                return None

    async def _send(self, descriptors: list[int]) -> bool:
        for _ in range(2):
            if self._control is None:
                await self._start()
            assert self._control is not None
            try:
                # Blocks no longer than the worker forks: the kernel's buffer holds hundreds.
                socket.send_fds(self._control, [b"r"], descriptors)
                return True
            except (BrokenPipeError, ConnectionResetError):
                self._hang_up()
        return False

    def _hang_up(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    async def _start(self) -> None:
        if self._child is not None:
            await self._child.end()
            self._child = None
        if self._control is not None:
            return  # somebody else was quicker
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = (sys.executable, "-P", "-m", "roost.network.worker", str(theirs.fileno()))
            libraries = os.pathsep.join([str(Path(__file__).parents[2]), *filter(os.path.isabs, sys.path)])
            env = {**system.clean_environment(), "PYTHONPATH": libraries}
            stdio = (system.NOTHING, system.NOTHING, 2)
            self._child = system.start(argv, stdio, env=env, cwd="/", pass_fds=(theirs.fileno(),))
        self._control = ours


async def _receive(stream: socket.socket) -> tuple[Answer, tuple[int, ...]] | None:
    """The whole answer; None when there is none. All descriptors come with its first byte."""
    data, descriptors = b"", []
    try:
        while True:
            await _readable(stream)
            chunk, more, _, _ = socket.recv_fds(stream, _CHUNK, _MOST_DESCRIPTORS, socket.MSG_DONTWAIT)
            descriptors += more
            if not chunk:
                break
            data += chunk
        if data:
            answer, given = msgspec.json.decode(data, type=Answer), tuple(descriptors)
            descriptors = []
            for descriptor in given:
                os.set_inheritable(descriptor, False)
            return answer, given
        return None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(stream: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(stream, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(stream)
