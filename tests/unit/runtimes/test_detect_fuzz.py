"""No content makes detection raise, read too much, or take long: noise, cuts and flipped bits of files of every kind."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roost.runtimes.base import Found
from tests.unit.runtimes.samples import GOOD, archive, detected, jar

KINDS = {
    "wasm", "component", "wat", "elf", "class", "jar", "pyz", "exe", "clr", "script", "cwasm", "macho", "dos", "war", "apk", "zip", "ape",
    "unknown",
}  # fmt: skip
RUNNABLE = {"wasm", "component", "wat", "elf", "class", "jar", "pyz", "exe", "clr", "script"}
SAMPLES = st.sampled_from([*GOOD.values(), jar(before=b"x" * 99), archive({"WEB-INF/web.xml": "<a/>" * 99})])
HEADS = st.sampled_from(
    [
        b"\0asm\x01\0\0\0", b"\0asm\x0d\0\x01\0", b"\x7fELF\x02\x01\x01", b"\x7fELF\x01\x02\x01", b"\xca\xfe\xba\xbe\0\0\0\x3d", b"MZ",
        b"PK\x03\x04", b"PK\x05\x06", b"#!", b"(module", b"(;", b"",
    ]
)  # fmt: skip
FUZZ = settings(max_examples=60, deadline=None, database=None)


def plausible(found: Found) -> bool:
    """Of a known kind, with details that JSON can hold, and a refusal that says what to do."""
    json.dumps(dict(found.details))
    return found.kind in KINDS and bool(found.refusal) == (found.kind not in RUNNABLE or bool(found.fix))


@FUZZ
@given(HEADS, st.binary(max_size=400))
def test_noise_behind_any_head(head: bytes, noise: bytes) -> None:
    assert plausible(detected(head + noise))


@FUZZ
@given(SAMPLES, st.data())
def test_every_cut(sample: bytes, data: st.DataObject) -> None:
    assert plausible(detected(sample[: data.draw(st.integers(0, len(sample)))]))


@FUZZ
@given(SAMPLES, st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 7)), min_size=1, max_size=12))
def test_flipped_bits(sample: bytes, flips: list[tuple[int, int]]) -> None:
    content = bytearray(sample)
    for place, bit in flips:
        content[place % len(content)] ^= 1 << bit
    assert plausible(detected(bytes(content)))


@FUZZ
@given(SAMPLES, st.integers(0, 1 << 16), st.sampled_from([b"\xff" * 4, b"\xff" * 8, b"\0" * 8, b"\x80" * 12]))
def test_numbers_that_are_as_large_as_can_be(sample: bytes, place: int, extreme: bytes) -> None:
    at = place % len(sample)
    assert plausible(detected(sample[:at] + extreme + sample[at + len(extreme) :]))


@FUZZ
@given(SAMPLES, SAMPLES, st.integers(0, 1 << 16), st.integers(0, 1 << 16))
def test_halves_of_two_files(one: bytes, other: bytes, first: int, second: int) -> None:
    assert plausible(detected(one[: first % len(one)] + other[second % len(other) :]))


@pytest.mark.parametrize("sample", GOOD)
def test_a_long_tail_of_headers_ends_with_the_budget(sample: str) -> None:
    assert plausible(detected(GOOD[sample] + b"\0\0" * 200_000))
