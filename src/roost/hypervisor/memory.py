"""A guest's memory as files that can be shared: frozen in place, layered, consolidated; and the port to the library that maps it.

QEMU is started over an empty named file, and a library preloaded into it (guest/memory.c) exchanges the mapping: first for a memfd that
the guest shares with us; at the first freeze for a private mapping of the same memfd, which then is sealed; at each later freeze what
the guest has written since becomes one more sealed layer. So a guest stands still while it is mapped, never while it is copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from roost import log
from roost.errors import Conflict, RoostError, Unavailable
from roost.host import memory as host_memory
from roost.hypervisor import memfd, thinning
from roost.hypervisor.memfd import Range
from roost.hypervisor.memorylink import MemoryLink, close_all, to_the_end
from roost.hypervisor.memorywire import (
    KEEP_LOWEST,
    PRIVATE,
    REPLACE,
    SHARED,
    TOPMOST,
    Command,
    Part,
    Region,
    Reply,
    Request,
    topmost,
    union,
)

VARIABLE = "ROOST_MEMORY_FD"
"""Environment variable that tells the library the number of its listening socket."""

_MOST_LAYERS = 6
"""With more, they are consolidated: every layer costs each copy of the guest mappings."""
_FULL = 12
"""With as many, a checkpoint waits until that is done; the library takes 16."""
_MOST_RANGES = 4000
"""Ranges of one layer."""
_MANY_RANGES = 8000
"""With as many in all layers together they all become one: mapping them takes 10 ms and more."""
_MOST_IN_ALL = 24000
"""Each makes two mappings at most, which must stay below vm.max_map_count, 65530; with as many a checkpoint waits too. What one
checkpoint adds without waiting is `_MOST_RANGES`, and `thinning.RANGES` in each of its rounds."""


class Memory:
    """A guest's memory at one instant: memfds that the kernel has sealed against every write, the lowest first; a later one hides the
    pages of those below that it has itself. Owns its descriptors. `size` in bytes."""

    def __init__(self, size: int, layers: Iterable[int], ranges: Mapping[int, tuple[Range, ...]] | None = None) -> None:
        """Takes over the descriptors; `ranges` of a layer (by its index) are found when they are not given. Raises Conflict, and closes the
        descriptors, when one is not sealed or not as large."""
        self.size = size
        self.layers: tuple[int, ...] = tuple(layers)
        self._ranges = dict(ranges or {})
        if not self.layers or not all(memfd.is_frozen(fd) and memfd.is_whole(fd, size) for fd in self.layers):
            self.close()
            raise Conflict("a guest's memory can not be shared", "one of its files is not sealed, or of another size")

    def duplicate(self) -> Memory:
        """The same memory with descriptors of its own."""
        return Memory(self.size, duplicates(self.layers), self._ranges)

    def close(self) -> None:
        """Close the descriptors; whoever maps the memory keeps it."""
        layers, self.layers = self.layers, ()
        close_all(layers)

    def resident(self) -> int:
        """Bytes that the layers take, together."""
        return sum(map(memfd.resident, self.layers))

    def ranges(self, index: int) -> tuple[Range, ...]:
        """Where the layer with this index has pages; remembered, for a sealed file changes no more."""
        if index not in self._ranges:
            self._ranges[index] = tuple(memfd.data(self.layers[index]))
        return self._ranges[index]

    def parts(self) -> list[Part]:
        """What a guest that has not run yet maps from which layer: the lowest whole, and over it what those above have."""
        return [Part(0, self.size), *topmost([(), *map(self.ranges, range(1, len(self.layers)))])]


def duplicates(descriptors: Iterable[int]) -> list[int]:
    """Descriptors of the caller's own for the same files. Raises OSError; then none is left."""
    with contextlib.ExitStack() as undo:
        made = []
        for descriptor in descriptors:
            made.append(os.dup(descriptor))
            undo.callback(os.close, made[-1])
        undo.pop_all()
    return made


def consolidate(memory: Memory, first: int = 0) -> Memory:
    """What the layers from `first` on have, in a single layer: 50 ms for each 100 MiB, so in a thread. Raises Unavailable."""
    made = _fill(
        memory.size, ((memory.layers[index], memory.ranges(index)) for index in range(first, len(memory.layers)))
    )
    made.ranges(0)
    return made


