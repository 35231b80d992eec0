"""Memory in layers: sealed, put together, copied; and the connection to a library that may say anything."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import mmap
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.errors import Conflict, OutcomeUnknown, Unavailable
from roost.guest import binary
from roost.host import binaries, sockets
from roost.hypervisor import memfd, memory, memorywire, thinning
from roost.hypervisor.memfd import Range
from roost.hypervisor.memory import Memory, MemoryPort
from roost.hypervisor.memorywire import Command, Part, Region, Request
from roost.model.meta import MiB

PAGE = 4096
SIZE = 64 * PAGE


def layer(pages: dict[int, bytes], *, sealed: bool = True) -> int:
    """A file in memory with these pages filled by these bytes."""
    descriptor = memfd.create("test", SIZE)
    for number, fill in pages.items():
        os.pwrite(descriptor, fill * PAGE, number * PAGE)
    if sealed:
        memfd.seal(descriptor)
    return descriptor


@pytest.fixture
def layered() -> Iterator[Memory]:
    """Three layers: a at 1, 2 and 40, above it b at 2 and 3, above it c at 3."""
    made = Memory(SIZE, [layer({1: b"a", 2: b"a", 40: b"a"}), layer({2: b"b", 3: b"b"}), layer({3: b"c"})])
    yield made
    made.close()


EXPECTED = {1: b"a", 2: b"b", 3: b"c", 40: b"a"}


def pages(data: bytes) -> dict[int, bytes]:
    """Which pages are not zero, and what they begin with."""
    return {at // PAGE: data[at : at + 1] for at in range(0, len(data), PAGE) if data[at]}


def open_descriptors() -> int:
    gc.collect()  # what earlier tests left to the collector must not go between two counts
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.fault(45)
def test_what_is_sealed_can_be_written_by_nobody_and_in_no_way() -> None:
    descriptor = layer({1: b"a"}, sealed=False)
    before = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    memfd.seal(descriptor)
    after = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    attempts = [
        lambda fd: os.pwrite(fd, b"x", PAGE),
        lambda fd: os.ftruncate(fd, 2 * SIZE),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
    ]
    answers = set()
    for file in (descriptor, before, after):
        for attempt in attempts:
            with pytest.raises(OSError) as refused:
                attempt(file)
            answers.add(refused.value.errno)
        os.close(file)
    assert answers == {errno.EPERM}


@pytest.mark.fault(45)
def test_memory_that_somebody_may_still_write_is_not_shared() -> None:
    before = open_descriptors()
    with pytest.raises(Conflict):
        Memory(SIZE, [layer({1: b"a"}), layer({2: b"b"}, sealed=False)])
    assert open_descriptors() <= before  # what earlier tests left may go meanwhile


@pytest.mark.fault(45)
def test_sealing_is_refused_while_somebody_maps_the_memory_for_writing() -> None:
    descriptor = layer({}, sealed=False)
    with mmap.mmap(descriptor, SIZE):
        with pytest.raises(Conflict, match="not frozen"):
            memfd.seal(descriptor)
        assert os.pwrite(descriptor, b"x", 0) == 1
    memfd.seal(descriptor)
    assert memfd.is_frozen(descriptor)
    os.close(descriptor)


def test_memory_of_another_size_is_not_taken() -> None:
    with pytest.raises(Conflict):
        Memory(2 * SIZE, [layer({})])


def test_a_duplicate_outlives_the_original(layered: Memory) -> None:
    copy = layered.duplicate()
    layered.close()
    assert os.pread(copy.layers[0], 1, PAGE) == b"a"
    assert copy.ranges(1) == (Range(2 * PAGE, 4 * PAGE),)
    assert layered.layers == ()
    copy.close()


def test_resident_counts_the_pages_of_all_layers(layered: Memory) -> None:
    assert layered.resident() == 6 * PAGE


def test_later_layers_hide_the_pages_of_those_below_when_they_become_one(layered: Memory) -> None:
    single = memory.consolidate(layered)
    assert len(single.layers) == 1
    assert pages(os.pread(single.layers[0], SIZE, 0)) == EXPECTED
    assert single.ranges(0) == (Range(PAGE, 4 * PAGE), Range(40 * PAGE, 41 * PAGE))
    single.close()


def test_a_copy_maps_the_lowest_layer_whole_and_over_it_what_the_highest_above_have(layered: Memory) -> None:
    places = [(0, 64, 0), (2, 3, 1), (3, 4, 2)]
    assert layered.parts() == [Part(start * PAGE, end * PAGE, layer) for start, end, layer in places]


def test_copied_into_a_named_file_and_out_of_it(layered: Memory, tmp_path: Path) -> None:
    file = tmp_path / "memory"
    file.touch()
    os.truncate(file, SIZE)
    memory.copy_in(layered, file)
    assert pages(file.read_bytes()) == EXPECTED
    copied = memory.copy_out(file, SIZE)
    assert memfd.is_frozen(copied.layers[0])
    assert pages(os.pread(copied.layers[0], SIZE, 0)) == EXPECTED
    copied.close()


def test_a_named_file_is_not_followed_elsewhere(layered: Memory, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(bytes(SIZE))
    (tmp_path / "memory").symlink_to(target)
    with pytest.raises(Unavailable):
        memory.copy_in(layered, tmp_path / "memory")
    assert not any(target.read_bytes())


MAPS = b"""\
7f0000000000-7f0000010000 rw-s 00000000 00:19 77                         /memory
7f0000010000-7f0000011000 ---p 00000000 00:00 0
7f0000020000-7f0000030000 r--s 00000000 00:19 78                         /memory
7f0000040000-7f0000048000 rw-s 00000000 00:19 79                         /memory
7f0000048000-7f0000050000 rw-s 00008000 00:19 79                         /memory
7f0000060000-7f0000068000 rw-s 00000000 00:19 80                         /memory
7f0000069000-7f0000071000 rw-s 00008000 00:19 80                         /memory
7f0000080000-7f0000090000 rw-s 00000000 00:19 81                         /memory (deleted)
7f00000a0000-7f00000b0000 rw-s 00000000 00:19 81                         /memory (deleted)
"""


@pytest.mark.parametrize(("inode", "address"), [(77, 0x7F0000000000), (79, 0x7F0000040000)])
def test_finds_where_qemu_has_the_memory(inode: int, address: int) -> None:
    assert memfd.find(MAPS, inode, 0x10000) == address


@pytest.mark.parametrize("inode", [7, 78, 80, 81], ids=["absent", "read-only", "with a gap", "twice"])
def test_refuses_memory_that_is_mapped_in_an_unknown_way(inode: int) -> None:
    with pytest.raises(Unavailable):
        memfd.find(MAPS, inode, 0x10000)


@given(st.lists(st.frozensets(st.integers(0, 15)), min_size=1, max_size=4))
def test_the_highest_layer_that_has_a_page_gives_it(layers: list[frozenset[int]]) -> None:
    parts = memorywire.topmost([tuple(Range(page, page + 1) for page in sorted(pages)) for pages in layers])
    highest = {page: number for number, pages in enumerate(layers) for page in pages}
    assert [(start, layer) for start, end, layer in parts for start in range(start, end)] == sorted(highest.items())


def ranges_of(numbers: frozenset[int]) -> tuple[Range, ...]:
    return tuple(Range(page * PAGE, (page + 1) * PAGE) for page in sorted(numbers))


def pages_of(ranges: Sequence[Range]) -> list[int]:
    return [page for start, end in ranges for page in range(start // PAGE, end // PAGE)]


@given(st.frozensets(st.integers(0, 30)), st.frozensets(st.integers(0, 30)))
def test_a_layer_that_takes_more_has_every_page_once(before: frozenset[int], added: frozenset[int]) -> None:
    one, other = (memorywire.union(ranges_of(pages), ()) for pages in (before, added))
    assert pages_of(memorywire.union(one, other)) == sorted(before | added)
    assert pages_of(memorywire.union(other, one)) == sorted(before | added)


@given(st.frozensets(st.integers(0, 60)), st.integers(1, 9))
def test_slices_are_all_that_was_written_in_order_and_none_is_larger_than_wanted(
    written: frozenset[int], most: int
) -> None:
    ranges = memorywire.union(ranges_of(written), ())
    slices = list(thinning.slices(ranges, most * PAGE))
    assert [page for ranges in slices for page in pages_of(ranges)] == sorted(written)
    assert all(thinning.size(ranges) == most * PAGE for ranges in slices[:-1])
    assert all(0 < thinning.size(ranges) <= most * PAGE for ranges in slices)


@pytest.mark.parametrize(
    ("written", "before", "answer"),
    [(0, None, False), (16, None, False), (17, None, True), (64, 128, True), (65, 128, False), (10, 128, False)],
)
def test_a_round_is_made_for_much_and_only_while_it_gains_on_the_guest(
    written: int, before: int | None, answer: bool
) -> None:
    assert thinning.worthwhile(written * MiB, before and before * MiB) is answer


@given(st.binary(min_size=memorywire.HEADER_SIZE, max_size=memorywire.HEADER_SIZE), st.binary(max_size=96))
def test_whatever_the_library_says_is_an_answer_or_refused(head: bytes, tail: bytes) -> None:
    with contextlib.suppress(memorywire.Broken):
        reply = memorywire.decode(head)
        assert reply.ranges <= memorywire.MAX_RANGES
    with contextlib.suppress(memorywire.Broken):
        ranges = memorywire.decode_ranges(tail[: len(tail) // 16 * 16], SIZE)
        assert all(0 <= start < end <= SIZE for start, end in ranges)


def test_ranges_out_of_order_are_refused() -> None:
    with pytest.raises(memorywire.Broken):
        memorywire.decode_ranges(struct.pack("<QIIQII", PAGE, 1, 0, 0, 1, 0), SIZE)


def test_more_layers_than_the_library_takes_are_not_sent() -> None:
    with pytest.raises(ValueError, match="too many"):
        memorywire.encode(Request(Command.MAP, fds=range(17)), Region(0, SIZE, PAGE))


def head(command: Command = Command.HELLO, *, error: int = 0, layers: int = 0, ranges: int = 0) -> bytes:
    return struct.pack("<4sIiIIIQQIIQ", b"RSM1", command, error, 0, layers, ranges, 0, SIZE, 0, 0, 0)


@contextlib.asynccontextmanager
async def library(path: Path, *answers: bytes, fds: tuple[int, ...] = ()) -> AsyncIterator[None]:
    """Stands in for the library: greets with the first answer, then gives one to each request; then it closes."""
    loop = asyncio.get_running_loop()

    async def serve(listener: socket.socket) -> None:
        connection, _ = await loop.sock_accept(listener)
        with connection:
            for number, words in enumerate(answers):
                if number:
                    await loop.sock_recv(connection, 65536)
                socket.send_fds(connection, [words], fds if number else [])

    with sockets.listen_unix(path) as listener:
        async with asyncio.TaskGroup() as group:
            serving = group.create_task(serve(listener))
            yield
            serving.cancel()


async def test_a_library_that_never_listened_is_known_at_once(tmp_path: Path) -> None:
    with sockets.listen_unix(tmp_path / "port"), pytest.raises(Unavailable, match="can not be mapped"):
        await MemoryPort.connect(tmp_path / "port", os.getppid())


@pytest.mark.parametrize(
    "greeting", [b"x" * memorywire.HEADER_SIZE, head(Command.LIST)], ids=["nonsense", "no greeting"]
)
async def test_a_greeting_that_is_none_is_refused(tmp_path: Path, greeting: bytes) -> None:
    async with library(tmp_path / "port", greeting):
        with pytest.raises(Unavailable):
            await MemoryPort.connect(tmp_path / "port", os.getpid())


async def test_a_library_that_hangs_up_leaves_the_outcome_open(tmp_path: Path) -> None:
    async with library(tmp_path / "port", head()):
        port = await MemoryPort.connect(tmp_path / "port", os.getpid())
        with pytest.raises(OutcomeUnknown):
            await port.working_set()
        await port.close()


@pytest.mark.parametrize(
    "answer",
    [
        head(Command.LIST, layers=1),
        head(Command.LIST, ranges=1) + struct.pack("<QII", 0, 1000, 0),
        head(Command.LIST),
        b"y" * memorywire.HEADER_SIZE,
    ],
    ids=["without its descriptor", "ranges beyond the memory", "nothing mapped", "nonsense"],
)
async def test_an_answer_that_makes_no_sense_is_refused_and_leaves_no_descriptor(tmp_path: Path, answer: bytes) -> None:
    before = open_descriptors()
    async with library(tmp_path / "port", head(), answer):
        port = await MemoryPort.connect(tmp_path / "port", os.getpid())
        with pytest.raises(Unavailable):
            await port.adopt(SIZE)
        await port.close()
    assert open_descriptors() <= before  # what earlier tests left may go meanwhile


async def test_a_descriptor_that_is_no_memory_is_not_adopted(tmp_path: Path) -> None:
    before = open_descriptors()
    with open("/proc/self/exe", "rb") as file:  # not below tmp_path, whose file system may be memory too
        async with library(tmp_path / "port", head(), head(Command.LIST, layers=1), fds=(file.fileno(),)):
            port = await MemoryPort.connect(tmp_path / "port", os.getpid())
            with pytest.raises(Unavailable, match="can not be shared"):
                await port.adopt(SIZE)
            await port.close()
    assert open_descriptors() <= before  # what earlier tests left may go meanwhile


async def test_nothing_is_sealed_that_was_not_frozen(tmp_path: Path) -> None:
    async with library(tmp_path / "port", head()):
        port = await MemoryPort.connect(tmp_path / "port", os.getpid())
        with pytest.raises(Conflict):
            await port.seal()
        await port.close()


@pytest.mark.parametrize("arch", ["x86_64", "aarch64", "riscv64"])
def test_the_library_loads_beside_whatever_c_library_qemu_has(arch: str) -> None:
    library = binary(arch, "memory.so")
    assert binaries.needs(library) == (None, {})
    assert b"GLIBC_" not in library.read_bytes()
