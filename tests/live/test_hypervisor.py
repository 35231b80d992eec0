"""Real QEMU in its real jail: started, found again, ended; what it leaves behind; what a second one is told."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from roost.errors import Conflict, NotStarted, RoostError, Unavailable
from roost.host import jail, processes
from roost.hypervisor import firmware, record
from roost.hypervisor.accel import Accelerator
from roost.hypervisor.base import Command, DirectBoot, Disk, Guest
from roost.hypervisor.console import RECORD, RING
from roost.hypervisor.qemu import Qemu
from roost.hypervisor.record import Entry, Record
from roost.model.machine import Isolation
from roost.network.usernet import UserNetwork
from tests import leftovers
from tests.live.world import World, answering, made, output, started
from tests.needs import needs_program, needs_root, repetitions

pytestmark = needs_program("qemu-system-x86_64", "qemu-img", "passt")


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with made() as one:
        yield one


async def pressed(guest: Guest) -> None:
    """Press the power button until it is heard: a guest that has just come up may not listen yet."""
    ended = asyncio.ensure_future(guest.wait())
    while not ended.done():
        await guest.press_power()
        await asyncio.wait([ended], timeout=2)


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def test_a_machine_starts_paused_runs_answers_and_shuts_down(world: World) -> None:
    async with started(world, world.launch(), run=False) as guest:
        changes: list[int] = []
        guest.on_change = lambda: changes.append(1)
        assert await guest.state() == "prelaunch"
        await guest.resume()
        agent = await answering(guest)
        assert b"Linux" in await output(agent, "/bin/busybox", "uname", "-a")
        await guest.pause()
        assert await guest.state() == "paused"
        await guest.resume()
        assert await guest.state() == "running"
        await asyncio.wait_for(pressed(guest), 60)
        ended = await guest.wait()
        assert (ended.clean, ended.reason) == (True, "the guest shut down")
        assert await guest.state() == "gone"
        assert changes


async def test_every_layer_of_the_jail_is_around_the_running_machine(world: World) -> None:
    async with started(world, world.launch()) as guest:
        inside = status(guest.process.pid)
        assert inside["CapEff"] == inside["CapPrm"] == inside["CapBnd"] == "0" * 16
        assert inside["NoNewPrivs"] == "1"
        assert inside["Seccomp"] == "2"
        assert inside["NSpid"].split()[-1] == "1"
        assert os.getuid() != 0 or int(inside["Uid"].split()[0]) > 300_000
        ours, theirs = (Path(f"/proc/{pid}/ns") for pid in ("self", guest.process.pid))
        spaces = ("net", "mnt", "pid", "ipc", "uts", "user")
        shared = [name for name in spaces if (ours / name).readlink() == (theirs / name).readlink()]
        assert not shared
        assert guest.isolation.boundary == "jail"
        assert {"landlock", "seccomp", "no capabilities"} <= set(guest.isolation.layers)


@pytest.mark.fault(32)
async def test_a_machine_outlives_who_started_it_and_is_found_again(world: World) -> None:
    launch = world.launch(network="user")
    guest = await world.hypervisor.start(launch)
    await guest.resume()
    await answering(guest)
    process, layers = guest.process, guest.isolation.layers
    await guest.detach()
    found = await Qemu(world.paths, world.facts, UserNetwork(world.facts)).adopt(launch.files, launch.uid)
    assert found is not None
    try:
        assert (found.process, found.isolation.layers) == (process, layers)
        assert await found.state() == "running"
        assert b"Linux" in await output(await answering(found), "/bin/busybox", "uname")
    finally:
        await found.kill()
    assert await world.hypervisor.adopt(launch.files, launch.uid) is None
    assert not world.left()


@pytest.mark.fault(33)
@pytest.mark.parametrize(
    "changed", [{"start": 1}, {"boot": "another"}, {"uid": 12345}], ids=lambda entry: next(iter(entry))
)
async def test_a_foreign_process_with_the_recorded_pid_is_neither_taken_over_nor_harmed(
    world: World, changed: dict[str, object]
) -> None:
    launch = world.launch()
    launch.files.live.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as foreign:  # noqa: ASYNC220
        try:
            own = processes.identify(foreign.pid)
            assert own is not None
            isolation = Isolation(boundary="jail")
            saved = Entry(msgspec.structs.replace(own, **changed))
            record.write(launch.files, Record(launch.uid, 300_001, saved, isolation, (), (saved,)))
            assert await world.hypervisor.adopt(launch.files, launch.uid) is None
            assert foreign.poll() is None
            assert not launch.files.live.exists()
        finally:
            foreign.kill()


async def test_a_machine_whose_start_was_cut_off_is_ended(world: World) -> None:
    launch = world.launch()
    guest = await world.hypervisor.start(launch)
    await guest.detach()
    known = record.read(launch.files, launch.uid)
    assert known is not None
    record.write(launch.files, msgspec.structs.replace(known, isolation=None))
    assert await world.hypervisor.adopt(launch.files, launch.uid) is None
    assert processes.identify(guest.process.pid) is None
    assert not world.left()


def overlay(directory: Path) -> Disk:
    """A root disk over a base."""
    base, top = directory / "base.qcow2", directory / "root.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top], check=True)
    return Disk(top, (base,), serial="root")


@pytest.mark.fault(1)
async def test_a_disk_in_use_is_refused_with_its_holder_and_the_first_machine_goes_on(world: World) -> None:
    first = world.launch()
    disk = overlay(first.files.keep)
    async with started(world, first._replace(disks=(disk,))) as guest:
        second = world.launch(disks=(disk,))
        with pytest.raises(Conflict) as caught:
            await world.hypervisor.start(second)
        assert f"machine {first.uid}" in caught.value.why
        assert await guest.state() == "running"
        assert not second.files.live.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a disk" * 1000, b"QFI\xfb" + bytes(1000)], ids=["empty", "text", "header"]
)
async def test_a_start_that_fails_leaves_nothing(world: World, content: bytes) -> None:
    launch = world.launch(network="user")
    broken = launch.files.keep / "root.qcow2"
    broken.write_bytes(content)
    before = leftovers.descriptors(os.getpid())
    with pytest.raises(NotStarted) as caught:
        await world.hypervisor.start(launch._replace(disks=(Disk(broken),)))
    assert "QEMU ended at once" in caught.value.why
    assert not world.left()
    assert leftovers.descriptors(os.getpid()) == before


@pytest.mark.parametrize("after", [step / 1000 for step in range(0, 120, repetitions(30, 2))])
async def test_a_start_cancelled_at_any_moment_leaves_nothing(world: World, after: float) -> None:
    before = leftovers.descriptors(os.getpid())
    start = asyncio.ensure_future(world.hypervisor.start(world.launch(network="user")))
    await asyncio.wait([start], timeout=after)
    start.cancel()
    [answer] = await asyncio.gather(start, return_exceptions=True)
    if not isinstance(answer, asyncio.CancelledError):
        await answer.kill()
    assert not world.left()
    assert leftovers.descriptors(os.getpid()) == before


class Slow(UserNetwork):
    """A network that looks at the jail of QEMU, which is being built meanwhile, and then fails."""

    seen: str = ""

    async def connect(self, *arguments: Any) -> Any:
        jailed, _ = await super().connect(*arguments)
        for process in jailed:
            await jail.end(process)
        await asyncio.sleep(0.3)
        self.seen = next(path for path in map(Path, _below(os.getpid())) if path.exists()).read_text()
        raise Unavailable("the machine has no network", "the test says so")


def _below(pid: int) -> list[str]:
    children = [pid for task in Path(f"/proc/{pid}/task").iterdir() for pid in (task / "children").read_text().split()]
    return [f"/proc/{child}/comm" for child in children]


async def test_qemu_is_not_let_go_before_its_network_answers_and_ends_with_its_failure(world: World) -> None:
    before = leftovers.descriptors(os.getpid())
    network = Slow(world.facts)
    with pytest.raises(Unavailable, match="the test says so"):
        await Qemu(world.paths, world.facts, network).start(world.launch(network="user"))
    assert network.seen.startswith("python")
    assert not world.left()
    assert leftovers.descriptors(os.getpid()) == before


@pytest.mark.fault(66)
@needs_root
async def test_the_sockets_are_closed_to_every_other_user(world: World) -> None:
    async with started(world, world.launch(), run=False) as guest:
        live = world.paths.live_machines
        sockets = [path for path in live.rglob("*") if path.is_socket()]
        assert len(sockets) == 5
        assert {path.stat().st_mode & 0o777 for path in sockets} == {0o600}
        assert {path.parent.stat().st_mode & 0o777 for path in sockets} == {0o700}
        code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        other = {"user": guest.process.uid + 1, "group": guest.process.uid + 1, "extra_groups": []}
        answers = [
            subprocess.run(["/usr/bin/python3", "-c", code, os.path.relpath(path)], capture_output=True, **other)  # noqa: ASYNC221
            for path in sockets
        ]
        assert all(b"PermissionError" in answer.stderr for answer in answers)


@pytest.mark.fault(64)
async def test_a_guest_that_prints_for_ever_costs_neither_memory_nor_disk_and_still_answers(world: World) -> None:
    launch = world.launch()
    async with started(world, launch) as guest:
        agent = await answering(guest)
        before = resource.getrusage(resource.RUSAGE_SELF)
        flood = await agent.execute(
            Command(("/bin/busybox", "sh", "-c", "while true; do echo $(seq 200); done > /dev/console"))
        )
        await asyncio.sleep(4)
        assert b"again" in await asyncio.wait_for(output(agent, "/bin/busybox", "echo", "again"), 20)
        after = resource.getrusage(resource.RUSAGE_SELF)
        assert len(guest.console.history()) <= RING
        assert sum(path.stat().st_size for path in launch.files.keep.glob("console.log*")) <= 2 * RECORD
        assert after.ru_maxrss - before.ru_maxrss < 32 * 1024
        assert after.ru_utime - before.ru_utime < 2
        await flood.close()


async def test_crashes_are_told_from_ends(world: World) -> None:
    async with started(world, world.launch()) as guest:
        os.kill(guest.process.pid, signal.SIGKILL)
        ended = await asyncio.wait_for(guest.wait(), 30)
        assert (ended.clean, ended.reason) == (False, "QEMU was killed by SIGKILL")


async def test_starting_and_killing_leaves_nothing(world: World) -> None:
    before = leftovers.descriptors(os.getpid())
    for _ in range(repetitions(4, 100)):
        async with started(world, world.launch(network="user"), run=False):
            pass
    assert not world.left()
    assert leftovers.descriptors(os.getpid()) == before


async def seen(guest: Guest, text: bytes, seconds: float) -> bool:
    """Whether the console prints `text` in time."""
    try:
        async with asyncio.timeout(seconds):
            async for _ in guest.console.follow():
                if text in guest.console.history():
                    return True
    except TimeoutError:
        return False
    return False


@pytest.mark.parametrize(("arch", "kind", "text"), [
    ("x86_64", "bios", b"SeaBIOS"),
    ("x86_64", "uefi", b"BdsDxe"),
    ("aarch64", "uefi", b"BdsDxe"),
])  # fmt: skip
async def test_firmware_starts_without_a_kernel_of_ours(world: World, arch: str, kind: str, text: bytes) -> None:
    launch = world.launch(arch=arch, firmware=kind, direct=None)
    try:
        if kind == "uefi":
            firmware.create_variables(launch.arch, world.facts, launch.files.variables)
    except RoostError as error:
        pytest.skip(error.what)
    async with started(world, launch) as guest:
        assert await seen(guest, text, 60), guest.console.history()[-500:]


async def test_the_verdict_comes_in_time_and_once(world: World) -> None:
    async def boot() -> tuple[DirectBoot, str]:
        return world.boot, world.digest

    world.paths.verdict.unlink(missing_ok=True)
    asked = Accelerator(world.paths, world.facts, world.hypervisor, boot)
    began = time.monotonic()
    first, second = await asyncio.gather(asked.verdict(), asked.verdict())
    assert time.monotonic() - began < 10
    assert first == second
    assert first.reason
    assert "\n" not in first.reason
    began = time.monotonic()
    assert await asked.verdict() == first
    assert time.monotonic() - began < 0.1
    assert not world.left()
