"""The memory of a real guest that counts in 112 pages at once: taken over, frozen, layered, copied, sealed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import mmap
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import thread as _thread  # noqa: F401 - an ordinary user may not be able to read it later
from pathlib import Path
from typing import Any

import pytest

from roost.errors import Conflict, Unavailable
from roost.guest import binary
from roost.hypervisor import memfd, thinning
from roost.hypervisor.memfd import Range
from roost.hypervisor.memory import Memory, MemoryPort
from roost.hypervisor.memorylink import MemoryLink
from roost.hypervisor.memorywire import REPLACE, SHARED, TOPMOST, Command, Part, Region, Request
from tests.checkout import ROOT
from tests.live.memory_machine import PAGES, SIZE, Machine, qemu
from tests.needs import needs_program, needs_root, repetitions
from tests.ordinary import WHO, run_as

pytestmark = [needs_program("qemu-system-x86_64"), pytest.mark.timeout(120)]

Checkpoint = tuple[list[int], Memory, int]
Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Makes machines that count, or, with `incoming`, wait for what they shall go on from. `filled`: MiB of other memory in use."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(filled: int = 0, **options: Any) -> Machine:
            machine = await stack.enter_async_context(qemu(tmp_path, **options))
            with open(machine.dummy, "r+b") as file:
                file.seek(16 << 20)
                file.write(b"f" * (filled << 20))
            if not options.get("incoming"):
                await machine.port.take_over(SIZE, machine.dummy)
                machine.ask("cont")
                await machine.count_to(10)
            return machine

        yield make


async def checkpoint(machine: Machine) -> Checkpoint:
    """What the guest had counted, its memory, and its devices; it goes on."""
    await machine.port.prepare()
    machine.ask("stop")
    device = await machine.save()
    await machine.port.freeze()
    counters = machine.counters()
    machine.ask("cont")
    return counters, await machine.port.seal(), device


async def become(child: Machine, taken: Checkpoint) -> None:
    """Go on from a checkpoint, which is used up; paused still."""
    await child.port.load(taken[1], child.dummy)
    await child.restore(taken[2])
    discard(taken)


def discard(taken: Checkpoint) -> None:
    taken[1].close()
    os.close(taken[2])


def files_in_memory(pid: int) -> list[Path]:
    """The descriptors of a process that are guests' memory."""
    entries = Path(f"/proc/{pid}/fd").iterdir()
    return [entry for entry in entries if str(entry.readlink()).startswith("/memfd:roost-memory")]


@pytest.mark.parametrize(("cpus", "jailed"), [(1, False), (4, False), (1, True), (4, True)])
async def test_copies_of_a_running_guest_go_on_where_it_was_and_it_goes_on_unharmed(
    start: Start, cpus: int, jailed: bool
) -> None:
    parent = await start(cpus=cpus, jailed=jailed)
    assert not parent.dummy.exists()
    for _ in range(3):
        taken = await checkpoint(parent)
        later = await parent.count_to(taken[0][-1] + 10)
        child = await start(incoming=True, cpus=cpus, jailed=jailed)
        await become(child, taken)
        assert child.counters() == taken[0]
        child.ask("cont")
        await child.count_to(later[0])


@pytest.mark.parametrize(("who", "namespaces"), [(who, kind) for who in WHO for kind in (True, os.getuid() != 0)])
def test_it_takes_no_privilege_and_no_namespace(who: str, namespaces: bool) -> None:
    library = binary(os.uname().machine, "memory.so").read_bytes()

    async def main() -> bool:
        home = Path(os.environ["TMPDIR"] if who == "user" else tempfile.mkdtemp(prefix="roost-test-"))
        (home / "memory.so").write_bytes(library)
        (home / "memory.so").chmod(0o555)
        async with contextlib.AsyncExitStack() as stack:
            parent, child = [
                await stack.enter_async_context(qemu(home, incoming=later, jailed=True, library=home / "memory.so"))
                for later in (False, True)
            ]
            await parent.port.take_over(SIZE, parent.dummy)
            parent.ask("cont")
            await parent.count_to(10)
            discard(await checkpoint(parent))
            await parent.count_to(parent.counters()[0] + 10)
            taken = await checkpoint(parent)
            await become(child, taken)
            return child.counters() == taken[0] and len(taken[0]) == len(PAGES)

    assert run_as(who, main, namespaces=namespaces)


