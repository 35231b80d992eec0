"""The monitor against a QEMU that is honest, slow, or an attacker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from roost.errors import NotStarted, OutcomeUnknown, RoostError, Unavailable
from roost.hypervisor import monitor
from roost.hypervisor.monitor import Drive, Event, Monitor, NoSuchDevice

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}\r\n'
)
Answer = Callable[[dict[str, Any]], bytes]


class Peer:
    """The other end: greets, then answers each command with what `answer` makes of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
        self.commands: list[dict[str, Any]] = []
        self.writer = writer
        self._reader = reader
        self._answer = answer

    async def serve(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._serve()

    async def _serve(self) -> None:
        self.writer.write(GREETING)
        text = ""
        while data := await self._reader.read(65536):
            text += data.decode()
            while text := text.lstrip():
                command, end = json.JSONDecoder().raw_decode(text)
                text = text[end:]
                self.commands.append(command)
                honest = command["execute"] == "qmp_capabilities"
                self.writer.write(reply(command, {}) if honest else self._answer(command))


def reply(command: dict[str, Any], value: Any) -> bytes:
    return (
        json.dumps({"return": value, "id": command["id"]} if "id" in command else {"return": value}).encode() + b"\r\n"
    )


@contextlib.asynccontextmanager
async def session(answer: Answer) -> AsyncIterator[tuple[Monitor, Peer, list[Event]]]:
    """A monitor connected to a peer, and the events it reports."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    peer, events = Peer(reader, writer, answer), list[Event]()
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(peer.serve())
        connected = await Monitor.connect(ours, events.append, timeout=5)
        try:
            yield connected, peer, events
        finally:
            await connected.close()
            serving.cancel()
            writer.close()


async def settled(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():  # noqa: ASYNC110 - the code under test has nothing to wait on
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("status", "state"),
    [("running", "running"), ("guest-panicked", "panicked"), ("io-error", "io-error"), ("new", "paused")],
)
async def test_states_are_translated(status: str, state: str) -> None:
    async with session(lambda command: reply(command, {"status": status})) as (qmp, _, _):
        assert await qmp.query_status() == state


async def test_verbs_are_the_commands_of_qmp() -> None:
    async with session(lambda command: reply(command, {})) as (qmp, peer, _):
        for verb in (qmp.cont, qmp.stop, qmp.system_reset, qmp.system_powerdown):
            await verb()
        assert [command["execute"] for command in peer.commands[1:]] == [
            "cont",
            "stop",
            "system_reset",
            "system_powerdown",
        ]


async def test_a_refusal_says_what_qemu_said() -> None:
    def refuse(command: dict[str, Any]) -> bytes:
        error = {"class": "GenericError", "desc": "Resetting the Virtual Machine is required"}
        return json.dumps({"error": error, "id": command["id"]}).encode() + b"\n"

    async with session(refuse) as (qmp, _, _):
        with pytest.raises(Unavailable, match="Resetting"):
            await qmp.cont()


DEEP: dict[str, Any] = {"filename": "/dev/fdset/1"}
for _ in range(70):
    DEEP = {"filename": "x", "backing-image": DEEP}


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    "value",
    [
        None, 7, [], {}, {"status": 7}, {"UUID": {}}, "x" * 1000, [7, None, {"qdev": 1, "inserted": []}], [{"fds": 7}],
        [{"qdev": "/machine/peripheral", "inserted": {"image": 7}}], {"blocked-reasons": {"a": 1}},
    ],
    ids=repr,
)  # fmt: skip
async def test_nonsense_for_an_answer_is_no_exception(value: object) -> None:
    async with session(lambda command: reply(command, value)) as (qmp, _, _):
        assert await qmp.query_status() == "paused"
        assert await qmp.query_uuid() == ""
        assert not await qmp.is_saved()
        assert await qmp.query_drives() == ()
        assert (await qmp.query_migrate()).blocked == ()
        for answer in (await qmp.query_nodes(), await qmp.query_jobs(), await qmp.query_fdsets()):
            assert len(answer) <= 3


@pytest.mark.fault(65)
async def test_lists_and_chains_without_end_are_cut() -> None:
    drive = {"qdev": "/machine/peripheral/disk0/virtio-backend", "inserted": {"node-name": "n", "image": DEEP}}
    plain = {**drive, "inserted": {"node-name": "n"}}
    async with session(lambda command: reply(command, [drive] + [plain] * 600)) as (qmp, _, _):
        drives = await qmp.query_drives()
        assert len(drives) == 512
        assert len(drives[0].chain) == 64


async def test_disks_are_told_by_the_id_of_their_device() -> None:
    image = {"filename": "top", "backing-image": {"filename": "base"}}
    drive = {
        "qdev": "/machine/peripheral/disk0/virtio-backend",
        "inserted": {"node-name": "n1", "ro": False, "image": image},
    }
    async with session(lambda command: reply(command, [drive, {"device": "floppy"}])) as (qmp, _, _):
        assert await qmp.query_drives() == (Drive("disk0", "n1", False, ("top", "base")),)


async def test_disks_are_covered_all_at_once() -> None:
    async with session(lambda command: reply(command, {})) as (qmp, peer, _):
        await qmp.blockdev_snapshot([("disk0", "n1"), ("disk1", "n2")])
        await qmp.block_stream("j", "n1", "base")
        covering, streaming = (command["arguments"] for command in peer.commands[1:])
        assert [entry["data"] for entry in covering["actions"]] == [
            {"node": "disk0", "overlay": "n1"},
            {"node": "disk1", "overlay": "n2"},
        ]
        assert (streaming["auto-finalize"], streaming["auto-dismiss"]) == (False, False)


async def test_a_device_that_is_not_there_is_told_apart() -> None:
    def refuse(command: dict[str, Any]) -> bytes:
        error = {"class": "DeviceNotFound", "desc": "Device 'nic0' not found"}
        return json.dumps({"error": error, "id": command["id"]}).encode() + b"\n"

    async with session(refuse) as (qmp, _, _):
        with pytest.raises(NoSuchDevice):
            await qmp.set_link("nic0", up=True)


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    "junk", [b"x" * (3 << 20) + b"\n", b"[" * 200_000 + b"\n", b"\xff\xfe\n", b'{"return":\n', b"7\n"], ids=len
)
async def test_an_answer_beyond_all_bounds_ends_the_session(junk: bytes) -> None:
    async with session(lambda command: junk) as (qmp, _, _):
        with pytest.raises(OutcomeUnknown):
            await qmp.query_status()
        await asyncio.wait_for(qmp.wait_closed(), 2)


async def test_silence_ends_in_outcome_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_SECONDS", 0.02)
    async with session(lambda command: b"") as (qmp, _, _):
        with pytest.raises(OutcomeUnknown, match="in time"):
            await qmp.cont()


@pytest.mark.parametrize("greeting", [b"", b"hello\n", b"{}\n"])
async def test_what_does_not_greet_is_no_monitor(greeting: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(greeting)
        with pytest.raises(NotStarted):
            await Monitor.connect(ours, lambda event: None, timeout=0.05)


async def test_watched_events_are_told_and_all_others_dropped() -> None:
    async with session(lambda command: reply(command, {})) as (_, peer, events):
        peer.writer.write(
            b'{"event": "NIC_RX_FILTER_CHANGED", "timestamp": {}}\n{"event": "RESET", "data": {"reason": "guest-reset"}}\n'
        )
        peer.writer.write(b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}\n')
        await settled(lambda: len(events) == 2)
        assert events == [Event("RESET", "guest-reset"), Event("SHUTDOWN", "guest-shutdown")]
        peer.writer.write(b'{"event": "MIGRATION", "data": {"status": "completed"}}\n')
        peer.writer.write(b'{"event": "JOB_STATUS_CHANGE", "data": {"status": "pending", "id": "j"}}\n')
        await settled(lambda: len(events) == 4)
        assert events[2:] == [Event("MIGRATION", "completed"), Event("JOB_STATUS_CHANGE", "pending", "j")]


@pytest.mark.fault(65)
async def test_a_flood_of_events_is_slowed_and_none_is_kept() -> None:
    async with session(lambda command: reply(command, {})) as (qmp, peer, events):
        peer.writer.write(b'{"event": "RESET", "data": 7}\n' * 1000)
        await settled(lambda: len(events) >= 64)
        before = len(events)
        await asyncio.sleep(0)
        assert before < 1000
        assert qmp._client.events.history == ()


async def test_a_descriptor_travels_with_its_command() -> None:
    received: list[int] = []
    ours, theirs = socket.socketpair()
    client = Monitor.connect(ours, lambda event: None, timeout=5)

    def serve() -> None:
        theirs.sendall(GREETING)
        theirs.recv(4096)
        theirs.sendall(b'{"return": {}}\n')
        data, fds, _, _ = socket.recv_fds(theirs, 4096, 4)
        received.extend(fds)
        command = json.loads(data if data.strip() else theirs.recv(4096))
        theirs.sendall(reply(command, {"fd": 1, "fdset-id": 5}))

    async with asyncio.TaskGroup() as group:
        served = group.create_task(asyncio.to_thread(serve))
        qmp = await client
        with open(os.devnull, "rb") as file:
            await qmp.add_fd(file.fileno(), 5)
        await served
        await qmp.close()
    theirs.close()
    assert len(received) == 1
    os.close(received[0])


@pytest.mark.fault(63)
@pytest.mark.parametrize("uri", ["exec:id", " EXEC:id", "exec:cat > /x"])
async def test_no_verb_makes_qemu_start_a_program(uri: str) -> None:
    async with session(lambda command: reply(command, {})) as (qmp, peer, _):
        with pytest.raises(RoostError, match="sandbox"):
            await qmp._call("migrate", {"uri": uri})
        assert [command["execute"] for command in peer.commands] == ["qmp_capabilities"]
