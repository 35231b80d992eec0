"""The only door to QMP: typed verbs and events of one QEMU, whose every answer is taken as an attacker's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from roost.errors import NotStarted, OutcomeUnknown, RoostError, Unavailable
from roost.hypervisor.base import RunState

_LONGEST_MESSAGE = 4 << 20
"""Bytes of one line that QEMU may send us; the longest answer to a verb here (16 volumes on long chains) is under 1 MiB."""
_TEXT, _NAME, _MOST, _DEEPEST = 300, 16 << 10, 512, 64
"""Characters of a string and of a file's name, entries of a list and files of a chain that are looked at."""
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
    """Something QEMU told without being asked. `detail` is the reason of a SHUTDOWN or STOP, the action of a panic, the status of a
    MIGRATION or of a job, or ""; `subject` the job's name."""

    name: str
    detail: str = ""
    subject: str = ""


CHANGES = frozenset(
    {"SHUTDOWN", "RESET", "STOP", "RESUME", "POWERDOWN", "SUSPEND", "WAKEUP", "GUEST_PANICKED", "BLOCK_IO_ERROR"}
)
"""The events that can change what a machine is doing."""
PROGRESS = frozenset({"MIGRATION", "JOB_STATUS_CHANGE", "DEVICE_DELETED"})
"""The events that tell how far something has come that we asked for. All that are in neither set are dropped as they come."""


class Job(NamedTuple):
    """A job of QEMU's block layer. `status` as in qapi/job.json; `error` is why it failed, or ""."""

    name: str
    status: str
    done: int = 0
    total: int = 0
    error: str = ""


class Node(NamedTuple):
    """A node of QEMU's block layer: `file` is the name by which it was opened, or "", `size` what it holds, in bytes."""

    name: str
    driver: str
    file: str
    size: int = 0


class Drive(NamedTuple):
    """What a disk of the machine writes to: its id, the node on top, whether that takes no writes, and the files (`Node.file`) from
    the top one to the lowest."""

    id: str
    node: str
    read_only: bool
    chain: tuple[str, ...] = ()


class Descriptor(NamedTuple):
    """A descriptor that QEMU has in a set, and what we said of it."""

    number: int
    opaque: str


class Migration(NamedTuple):
    """How far saving or loading has come ("completed", "failed", ...), why it failed, and what stands in its way."""

    status: str
    error: str = ""
    blocked: tuple[str, ...] = ()