def copy_out(file: Path, size: int) -> Memory:
    """Method "copy": what a guest that stands still has in its named file. 50 ms for each 100 MiB, so in a thread. Raises Unavailable."""
    with _opened(file, size) as source:
        return _fill(size, [(source, memfd.data(source))])


def copy_in(memory: Memory, file: Path) -> None:
    """Method "copy": write `memory` into the file that names it to QEMU, before QEMU starts. In a thread. Raises Unavailable."""
    with _opened(file, memory.size) as target:
        try:
            for index, layer in enumerate(memory.layers):
                memfd.copy(layer, target, memory.ranges(index))
        except OSError as error:
            raise Unavailable("a guest's memory was not copied", f"{file}: {error.strerror}", "roost doctor") from None


def _fill(size: int, sources: Iterable[tuple[int, Iterable[Range]]]) -> Memory:
    target = memfd.create("roost-memory", size)
    try:
        for source, ranges in sources:
            memfd.copy(source, target, ranges)
        memfd.seal(target)
        return Memory(size, [os.dup(target)])
    except OSError as error:
        raise Unavailable("a guest's memory was not copied", str(error.strerror), "stop another machine") from None
    finally:
        os.close(target)


@contextlib.contextmanager
def _opened(file: Path, size: int) -> Iterator[int]:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise Unavailable("a guest's memory can not be reached", f"{file}: {error.strerror}") from None
    try:
        if os.fstat(descriptor).st_size != size:
            raise Unavailable("a guest's memory can not be reached", f"{file} does not have {size} bytes")
        yield descriptor
    finally:
        os.close(descriptor)


class _Merged(NamedTuple):
    """A single layer for several, which are those with these inodes, counted from the layer `first` on."""

    memory: Memory
    first: int
    inodes: list[int]


