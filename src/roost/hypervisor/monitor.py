"""The only door to QMP: typed verbs and events of one QEMU, whose every answer is taken as an attacker's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from roost.errors import NotStarted, OutcomeUnknown, RoostError, Unavailable
from roost.hypervisor.base import RunState

_LONGEST_MESSAGE = 1 << 20
"""Bytes of one line that QEMU may send us; the longest answer to a verb here is under 10 KiB."""
_SECONDS = 10.0
_BURST = 64
_PAUSE = 0.02
"""After each burst of events the reader rests this long: 3200 events/s is the most that a guest can make us look at."""

# qemu.qmp logs every message and every disconnect; what matters of that, our callers say better.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

_STATES: Mapping[str, RunState] = {
    "prelaunch": "prelaunch", "inmigrate": "prelaunch", "running": "running", "paused": "paused", "save-vm": "paused",
    "restore-vm": "paused", "suspended": "paused", "debug": "paused", "watchdog": "paused", "postmigrate": "paused",
    "finish-migrate": "paused", "colo": "paused", "shutdown": "shutdown", "guest-panicked": "panicked",
    "internal-error": "internal-error", "io-error": "io-error",
}  # fmt: skip
"""QEMU's RunState (qapi/run-state.json) in our words; a word we do not know counts as paused."""


class Event(NamedTuple):
    """Something QEMU told without being asked. `detail` is the reason of a SHUTDOWN or STOP, the action of a panic, or ""."""

    name: str
    detail: str = ""


WATCHED = frozenset(
    {"SHUTDOWN", "RESET", "STOP", "RESUME", "POWERDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED", "BLOCK_IO_ERROR"}
)
"""The events that can change what a machine is doing; all others are dropped as they come."""


class _Events(EventListener):
    """Hands events on at once and keeps none: the library's own listener remembers every event for ever."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        super().__init__()
        self._on_event = on_event
        self._count = 0

    async def put(self, event: Message) -> None:
        """Called by the reader for each event, so waiting here is back-pressure on QEMU."""
        self._count += 1
        if self._count % _BURST == 0:
            await asyncio.sleep(_PAUSE)
        parsed = parse_event(event)
        if parsed is not None:
            self._on_event(parsed)


def parse_event(message: Mapping[str, Any]) -> Event | None:
    """A watched event from QMP's own form; None for others and for what is no event at all."""
    name, data = message.get("event"), message.get("data")
    if not isinstance(name, str) or name not in WATCHED:
        return None
    fields = data if isinstance(data, dict) else {}
    detail = fields.get("reason", fields.get("action", ""))
    return Event(name, detail[:64] if isinstance(detail, str) else "")


class Monitor:
    """One QMP session. Verbs raise Unavailable when QEMU refuses, OutcomeUnknown when it does not answer or the session ends.

    No verb starts a program: `exec:` is refused here, for under QEMU's sandbox it kills the machine.
    """

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    @classmethod
    async def connect(cls, connection: socket.socket, on_event: Callable[[Event], None], *, timeout: float) -> Monitor:
        """Take over a connected unix socket: greeting and capabilities. Raises NotStarted after `timeout` seconds or for nonsense.

        Descriptors that the other side sends along are never received: asyncio reads with recv(2), not recvmsg(2).
        """
        client = QMPClient(readbuflen=_LONGEST_MESSAGE)
        client.events.names = {""}  # the default listener takes nothing
        client.register_listener(_Events(on_event))
        try:
            async with asyncio.timeout(timeout):
                await client.connect(connection)
        except (QMPError, OSError, TimeoutError, ValueError) as error:
            connection.close()
            raise NotStarted("QEMU's monitor does not answer", _reason(error)) from None
        except BaseException:
            connection.close()
            raise
        return cls(client)

    async def wait_closed(self) -> None:
        """Returns when the session has ended, whoever ended it."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    async def close(self) -> None:
        """End the session; QEMU goes on."""
        with contextlib.suppress(Exception):  # the session may have failed in any way its peer likes
            async with asyncio.timeout(2):
                await self._client.disconnect()

    async def query_status(self) -> RunState:
        """What the guest is doing."""
        answer = await self._call("query-status")
        status = answer.get("status") if isinstance(answer, dict) else None
        return _STATES.get(status, "paused") if isinstance(status, str) else "paused"

    async def query_uuid(self) -> str:
        """The machine's UUID as QEMU was given it; "" when the answer is nonsense."""
        answer = await self._call("query-uuid")
        value = answer.get("UUID") if isinstance(answer, dict) else None
        return value[:64] if isinstance(value, str) else ""

    async def cont(self) -> None:
        """Let the virtual CPUs run."""
        await self._call("cont")

    async def stop(self) -> None:
        """Stop the virtual CPUs."""
        await self._call("stop")

    async def system_reset(self) -> None:
        """Press the reset button."""
        await self._call("system_reset")

    async def system_powerdown(self) -> None:
        """Press the power button."""
        await self._call("system_powerdown")

    async def quit(self) -> None:
        """End QEMU in order: disks are flushed. The end of the session is the answer too."""
        with contextlib.suppress(OutcomeUnknown):
            await self._call("quit")

    async def add_fd(self, descriptor: int, number: int) -> None:
        """Give QEMU a duplicate of a descriptor, for `/dev/fdset/<number>`; ours stays open."""
        await self._call_with(descriptor, "add-fd", {"fdset-id": number})

    async def get_fd(self, descriptor: int, name: str) -> None:
        """Give QEMU a duplicate of a descriptor under a name that the next command uses up; ours stays open."""
        await self._call_with(descriptor, "getfd", {"fdname": name})

    async def _call_with(self, descriptor: int, command: str, arguments: Mapping[str, Any]) -> None:
        try:
            self._client.send_fd_scm(descriptor)
        except (QMPError, OSError) as error:
            raise OutcomeUnknown(f"QEMU was not given a descriptor for {command}", _reason(error)) from None
        await self._call(command, arguments)

    async def _call(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        refuse_programs(arguments or {})
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise Unavailable(f"QEMU refused {command}", str(error)[:500]) from None
        except (QMPError, OSError, TimeoutError) as error:
            raise OutcomeUnknown(f"QEMU did not answer {command}", _reason(error)) from None


def refuse_programs(arguments: Mapping[str, Any]) -> None:
    """Raises RoostError for an argument by which QEMU would start a program."""
    for value in arguments.values():
        if isinstance(value, str) and value.lstrip().lower().startswith("exec:"):
            raise RoostError(
                "QEMU was not asked to start a program",
                "its sandbox would kill the machine for it",
                "pass a descriptor",
            )


def _reason(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error)[:500] or type(error).__name__