class NoSuchDevice(Unavailable):
    """QEMU knows no device of that name."""


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
    if not isinstance(name, str) or name not in CHANGES | PROGRESS:
        return None
    fields = _fields(data)
    detail = next((_text(fields, key) for key in ("reason", "action", "status") if key in fields), "")
    return Event(name, detail, _text(fields, "device" if name == "DEVICE_DELETED" else "id"))


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

    async def is_saved(self) -> bool:
        """Whether the guest stands still because it was saved: its disks do nothing until `cont`, and it can not be saved again."""
        return _text(_fields(await self._call("query-status")), "status") == "postmigrate"

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

    async def add_fd(self, descriptor: int, number: int, opaque: str = "") -> None:
        """Give QEMU a duplicate of a descriptor, for `/dev/fdset/<number>`; ours stays open."""
        await self._call_with(descriptor, "add-fd", {"fdset-id": number, "opaque": opaque})

    async def get_fd(self, descriptor: int, name: str) -> None:
        """Give QEMU a duplicate of a descriptor under a name that the next command uses up; ours stays open."""
        await self._call_with(descriptor, "getfd", {"fdname": name})

    async def set_capabilities(self, *names: str) -> None:
        """Switch capabilities of migration on."""
        await self._call(
            "migrate-set-capabilities", {"capabilities": [{"capability": name, "state": True} for name in names]}
        )

    async def query_migrate(self) -> Migration:
        """How far saving or loading has come."""
        fields = _fields(await self._call("query-migrate"))
        reasons = fields.get("blocked-reasons")
        blocked = [reason[:_TEXT] for reason in _items(reasons) if isinstance(reason, str)]
        return Migration(_text(fields, "status"), _text(fields, "error-desc"), tuple(blocked[:8]))

    async def migrate(self, descriptor: int) -> None:
        """Begin to save into a descriptor; ours stays open. MIGRATION tells the end."""
        await self.get_fd(descriptor, "saved")
        await self._call("migrate", {"uri": "fd:saved"})

    async def migrate_incoming(self, descriptor: int) -> None:
        """Begin to load from a descriptor; ours stays open. MIGRATION tells the end, or QEMU ends."""
        await self.get_fd(descriptor, "saved")
        await self._call("migrate-incoming", {"uri": "fd:saved"})

    async def migrate_cancel(self) -> None:
        """Give saving up; nothing when none is under way."""
        await self._call("migrate_cancel")

    async def set_link(self, name: str, *, up: bool) -> None:
        """Plug a network card in or out. Raises NoSuchDevice."""
        await self._call("set_link", {"name": name, "up": up})

    async def query_cards(self) -> Mapping[str, str]:
        """The MAC addresses of the network cards, by their names. A guest may have given its card another."""
        answer = map(_fields, _items(await self._call("query-rx-filter")))
        return {_text(card, "name"): _text(card, "main-mac") for card in answer}

    async def add_tap(self, tap: int, name: str) -> None:
        """Make a tap, by its descriptor, what cards can be plugged into, called `name`. Ours stays open."""
        await self.get_fd(tap, "tap")
        await self._call("netdev_add", {"type": "tap", "id": name, "fd": "tap"})

    async def remove_network(self, name: str) -> None:
        """Close what a card was plugged into. Raises NoSuchDevice."""
        await self._call("netdev_del", {"id": name})

    async def add_device(self, device: Mapping[str, Any]) -> None:
        """Plug in a device."""
        await self._call("device_add", device)

    async def remove_device(self, name: str) -> None:
        """Ask the guest to let go of a device: DEVICE_DELETED tells that it did. Raises NoSuchDevice."""
        await self._call("device_del", {"id": name})

    async def plug_in(self, hub: int, connection: int, name: str) -> None:
        """Connect a hub of network cards, by what is called `name`, with the machine's network, a connected stream socket; ours stays open."""
        await self.get_fd(connection, "network")
        # Not "stream", which looks for the descriptor in a thread that knows no monitor; both speak the same on the wire.
        await self._call("netdev_add", {"type": "socket", "id": name, "fd": "network"})
        await self._call("netdev_add", {"type": "hubport", "id": f"{name}-port", "hubid": hub, "netdev": name})

    async def query_drives(self) -> tuple[Drive, ...]:
        """The machine's disks that have a medium."""
        drives = (_drive(_fields(entry)) for entry in _items(await self._call("query-block")))
        return tuple(drive for drive in drives if drive is not None)

    async def query_nodes(self) -> tuple[Node, ...]:
        """All named nodes."""
        answer = map(_fields, _items(await self._call("query-named-block-nodes", {"flat": True})))
        return tuple(map(_node, answer))

    async def blockdev_add(self, options: Mapping[str, Any]) -> None:
        """Make a node."""
        await self._call("blockdev-add", options)

    async def blockdev_reopen(self, options: Mapping[str, Any]) -> None:
        """Give a node other options: all that it was made with must be told again."""
        await self._call("blockdev-reopen", {"options": [options]})

    async def blockdev_del(self, node: str) -> None:
        """Remove a node that nothing uses."""
        await self._call("blockdev-del", {"node-name": node})

    async def blockdev_snapshot(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Cover nodes (first of each pair) by other ones, all at one instant or none."""
        actions = [{"type": "blockdev-snapshot", "data": {"node": node, "overlay": overlay}} for node, overlay in pairs]
        await self._call("transaction", {"actions": actions})

    async def block_stream(self, job: str, node: str, base: str, name: str = "") -> None:
        """Begin a job that copies into `node` what is between it and `base`, which the header then calls `name` ("": as QEMU does); it waits to be
        finalised and dismissed."""
        arguments = {"job-id": job, "device": node, "base-node": base, "auto-finalize": False, "auto-dismiss": False}
        await self._call("block-stream", {**arguments, "backing-file": name} if name else arguments)

    async def blockdev_mirror(self, job: str, node: str, target: str) -> None:
        """Begin a job that copies all of `node`, and what is written to it meanwhile, to `target`, which is as large. Once it is "ready"
        `job_complete` lets `target` take the other's place; it waits to be dismissed."""
        arguments = {"job-id": job, "device": node, "target": target, "sync": "full", "auto-dismiss": False}
        await self._call("blockdev-mirror", arguments)

    async def job_complete(self, job: str) -> None:
        """Let a mirror that is "ready" take effect."""
        await self._call("job-complete", {"id": job})

    async def set_throttle(self, device: str, throttle: Mapping[str, int]) -> None:
        """Bound what a disk does: the fields of BlockIOThrottle (qapi/block-core.json)."""
        await self._call("block_set_io_throttle", {"id": device, **throttle})

    async def add_secret(self, name: str, secret: bytes) -> None:
        """Tell QEMU a secret that nodes are opened with, by its name. Raises what `_call` raises, which never holds it."""
        data = {"qom-type": "secret", "id": name, "format": "base64", "data": base64.b64encode(secret).decode()}
        await self._call("object-add", data)

    async def query_objects(self) -> tuple[str, ...]:
        """The names of secrets and of whatever else is not a device."""
        answer = map(_fields, _items(await self._call("qom-list", {"path": "/objects"})))
        return tuple(_text(entry, "name") for entry in answer)

    async def remove_object(self, name: str) -> None:
        """Forget a secret."""
        await self._call("object-del", {"id": name})

    async def screendump(self, path: str) -> None:
        """Write a PNG of what the screen shows to `path`."""
        await self._call("screendump", {"filename": path, "format": "png"})

    async def block_resize(self, node: str, size: int) -> None:
        """Change a disk's size, in bytes."""
        await self._call("block_resize", {"node-name": node, "size": size})

    async def query_jobs(self) -> tuple[Job, ...]:
        """All jobs of the block layer."""
        return tuple(_job(_fields(entry)) for entry in _items(await self._call("query-jobs")))

    async def job_finalize(self, job: str) -> None:
        """Let a job that is pending take effect."""
        await self._call("job-finalize", {"id": job})

    async def job_cancel(self, job: str) -> None:
        """Give a job up."""
        await self._call("job-cancel", {"id": job})

    async def job_dismiss(self, job: str) -> None:
        """Forget a concluded job."""
        await self._call("job-dismiss", {"id": job})

    async def query_fdsets(self) -> Mapping[int, tuple[Descriptor, ...]]:
        """QEMU's descriptors by the number of their set."""
        sets = map(_fields, _items(await self._call("query-fdsets")))
        return {_number(entry, "fdset-id"): tuple(map(_descriptor, _items(entry.get("fds")))) for entry in sets}

    async def remove_fd(self, number: int, descriptor: int | None = None) -> None:
        """Let QEMU close one of its descriptors in a set, or all; those that nodes use stay."""
        one = {} if descriptor is None else {"fd": descriptor}
        await self._call("remove-fd", {"fdset-id": number, **one})

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
            refusal = NoSuchDevice if error.error_class == "DeviceNotFound" else Unavailable
            raise refusal(f"QEMU refused {command}", str(error)[:500]) from None
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


def _fields(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value[:_MOST] if isinstance(value, list) else []


def _text(fields: Mapping[str, Any], name: str, longest: int = _TEXT) -> str:
    value = fields.get(name)
    return value[:longest] if isinstance(value, str) else ""


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _job(fields: Mapping[str, Any]) -> Job:
    done, total = _number(fields, "current-progress"), _number(fields, "total-progress")
    return Job(_text(fields, "id"), _text(fields, "status"), done, total, _text(fields, "error"))


def _drive(fields: Mapping[str, Any]) -> Drive | None:
    """A disk by the id that we gave its device: QEMU tells that alone, or its path, /machine/peripheral/ID/virtio-backend."""
    place = _text(fields, "qdev").split("/")
    inserted = _fields(fields.get("inserted"))
    if not inserted or (len(place) > 1 and "peripheral" not in place[:-1]):
        return None
    name = place[0] if len(place) == 1 else place[place.index("peripheral") + 1]
    return Drive(name, _text(inserted, "node-name"), inserted.get("ro") is True, tuple(_chain(inserted.get("image"))))


def _node(fields: Mapping[str, Any]) -> Node:
    size = _number(_fields(fields.get("image")), "virtual-size")
    return Node(_text(fields, "node-name"), _text(fields, "drv"), _text(fields, "file", _NAME), size)


def _chain(image: Any) -> Iterator[str]:
    for _ in range(_DEEPEST):
        if not isinstance(image, dict):
            return
        yield _text(image, "filename", _NAME)
        image = image.get("backing-image")


def _descriptor(value: Any) -> Descriptor:
    return Descriptor(_number(_fields(value), "fd"), _text(_fields(value), "opaque", _NAME))


def _reason(error: BaseException) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error)[:500] or type(error).__name__
