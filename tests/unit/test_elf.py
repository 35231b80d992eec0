"""A kernel's ELF image without its gaps: every byte that counts stays where a loader puts it, everything odd stays untouched."""

from __future__ import annotations

import struct

import pytest

from roost.storage import elf

TEXT, DATA, ZEROED, PADDING = b"\x90" * 5000, b"data" * 100, 9000, 1 << 20
NOTE = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", 0x1000000)
BASE, PHYSICAL = 0xFFFFFFFF81000000, 0x1000000


def image(padding: bytes = bytes(PADDING), zeroed: bytes = bytes(ZEROED), scratch: bytes = bytes(PADDING)) -> bytes:
    """One segment: text and a note, padding, data, zeroed memory, scratch; and the note's own segment."""
    names = b"\0.text\0.notes\0.data\0.bss\0.init.scratch\0"
    parts = [(b".text", 1, TEXT), (b".notes", 7, NOTE), (b"", 0, padding), (b".data", 1, DATA)]
    parts += [(b".bss", 8, zeroed), (b".init.scratch", 1, scratch)]
    body, sections = b"", [(0, 0, 0, 0, 0, 0)]
    for name, kind, content in parts:
        if name:
            place = names.index(b"\0" + name + b"\0") + 1
            sections.append((place, kind, 2, BASE + len(body), 4096 + len(body), len(content)))
        body += content
    sections.append((0, 3, 0, 0, 4096 + len(body), len(names)))
    loads = struct.pack("<IIQQQQQQ", 1, 7, 4096, BASE, PHYSICAL, len(body), len(body), 1 << 21)
    at = len(TEXT)
    loads += struct.pack("<IIQQQQQQ", 4, 0, 4096 + at, BASE + at, PHYSICAL + at, len(NOTE), len(NOTE), 4)
    table = b"".join(struct.pack("<IIQQQQ24x", *section) for section in sections)
    head = b"\x7fELF\x02\x01".ljust(24, b"\0") + struct.pack("<QQQ", PHYSICAL, 64, 4096 + len(body) + len(names))
    head += struct.pack("<I6H", 0, 64, 56, 2, 64, len(sections), len(sections) - 1)
    return (head + loads).ljust(4096, b"\0") + body + names + table


def headers(data: bytes) -> list[tuple[int, ...]]:
    (table,), (count,) = struct.unpack_from("<Q", data, 32), struct.unpack_from("<H", data, 56)
    return [struct.unpack_from("<IIQQQQQQ", data, table + 56 * index) for index in range(count)]


def loaded(data: bytes) -> bytes:
    """The memory from PHYSICAL on after a loader has done its work on memory full of 0xEE."""
    memory = bytearray(b"\xee" * (4 << 20))
    for _, _, offset, _, physical, in_file, in_memory, _ in [entry for entry in headers(data) if entry[0] == 1]:
        start = physical - PHYSICAL
        memory[start : start + in_memory] = data[offset : offset + in_file].ljust(in_memory, b"\0")
    return bytes(memory)


def test_gaps_take_no_room_and_what_counts_stays_in_place() -> None:
    lean = elf.without_gaps(image())
    before, after = loaded(image()), loaded(lean)
    start = len(TEXT) + len(NOTE)
    assert len(lean) < 3 * 4096 + len(TEXT) + len(DATA)
    assert after[:start] == before[:start]
    assert after[start : start + PADDING] == b"\xee" * PADDING
    end = start + PADDING + len(DATA) + ZEROED
    assert after[start + PADDING : end] == before[start + PADDING : end]
    assert after[end:] == b"\xee" * len(after[end:])


def test_the_entry_and_its_note_are_still_found() -> None:
    lean = elf.without_gaps(image())
    [note] = [entry for entry in headers(lean) if entry[0] == 4]
    assert lean[note[2] : note[2] + note[5]] == NOTE
    assert lean[24:32] == image()[24:32]


def test_segments_are_aligned_as_pages_are() -> None:
    assert {(entry[2] - entry[3]) % 4096 for entry in headers(elf.without_gaps(image()))} == {0}


def test_breakpoints_that_pad_code_are_nothing() -> None:
    padding = b"\xcc" * PADDING
    assert len(elf.without_gaps(image(padding=padding))) < len(image())


@pytest.mark.parametrize(
    "odd",
    [
        image(padding=bytes(1000) + b"x" + bytes(PADDING)),
        image(scratch=b"x" + bytes(PADDING)),
        image(zeroed=b"x" + bytes(ZEROED)),
        b"\x7fELF",
        image()[:-100],
        image()[:300],
        b"\x7fELF\x02\x01".ljust(64, b"\xff"),
    ],
    ids=["padding", "scratch", "zeroed", "short", "cut", "headers only", "nonsense"],
)
def test_an_image_that_is_not_as_expected_stays_as_it_is(odd: bytes) -> None:
    assert elf.without_gaps(odd) is odd
