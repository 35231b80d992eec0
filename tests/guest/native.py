"""The guest agent as an ordinary process on a socket pair: all of it but the virtio port, without a machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import platform
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from roost import guest
from roost.hypervisor.agent import AgentSession, RoostAgent
from roost.hypervisor.base import Command

SOURCES = Path(__file__).parents[2] / "guest"
AGENT = (
    "agent.c", "frame.c", "session.c", "spawn.c", "freeze.c", "builtin.c", "archive.c", "extract.c", "setup.c", "identity.c",
    "link.c", "card.c", "seal.c", "files.c",
)  # fmt: skip
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
FREEZE_SECONDS = 1.0
"""After how long the agent with sanitizers thaws by itself."""


@functools.cache
def program() -> Path:
    """The agent for this host: with sanitizers where there is a gcc, else the one that is shipped."""
    if shutil.which("gcc") is None:
        return shipped()
    target = Path(tempfile.mkdtemp(prefix="roost-agent-")) / "agent"
    subprocess.run(
        [
            "gcc",
            "-std=gnu11",
            *SANITIZERS,
            f"-DFREEZE_MS={FREEZE_SECONDS * 1000:.0f}",
            "-o",
            target,
            *(SOURCES / name for name in AGENT),
        ],
        check=True,
        timeout=120,
    )
    return target


def shipped() -> Path:
    """The static agent of the wheel for this host."""
    return guest.binary(platform.machine(), "agent")


class Done(NamedTuple):
    """How a command in the guest ended."""

    code: int
    stdout: bytes
    stderr: bytes


class Native(NamedTuple):
    """The agent's process, and the host's end of its port."""

    process: subprocess.Popen[bytes]
    port: socket.socket


def start(mounts: Path | None = None) -> Native:
    """A new agent. It may freeze the file systems listed in `mounts` (like /proc/self/mounts), and without it does nothing to this host."""
    allowed = [str(mounts)] if mounts else []
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [program(), "--port-fd", str(theirs.fileno()), *allowed],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
    return Native(process, ours)


@contextlib.asynccontextmanager
async def connected(mounts: Path | None = None) -> AsyncIterator[RoostAgent]:
    """A new agent and its client. Fails when the agent does not end cleanly (a sanitizer found something)."""
    native = start(mounts)
    try:
        agent = await client(native.port)
        yield agent
        await agent.close()
        assert native.process.wait(10) == 0
    finally:
        native.port.close()
        native.process.kill()
        native.process.wait()


async def client(port: socket.socket) -> RoostAgent:
    """The client at the host's end of a port, after the greeting."""
    port.setblocking(False)
    agent = RoostAgent(*await asyncio.open_connection(sock=port, limit=1 << 18))
    async with asyncio.timeout(20):
        await agent.greet()
    return agent


async def run(
    agent: RoostAgent, *argv: str | bytes, stdin: bytes | None = None, timeout: float = 60, **fields: object
) -> Done:
    """Run a command to its end."""
    command = Command(argv, stdin=stdin is not None, **fields)  # type: ignore[arg-type]
    session = await asyncio.wait_for(agent.execute(command), timeout)
    async with asyncio.timeout(timeout), asyncio.TaskGroup() as group:
        if stdin is not None:
            group.create_task(_feed(session, stdin))
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "exit": []}
        code = -1
        async for chunk in session.output():
            output[chunk.stream].append(chunk.data)
            code = chunk.code
        return Done(code, b"".join(output["stdout"]), b"".join(output["stderr"]))


async def _feed(session: AgentSession, data: bytes) -> None:
    await session.write(data)
    await session.end_input()
