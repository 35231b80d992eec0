"""Real guests saved while they run, and their copies: what each knows, how long the parent stands still, what fails and leaves no harm."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from roost.errors import RoostError, Unavailable
from roost.host import failpoints, processes
from roost.hypervisor import guestmemory, record, thinning
from roost.hypervisor.base import Agent, Command, Disk, Guest, Launch, Overlay, Saved
from roost.hypervisor.guest import QemuGuest
from roost.hypervisor.guestmemory import InPlace
from roost.hypervisor.memfd import Range
from roost.hypervisor.qemu import Qemu
from roost.hypervisor.saved import release
from roost.model.meta import MiB
from roost.network.usernet import UserNetwork
from roost.storage import overlays
from tests import leftovers
from tests.live.world import World, answering, made, output, started
from tests.needs import needs_program

pytestmark = needs_program("qemu-system-x86_64", "qemu-img", "passt")

SHELL = ("/bin/busybox", "sh", "-c")
COUNT = "i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done"
PAUSE = 0.4
"""Seconds that a parent may stand still on a host that does other things too; the benchmark holds the promise."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with made() as one:
        yield one


@asynccontextmanager
async def running(world: World, **changes: object) -> AsyncIterator[tuple[Guest, Agent, Launch]]:
    """A tiny machine whose agent answers."""
    launch = world.launch(**changes)
    async with started(world, launch) as guest:
        yield guest, await answering(guest), launch


@asynccontextmanager
async def copied(world: World, saved: Saved, like: Launch, **changes: object) -> AsyncIterator[tuple[Guest, Agent]]:
    """A machine that goes on from there, and answers."""
    launch = world.launch(**{"cpus": like.cpus, "network": like.network, "saved": saved, **changes})
    assert world.hypervisor.shape(launch) == world.hypervisor.shape(like)
    async with started(world, launch) as guest:
        yield guest, await answering(guest)


async def shell(agent: Agent, script: str) -> str:
    return (await output(agent, *SHELL, script)).decode().strip()


async def saved_by(guest: Guest, undo: AsyncExitStack, *overlays: Overlay) -> Saved:
    """A checkpoint that is closed with the stack."""
    saved = await guest.checkpoint(overlays)
    undo.callback(release, saved)
    return saved


@pytest.mark.parametrize("cpus", [1, 2])
async def test_a_copy_knows_what_its_parent_had_in_memory_and_both_go_on(world: World, cpus: int) -> None:
    async with AsyncExitStack() as undo:
        guest, agent, launch = await undo.enter_async_context(running(world, cpus=cpus))
        nonce = uuid.uuid4().hex
        await shell(agent, f"echo {nonce} > /run/nonce")
        counter = await agent.execute(Command((*SHELL, COUNT)))
        lines = counter.output()
        await anext(lines)
        changes: list[int] = []
        guest.on_change = lambda: changes.append(1)
        saving = asyncio.ensure_future(saved_by(guest, undo))
        seen = [time.perf_counter()]
        while not saving.done() or len(seen) < 20:
            await anext(lines)
            seen.append(time.perf_counter())
        saved = await saving
        gap = max(later - earlier for earlier, later in itertools.pairwise(seen))
        assert gap < PAUSE
        assert 0 < saved.pause < PAUSE
        assert (saved.method, guest.cloning, changes) == ("in-place", "in-place", [])
        assert await guest.state() == "running"
        await counter.close()
        await shell(agent, "echo later > /run/nonce")
        _, child = await undo.enter_async_context(copied(world, saved, launch))
        assert await shell(child, "cat /run/nonce") == nonce
        assert await shell(agent, "cat /run/nonce") == "later"