@pytest.mark.fault(45)
async def test_nobody_writes_to_frozen_memory_by_any_descriptor_of_the_guest(start: Start) -> None:
    parent = await start()
    discard(await checkpoint(parent))
    await parent.count_to(parent.counters()[0] + 10)
    taken = await checkpoint(parent)
    entries = files_in_memory(parent.pid)
    assert len(entries) == len(taken[1].layers) == 2
    for entry in entries:
        with contextlib.closing(os.fdopen(os.open(entry, os.O_RDWR), "r+b", buffering=0)) as file:
            for attempt in (lambda fd: os.pwrite(fd, b"x", 0), lambda fd: mmap.mmap(fd, SIZE)):
                with pytest.raises(PermissionError) as refused:
                    attempt(file.fileno())
                assert refused.value.errno == errno.EPERM
    discard(taken)


@pytest.mark.fault(45)
async def test_what_a_guest_writes_after_it_was_copied_does_not_show_in_the_copy(start: Start) -> None:
    parent, child = await start(), await start(incoming=True)
    taken = await checkpoint(parent)
    await become(child, taken)
    await parent.count_to(taken[0][0] + 1000)
    assert child.counters() == taken[0]


@pytest.mark.fault(45)
async def test_memory_that_somebody_can_still_write_is_not_given_out_and_the_guest_goes_on(start: Start) -> None:
    parent = await start()
    (entry,) = files_in_memory(parent.pid)
    with open(entry, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), SIZE):
        parent.ask("stop")
        await parent.port.freeze()
        parent.ask("cont")
        with pytest.raises(Conflict, match="not frozen"):
            await parent.port.seal()
        await parent.count_to(parent.counters()[0] + 10)
    taken, child = await checkpoint(parent), await start(incoming=True)
    await become(child, taken)
    assert child.counters() == taken[0]


async def test_a_copy_can_be_copied_again(start: Start) -> None:
    guest = await start()
    for _ in range(3):
        taken = await checkpoint(guest)
        guest = await start(incoming=True)
        await become(guest, taken)
        assert guest.counters() == taken[0]
        guest.ask("cont")
        await guest.count_to(taken[0][0] + 10)


@pytest.mark.parametrize("filled", [0, 24], ids=["all layers become one", "the upper layers become one"])
async def test_many_checkpoints_do_not_add_up(start: Start, filled: int) -> None:
    parent = await start(filled=filled)
    for _ in range(20):
        taken = await checkpoint(parent)
        assert len(taken[1].layers) <= 12
        discard(taken)
        await parent.count_to(taken[0][0] + 3)
    assert len(files_in_memory(parent.pid)) <= 12
    taken, child = await checkpoint(parent), await start(incoming=True)
    await become(child, taken)
    assert child.counters() == taken[0]
    assert child.word(20 << 20) == (0x66666666 if filled else 0)


@pytest.mark.parametrize("frozen", [0, 1, 3])
async def test_a_later_daemon_finds_what_an_earlier_one_has_mapped(start: Start, frozen: int) -> None:
    parent = await start()
    for _ in range(frozen):
        discard(await checkpoint(parent))
        await parent.count_to(parent.counters()[0] + 3)
    await parent.port.close()
    parent.port = await MemoryPort.connect(parent.directory / "port", parent.pid)
    await parent.port.adopt(SIZE)
    taken, child = await checkpoint(parent), await start(incoming=True)
    await become(child, taken)
    assert child.counters() == taken[0]


