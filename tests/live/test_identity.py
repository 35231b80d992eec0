"""What tells one machine from another, in real guests: given, taken away, given anew; and file systems that hold still."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import pytest_asyncio

from roost.errors import CommandFailed
from roost.hypervisor import hostkeys
from roost.hypervisor.base import Agent, Command, DirectBoot, Disk, Launch, Setup
from roost.hypervisor.plan import mac_address
from roost.model.meta import MiB
from roost.storage.images import Images
from tests.live.world import World, answering, made, output, started, template
from tests.needs import needs_program

pytestmark = [needs_program("qemu-system-x86_64", "qemu-img", "passt", "mmdebstrap"), pytest.mark.timeout(1200)]

READY = "systemctl is-system-running --wait; test -s /run/sshd.pid"
JOURNALS = "find /var/log/journal -mindepth 1 -type d -printf '%f\\n'"
ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
"""The tests of one machine share the event loop that its agent belongs to."""
OTHER_MAC = "52:54:00:aa:bb:cc"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with made() as one:
        yield one


@pytest.fixture(scope="module")
def debian(world: World) -> tuple[DirectBoot, Disk]:
    """Debian 12: how it boots, and its read-only disk."""
    images = Images(world.paths)
    manifest = template(world.paths.state, images, "debian:12")
    image = images.files(manifest.digest)
    return DirectBoot(image.kernel, image.initramfs, manifest.command_line), Disk(image.disk)


class Machine(NamedTuple):
    """A running machine, and what the tests ask of it."""

    agent: Agent
    launch: Launch

    async def shell(self, script: str) -> str:
        """What a script prints."""
        shell = ("/bin/sh", "-c") if self.launch.disks else ("/bin/busybox", "sh", "-c")
        return (await output(self.agent, *shell, script)).decode()

    async def lines(self, script: str) -> list[str]:
        """The lines that it prints."""
        return (await self.shell(script)).splitlines()


@asynccontextmanager
async def tiny(world: World, network: str = "none") -> AsyncIterator[Machine]:
    """A tiny machine."""
    launch = world.launch(network=network)
    async with started(world, launch) as guest:
        yield Machine(await answering(guest), launch)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(world: World, debian: tuple[DirectBoot, Disk]) -> AsyncIterator[Machine]:
    """A Debian 12 that has booted to its end, which takes a minute; each test may leave it as somebody else, set up."""
    boot, image = debian
    launch = world.launch(direct=boot, memory=512 * MiB, network="user")
    disk = launch.files.disk
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image.file), "-F", "qcow2", str(disk)]
    await asyncio.to_thread(subprocess.run, argv, check=True)
    launch = launch._replace(disks=(Disk(disk, (image.file,), serial="root"),))
    async with started(world, launch) as guest:
        made = Machine(await answering(guest), launch)
        await made.agent.setup(another("first"))
        await made.shell(READY)
        yield made


def another(name: str, **changes: object) -> Setup:
    """The set-up of a machine like no other."""
    keys = hostkeys.make()
    plain = Setup(name, secrets.token_hex(16), entropy=secrets.token_bytes(64), host_keys=keys)
    return plain._replace(**changes)  # type: ignore[arg-type]


async def served(machine: Machine) -> set[str]:
    """The host keys that the SSH server shows, without its name for itself."""
    for _ in range(100):
        lines = await machine.lines("ssh-keyscan -T 20 -t ed25519,ecdsa localhost 2>/dev/null")
        if len(lines) == 2:
            break
        await asyncio.sleep(0.2)
    return {line.partition(" ")[2] for line in lines}


@pytest.mark.fault(44)
@ONE_LOOP
async def test_a_setup_for_another_machine_id_makes_another_machine_of_a_debian(machine: Machine) -> None:
    before = set(await machine.lines("cat /etc/machine-id /etc/hostname /proc/sys/kernel/random/boot_id"))
    old_keys = await served(machine)
    assert len(old_keys) == 2
    old_mac = mac_address(machine.launch.uid)
    wanted = another("second", link=(old_mac, OTHER_MAC))
    await machine.agent.setup(wanted)
    assert await machine.lines("cat /etc/machine-id; hostname; cat /etc/hostname") == [
        wanted.machine_id, "second", "second",
    ]  # fmt: skip
    assert before.isdisjoint({wanted.machine_id, "second"})
    assert await machine.lines(JOURNALS) == [wanted.machine_id]
    assert await machine.lines("cat /sys/class/net/en*/address") == [OTHER_MAC]
    assert await served(machine) == {key.public.strip() for key in wanted.host_keys}
    assert await machine.shell("stat -c %a:%U /etc/ssh/ssh_host_*_key") == "600:root\n600:root\n"
    assert "logged" in await machine.shell("logger -p user.crit logged; sleep 1; journalctl -n 50 -o cat")


@ONE_LOOP
async def test_a_sealed_debian_has_nothing_of_its_old_identity_and_the_next_setup_gives_one(machine: Machine) -> None:
    old = (await machine.lines("cat /etc/machine-id"))[0]
    await machine.agent.seal()
    known = "/etc /var/lib/roost /var/lib/dbus /var/lib/cloud /var/lib/systemd /var/lib/dhcp"
    assert await machine.shell(f"grep -rlsI {old} {known}; find / -xdev -name '*{old}*' ! -type l") == ""
    assert await machine.shell("cat /etc/machine-id; ls /etc/ssh | grep host_; ls /var/lib/systemd | grep seed") == ""
    assert await machine.shell("hostname; cat /etc/hostname") == "localhost\nlocalhost\n"
    assert await machine.shell("awk '/^State/ {print $2}' /proc/$(cat /run/sshd.pid)/status") == "T\n"
    wanted = another("kid")
    begin = time.perf_counter()
    await machine.agent.setup(wanted)
    print(f"set-up of a sealed machine: {time.perf_counter() - begin:.3f} s")
    assert await machine.lines(f"cat /etc/machine-id; hostname; {JOURNALS}") == [
        wanted.machine_id, "kid", wanted.machine_id,
    ]  # fmt: skip
    assert await served(machine) == {key.public.strip() for key in wanted.host_keys}


@ONE_LOOP
async def test_a_frozen_debian_holds_its_writers_until_it_thaws(machine: Machine) -> None:
    await machine.agent.freeze()
    with pytest.raises(CommandFailed):
        await machine.agent.freeze()
    writer = await machine.agent.execute(Command(["/bin/sh", "-c", "echo x >/var/tmp/written; cat /proc/uptime"]))
    done = asyncio.ensure_future(anext(writer.output()))
    assert not (await asyncio.wait([done], timeout=2))[0]
    await machine.agent.ping(5)
    await machine.agent.thaw()
    assert (await asyncio.wait_for(done, 20)).stream == "stdout"
    await machine.agent.thaw()


@ONE_LOOP
async def test_a_debian_thaws_by_itself(machine: Machine) -> None:
    await machine.agent.freeze()
    begin = time.monotonic()
    await machine.shell("echo x >/var/tmp/written")
    assert 1 < time.monotonic() - begin < 60


async def test_a_tiny_machine_gets_another_identity_and_freezes_nothing(world: World) -> None:
    async with tiny(world, "user") as machine:
        await machine.agent.setup(another("one"))
        first = await machine.lines("cat /etc/machine-id; hostname; cat /sys/class/net/eth0/address")
        wanted = another("two", link=(mac_address(machine.launch.uid), OTHER_MAC))
        await machine.agent.setup(wanted)
        second = await machine.lines("cat /etc/machine-id; hostname; cat /sys/class/net/eth0/address")
        assert second == [wanted.machine_id, "two", OTHER_MAC]
        assert set(first).isdisjoint(second)
        await machine.agent.setup(wanted)
        assert await machine.lines("cat /etc/machine-id; hostname; cat /sys/class/net/eth0/address") == second
        await machine.agent.freeze()
        await machine.agent.thaw()
        await machine.agent.seal()
        assert await machine.shell("cat /etc/machine-id; hostname") == "localhost\n"


@pytest.mark.fault(44)
async def test_entropy_is_taken_every_time(world: World) -> None:
    async with tiny(world) as machine:
        once = another("one")
        await machine.agent.setup(once)
        with pytest.raises(CommandFailed, match="entropy"):
            await machine.agent.setup(once._replace(entropy=b"too short"))


async def test_a_card_that_is_not_there_is_said(world: World) -> None:
    async with tiny(world) as machine:
        with pytest.raises(CommandFailed, match="link"):
            await machine.agent.setup(another("one", link=("52:54:00:00:00:01", OTHER_MAC)))
