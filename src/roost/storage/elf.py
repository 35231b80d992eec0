"""An x86 kernel's ELF image without the parts that hold nothing: they would be resident twice in every guest's QEMU (pure).

QEMU maps the file and copies each segment into the guest's memory, its zeros too, where untouched memory would cost nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_LOAD, _NOTE = 1, 4
_NOBITS, _ALLOC = 8, 2
_UNUSED = b".init.scratch"
"""4 MiB that the kernel takes as scratch memory for encrypting itself, writes before it reads, and gives back."""
_PAGE = 4096
_WORTH = 64 << 10
"""Bytes of a gap between sections that make it worth another segment."""


class _Section(NamedTuple):
    name: bytes
    kind: int
    address: int
    offset: int
    size: int


class _Segment(NamedTuple):
    """A program header, its fields in the order of struct Elf64_Phdr."""

    kind: int
    flags: int
    offset: int
    virtual: int
    physical: int
    in_file: int
    in_memory: int
    align: int


class _Run(NamedTuple):
    """Part of a segment, by distances from the segment's start: where it starts, where its bytes end, where its memory ends."""

    start: int
    bytes_end: int
    end: int


def without_gaps(image: bytes) -> bytes:
    """`image` (ELF64, little-endian) with the padding between its sections and the bytes of its zeroed memory left out.

    Memory that the kernel expects zeroed (.bss) is still named in the segments, so that a loader zeroes it at each reset. An
    image that is not as expected is returned as it is.
    """
    try:
        sections, segments = list(_sections(image)), list(_segments(image))
        parts = [(segment, run) for segment in segments if segment.kind == _LOAD for run in _runs(segment, sections)]
        notes = [segment for segment in segments if segment.kind == _NOTE]
        if len(parts) < 2 or not _holds_all(image, segments, parts):
            return image
        return _assembled(image, parts, notes)
    except (struct.error, ValueError, OverflowError, IndexError, StopIteration):
        return image


def _sections(image: bytes) -> Iterator[_Section]:
    """The sections that are in memory, in the order of their addresses."""
    table, count, names = *struct.unpack_from("<Q", image, 40), *struct.unpack_from("<2H", image, 60)
    headers = [struct.unpack_from("<IIQQQQ", image, table + 64 * index) for index in range(count)]
    strings = headers[names][4]
    for name, kind, flags, address, offset, size in sorted(headers, key=lambda header: header[3]):
        if flags & _ALLOC and size:
            start = strings + name
            yield _Section(image[start : image.index(b"\0", start)], kind, address, offset, size)


def _segments(image: bytes) -> Iterator[_Segment]:
    (table,), (count,) = struct.unpack_from("<Q", image, 32), struct.unpack_from("<H", image, 56)
    for index in range(count):
        yield _Segment(*struct.unpack_from("<IIQQQQQQ", image, table + 56 * index))


def _runs(segment: _Segment, sections: list[_Section]) -> Iterator[_Run]:
    run: _Run | None = None
    for section in sections:
        start = section.address - segment.virtual
        if not 0 <= start < segment.in_memory or section.name == _UNUSED:
            continue
        end = start + section.size
        bytes_end = start if section.kind == _NOBITS else end
        if run is None:
            run = _Run(start, bytes_end, end)
        elif start - run.end < _WORTH and (section.kind == _NOBITS or run.bytes_end == run.end):
            run = _Run(run.start, run.bytes_end if section.kind == _NOBITS else end, end)
        else:
            yield run
            run = _Run(start, bytes_end, end)
    if run is not None:
        yield run


def _holds_all(image: bytes, segments: list[_Segment], parts: list[tuple[_Segment, _Run]]) -> bool:
    """Whether what is left out is nothing but zeros, or the breakpoints that pad code."""
    for segment in segments:
        at = 0
        ends = [(run.start, run.bytes_end) for owner, run in parts if owner == segment]
        for start, end in [*ends, (segment.in_file, segment.in_file)] if segment.kind == _LOAD else []:
            left_out = image[segment.offset + at : segment.offset + max(start, at)]
            if left_out.strip(b"\0") and left_out.strip(b"\xcc"):
                return False
            at = end
    return True


def _assembled(image: bytes, parts: list[tuple[_Segment, _Run]], notes: list[_Segment]) -> bytes:
    made = bytearray(64 + 56 * (len(parts) + len(notes)))
    headers: list[_Segment] = []
    for segment, run in parts:
        virtual, physical = segment.virtual + run.start, segment.physical + run.start
        made += bytes((virtual - len(made)) % _PAGE)
        size = run.bytes_end - run.start
        headers.append(_Segment(_LOAD, segment.flags, len(made), virtual, physical, size, run.end - run.start, _PAGE))
        made += image[segment.offset + run.start : segment.offset + run.bytes_end]
    for note in notes:
        around = next(header for header in headers if 0 <= note.virtual - header.virtual < header.in_file)
        headers.append(note._replace(offset=around.offset + note.virtual - around.virtual))
    made[:64] = image[:64]
    struct.pack_into("<QQ", made, 32, 64, 0)
    struct.pack_into("<5H", made, 54, 56, len(headers), 0, 0, 0)
    for index, header in enumerate(headers):
        struct.pack_into("<IIQQQQQQ", made, 64 + 56 * index, *header)
    return bytes(made)