async def test_checkpoints_follow_each_other_and_copies_are_copied(world: World) -> None:
    async with AsyncExitStack() as undo:
        guest, agent, launch = await undo.enter_async_context(running(world))
        answers = []
        for generation in range(3):
            await shell(
                agent, f"echo {generation} >> /run/all; dd if=/dev/urandom of=/run/fill{generation} bs=1M count=4"
            )
            saved = await saved_by(guest, undo)
            child, inside = await undo.enter_async_context(copied(world, saved, launch))
            await shell(inside, f"echo child of {generation} >> /run/all")
            grandsaved = await saved_by(child, undo)
            _, below = await undo.enter_async_context(copied(world, grandsaved, launch))
            answers.append(await shell(below, "cat /run/all | tr '\\n' ' '"))
        assert answers == ["0 child of 0", "0 1 child of 1", "0 1 2 child of 2"]
        assert await shell(agent, "cat /run/all | tr '\\n' ' '") == "0 1 2"


async def test_a_copy_that_has_written_much_is_copied_in_slices_and_all_of_it_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices: list[int] = []
    absorb = InPlace.absorb

    async def counted(memory: InPlace, ranges: Sequence[Range]) -> None:
        slices.append(thinning.size(ranges))
        await absorb(memory, ranges)

    monkeypatch.setattr(InPlace, "absorb", counted)
    async with AsyncExitStack() as undo:
        first, _, launch = await undo.enter_async_context(running(world, memory=512 * MiB))
        saved = await saved_by(first, undo)
        assert not slices
        guest, agent = await undo.enter_async_context(copied(world, saved, launch, memory=512 * MiB))
        await shell(agent, "dd if=/dev/urandom of=/run/seed bs=1M count=8")
        await shell(agent, "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /run/seed; done > /run/fill")
        digest = await shell(agent, "md5sum < /run/fill")
        busy = "i=0; while :; do i=$((i+1)); echo $i > /run/count; dd if=/run/seed of=/run/other conv=notrunc; done"
        await shell(agent, f"({busy}) >/dev/null 2>&1 &")
        again = await saved_by(guest, undo)
        assert len(slices) >= 128 * MiB // thinning.SLICE
        assert max(slices) <= thinning.SLICE
        assert 0 < again.pause < PAUSE
        count = int(await shell(agent, "cat /run/count"))
        _, inside = await undo.enter_async_context(copied(world, again, launch, memory=512 * MiB))
        for one in (agent, inside):
            assert await shell(one, "md5sum < /run/fill") == digest
        assert int(await shell(agent, "cat /run/count")) > count


def check(file: Path) -> None:
    """See that a disk is in order."""
    subprocess.run(["qemu-img", "check", "-q", "-U", "-f", "qcow2", file], check=True)