async def freeze_for_ever(machine: Machine, address: int, first: int) -> None:
    """A daemon's work on a guest that stands still: it absorbs, freezes, or both, before a number goes up by one in 100 pages."""
    port = await MemoryPort.connect(machine.directory / "port", machine.pid)
    await port.adopt(SIZE)
    with open(f"/proc/{machine.pid}/mem", "r+b", buffering=0) as memory:
        for number in itertools.count(first):
            for mark in MARKS:
                os.pwrite(memory.fileno(), number.to_bytes(4, "little"), address + mark)
            if number % 3:
                for ranges in thinning.slices(await port.written(), 3 << 20):
                    await port.absorb(ranges)
            if number % 3 != 1:
                await port.freeze()
                (await port.seal()).close()


MARKS = range(32 << 20, 48 << 20, (16 << 20) // 100 // 4096 * 4096)


@needs_root
def test_a_daemon_that_is_killed_at_any_instant_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    seconds = random.Random(45)
    with asyncio.Runner() as runner:
        entered = qemu(tmp_path)
        machine = runner.run(entered.__aenter__())
        try:
            runner.run(machine.port.take_over(SIZE, machine.dummy))
            address = machine.port._region.address
            runner.run(machine.port.close())
            numbers, kills = [0], 0
            while (kills := kills + 1) <= repetitions(10, 300) or numbers[0] <= 10:  # some die before they have begun
                work = functools.partial(freeze_for_ever, machine, address, numbers[0] + 1)
                run_and_kill(work, seconds.uniform(0.01, 0.2))
                numbers = [machine.word(mark) for mark in MARKS]
                assert numbers == sorted(numbers, reverse=True)
                assert numbers[0] - numbers[-1] <= 1
        finally:
            runner.run(entered.__aexit__(None, None, None))


def run_and_kill(work: Callable[[], Any], seconds: float) -> None:
    """Do the work in a process of its own, which is killed after so many seconds."""
    daemon = os.fork()
    if daemon == 0:
        try:
            asyncio.run(work())
        finally:
            os._exit(1)
    time.sleep(seconds)
    os.kill(daemon, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(daemon, 0)[1]) == -signal.SIGKILL


async def absorb(machine: Machine, ranges: Sequence[Range]) -> None:
    machine.ask("stop")
    await machine.port.absorb(ranges)
    machine.ask("cont")


async def another_daemon(machine: Machine) -> None:
    """Whoever held the machine is gone, and the next one learns what is mapped."""
    await machine.port.close()
    machine.port = await MemoryPort.connect(machine.directory / "port", machine.pid)
    await machine.port.adopt(SIZE)


@pytest.mark.fault(45)
@pytest.mark.parametrize("broken", ["nothing", "the connection", "the daemon"])
async def test_what_a_running_guest_has_written_is_absorbed_in_slices(start: Start, broken: str) -> None:
    parent = await start()
    discard(await checkpoint(parent))
    for _ in range(2):
        later = await parent.count_to(parent.counters()[0] + 3)
        slices = list(thinning.slices(await parent.port.written(), 28 * 4096))
        assert len(slices) >= len(PAGES) // 28
        for number, ranges in enumerate(slices):
            await absorb(parent, ranges)
            await asyncio.sleep(0.02)  # the guest counts
            if broken == "the connection":
                parent.port._link.close()
            if broken == "the daemon" and number == 2:
                await another_daemon(parent)
        taken, child = await checkpoint(parent), await start(incoming=True)
        assert taken[0] >= later
        assert taken[0][0] - taken[0][-1] <= 1
        await become(child, taken)
        assert child.counters() == taken[0]
    await parent.count_to(taken[0][0] + 3)


@needs_root
@pytest.mark.fault(45)
@pytest.mark.parametrize("adopted", [False, True])
async def test_pages_that_are_written_between_slices_or_not_any_more_are_all_there(start: Start, adopted: bool) -> None:
    parent = await start()
    discard(await checkpoint(parent))
    written = dict.fromkeys(MARKS, 1)
    chance = random.Random(7)
    with open(f"/proc/{parent.pid}/mem", "r+b", buffering=0) as memory:

        def write(mark: int) -> None:
            os.pwrite(memory.fileno(), written[mark].to_bytes(4, "little"), parent.port._region.address + mark)

        for mark in MARKS:
            write(mark)
        for turn in range(4):
            for ranges in thinning.slices(await parent.port.written(), 128 << 10):
                await absorb(parent, ranges)
                for mark in chance.sample(MARKS, 5):
                    written[mark] += 1
                    write(mark)
            if adopted:
                await another_daemon(parent)
            taken, child = await checkpoint(parent), await start(incoming=True)
            await become(child, taken)
            assert {mark: child.word(mark) for mark in MARKS} == written, turn
            assert {mark: parent.word(mark) for mark in MARKS} == written, turn
            await child.port.close()


async def test_all_that_is_absorbed_before_a_freeze_is_one_layer(start: Start) -> None:
    parent = await start()
    assert not await parent.port.written()
    discard(await checkpoint(parent))
    await parent.count_to(parent.counters()[0] + 3)
    for ranges in thinning.slices(await parent.port.written(), 16 * 4096):
        await absorb(parent, ranges)
    assert len(files_in_memory(parent.pid)) == 2
    await parent.count_to(parent.counters()[0] + 3)
    discard(await checkpoint(parent))
    assert len(files_in_memory(parent.pid)) == 3


async def test_only_a_layer_above_the_lowest_takes_more(start: Start) -> None:
    parent = await start()
    region = parent.port._region
    more = Request(Command.MAP, TOPMOST, [Part(0, 4096)])
    assert await refused(parent, more, region) == errno.EINVAL
    await another_daemon(parent)
    parent.ask("stop")
    await parent.port.freeze()
    parent.ask("cont")
    assert await refused(parent, more, region) == errno.EINVAL
    await parent.count_to(parent.counters()[0] + 10)


@pytest.mark.parametrize("times", [1, 20])
async def test_freezes_that_were_cut_off_are_taken_up_by_the_next_and_do_not_add_up(start: Start, times: int) -> None:
    parent = await start()
    for _ in range(times):
        await parent.port.prepare()
        parent.ask("stop")
        await parent.port.freeze()
        await parent.port.close()
        parent.ask("cont")
        parent.port = await MemoryPort.connect(parent.directory / "port", parent.pid)
        await parent.port.adopt(SIZE)
        await parent.count_to(parent.counters()[0] + 3)
    taken, child = await checkpoint(parent), await start(incoming=True)
    await become(child, taken)
    assert child.counters() == taken[0]


async def test_after_a_connection_that_broke_what_is_mapped_is_learned_anew(start: Start) -> None:
    parent = await start()
    parent.port._link.close()
    other = await MemoryPort.connect(parent.directory / "port", parent.pid)
    await other.adopt(SIZE)
    parent.ask("stop")
    await other.freeze()
    await other.close()
    parent.ask("cont")
    await parent.count_to(parent.counters()[0] + 10)
    taken, child = await checkpoint(parent), await start(incoming=True)
    assert len(taken[1].layers) == 2
    await become(child, taken)
    assert child.counters() == taken[0]


async def test_the_working_set_can_be_made_present_beforehand(start: Start) -> None:
    parent = await start()
    discard(await checkpoint(parent))
    await parent.count_to(parent.counters()[0] + 10)
    working = await parent.port.working_set()
    assert any(first <= PAGES[0] < end for first, end in working)
    assert len(PAGES) * 4096 <= await parent.port.private() < SIZE // 4
    taken, child = await checkpoint(parent), await start(incoming=True)
    await child.port.load(taken[1], child.dummy)
    assert not await child.port.working_set()
    await child.port.populate(working)
    present = await child.port.working_set()
    assert sum(end - first for first, end in present) >= len(PAGES) * 4096
    assert await child.port.private() == 0
    discard(taken)


async def test_without_the_library_it_is_known_at_once(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="can not be mapped"):
        async with qemu(tmp_path, preload=False):
            pass


@pytest.fixture
def older_library(tmp_path: Path) -> Path:
    """The library, made to believe that the kernel has no PAGEMAP_SCAN."""
    library = tmp_path / "memory.so"
    flags = ["-std=gnu11", "-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-O1", "-DPAGEMAP_SCAN=0u"]
    subprocess.run([str(shutil.which("gcc")), *flags, "-o", library, ROOT / "guest" / "memory.c"], check=True)
    return library


@needs_program("gcc")
async def test_on_kernels_before_6_7_the_pages_are_found_too(start: Start, older_library: Path) -> None:
    parent = await start(library=older_library)
    discard(await checkpoint(parent))
    later = await parent.count_to(parent.counters()[0] + 10)
    taken, child = await checkpoint(parent), await start(incoming=True)
    assert taken[1].layers[1:]
    await become(child, taken)
    assert child.counters() == taken[0] >= later


async def refused(machine: Machine, request: Request, region: Region) -> int:
    """The errno that the library answers with; also closes the connection."""
    await machine.port.close()
    link = MemoryLink(machine.directory / "port", machine.pid)
    await link.connect()
    reply, _, descriptors = await link.exchange(request, region)
    assert not descriptors
    link.close()
    return reply.error


WHOLE = Part(0, SIZE)
BAD: dict[str, tuple[Request, Callable[[Region], Region]]] = {
    "another address": (
        Request(Command.MAP, REPLACE, [WHOLE]),
        lambda region: region._replace(address=region.address + 4096),
    ),
    "another length": (
        Request(Command.MAP, REPLACE, [Part(0, SIZE // 2)]),
        lambda region: region._replace(length=SIZE // 2),
    ),
    "a length that wraps": (
        Request(Command.MAP, REPLACE, [WHOLE]),
        lambda region: region._replace(length=-4096 % 2**64),
    ),
    "no whole page": (
        Request(Command.MAP, REPLACE, [WHOLE]),
        lambda region: region._replace(address=region.address + 1),
    ),
    "a range outside": (Request(Command.MAP, REPLACE, [WHOLE, Part(SIZE, SIZE + 4096)]), lambda region: region),
    "a range that ends outside": (
        Request(Command.MAP, REPLACE, [WHOLE, Part(4096, SIZE + 4096)]),
        lambda region: region,
    ),
    "a layer that was not sent": (Request(Command.MAP, REPLACE, [WHOLE, Part(0, 4096, 1)]), lambda region: region),
    "memory left out": (Request(Command.MAP, REPLACE, [Part(0, SIZE - 4096)]), lambda region: region),
    "memory left out in the middle": (
        Request(Command.MAP, REPLACE, [Part(0, 4096), Part(8192, SIZE)]),
        lambda region: region,
    ),
    "upper layers shared": (Request(Command.MAP, SHARED, [Part(0, 4096)]), lambda region: region),
    "layers over shared memory": (Request(Command.MAP, 0, [Part(0, 4096)]), lambda region: region),
    "an unknown command": (Request(Command.HELLO), lambda region: region),
    "too few descriptors": (Request(Command.COPY, most=100), lambda region: region),
}


async def test_wrong_requests_are_refused_and_change_nothing(start: Start) -> None:
    parent = await start()
    region, file = parent.port._region, memfd.create("wrong", SIZE)
    answers = {
        name: await refused(parent, wrong._replace(fds=[file]), change(region)) for name, (wrong, change) in BAD.items()
    }
    os.close(file)
    assert set(answers.values()) == {errno.EINVAL}, answers
    await parent.count_to(parent.counters()[0] + 10)


async def test_a_file_that_can_not_be_mapped_changes_nothing(start: Start) -> None:
    parent = await start()
    region = parent.port._region
    with open("/dev/null", "rb") as file:
        assert await refused(parent, Request(Command.MAP, REPLACE, [WHOLE], [file.fileno()]), region) == errno.ENODEV
    await parent.count_to(parent.counters()[0] + 10)
