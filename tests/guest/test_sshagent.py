"""The Agent protocol over SSH, against a real SSH server in this process that runs commands on this host."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest

from roost.errors import CommandFailed, Forbidden, NotFound, NotStarted
from roost.hypervisor import sshagent
from roost.hypervisor.base import Chunk, Command
from roost.hypervisor.sshagent import SshAgent


async def serve_command(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """What sshd does: the shell runs the line."""
    local = await asyncio.create_subprocess_shell(
        process.command or "echo login shell",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await process.redirect(stdin=local.stdin)
    assert local.stdout is not None
    assert local.stderr is not None
    # Not by `redirect`: the exit would overtake what it has not read yet.
    await asyncio.gather(_pour(local.stdout, process.stdout), _pour(local.stderr, process.stderr))
    process.exit(await local.wait())
    await process.wait_closed()


async def _pour(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(1 << 16):
        target.write(data)
        await target.drain()


@contextlib.asynccontextmanager
async def server(directory: Path, *, port: int = 0) -> AsyncIterator[int]:
    """A server with a host key of its own, that lets in whoever has the key `directory/id`."""
    key = directory / "id"
    if not key.exists():
        user = asyncssh.generate_private_key("ssh-ed25519")
        key.write_bytes(user.export_private_key())
        key.chmod(0o600)
        (directory / "authorized").write_bytes(user.export_public_key())
    async with asyncssh.listen(
        "127.0.0.1", port, server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        authorized_client_keys=str(directory / "authorized"), process_factory=serve_command, encoding=None,
    ) as listener:  # fmt: skip
        yield listener.get_port()


async def connect(directory: Path, port: int) -> SshAgent:
    """The client, which remembers the host key in `directory/known`."""
    return await sshagent.connect("127.0.0.1", port, user="tester", key=directory / "id", host_key=directory / "known")


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[SshAgent]:
    """A connected client."""
    async with server(tmp_path) as port:
        client = await connect(tmp_path, port)
        yield client
        await client.close()


async def test_output_error_and_code_are_the_commands(agent: SshAgent) -> None:
    session = await agent.execute(Command(["sh", "-c", "echo 'a  b'; echo err >&2; exit 7"]))
    chunks = [chunk async for chunk in session.output()]
    assert sorted(chunks[:-1]) == [Chunk("stderr", b"err\n"), Chunk("stdout", b"a  b\n")]
    assert chunks[-1] == Chunk("exit", code=7)


async def test_directory_environment_and_input_reach_the_command(agent: SshAgent) -> None:
    session = await agent.execute(
        Command(["sh", "-c", 'pwd; echo "$A"; cat'], env={"A": "x 'y"}, cwd="/usr", stdin=True)
    )
    await session.write(b"typed")
    await session.end_input()
    assert b"".join([chunk.data async for chunk in session.output()]) == b"/usr\nx 'y\ntyped"


async def test_files_go_both_ways(agent: SshAgent, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(bytes(range(256)) * 1000)
    await agent.send_archive(str(tmp_path / "out"), agent.receive_archive(str(tmp_path / "tree")))
    assert (tmp_path / "out" / "tree" / "file").read_bytes() == bytes(range(256)) * 1000


async def test_a_missing_path_is_not_found(agent: SshAgent) -> None:
    with pytest.raises(NotFound):
        [piece async for piece in agent.receive_archive("/no/such/path")]


async def test_what_is_no_archive_fails(agent: SshAgent, tmp_path: Path) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"no archive" * 1000

    with pytest.raises(CommandFailed):
        await agent.send_archive(str(tmp_path / "out"), stream())


async def test_another_host_key_than_the_first_is_refused(tmp_path: Path) -> None:
    async with server(tmp_path) as port:
        await (await connect(tmp_path, port)).close()
    async with server(tmp_path) as port:
        with pytest.raises(Forbidden, match="another host key"):
            await connect(tmp_path, port)


async def test_nobody_there_is_not_started(tmp_path: Path) -> None:
    async with server(tmp_path) as port:
        pass
    with pytest.raises(NotStarted):
        await connect(tmp_path, port)
