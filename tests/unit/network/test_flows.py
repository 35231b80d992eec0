"""The flow log: what is read of packets that guests made, and how much is kept."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from roost.network import flows
from roost.network.flows import Packet, parse
from tests.frames import syn, udp

V4, V6 = ("10.20.0.2", "10.20.0.3"), ("fd00::2", "fd00::3")


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(payload: bytes, prefix: bytes = b"allowed \0", kind: int = 0x400) -> bytes:
    """As the kernel tells it."""
    told = [
        attribute(1, b"\x08\0\2\0"), attribute(4, struct.pack("!I", 7)), attribute(5, struct.pack("!I", 8)), attribute(9, payload),
        attribute(10, prefix),
    ]  # fmt: skip
    body = struct.pack("!BBH", 2, 0, 5) + b"".join(told)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def ipv4(proto: int, rest: bytes, *, fragment: int = 0, options: bytes = b"") -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 0, 0, fragment, 64, proto, 0)
    return head + bytes([10, 20, 0, 2, 10, 20, 0, 3]) + options + rest


def ipv6(kind: int, rest: bytes) -> bytes:
    ends = bytes.fromhex("fd00" + "00" * 13 + "02" + "fd00" + "00" * 13 + "03")
    return struct.pack("!IHBB", 6 << 28, len(rest), kind, 64) + ends + rest


PORTS = struct.pack("!HH", 1000, 80)


def test_several_packets_of_a_datagram_are_read() -> None:
    data = message(ipv4(6, PORTS)) + message(ipv6(17, PORTS), b"refused \0") + message(b"", kind=3)
    assert list(parse(data)) == [
        Packet("allowed", 7, 8, "tcp", *V4, 1000, 80),
        Packet("refused", 7, 8, "udp", *V6, 1000, 80),
    ]


def test_ports_are_where_options_and_extension_headers_end() -> None:
    extended = ipv6(0, bytes([43, 1]) + bytes(14) + bytes([6, 0]) + bytes(6) + PORTS)
    told = [*parse(message(ipv4(6, PORTS, options=bytes(8)))), *parse(message(extended))]
    assert [(it.protocol, it.target_port) for it in told] == [("tcp", 80), ("tcp", 80)]


def test_a_later_fragment_and_what_has_no_ports_is_told_without() -> None:
    fragment = ipv6(44, bytes([17, 0, 0, 8, 0, 0, 0, 1]) + PORTS)
    packets = [ipv4(17, PORTS, fragment=100), fragment, ipv4(1, PORTS), ipv4(6, b"\0"), ipv4(47, PORTS)]
    told = [next(parse(message(packet))) for packet in packets]
    assert [(it.protocol, it.source_port) for it in told] == [
        ("udp", 0),
        ("udp", 0),
        ("icmp", 0),
        ("tcp", 0),
        ("47", 0),
    ]


def test_what_is_no_ip_header_is_left_out() -> None:
    packets = [b"", b"\x45", b"\x60" + bytes(20), b"\x41" + bytes(40), b"\x00" * 60]
    assert [list(parse(message(packet))) for packet in packets] == [[]] * 5


@given(st.binary(max_size=120), st.booleans())
def test_bytes_of_a_guest_never_break_it(data: bytes, whole: bool) -> None:
    for packet in parse(message(data) if whole else data):
        assert 0 <= packet.source_port < 65536


def test_real_frames_are_read() -> None:
    frames = [syn(*V4, (1000, 80)), udp(*V6, (1000, 53), b"data")]
    told = [next(parse(message(frame))) for frame in frames]
    assert [(it.protocol, it.target_port) for it in told] == [("tcp", 80), ("udp", 53)]


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    path, line = tmp_path / "flows", b"x" * (flows.MOST_BYTES // 3 - 1) + b"\n"
    for _ in range(10):
        flows.append(path, line)
    kept = flows.kept(path)
    assert (len(kept) <= 2 * flows.MOST_BYTES, len(list(tmp_path.iterdir())), set(kept.split(b"\n"))) == (
        True,
        2,
        {line[:-1], b""},
    )
