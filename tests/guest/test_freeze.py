"""Freezing by the agent with sanitizers: a file system of the test's own holds still, and goes on whatever becomes of the host."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.errors import CommandFailed
from tests.guest.native import FREEZE_SECONDS, client, connected, start
from tests.needs import needs_program

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="file systems can be mounted by root only"),
    needs_program("mkfs.ext4", "fsfreeze", "mount"),
]  # fmt: skip


class FileSystem(NamedTuple):
    """A mounted file system, and a table of mounts with nothing else in it that may be frozen."""

    directory: Path
    table: Path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FileSystem]:
    """A small ext4 on a loop device, in a directory whose name the kernel has to escape."""
    image, directory, table = tmp_path / "disk", tmp_path / "a b", tmp_path / "mounts"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    directory.mkdir()
    if subprocess.run(["mount", "-o", "loop", image, directory], check=False, capture_output=True).returncode:
        pytest.skip("no loop devices here")
    line = next(text for text in Path("/proc/self/mounts").read_text().splitlines() if f"{tmp_path}/a\\040b" in text)
    table.write_text(f"proc /proc proc rw 0 0\n/dev/root /read-only ext4 ro 0 0\nno sense\n{line}\n{line}\n")
    try:
        yield FileSystem(directory, table)
    finally:
        subprocess.run(["fsfreeze", "-u", directory], check=False, capture_output=True)
        subprocess.run(["umount", directory], check=True)


class Writer(NamedTuple):
    """A process that writes a file."""

    process: asyncio.subprocess.Process

    async def waits(self) -> bool:
        """Whether it is not done after a moment."""
        try:
            await asyncio.wait_for(self.process.wait(), 0.3)
        except TimeoutError:
            return True
        return False


async def writer(disk: FileSystem) -> Writer:
    """Something in the guest that writes."""
    return Writer(await asyncio.create_subprocess_exec("sh", "-c", 'echo x >>"$0/file"', str(disk.directory)))


async def test_writers_wait_until_it_thaws_and_the_agent_answers_meanwhile(disk: FileSystem) -> None:
    async with connected(disk.table) as agent:
        await agent.freeze()
        blocked = await writer(disk)
        assert await blocked.waits()
        await agent.ping(5)
        with pytest.raises(CommandFailed, match="busy"):
            await agent.freeze()
        await agent.thaw()
        assert await asyncio.wait_for(blocked.process.wait(), 5) == 0
        await agent.thaw()


async def test_it_thaws_by_itself(disk: FileSystem) -> None:
    async with connected(disk.table) as agent:
        await agent.freeze()
        blocked = await writer(disk)
        assert await asyncio.wait_for(blocked.process.wait(), FREEZE_SECONDS + 5) == 0
        await agent.freeze()
        await agent.thaw()


async def test_it_thaws_when_another_host_comes(disk: FileSystem) -> None:
    native = start(disk.table)
    try:
        first = await client(native.port)
        await first.freeze()
        blocked = await writer(disk)
        second_end = socket.socket(fileno=os.dup(native.port.fileno()))
        first._receiver.cancel()
        second = await client(second_end)
        assert await asyncio.wait_for(blocked.process.wait(), 5) == 0
        await second.close()
    finally:
        native.process.kill()
        native.process.wait()
        native.port.close()


async def test_what_somebody_else_has_frozen_is_left_to_him(disk: FileSystem) -> None:
    async with connected(disk.table) as agent:
        await asyncio.to_thread(subprocess.run, ["fsfreeze", "-f", disk.directory], check=True)
        await agent.freeze()
        await agent.thaw()
        blocked = await writer(disk)
        assert await blocked.waits()
        await asyncio.to_thread(subprocess.run, ["fsfreeze", "-u", disk.directory], check=True)
        assert await asyncio.wait_for(blocked.process.wait(), 5) == 0


async def test_an_agent_that_was_not_told_what_it_may_freeze_freezes_nothing() -> None:
    async with connected() as agent:
        with pytest.raises(CommandFailed, match="not supported"):
            await agent.freeze()
