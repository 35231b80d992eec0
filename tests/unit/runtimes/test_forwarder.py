"""The forwarder DLL is a well-formed PE file that holds exactly the exports it was asked for, and no code."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest

from roost.runtimes.forwarder import forwarder

FORWARDS = {"ProcessPrng": "advapi32.SystemFunction036", "Another": "ntdll.Other", "Zero": "kernel32.Zero"}


class Parsed(NamedTuple):
    """What a loader sees of a DLL."""

    name: str
    exports: dict[str, str]
    machine: int
    flags: int
    sections: tuple[tuple[int, int, int, int, int], ...]
    image: int
    entry: int


def parse(data: bytes) -> Parsed:
    """Read a PE32+ file by the published layout, apart from the code that wrote it."""
    assert data[:2] == b"MZ"
    at = struct.unpack_from("<I", data, 60)[0]
    assert data[at : at + 4] == b"PE\0\0"
    machine, count, _, _, _, optional, flags = struct.unpack_from("<HHIIIHH", data, at + 4)
    start = at + 24
    assert struct.unpack_from("<H", data, start)[0] == 0x20B
    entry = struct.unpack_from("<I", data, start + 16)[0]
    image, headers = struct.unpack_from("<II", data, start + 56)
    assert start + optional + 40 * count <= headers
    sections = tuple(struct.unpack_from("<IIII12xI", data, start + optional + 40 * i + 8) for i in range(count))
    place, size = struct.unpack_from("<II", data, start + 112)

    def offset(address: int) -> int:
        return next(raw + address - base for length, base, _, raw, _ in sections if base <= address < base + length)

    def string(address: int) -> str:
        return data[offset(address) : data.index(b"\0", offset(address))].decode()

    name, _, functions, names, addresses, words, ordinals = struct.unpack_from("<7I", data, offset(place) + 12)
    assert functions == names
    exports = {}
    for i in range(names):
        word = struct.unpack_from("<I", data, offset(words) + 4 * i)[0]
        ordinal = struct.unpack_from("<H", data, offset(ordinals) + 2 * i)[0]
        address = struct.unpack_from("<I", data, offset(addresses) + 4 * ordinal)[0]
        assert place <= address < place + size, "an address outside of the directory would be code"
        exports[string(word)] = string(address)
    return Parsed(string(name), exports, machine, flags, sections, image, entry)


@pytest.mark.parametrize("forwards", [{"ProcessPrng": "advapi32.SystemFunction036"}, FORWARDS, {}])
def test_a_loader_finds_every_export_and_where_it_leads(forwards: dict[str, str]) -> None:
    parsed = parse(forwarder("some.dll", forwards))
    assert (parsed.name, parsed.exports) == ("some.dll", forwards)


def test_names_are_sorted_because_loaders_search_by_halves() -> None:
    assert list(parse(forwarder("some.dll", FORWARDS)).exports) == sorted(FORWARDS)


def test_it_is_a_dll_for_x86_64_with_one_section_that_is_no_code() -> None:
    data = forwarder("some.dll", FORWARDS)
    parsed = parse(data)
    assert (parsed.machine, parsed.flags & 0x2000, parsed.entry) == (0x8664, 0x2000, 0)
    ((size, base, raw, offset, flags),) = parsed.sections
    assert flags & 0x20000000 == 0, "executable"
    assert (base % 4096, raw % 512, offset % 512) == (0, 0, 0)
    assert size <= raw
    assert (offset + raw, parsed.image) == (len(data), base + 4096)


def test_many_exports_take_as_many_pages_as_they_need() -> None:
    forwards = {f"Function{i:04}": f"library.Function{i:04}" for i in range(500)}
    parsed = parse(forwarder("some.dll", forwards))
    assert parsed.exports == forwards
    assert parsed.image > 3 * 4096
    assert parsed.image % 4096 == 0


def test_the_same_request_gives_the_same_bytes() -> None:
    assert forwarder("some.dll", FORWARDS) == forwarder("some.dll", dict(reversed(FORWARDS.items())))