class MemoryPort:
    """The library inside one QEMU that maps memory for us. Verbs wait for each other. Raises Unavailable when the library refuses or its
    answer makes no sense, OutcomeUnknown when it does not answer; the next verb then looks anew at what is mapped."""

    def __init__(self, path: Path, pid: int) -> None:
        self._pid = pid
        self._link = MemoryLink(path, pid)
        self._lock = asyncio.Lock()
        self._region = Region(0, 0, os.sysconf("SC_PAGE_SIZE"))
        self._layers: list[int] = []  # ours, of the files that the guest's memory is made of, the lowest first
        self._shared = False  # the guest still writes to the lowest
        self._frozen: list[int] | None = None  # of the last freeze, until seal takes it
        self._merging: asyncio.Task[None] | None = None
        self._merged: _Merged | None = None
        self._ranges: dict[int, tuple[Range, ...]] = {}  # of the layers, by their inodes; what is missing can be found
        self._absorbing: int | None = None  # the inode of the layer that has absorbed pages since the last freeze

    @classmethod
    async def connect(cls, path: Path, pid: int) -> MemoryPort:
        """The library in process `pid`, by its socket. Call it once QEMU's monitor has greeted. Raises Unavailable when there is none
        (known at once, from who listens) or its host does not show us the process, OutcomeUnknown when it does not answer."""
        port = cls(path, pid)
        os.close(memfd.pagemap(pid))
        await port._link.connect()
        return port

    async def take_over(self, size: int, dummy: Path) -> None:
        """Cold start, before the first `cont`: move the guest's memory from the file `dummy`, which has `size` bytes since before QEMU's
        start, to a memfd of its own, and unlink the file."""
        async with self._turn():
            target = memfd.create("roost-memory", size)
            try:
                await asyncio.to_thread(self._read_dummy, dummy, size, target)
                await self._map(Request(Command.MAP, REPLACE | SHARED, [Part(0, size)], [target]), [])
            finally:
                os.close(target)
            self._shared = True
            await asyncio.to_thread(_empty, dummy, size)

    async def load(self, memory: Memory, dummy: Path) -> None:
        """A copy, before `migrate-incoming`: the guest's memory is `memory` from now on, and what it writes is its own. Unlinks `dummy`."""
        async with self._turn():
            parts = await asyncio.to_thread(self._read_parts, memory, dummy)
            await self._map(Request(Command.MAP, REPLACE, parts, memory.layers), [])
            self._shared = False
            await asyncio.to_thread(_empty, dummy, memory.size)

    async def adopt(self, size: int) -> None:
        """Learn from the library what an earlier daemon has mapped. Raises Unavailable when that can not be told."""
        async with self._turn():
            await self._adopt(size)

    async def prepare(self) -> None:
        """Just before the guest is stopped for a freeze: does what can be done while it runs, so that it stands still for less."""
        async with self._turn():
            if self._shared:
                await self._ask(Request(Command.PREPARE))
            elif len(self._layers) >= _FULL:
                # Every daemon that was killed between a freeze and its seal left one more that nobody has consolidated.
                (await self._keep(duplicates(self._layers))).close()

    async def written(self) -> tuple[Range, ...]:
        """What a freeze would copy now, to be thinned by `absorb` before; nothing while the guest's memory is shared."""
        async with self._turn():
            # With so many layers there would be none left for the freeze itself.
            if self._shared or len(self._layers) >= _FULL:
                return ()
            return (await self._scan(PRIVATE, thinning.RANGES))[0]

    async def absorb(self, ranges: Sequence[Range]) -> None:
        """The guest stands still: what it has there leaves its own pages for a layer, a single one for all that is absorbed before the
        next freeze. What the guest writes there later is its own again, and the freeze's."""
        async with self._turn():
            top = self._layers[-1]
            absorbing, self._absorbing = self._absorbing, None
            first = absorbing is None or _inodes([top]) != [absorbing]
            target = memfd.create("roost-memory", self._region.length) if first else os.dup(top)
            try:
                await self._ask(Request(Command.COPY, parts=ranges, fds=[target]))
                [inode] = _inodes([target])
                # Before it is mapped: of a layer that may be mapped nothing must be missed, and what it has too much is correct as well.
                self._ranges[inode] = union(() if first else self._known(target), ranges)
                mapped = (
                    Request(Command.MAP, parts=ranges, fds=[target]) if first else Request(Command.MAP, TOPMOST, ranges)
                )
                await self._map(mapped, self._layers)
                self._absorbing = inode
            finally:
                os.close(target)

    async def freeze(self) -> None:
        """The guest stands still: from here on nothing writes to its memory as it is now, and it may go on at once, also after an error."""
        async with self._turn():
            if not self._layers:
                raise Unavailable("a guest's memory was not frozen", "its library has not mapped it")
            self._absorbing = None
            if self._shared:
                await self._map(Request(Command.MAP, REPLACE, [Part(0, self._region.length)], self._layers), [])
                self._shared = False
            else:
                await self._freeze_written()
            self._forget_frozen()
            self._frozen = duplicates(self._layers)

    async def seal(self) -> Memory:
        """The memory as it was at the last `freeze`, which the kernel lets nobody write to ever again; the guest may run meanwhile. The
        caller owns it. Raises Conflict when somebody still maps it for writing."""
        async with self._lock:
            frozen, self._frozen = self._frozen, None
            if frozen is None:
                raise Conflict("a guest's memory was not sealed", "it was not frozen")
            return await self._keep(frozen)

    async def populate(self, ranges: Sequence[Range]) -> None:
        """Make pages present before the guest touches them."""
        async with self._turn():
            await self._ask(Request(Command.POPULATE, parts=ranges))

    async def working_set(self) -> tuple[Range, ...]:
        """The pages that are present now, and small gaps between them."""
        async with self._turn():
            return (await self._scan(0, _MOST_RANGES))[0]

    async def private(self) -> int:
        """Bytes of memory that the guest has written since it was frozen or made; all of its memory while it shares none."""
        async with self._turn():
            if self._shared:
                return memfd.resident(self._layers[0])
            return (await self._scan(PRIVATE, _MOST_RANGES))[1]

    def moved(self, path: Path) -> None:
        """The library's socket has another name from now on."""
        self._link.moved(path)

    async def close(self) -> None:
        """Let go of the library; the guest's memory stays as it is."""
        if self._merging is not None:
            await asyncio.wait([self._merging])
        async with self._lock:
            self._link.close()
            self._forget_frozen()
            merged = self._take_merged()
            if merged is not None:
                merged.memory.close()
            layers, self._layers = self._layers, []
            close_all(layers)

    # Freezing ------------------------------------------------------------------------------------------------------------------

    async def _freeze_written(self) -> None:
        """What the guest has written since the last freeze becomes one more layer, mapped in place of the guest's own pages."""
        added = memfd.create("roost-memory", self._region.length)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, added)
            ranges = await self._copy_written(added)
            self._ranges[os.fstat(added).st_ino] = ranges
            merged = self._take_merged()
            if merged is not None:
                undo.callback(merged.memory.close)
                await self._map_merged(merged, [added] if ranges else [])
            elif ranges:
                await self._map(Request(Command.MAP, parts=ranges, fds=[added]), self._layers)

    async def _copy_written(self, target: int) -> tuple[Range, ...]:
        pagemap = memfd.pagemap(self._pid)
        try:
            request = Request(Command.COPY, PRIVATE, fds=[pagemap, target], most=_MOST_RANGES)
            return (await self._ask(request))[1]
        finally:
            os.close(pagemap)

    async def _map_merged(self, merged: _Merged, added: list[int]) -> None:
        """Map what several layers were consolidated into in their place, and above it what came later."""
        self._ranges[_inodes(merged.memory.layers)[0]] = merged.memory.ranges(0)
        above = [*merged.memory.layers, *self._layers[merged.first + len(merged.inodes) :], *added]
        ranges: list[Sequence[Range]] = list(map(self._known, above))
        if not merged.first:
            ranges[0] = [Range(0, self._region.length)]
        flag = KEEP_LOWEST if merged.first else REPLACE
        await self._map(Request(Command.MAP, flag, topmost(ranges), above), self._layers[: merged.first])

    async def _map(self, request: Request, kept: Sequence[int]) -> None:
        """Have it mapped, also when cancelled; then the layers are those that were kept, and the ones mapped above them."""
        layers = duplicates([*kept, *request.fds])
        mapping = log.spawn_task(self._try_to_map(request), "map a guest's memory")
        try:
            await to_the_end(mapping)
        finally:
            error = mapping.result()
            old, self._layers = (layers, self._layers) if error else (self._layers, layers)
            close_all(old)
            inodes = set(_inodes(self._layers))
            self._ranges = {inode: ranges for inode, ranges in self._ranges.items() if inode in inodes}
        if error:
            raise error

    async def _try_to_map(self, request: Request) -> RoostError | None:
        try:
            await self._ask(request)
        except RoostError as error:
            return error
        return None

    def _known(self, layer: int) -> tuple[Range, ...]:
        ranges = self._ranges.get(os.fstat(layer).st_ino)
        return tuple(memfd.data(layer)) if ranges is None else ranges

    def _forget_frozen(self) -> None:
        frozen, self._frozen = self._frozen, None
        close_all(frozen or ())

    def _take_merged(self) -> _Merged | None:
        """What a consolidation has made, when the layers that it stands for are still these."""
        merged, self._merged = self._merged, None
        if merged is None:
            return None
        if _inodes(self._layers)[merged.first : merged.first + len(merged.inodes)] == merged.inodes:
            return merged
        merged.memory.close()
        return None

    async def _keep(self, layers: list[int]) -> Memory:
        """These layers, sealed; when they are many, they are consolidated. Takes over the descriptors."""
        known = dict(enumerate(map(self._ranges.get, _inodes(layers))))
        ranges = {index: found for index, found in known.items() if found is not None}
        memory = await asyncio.to_thread(_sealed, self._region.length, layers, ranges)
        try:
            await self._tend(memory)
        except BaseException:
            memory.close()
            raise
        return memory

    async def _tend(self, memory: Memory) -> None:
        """Consolidate in the background what has become many layers, or large ones; with too many, wait for it."""
        upper = sum(map(memfd.resident, memory.layers[1:]))
        large = upper > memfd.resident(memory.layers[0]) // 2
        ranges = sum(len(memory.ranges(index)) for index in range(1, len(memory.layers)))
        whole = large or ranges > _MANY_RANGES
        if (whole or len(memory.layers) > _MOST_LAYERS) and self._merging is None and self._merged is None:
            work = self._consolidate(memory.duplicate(), 0 if whole else 1)
            self._merging = log.spawn_task(work, "consolidate a guest's memory")
        if self._merging is not None and (len(memory.layers) >= _FULL or ranges > _MOST_IN_ALL - _MOST_RANGES):
            await asyncio.wait([self._merging])

    async def _consolidate(self, memory: Memory, first: int) -> None:
        try:
            if host_memory.available() > 2 * sum(map(memfd.resident, memory.layers[first:])):
                made = await asyncio.to_thread(consolidate, memory, first)
                self._merged = _Merged(made, first, _inodes(memory.layers[first:]))
        except RoostError as error:
            log.get(__name__).warning("a guest's memory stays in layers", why=error.why)
        finally:
            memory.close()
            self._merging = None

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One verb after the other; after a connection that broke, what is mapped now is learned first of all."""
        async with self._lock:
            if self._link.closed:
                await self._link.connect()
                if self._layers:
                    await self._adopt(self._region.length)
            yield

    # Talking -------------------------------------------------------------------------------------------------------------------

    async def _scan(self, flags: int, most: int) -> tuple[tuple[Range, ...], int]:
        pagemap = memfd.pagemap(self._pid)
        try:
            reply, ranges = await self._ask(Request(Command.PRESENT, flags, fds=[pagemap], most=most))
        finally:
            os.close(pagemap)
        return ranges, min(reply.covered, self._region.length)

    async def _adopt(self, size: int) -> None:
        reply, _, layers = await self._link.exchange(Request(Command.LIST), self._region)
        if not layers or reply.length != size or not all(memfd.is_whole(layer, size) for layer in layers):
            close_all(layers)
            raise Unavailable(
                "a guest's memory can not be shared", "the library in QEMU has not mapped what it was given"
            )
        old, self._layers, self._shared = self._layers, layers, bool(reply.flags & SHARED)
        close_all(old)
        self._region = self._region._replace(address=reply.address, length=size)

    async def _ask(self, request: Request) -> tuple[Reply, tuple[Range, ...]]:
        """The answer, without descriptors. Raises Unavailable, OutcomeUnknown."""
        reply, ranges, descriptors = await self._link.exchange(request, self._region)
        close_all(descriptors)
        if reply.error:
            why = f"{request.command.name}: {errno.errorcode.get(reply.error, reply.error)}"
            raise Unavailable("a guest's memory stays as it was", f"the library in QEMU refused {why}")
        return reply, ranges

    # Blocking: in a thread ------------------------------------------------------------------------------------------------------

    def _read_dummy(self, dummy: Path, size: int, target: int) -> None:
        """Find where QEMU has the dummy, and copy what it has already written there."""
        with _opened(dummy, size) as source:
            address = memfd.find(memfd.maps(self._pid), os.fstat(source).st_ino, size)
            self._region = self._region._replace(address=address, length=size)
            try:
                memfd.copy(source, target, memfd.data(source))
            except OSError as error:
                raise Unavailable(
                    "a guest's memory was not copied", str(error.strerror), "stop another machine"
                ) from None

    def _read_parts(self, memory: Memory, dummy: Path) -> list[Part]:
        with _opened(dummy, memory.size) as source:
            address = memfd.find(memfd.maps(self._pid), os.fstat(source).st_ino, memory.size)
            self._region = self._region._replace(address=address, length=memory.size)
        return memory.parts()


def _empty(dummy: Path, size: int) -> None:
    """Give back what QEMU still holds open, and remove the name."""
    with contextlib.suppress(FileNotFoundError):
        os.truncate(dummy, 0)
        os.truncate(dummy, size)
        dummy.unlink()


def _sealed(size: int, layers: list[int], ranges: Mapping[int, tuple[Range, ...]]) -> Memory:
    try:
        for layer in layers:
            memfd.seal(layer)
    except BaseException:
        close_all(layers)
        raise
    return Memory(size, layers, ranges)


def _inodes(descriptors: Iterable[int]) -> list[int]:
    return [os.fstat(descriptor).st_ino for descriptor in descriptors]
