"""The agent's framing: any bytes are survived, nothing grows, and the way is found again after junk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.hypervisor.agentwire import (
    MAX_JUNK,
    MAX_PAYLOAD,
    Broken,
    Decoder,
    Frame,
    Type,
    decode_exit,
    encode,
    encode_command,
    readable,
)
from roost.hypervisor.base import Command

NONCE = bytes(range(16))
ANSWER = encode(0, Type.RESET, NONCE + b"agent=1\n")


def fed(*pieces: bytes) -> list[Frame]:
    """The frames a new decoder finds."""
    decoder = Decoder(NONCE)
    return [frame for piece in pieces for frame in decoder.feed(piece)]


@given(st.binary(max_size=4000))
def test_any_bytes_before_the_answer_are_skipped(junk: bytes) -> None:
    assert fed(junk, ANSWER)[-1:] == [Frame(0, Type.RESET, NONCE + b"agent=1\n")]


@given(st.lists(st.tuples(st.integers(1, 9), st.binary(max_size=300)), max_size=20), st.integers(1, 50))
def test_frames_arrive_however_they_are_cut(frames: list[tuple[int, bytes]], size: int) -> None:
    stream = ANSWER + b"".join(encode(session, Type.STDOUT, payload) for session, payload in frames)
    found = fed(*(stream[at : at + size] for at in range(0, len(stream), size)))
    assert [(frame.session, frame.payload) for frame in found[1:]] == frames


@given(st.binary(min_size=1, max_size=3000))
def test_any_bytes_after_the_answer_are_frames_or_an_error(data: bytes) -> None:
    decoder = Decoder(NONCE)
    list(decoder.feed(ANSWER))
    try:
        frames = list(decoder.feed(data))
    except Broken:
        return
    assert all(len(frame.payload) <= MAX_PAYLOAD for frame in frames)
    assert len(decoder._buffer) <= len(data)


@given(st.data())
def test_one_wrong_byte_is_noticed(data: st.DataObject) -> None:
    frame = bytearray(encode(3, Type.STDOUT, b"some output"))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    decoder = Decoder(NONCE)
    list(decoder.feed(ANSWER))
    try:
        assert list(decoder.feed(bytes(frame))) == []  # a longer length: the rest is waited for
    except Broken:
        return
    assert decoder.partial


def test_an_answer_to_another_host_is_not_ours() -> None:
    assert fed(encode(0, Type.RESET, bytes(16)), encode(1, Type.STDOUT, b"old"), ANSWER) == [
        Frame(0, Type.RESET, NONCE + b"agent=1\n")
    ]


def test_an_answer_behind_half_a_frame_is_found() -> None:
    half = encode(7, Type.STDOUT, b"x" * 30_000)[:10_000]
    assert [frame.type for frame in fed(half, ANSWER, encode(1, Type.STARTED, b"\1\0\0\0"))] == [
        Type.RESET,
        Type.STARTED,
    ]


def test_output_that_looks_like_an_answer_is_found_out_by_the_nonce() -> None:
    assert fed(encode(1, Type.STDOUT, encode(0, Type.RESET, b"0" * 16))) == []


@pytest.mark.fault(65)
def test_endless_junk_is_given_up() -> None:
    decoder = Decoder(NONCE)
    junk = b"RST" * (1 << 18)
    with pytest.raises(Broken, match="without answering"):
        [list(decoder.feed(junk)) for _ in range(MAX_JUNK // len(junk) + 2)]


@pytest.mark.fault(65)
def test_a_huge_frame_is_refused_by_its_length() -> None:
    decoder = Decoder(NONCE)
    list(decoder.feed(ANSWER))
    with pytest.raises(Broken, match="not a frame"):
        list(decoder.feed(b"RST1" + (MAX_PAYLOAD + 1).to_bytes(4, "little") + bytes(12)))


def test_a_command_with_a_nul_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode_command(1, Command(["echo", "a\0b"]))


def test_a_payload_beyond_the_bound_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="262144"):
        encode(1, Type.INPUT, bytes(MAX_PAYLOAD + 1))


def test_an_exit_code_is_one_byte_whatever_the_guest_says() -> None:
    assert decode_exit(b"\0" + (0xFFFFFF07).to_bytes(4, "little")) == 7


def test_what_a_guest_says_is_made_printable() -> None:
    assert readable(b"bad \x1b[31mred\nline\xff" + b"x" * 9000, 30) == "bad ?[31mred; line\ufffdxxxxxxxxxxx"[:30]
