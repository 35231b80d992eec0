"""One tiny machine whose QEMU is taken over by test after test, and what its guest does with volumes."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from roost.hypervisor.base import Agent, Attachment, Guest, Launch, Medium
from roost.hypervisor.guest import QemuGuest
from roost.hypervisor.monitor import Monitor
from roost.model.meta import MiB
from tests.live.volume_hand import found
from tests.live.world import World, answering, made, output
from tests.programs import build

COUNT = 2048
"""Blocks of 4 KiB that the writer goes round in."""
SECRET = "k7"


class House(NamedTuple):
    """A world and one machine in it, which every test takes over from the one before as a new daemon would."""

    world: World
    launch: Launch

    def file(self, size: str = "64M", *options: str) -> Path:
        """A new qcow2 file that QEMU may open."""
        return image(self.world.paths.state / f"{secrets.token_hex(6)}.qcow2", size, *options)


def image(path: Path, size: str, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), size], check=True, timeout=60)
    return path


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def attachment(lun: int, file: Path, **changes: Any) -> Attachment:
    return Attachment(str(uuid.uuid4()), lun, f"data-{lun}", Medium("qcow2", file))._replace(**changes)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    with made() as world:
        launch = world.launch(memory=128 * MiB)

        async def start() -> None:
            guest = await world.hypervisor.start(launch)
            await guest.resume()
            await furnish(await answering(guest))
            await guest.detach()

        async def end() -> None:
            await (await found(world.paths.state, launch.uid)).kill()

        asyncio.run(start())
        try:
            yield House(world, launch)
        finally:
            asyncio.run(end())
            left = world.left()
        assert not left, left


@pytest.fixture
async def guest(house: House) -> AsyncIterator[Guest]:
    """The machine, without volumes before and after."""
    async with taken_over(house) as guest:
        yield guest
        for lun in await guest.volumes.attached():
            await guest.volumes.detach(lun, force=True)


@pytest.fixture
async def emptied(house: House) -> AsyncIterator[None]:
    """For tests that take the machine over themselves: it is without volumes afterwards."""
    yield
    async with taken_over(house) as guest:
        for lun in await guest.volumes.attached():
            await guest.volumes.detach(lun, force=True)


async def furnish(agent: Agent) -> None:
    """Put the writer of blocks into the guest."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        archive.add(build.program("blocks"), "blocks")

    async def stream() -> AsyncIterator[bytes]:
        yield whole.getvalue()

    await agent.send_archive("/bin", stream())


async def sh(guest: Guest, script: str) -> str:
    return (await output(await answering(guest), "sh", "-c", f"exec 2>&1\n{script}")).decode(errors="replace").strip()


async def disk(guest: Guest, lun: int) -> str:
    """The guest's name of the disk with that LUN, as soon as it has it."""
    look = f"/sys/bus/scsi/devices/*:0:0:{lun}/block/*"
    return await sh(
        guest,
        f"n=0; until ls -d {look} >/dev/null 2>&1 || [ $n -ge 400 ]; do n=$((n+1)); usleep 5000; done; basename {look}",
    )


def nodes(guest: Guest) -> Monitor:
    assert isinstance(guest, QemuGuest)
    return guest._monitor


def opened(guest: Guest) -> dict[str, int]:
    """The files that QEMU has open, and how (O_ACCMODE)."""
    directory = Path(f"/proc/{guest.process.pid}")
    return {
        str(entry.readlink()): int((directory / "fdinfo" / entry.name).read_text().split()[3], 8) & os.O_ACCMODE
        for entry in (directory / "fd").iterdir()
    }


async def traces(guest: Guest) -> tuple[Any, ...]:
    """All that QEMU has of volumes: nodes, descriptors, secrets, jobs."""
    monitor = nodes(guest)
    sets = [entry for entry in (await monitor.query_fdsets()).values() if entry]
    names = {node.name for node in await monitor.query_nodes()}
    return names, sets, await monitor.query_objects(), await monitor.query_jobs(), await guest.volumes.attached()


@asynccontextmanager
async def written(guest: Guest, name: str, first: int = 0) -> AsyncIterator[None]:
    """Blocks are written to the disk meanwhile, and what was acknowledged is there afterwards."""
    await begin(guest, name, first)
    yield
    assert await last_of(guest) > first
    assert await whole(guest, name, first) == "whole"


async def begin(guest: Guest, name: str, first: int = 0) -> None:
    """Let the writer go, until it has said something."""
    write = f"blocks write /dev/{name} {first} {COUNT} {SECRET}"
    await sh(guest, f"setsid {write} > /run/said 2>&1 < /dev/null & echo $! > /run/writer")
    await sh(guest, "n=0; until [ -s /run/said ] || [ $n -ge 400 ]; do n=$((n+1)); usleep 5000; done")


async def last_of(guest: Guest) -> int:
    """End the writer: the last block that it said is on the disk."""
    script = (
        "kill $(cat /run/writer); while [ -e /proc/$(cat /run/writer)/exe ]; do usleep 5000; done; tail -n 1 /run/said"
    )
    return int(await sh(guest, script))


async def whole(guest: Guest, name: str, first: int = 0) -> str:
    drop = "sync; echo 3 > /proc/sys/vm/drop_caches; last=$(tail -n 1 /run/said)"
    return await sh(guest, f"{drop}; blocks check /dev/{name} {first} $last {COUNT} {SECRET}")


@asynccontextmanager
async def taken_over(house: House) -> AsyncIterator[Guest]:
    """The machine in the hands of a new daemon."""
    guest = await found(house.world.paths.state, house.launch.uid)
    try:
        yield guest
    finally:
        await guest.detach()
