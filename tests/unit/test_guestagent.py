"""qemu-guest-agent: what a good one does, and that a hostile one is held to its limits."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from roost.errors import CommandFailed, Invalid, NotStarted, OutcomeUnknown
from roost.hypervisor import guestagent, hostkeys
from roost.hypervisor.base import Chunk, Command, HostKey, Setup
from roost.hypervisor.guestagent import GuestAgent
from roost.hypervisor.setupscript import seal_script, setup_script, within

Answer = Callable[[dict[str, Any]], bytes]


def good(request: dict[str, Any]) -> bytes:
    """An agent in which every command has ended at once."""
    answers: dict[str, Any] = {
        "guest-ping": {},
        "guest-fsfreeze-freeze": 2,
        "guest-fsfreeze-thaw": 2,
        "guest-exec": {"pid": 7},
        "guest-exec-status": {
            "exited": True,
            "exitcode": 5,
            "out-data": b64encode(b"out").decode(),
            "err-data": "ZXJy",
            "out-truncated": True,
        },
    }
    return json.dumps({"return": answers[request["execute"]]}).encode() + b"\n"


@asynccontextmanager
async def talking(answer: Answer, *, greeting: bytes = b""):  # type: ignore[no-untyped-def]
    """A client of a fake agent, synchronised; `greeting` is what was left in the channel."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=theirs)
    client = GuestAgent(*await asyncio.open_connection(sock=ours, limit=1 << 16))

    async def serve() -> None:
        writer.write(greeting)
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(answer(request))

    serving = asyncio.ensure_future(serve())
    try:
        await asyncio.wait_for(client.synchronise(), 5)
        yield client
    finally:
        serving.cancel()
        await client.close()
        writer.close()


async def test_output_and_code_come_when_the_command_has_ended_and_a_cut_is_told() -> None:
    async with talking(good) as client:
        session = await client.execute(Command(["make"]))
        assert [chunk async for chunk in session.output()] == [
            Chunk("stdout", b"out"), Chunk("stderr", b"err"),
            Chunk("stderr", b"roost: qemu-guest-agent cut the output at 16 MiB\n"), Chunk("exit", code=5),
        ]  # fmt: skip


async def test_what_an_earlier_client_left_is_skipped() -> None:
    async with talking(good, greeting=b'{"return": 1}\n\xff{"return": 99}\ngarbage\n') as client:
        await client.ping(5)


async def test_one_that_another_agent_was_quicker_than_is_heard_out_before_it_is_left(tmp_path: Path) -> None:
    asked, left, answer = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = json.loads((await reader.readline()).lstrip(b"\xff"))["arguments"]["id"]
        asked.set()
        await answer.wait()
        assert not reader.at_eof()
        writer.write(b"\xff" + json.dumps({"return": number}).encode() + b"\n")
        assert await reader.read() == b""
        left.set()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "socket"):
        connecting = asyncio.ensure_future(guestagent.connect(tmp_path / "socket"))
        await asked.wait()
        connecting.cancel()
        await asyncio.wait([connecting])
        answer.set()
        await asyncio.wait_for(left.wait(), 5)


async def test_input_is_collected_until_its_end() -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> bytes:
        seen.append(request)
        return good(request)

    async with talking(answer) as client:
        session = await client.execute(Command(["cat"], stdin=True))
        await session.write(b"some ")
        await session.write(b"input")
        await session.end_input()
        assert seen[0]["arguments"]["input-data"] == b64encode(b"some input").decode()


async def test_too_much_input_is_refused() -> None:
    async with talking(good) as client:
        session = await client.execute(Command(["cat"], stdin=True))
        with pytest.raises(Invalid):
            await session.write(bytes(guestagent.MAX_INPUT + 1))


async def test_a_terminal_is_refused_with_a_way_out() -> None:
    async with talking(good) as client:
        with pytest.raises(NotStarted, match="roost console"):
            await client.execute(Command(["sh"], terminal=(24, 80)))


async def test_a_refusal_is_an_error_of_the_command_not_of_the_connection() -> None:
    refusal = b'{"error": {"class": "GenericError", "desc": "no such \\u001b[1m file"}}\n'
    async with talking(lambda request: refusal if request["execute"] == "guest-exec" else good(request)) as client:
        with pytest.raises(NotStarted, match=r"no such \?\[1m file"):
            await client.execute(Command(["nothing"]))
        await client.ping(5)


@pytest.mark.fault(65)
@pytest.mark.parametrize(
    "answer",
    [
        b"x" * 200_000,
        b'{"return": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n",
        b'{"return": {"pid": "seven"}}\n',
        b'{"return": {}}\n',
        b"\xff\xfe\x00\n",
        b"not json\n",
    ],
    ids=["huge", "deep", "wrong type", "missing field", "not text", "not JSON"],
)
async def test_a_hostile_answer_ends_the_connection(answer: bytes) -> None:
    async with talking(lambda request: answer) as client:
        with pytest.raises(OutcomeUnknown):
            await client.execute(Command(["true"]))
        with pytest.raises(NotStarted):
            await client.ping(1)


