"""A TPM in a jail of its own: what a guest put into it is there after a copy and after a restart, and its death is nobody else's."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.errors import RoostError, Unavailable
from roost.host import jail, processes
from roost.hypervisor import record, tpm
from roost.hypervisor.base import Agent, Disk, Guest, Launch, Overlay
from roost.hypervisor.saved import release
from roost.model.meta import GiB, MiB
from roost.storage import overlays
from roost.storage.images import Images
from tests.live.world import World, made, output, started, template
from tests.needs import needs_program

pytestmark = needs_program("qemu-system-x86_64", "qemu-img", "passt", "swtpm")

PASSWORD = "00000009 40000009 0000 00 0000"
"""The empty password, as a session of a command."""
COMMANDS = {
    "extend": f"8002 00000041 00000182 00000010 {PASSWORD} 00000001 000b {'ab' * 32}",
    "register": "8001 00000014 0000017e 00000001 000b 03 000001",
    "define": f"8002 0000002d 0000012a 40000001 {PASSWORD} 0000 000e 01500001 000b 00060006 0000 0008",
    "write": f"8002 0000002b 00000137 40000001 01500001 {PASSWORD} 0008 1122334455667788 0000",
    "read": f"8002 00000023 0000014e 40000001 01500001 {PASSWORD} 0008 0000",
}
"""TPM 2.0 commands (Part 3 of the TCG's library): register 16 extended and read, eight bytes of storage defined, written and read."""
EMPTY, KEPT = "00" * 32, "1122334455667788"


class Debian(NamedTuple):
    """A world and the files of Debian 12's image: a guest that boots by its firmware, as one with a TPM must."""

    world: World
    disk: Path

    def launch(self, *below: Path) -> Launch:
        """A machine with a TPM, whose disk stands on these files (the nearest first) and the image."""
        launch = self.world.launch(firmware="bios", direct=None, memory=512 * MiB, arch="x86_64", tpm=True)
        launch.files.disk.write_bytes(overlays.empty(10 * GiB, str((*below, self.disk)[0])))
        return launch._replace(disks=(Disk(launch.files.disk, (*below, self.disk), serial="root"),))


@pytest.fixture(scope="module")
def debian() -> Iterator[Debian]:
    with made() as world:
        images = Images(world.paths)
        asyncio.run(images.sweep())
        manifest = template(world.paths.state, images, "debian:12")
        yield Debian(world, images.files(manifest.digest).disk)
        assert world.left() == []


@asynccontextmanager
async def running(debian: Debian, launch: Launch) -> AsyncIterator[tuple[Guest, Agent]]:
    async with started(debian.world, launch) as guest:
        yield guest, await asyncio.wait_for(guest.agent(), 180)


async def ask(agent: Agent, name: str) -> str:
    """The TPM's answer to one command, in hexadecimal; "" when it gives none."""
    octal = "".join(f"\\{byte:03o}" for byte in bytes.fromhex(COMMANDS[name]))
    write = f"exec 2>/dev/null 3<>/dev/tpm0; printf '{octal}' >&3"
    script = f"{write} && dd bs=4096 count=1 <&3 | od -An -v -tx1 | tr -d ' \\n'"
    return (await output(agent, "sh", "-c", script)).decode()


async def fill(agent: Agent) -> str:
    """Put something into what the TPM forgets and into what it keeps; returns the register."""
    assert (await ask(agent, "register")).endswith(EMPTY)
    for name in ("extend", "define", "write"):
        assert (await ask(agent, name))[12:20] == "00000000"
    return await ask(agent, "register")


def beside(launch: Launch) -> tuple[record.Entry, ...]:
    """The recorded processes beside a machine."""
    found = record.read(launch.files, launch.uid)
    assert found is not None
    return found.beside


async def test_what_a_guest_put_into_its_tpm_is_in_a_copy_of_it_and_outlives_the_power(
    debian: Debian, tmp_path: Path
) -> None:
    launch = debian.launch()
    async with running(debian, launch) as (guest, agent):
        register = await fill(agent)
        assert not register.endswith(EMPTY)
        overlay = launch.files.keep / "next.qcow2"
        overlay.write_bytes(overlays.empty(10 * GiB, str(launch.files.disk)))
        saved = await guest.checkpoint((Overlay(overlay, "n1"),), ((launch.files.tpm / tpm.STATE, tmp_path / "state"),))
        await ask(agent, "extend")
        assert await ask(agent, "register") != register
    copy = debian.launch(launch.files.disk)._replace(saved=saved)
    async with running(debian, copy) as (_, agent):
        release(saved)
        assert await ask(agent, "register") == register
        assert KEPT in await ask(agent, "read")
        # Its own TPM has written down what came with the memory.
        assert bytes.fromhex(KEPT) in tpm.read(copy.files.tpm)[tpm.STATE]
    # A disk alone needs the one file beside it.
    other = debian.launch(launch.files.disk)
    tpm.write(other.files.tpm, {tpm.STATE: (tmp_path / "state").read_bytes()})
    async with running(debian, other) as (_, agent):
        assert (await ask(agent, "register")).endswith(EMPTY)
        assert KEPT in await ask(agent, "read")


async def test_a_tpm_that_dies_takes_nobody_along(debian: Debian) -> None:
    launch = debian.launch()
    async with running(debian, launch) as (guest, agent):
        await fill(agent)
        (its,) = beside(launch)
        os.kill(its.process.pid, signal.SIGKILL)
        assert await ask(agent, "register") == ""
        assert await output(agent, "echo", "alive") == b"alive\n"
        with pytest.raises(RoostError):
            await guest.checkpoint((), memory=True)
        assert await guest.state() == "running"
        assert await output(agent, "echo", "alive") == b"alive\n"


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[tuple[socket.socket, jail.Jailed]]:
    """A TPM without a machine."""
    swtpm = jail.system.find_program("swtpm")
    ours, its = socket.socketpair()
    with ours, its:
        jailed = await tpm.connect(str(swtpm), str(uuid.uuid4()), jail.FIRST_UID + 99_999, directory, (ours, its))
        try:
            yield ours, jailed
        finally:
            processes.signal_pidfd(jailed.pidfd, signal.SIGKILL)
            await processes.wait_pidfd(jailed.pidfd)
            os.close(jailed.pidfd)
            if jailed.cgroup is not None:
                await jailed.cgroup.remove()


@pytest.mark.parametrize("name", ["tpm", "with, a comma"])
async def test_it_is_in_a_whole_jail_whatever_its_directory_is_called(tmp_path: Path, name: str) -> None:
    async with connected(tmp_path / name) as (_, jailed):
        assert {"seccomp", "landlock", "network namespace", "no capabilities"} <= set(jailed.layers)


@pytest.mark.parametrize("begin", [0, 8, 192], ids=["whole", "head", "contents"])
async def test_a_damaged_state_is_told_and_not_replaced(tmp_path: Path, begin: int) -> None:
    async with connected(tmp_path / "tpm") as (link, _):
        link.sendall(tpm._INIT)
        assert link.recv(4) == bytes(4)
    (whole,) = tpm.read(tmp_path / "tpm").values()
    damaged = whole[:begin] + b"x" * (len(whole) - begin)
    tpm.write(tmp_path / "tpm", {tpm.STATE: damaged})
    with pytest.raises(Unavailable, match="TPM"):
        async with connected(tmp_path / "tpm"):
            pass
    assert tpm.read(tmp_path / "tpm") == {tpm.STATE: damaged}
