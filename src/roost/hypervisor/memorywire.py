"""What is said to the library that maps memory inside QEMU (guest/memory.c), without I/O; its answers are taken as an attacker's."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

from roost.hypervisor.memfd import Range

UNIT = 4096
MAX_LAYERS = 16
MAX_RANGES = 65536
REPLACE, SHARED, PRIVATE, KEEP_LOWEST, TOPMOST = 1, 2, 4, 8, 16
_MAGIC = b"RSM1"
_HEADER = struct.Struct("<4sIiIIIQQIIQ")
_RANGE = struct.Struct("<QII")
HEADER_SIZE = _HEADER.size
RANGE_SIZE = _RANGE.size


class Command(IntEnum):
    """The values are guest/memory.c's."""

    HELLO = 1
    MAP = 2
    COPY = 3
    PRESENT = 4
    POPULATE = 5
    LIST = 6
    PREPARE = 7


class Part(NamedTuple):
    """A range, and the layer that it is mapped from: the place among the descriptors that go with the request."""

    start: int
    end: int
    layer: int = 0


def topmost(layers: Sequence[Sequence[Range]]) -> list[Part]:
    """Every byte once, from the highest layer that has it, in order. Each layer's ranges are in order and apart."""
    parts: list[Part] = []
    covered: list[Range] = []
    for layer in reversed(range(len(layers))):
        free = list(_without(layers[layer], covered))
        parts += [Part(start, end, layer) for start, end in free]
        covered = list(_joined(sorted(covered + free)))
    return sorted(parts)


def union(one: Sequence[Range], other: Sequence[Range]) -> tuple[Range, ...]:
    """Every byte that one of them has, once and in order. Each one's ranges are in order and apart."""
    return tuple(_joined(sorted([*one, *_without(other, one)])))


def _without(ranges: Sequence[Range], covered: Sequence[Range]) -> Iterator[Range]:
    at = 0
    for start, end in ranges:
        while at < len(covered) and covered[at].start < end:
            if covered[at].start > start:
                yield Range(start, covered[at].start)
            start = max(start, covered[at].end)
            if covered[at].end > end:  # it may hide some of the next one too
                break
            at += 1
        if start < end:
            yield Range(start, end)


def _joined(ranges: Iterable[Range]) -> Iterator[Range]:
    """What lies side by side is one."""
    first = end = -1
    for start, stop in ranges:
        if start != end:
            if end >= 0:
                yield Range(first, end)
            first = start
        end = stop
    if end >= 0:
        yield Range(first, end)


class Region(NamedTuple):
    """Where the guest's memory is in QEMU, in bytes, and the size of this host's pages."""

    address: int
    length: int
    page: int


class Request(NamedTuple):
    """One thing to do. `most`: as many ranges as the answer may have; small gaps are closed until it has no more."""

    command: Command
    flags: int = 0
    parts: Sequence[Part | Range] = ()
    fds: Sequence[int] = ()
    most: int = 0


class Reply(NamedTuple):
    """The head of an answer. `error` is an errno; so many `ranges` follow; `covered` are their bytes without the closed gaps."""

    command: int
    error: int
    flags: int
    layers: int
    ranges: int
    address: int
    length: int
    covered: int


class Broken(Exception):
    """The other side does not speak the protocol."""


def encode(request: Request, region: Region) -> bytes:
    """The bytes of a request. Raises ValueError for one that is too long."""
    parts = list(_split(request.parts))
    if len(parts) > MAX_RANGES or len(request.fds) > MAX_LAYERS:
        raise ValueError(f"{len(parts)} ranges and {len(request.fds)} layers are too many")
    head = _HEADER.pack(
        _MAGIC, request.command, 0, request.flags, len(request.fds), len(parts), region.address, region.length,
        region.page, request.most, 0,
    )  # fmt: skip
    return head + b"".join(_RANGE.pack(start, (end - start) // UNIT, layer) for start, end, layer in parts)


def _split(parts: Sequence[Part | Range]) -> Iterator[Part]:
    """A length has 32 bits of 4 KiB."""
    longest = 1 << 43
    for start, end, *layer in parts:
        for at in range(start, end, longest):
            yield Part(at, min(end, at + longest), *layer)


def decode(data: bytes) -> Reply:
    """The head of an answer. Raises Broken."""
    magic, command, error, flags, layers, count, address, length, _, _, covered = _HEADER.unpack(data)
    if magic != _MAGIC or error < 0 or layers > MAX_LAYERS or count > MAX_RANGES:
        raise Broken("what the library in QEMU sent is no answer")
    return Reply(command, error, flags, layers, count, address, length, covered)


def decode_ranges(data: bytes, size: int) -> tuple[Range, ...]:
    """The ranges of an answer: in order, apart, inside of `size` bytes. Raises Broken."""
    ranges, last = [], 0
    for start, units, _ in _RANGE.iter_unpack(data):
        end = start + units * UNIT
        if start < last or end <= start or end > size or start % UNIT:
            raise Broken("the library in QEMU sent ranges that can not be")
        ranges.append(Range(start, end))
        last = end
    return tuple(ranges)