@pytest.mark.fault(65)
async def test_a_slow_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestagent, "_ANSWER_SECONDS", 0.05)
    async with talking(lambda request: b'{"return":') as client:
        with pytest.raises(OutcomeUnknown, match="no whole answer"):
            await client.execute(Command(["true"]))


@pytest.mark.fault(65)
async def test_an_answer_to_another_number_is_not_the_synchronisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestagent, "MAX_JUNK", 1000)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    client = GuestAgent(*await asyncio.open_connection(sock=ours))
    theirs.sendall(b'\xff{"return": 1}\n' * 100)
    with pytest.raises(NotStarted, match="something else came"):
        await asyncio.wait_for(client.synchronise(), 5)
    await client.close()
    theirs.close()


def test_directory_and_user_are_put_in_front() -> None:
    argv = within(Command(["ls", "-l"], cwd="/a b", user="bob"), switch_user=("runuser", "-u"))
    assert argv == ["runuser", "-u", "bob", "--", "/bin/sh", "-c", 'cd "$0" && exec "$@"', "/a b", "ls", "-l"]


def recording(asked: list[dict[str, Any]], refused: str = "") -> Answer:
    """A good agent that notes what it was asked, and refuses one verb; its commands end well."""

    def answer(request: dict[str, Any]) -> bytes:
        asked.append(request)
        if request["execute"] == refused:
            return b'{"error": {"desc": "not allowed"}}\n'
        return good(request).replace(b'"exitcode": 5', b'"exitcode": 0')

    return answer


async def test_keys_reach_the_guest_as_input_and_never_as_arguments() -> None:
    asked: list[dict[str, Any]] = []
    async with talking(recording(asked)) as client:
        await client.setup(
            Setup("web", "1" * 32, entropy=b"\xee" * 32, host_keys=[HostKey("ed25519", "SECRET", "ssh-x A")])
        )
        await client.seal()
    begun = [request["arguments"] for request in asked if request["execute"] == "guest-exec"]
    assert [(entry["path"], entry["arg"]) for entry in begun] == [("/bin/sh", [])] * 2
    script = b64decode(begun[0]["input-data"]).decode()
    assert "SECRET" in script
    assert "ee" * 32 in script


async def test_a_freeze_is_thawed_once_and_one_that_failed_at_once() -> None:
    asked: list[dict[str, Any]] = []
    async with talking(recording(asked)) as client:
        await client.freeze()
        await client.thaw()
    assert [request["execute"] for request in asked] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    asked.clear()
    async with talking(recording(asked, "guest-fsfreeze-freeze")) as client:
        with pytest.raises(CommandFailed, match="not allowed"):
            await client.freeze()
    assert [request["execute"] for request in asked] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


async def test_a_guest_does_not_stay_frozen_for_longer_than_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestagent, "_FROZEN_SECONDS", 0.01)
    asked: list[dict[str, Any]] = []
    async with talking(recording(asked)) as client:
        await client.freeze()
        await asyncio.sleep(0.05)
        assert [request["execute"] for request in asked] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


async def test_a_frozen_guest_is_thawed_before_it_is_let_go() -> None:
    asked: list[dict[str, Any]] = []
    async with talking(recording(asked)) as client:
        await client.freeze()
        await client.close()
    assert [request["execute"] for request in asked] == ["guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]


@pytest.mark.parametrize("script", [setup_script(Setup("web", "1" * 32, host_keys=hostkeys.make())), seal_script()])
def test_the_scripts_are_shell(script: str) -> None:
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def test_host_keys_are_openssh_keys_and_never_the_same() -> None:
    keys = hostkeys.make()
    assert [key.kind for key in keys] == ["ed25519", "ecdsa"]
    for key in keys:
        public = serialization.load_ssh_private_key(key.private.encode(), None).public_key()
        line = public.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        assert line.decode() == key.public
    assert {key.public for key in keys}.isdisjoint(key.public for key in hostkeys.make())


def test_no_word_of_the_setup_reaches_the_shell_unquoted() -> None:
    evil = "x'; touch /evil; '"
    script = setup_script(Setup(evil, evil, [evil], [(evil, [evil], True)]))
    assert "touch /evil" not in script.replace("'x'\"'\"'; touch /evil; '\"'\"''", "").replace(
        "'x'\"'\"'; touch /evil; '\"'\"' ALL=(ALL) NOPASSWD:ALL'", ""
    )