class Chain:
    """A disk of a machine and what it stands on, as the storage engine would keep them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = [directory / "base.qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", self.files[0], "64M"], check=True)
        self.add()

    def add(self) -> Path:
        """One more overlay on top."""
        self.files.append(self.directory / f"{len(self.files)}.qcow2")
        self.files[-1].write_bytes(overlays.empty(64 * MiB, str(self.files[-2])))
        return self.files[-1]

    @property
    def disk(self) -> Disk:
        """The disk as it is now."""
        top, *below = reversed(self.files)
        return Disk(top, tuple(below), serial="root")

    def over(self, directory: Path, depth: int) -> Disk:
        """Another disk over the lowest `depth` files."""
        top = directory / "root.qcow2"
        top.write_bytes(overlays.empty(64 * MiB, str(self.files[depth - 1])))
        return Disk(top, tuple(reversed(self.files[:depth])), serial="root")

    def check(self) -> None:
        """Every file is in order."""
        for file in self.files:
            check(file)


async def write(agent: Agent, place: int, text: str) -> None:
    """A mebibyte of text, durable."""
    await shell(agent, f"yes {text} | dd of=/dev/vda bs=1M seek={place} count=1 iflag=fullblock conv=fsync")


async def read(agent: Agent, place: int) -> str:
    return await shell(agent, f"echo 3 > /proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip={place} count=1 | head -1")


async def test_disk_and_memory_are_of_one_instant_and_the_layers_stay_as_they_are(world: World, tmp_path: Path) -> None:
    async with AsyncExitStack() as undo:
        chain = Chain(tmp_path)
        guest, agent, launch = await undo.enter_async_context(running(world, disks=(chain.disk,)))
        assert await guest.tops() == ("disk0",)
        await write(agent, 1, "one")
        first = await saved_by(guest, undo, Overlay(chain.add(), "n1"))
        assert await guest.tops() == ("n1",)
        layer = chain.files[1].read_bytes()
        await write(agent, 1, "two")
        await write(agent, 2, "two")
        second = await saved_by(guest, undo, Overlay(chain.add(), "n" * 31))
        await write(agent, 1, "three")
        assert chain.files[1].read_bytes() == layer
        for saved, depth, text in ((first, 2, "one"), (second, 3, "two")):
            place = tmp_path / str(depth)
            place.mkdir()
            child, inside = await undo.enter_async_context(
                copied(world, saved, launch, disks=(chain.over(place, depth),))
            )
            assert await read(inside, 1) == text
            await write(inside, 1, "child")
            assert await child.tops() == ("disk0",)
        assert await read(agent, 1) == "three"
        chain.check()
        assert chain.files[1].read_bytes() == layer


async def test_a_guest_that_is_paused_is_saved_more_than_once_and_resumes(world: World, tmp_path: Path) -> None:
    async with AsyncExitStack() as undo:
        chain = Chain(tmp_path)
        guest, agent, launch = await undo.enter_async_context(running(world, disks=(chain.disk,)))
        await write(agent, 1, "one")
        await guest.pause()
        await saved_by(guest, undo, Overlay(chain.add(), "n1"))
        again = await saved_by(guest, undo, Overlay(chain.add(), "n2"))
        assert await guest.state() == "paused"
        (tmp_path / "child").mkdir()
        disk = chain.over(tmp_path / "child", 3)
        _, inside = await undo.enter_async_context(copied(world, again, launch, disks=(disk,)))
        assert await read(inside, 1) == "one"
        await guest.resume()
        await write(agent, 1, "two")
        assert await read(agent, 1) == "two"
        chain.check()


async def test_disks_alone_are_covered_and_files_copied_at_one_instant(world: World, tmp_path: Path) -> None:
    chain = Chain(tmp_path)
    (tmp_path / "from").write_bytes(b"variables")
    async with running(world, disks=(chain.disk,)) as (guest, agent, _):
        await write(agent, 1, "one")
        pair = (tmp_path / "from", tmp_path / "to")
        saved = await guest.checkpoint((Overlay(chain.add(), "n1"),), (pair,), memory=False)
        assert (saved.device, saved.memory) == (None, None)
        assert pair[1].read_bytes() == b"variables"
        assert await guest.tops() == ("n1",)
        assert await read(agent, 1) == "one"


@pytest.mark.fault(8)
async def test_a_step_that_fails_leaves_the_parent_running(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain(tmp_path)
    async with running(world, disks=(chain.disk,)) as (guest, agent, _):
        before = leftovers.descriptors(os.getpid())
        broken = tmp_path / "broken"
        broken.write_bytes(b"not a disk" * 1000)
        with pytest.raises(Unavailable):
            await guest.checkpoint((Overlay(broken, "n1"),))
        assert (await guest.state(), await guest.tops()) == ("running", ("disk0",))

        async def refuse(memory: object) -> None:
            raise Unavailable("no", "the test says so")

        with monkeypatch.context() as patch:
            patch.setattr(InPlace, "freeze", refuse)
            with pytest.raises(Unavailable, match="no"):
                await guest.checkpoint((Overlay(chain.add(), "n2"),))
        assert (await guest.state(), await guest.tops()) == ("running", ("n2",))
        with pytest.raises(Unavailable):
            await guest.checkpoint((Overlay(chain.add(), "n3"),), ((tmp_path / "absent", tmp_path / "to"),))
        assert (await guest.state(), await guest.tops()) == ("running", ("n3",))
        await write(agent, 1, "after")
        assert await read(agent, 1) == "after"
        saving = asyncio.ensure_future(guest.checkpoint((Overlay(chain.add(), "n4"),)))
        await asyncio.sleep(0.01)
        saving.cancel()
        await asyncio.wait([saving])
        assert await guest.state() == "running"
        assert await read(agent, 1) == "after"
        chain.check()
        assert leftovers.descriptors(os.getpid()) <= before + 2  # the memory that was frozen stays ours


async def test_a_parent_that_dies_while_it_is_saved_is_told_and_leaves_nothing(world: World) -> None:
    async with running(world) as (guest, _, _):
        saving = asyncio.ensure_future(guest.checkpoint(()))
        await asyncio.sleep(0.005)
        os.kill(guest.process.pid, signal.SIGKILL)
        [answer] = await asyncio.gather(saving, return_exceptions=True)
        if isinstance(answer, Saved):
            release(answer)
        assert isinstance(answer, Saved | RoostError)
        await asyncio.wait_for(guest.wait(), 10)
    assert not world.left()


@pytest.mark.fault(8)
async def test_a_guest_that_a_dead_daemon_left_standing_still_goes_on(world: World) -> None:
    launch = world.launch()
    guest = await world.hypervisor.start(launch)
    assert isinstance(guest, QemuGuest)
    try:
        await guest.resume()
        await answering(guest)
        await guest._note(True)
        await guest.pause()
        await guest.detach()
        found = await Qemu(world.paths, world.facts, UserNetwork(world.facts)).adopt(launch.files, launch.uid)
        assert found is not None
        guest = found
        assert await found.state() == "running"
        saved = await found.checkpoint(())
        assert saved.method == "in-place"
        release(saved)
        known = record.read(launch.files, launch.uid)
        assert known is not None
        assert not known.interrupted
    finally:
        await guest.kill()


@pytest.mark.fault(40)
async def test_a_machine_of_another_shape_does_not_take_over_what_was_saved(world: World) -> None:
    async with AsyncExitStack() as undo:
        guest, _, launch = await undo.enter_async_context(running(world, cpus=2))
        saved = await saved_by(guest, undo)
        other = world.launch(saved=saved, cpus=1)
        assert world.hypervisor.shape(other) != world.hypervisor.shape(launch)
        with pytest.raises(Unavailable, match="does not take the state"):
            await world.hypervisor.start(other)
        assert not other.files.live.exists()
        assert await guest.state() == "running"


async def test_without_the_library_memory_is_copied(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestmemory, "library", lambda: None)
    async with AsyncExitStack() as undo:
        guest, agent, launch = await undo.enter_async_context(running(world))
        assert guest.cloning == "copy"
        await shell(agent, "echo nonce > /run/nonce")
        saved = await saved_by(guest, undo)
        assert saved.method == "copy"
        await shell(agent, "echo later > /run/nonce")
        child, inside = await undo.enter_async_context(copied(world, saved, launch))
        assert child.cloning == "copy"
        assert await shell(inside, "cat /run/nonce") == "nonce"


async def test_the_network_card_stays_unplugged_until_it_is_told(world: World) -> None:
    carrier = "/bin/busybox ip link set eth0 up; sleep 1; cat /sys/class/net/eth0/carrier"
    async with AsyncExitStack() as undo:
        guest, agent, launch = await undo.enter_async_context(running(world, network="user"))
        await shell(agent, "until /bin/busybox ip route | grep -q default; do sleep 0.2; done")
        saved = await saved_by(guest, undo)
        child, inside = await undo.enter_async_context(copied(world, saved, launch))
        assert child.addresses == guest.addresses
        asked = "/bin/busybox arping -c 1 -w 5 -I eth0 $(/bin/busybox ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p')"
        # The cable is cut behind the card, so that the guest's own network need not begin anew.
        assert "Received 0 response" in await shell(inside, asked)
        await child.set_link(up=True)
        assert "Received 1 response" in await shell(inside, asked)
        _, apart = await undo.enter_async_context(copied(world, saved, launch, network="unplugged"))
        assert await shell(apart, carrier) == "0"


def cancelled_at(place: str) -> Callable[[str], Coroutine[None, None, None]]:
    """In place of `failpoints.reach`."""

    async def reach(name: str) -> None:
        if name == place:
            raise asyncio.CancelledError

    return reach


def opened(guest: Guest) -> set[str]:
    """The disks' files that QEMU has open."""
    links = [str(path.readlink()) for path in Path(f"/proc/{guest.process.pid}/fd").iterdir()]
    return {link for link in links if link.endswith(".qcow2")}


async def test_flattening_keeps_what_the_guest_sees_and_lets_go_of_the_layers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as undo:
        chain = Chain(tmp_path)
        guest, agent, _ = await undo.enter_async_context(running(world, disks=(chain.disk,)))
        for number in range(4):
            await write(agent, number, f"text{number}")
            await guest.checkpoint((Overlay(chain.add(), f"n{number}"),), memory=False)
        with monkeypatch.context() as patch:
            patch.setattr(failpoints, "reach", cancelled_at("flatten.pending"))
            with pytest.raises(asyncio.CancelledError):
                await guest.flatten(lambda done: None)
        assert opened(guest) == set(map(str, chain.files))
        done: list[float] = []
        await guest.flatten(done.append)
        assert done[-1] == 1.0
        assert [await read(agent, number) for number in range(4)] == [f"text{number}" for number in range(4)]
        assert opened(guest) == {str(chain.files[0]), str(chain.files[-1])}
        await write(agent, 1, "after")
        await guest.flatten(done.append)
        assert await read(agent, 1) == "after"
        for file in chain.files[1:-1]:
            file.unlink()
        assert await read(agent, 0) == "text0"
        await guest.resize_disk(128 * MiB)
        assert await shell(agent, "cat /sys/block/vda/size") == str(128 * MiB // 512)


@asynccontextmanager
async def spares(world: World, launch: Launch, count: int) -> AsyncIterator[Qemu]:
    """A hypervisor that keeps them, once they are there."""
    hypervisor = world.hypervisor
    await hypervisor.keep_spares(launch, count)
    try:
        async with asyncio.timeout(60):
            while len(hypervisor._spares._pools[launch.spare].waiting) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        yield hypervisor
    finally:
        await hypervisor.close()


async def test_a_spare_becomes_the_machine_and_a_dead_one_is_never_handed_out(world: World, tmp_path: Path) -> None:
    async with AsyncExitStack() as undo:
        chain = Chain(tmp_path)
        guest, agent, _ = await undo.enter_async_context(running(world, disks=(chain.disk,)))
        await write(agent, 1, "one")
        saved = await saved_by(guest, undo, Overlay(chain.add(), "n1"))

        def wanted() -> Launch:
            one = world.launch(saved=saved, spare="kind")
            return one._replace(disks=(chain.over(one.files.keep, 2),))

        hypervisor = await undo.enter_async_context(spares(world, wanted(), 2))
        waiting = [spare.spawned.held.qemu.process for spare in hypervisor._spares._pools["kind"].waiting]
        os.kill(waiting[0].pid, signal.SIGKILL)
        child = wanted()
        taken = await hypervisor.start(child)
        try:
            assert taken.process == waiting[1]
            await taken.resume()
            inside = await answering(taken)
            assert await read(inside, 1) == "one"
            await write(inside, 1, "child")
            await taken.detach()
            found = await hypervisor.adopt(child.files, child.uid)
            assert found is not None
            taken = found
            assert await read(await answering(taken), 1) == "child"
            check(child.disks[0].file)
        finally:
            await taken.kill()
        larger = wanted()
        larger.disks[0].file.write_bytes(overlays.empty(128 * MiB, ""))
        async with started(world, larger) as own:
            assert own.process not in waiting
    assert not world.left()
    assert not list(world.paths.spares.iterdir())


async def test_spares_of_a_dead_daemon_are_ended_by_the_next(world: World) -> None:
    async with running(world) as (guest, _, _):
        saved = await guest.checkpoint(())
        async with spares(world, world.launch(saved=saved, spare="kind"), 1) as hypervisor:
            [spare] = hypervisor._spares._pools["kind"].waiting
            uid = spare.launch.uid
            assert await world.hypervisor.adopt(world.paths.machine(uid), uid) is None
            assert processes.identify(spare.spawned.held.qemu.process.pid) is None
            assert not world.paths.machine(uid).live.exists()
        release(saved)
    assert not world.left()
