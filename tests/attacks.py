"""Frames that a hostile guest may send: malformed, tagged, in fragments, from whoever it likes; each with the word "forged" where it can have one."""

from __future__ import annotations

import os
import random
import socket
import struct
from ipaddress import ip_address

from tests.frames import (
    EVERYBODY,
    ICMP,
    IPV4,
    IPV6,
    TCP,
    UDP,
    Guest,
    checksum,
    ether,
    icmpv6,
    ipv4,
    mac,
    syn,
    udp,
)

WORD = b"forged"
MAGIC = bytes((99, 130, 83, 99))
_FRAGMENT, _HOP, _ROUTING, _DESTINATION, _NONE = 44, 0, 43, 60, 59


def fragment4(whole: bytes, first: int, last: int, *, number: int = 77, more: bool = True) -> bytes:
    """Bytes `first` to `last` of what the packet carries, as a fragment."""
    held = bytearray(whole[:20] + whole[20 + first : 20 + last])
    struct.pack_into("!HHH", held, 2, len(held), number, (0x2000 if more else 0) | first // 8)
    struct.pack_into("!H", held, 10, 0)
    struct.pack_into("!H", held, 10, checksum(bytes(held[:20])))
    return bytes(held)


def fragment6(whole: bytes, first: int, last: int, *, number: int = 77, more: bool = True) -> bytes:
    """The same of IPv6."""
    head = struct.pack("!BBHI", whole[6], 0, first | more, number)
    return _carrying(whole[:40], _FRAGMENT, head + whole[40 + first : 40 + last])


def chained(whole: bytes, *headers: int) -> bytes:
    """The packet with empty extension headers of 8 bytes of these kinds before what it carries."""
    kinds = [*headers, whole[6]]
    empty = bytes((1, 4, 0, 0, 0, 0))  # PadN
    chain = b"".join(bytes((after, 0)) + empty for after in kinds[1:])
    return _carrying(whole[:40], kinds[0], chain + whole[40:])


def _carrying(head: bytes, kind: int, data: bytes) -> bytes:
    return head[:4] + struct.pack("!HB", len(data), kind) + head[7:] + data


def tagged(frame: bytes, *tags: int) -> bytes:
    """The frame with VLAN tags; all but the last are service tags."""
    kinds = [0x88A8] * (len(tags) - 1) + [0x8100]
    told = b"".join(struct.pack("!HH", kind, tag) for kind, tag in zip(kinds, tags, strict=True))
    return frame[:12] + told + frame[12:]


def malformed(liar: Guest, victim: Guest) -> dict[str, list[bytes]]:
    """Frames that are no frames, or that hide what they are."""
    to, mine = liar.gateway, liar.card
    ends4, ends6 = (liar.address4, victim.address4), (liar.address6, victim.address6)
    somebody4, somebody6 = ("10.20.9.9", victim.address4), ("fd00:20::99", victim.address6)
    false4 = udp(*somebody4, (1, 2), WORD * 8)
    false6 = udp(*somebody6, (1, 2), WORD * 8)
    advert = icmpv6("fe80::1", "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + WORD + b"\0\0")
    redirect6 = icmpv6(
        "fe80::1", ends6[1], 137, bytes(4) + ip_address("fe80::66").packed + ip_address(ends6[0]).packed + WORD
    )
    redirect4 = struct.pack("!BBH4s", 5, 1, 0, socket.inet_aton(ends4[0])) + udp(ends4[1], ends4[0], (41, 42), WORD)
    redirect4 = redirect4[:2] + struct.pack("!H", checksum(redirect4)) + redirect4[4:]
    answer = dhcp(5, victim.card, reply=True)
    return {
        "14 bytes": [ether(victim.card, mine, IPV4, b""), ether(to, mine, IPV6, b""), ether(to, mine, 0x0806, b"")],
        "shorter than its header": [ether(to, mine, kind, WORD) for kind in (IPV4, IPV6, 0x0806, 0x8100, 0x88A8)],
        "length for type": [ether(to, mine, size, false4) for size in (0, 46, 1500, 0x05DC, 0x05FF)],
        "another type": [ether(to, mine, kind, false4) for kind in (IPV6, 0x8847, 0x8863, 0x8864, 0x88CC, 0x88E5)],
        "IPv6 as IPv4": [ether(to, mine, IPV4, false6), ether(to, mine, IPV6, false4)],
        "VLAN": [tagged(ether(to, mine, IPV4, false4), tag) for tag in (0, 1, 7, 4095)],
        "QinQ": [tagged(ether(to, mine, IPV4, false4), *tags) for tags in ((7, 8), (0, 0), (1, 0), (0, 0, 0))],
        "QinQ of IPv6": [tagged(ether(to, mine, IPV6, false6), *tags) for tags in ((7, 8), (0, 0), (0, 0, 0))],
        "jumbo": [ether(to, mine, IPV4, udp(*somebody4, (1, 2), WORD * 10_000))],
        "more than it has": [ether(to, mine, IPV4, false4[:2] + b"\xff\xff" + false4[4:])],
        "options": [ether(to, mine, IPV4, _with_options(false4, bytes((131, 7, 4, 10, 20, 9, 9, 0))))],
        "source route": [ether(to, mine, IPV4, _with_options(udp(*ends4, (1, 2), WORD), bytes((131, 7, 4, 10, 20, 9, 9, 0))))],
        "first fragment tiny": [
            *_tiny4(to, mine, false4),
            ether(to, mine, IPV6, fragment6(false6, 0, 8)), ether(to, mine, IPV6, fragment6(false6, 8, 56, more=False)),
        ],
        "fragments that overlap": _overlapping(to, mine, udp(*ends4, (1, 2), WORD * 20), udp(*ends6, (1, 2), WORD * 20)),
        "a server's port in the second fragment": [
            ether(to, mine, IPV4, fragment4(udp(ends4[0], ends4[1], (67, 68), WORD * 8), 0, 8, number=99)),
            ether(to, mine, IPV4, fragment4(udp(ends4[0], ends4[1], (67, 68), WORD * 8), 8, 56, number=99, more=False)),
        ],
        "extension headers": [
            ether(to, mine, IPV6, chained(packet, *headers))
            for packet in (false6, advert, redirect6)
            for headers in ((_HOP,), (_DESTINATION,), (_HOP, _DESTINATION), (_DESTINATION,) * 20, (_DESTINATION, _HOP))
        ],
        "router behind a fragment": [
            ether("33:33:00:00:00:01", mine, IPV6, fragment6(chained(advert, _DESTINATION), 0, 8, number=5)),
            ether("33:33:00:00:00:01", mine, IPV6, fragment6(chained(advert, _DESTINATION), 8, 99, number=5, more=False)),
        ],
        "router in an atomic fragment": [ether("33:33:00:00:00:01", mine, IPV6, fragment6(advert, 0, 99, more=False))],
        "routing header": [ether(to, mine, IPV6, _routed(udp(ends6[0], "fd00:20::1", (1, 2), WORD), kind, ends6[1])) for kind in (0, 2, 4)],
        "redirect of IPv4": [
            ether(to, mine, IPV4, ipv4(source, target, ICMP, redirect4))
            for source, target in (("10.20.255.1", ends4[1]), ends4, (ends4[0], "10.20.255.1"))
        ],
        "redirect of IPv6": [ether(to, mine, IPV6, redirect6)],
        "DHCP answer": [
            ether(to, mine, IPV4, udp(source, target, (67, 68), answer))
            for source, target in ((ends4[0], "255.255.255.255"), ends4, ("10.20.255.1", ends4[1]), ("0.0.0.0", ends4[1]))
        ] + [ether(EVERYBODY, mine, IPV4, udp(ends4[0], "255.255.255.255", (67, 68), answer))],
        "DHCPv6 answer": [ether(to, mine, IPV6, udp(source, ends6[1], (547, 546), b"\x07" + WORD)) for source in ("fe80::1", ends6[0])],
        "tunnels": [
            ether(to, mine, IPV4, ipv4(*ends4[:1], "192.0.2.1", protocol, ipv4("10.20.9.9", ends4[1], UDP, WORD))) for protocol in (4, 41, 47, 50)
        ],
    }  # fmt: skip


def _tiny4(to: str, mine: str, false: bytes) -> list[bytes]:
    return [ether(to, mine, IPV4, fragment4(false, 0, 8)), ether(to, mine, IPV4, fragment4(false, 8, 56, more=False))]


def _overlapping(to: str, mine: str, four: bytes, six: bytes) -> list[bytes]:
    """What is said twice, and otherwise: the checks of one part must not be undone by the other."""
    spans = ((0, 64), (32, 96), (64, 128))
    return [ether(to, mine, IPV4, fragment4(four, *span, number=88, more=span[1] < 128)) for span in spans] + [
        ether(to, mine, IPV6, fragment6(six, *span, number=88, more=span[1] < 128)) for span in spans
    ]


def _with_options(packet: bytes, options: bytes) -> bytes:
    held = bytearray(packet[:20] + options + packet[20:])
    held[0] = 0x45 + len(options) // 4
    struct.pack_into("!H", held, 2, len(held))
    struct.pack_into("!H", held, 10, 0)
    struct.pack_into("!H", held, 10, checksum(bytes(held[: 20 + len(options)])))
    return bytes(held)


def _routed(whole: bytes, kind: int, last: str) -> bytes:
    head = struct.pack("!BBBBI", whole[6], 2, kind, 1, 0) + ip_address(last).packed
    return _carrying(whole[:40], _ROUTING, head + whole[40:])


def dhcp(kind: int, card: str, *options: bytes, reply: bool = False, client: str = "0.0.0.0") -> bytes:
    """A message of DHCP (1 DISCOVER, 3 REQUEST, 4 DECLINE, 5 ACK, 7 RELEASE)."""
    head = struct.pack("!BBBBIHH", 2 if reply else 1, 1, 6, 0, 0x466F7267, 0, 0) + ip_address(client).packed
    card_ = mac(card).ljust(16, b"\0")
    return (
        head + bytes(12) + card_ + WORD.ljust(192, b"\0") + MAGIC + bytes((53, 1, kind)) + b"".join(options) + b"\xff"
    )


def option(kind: int, value: bytes) -> bytes:
    """An option of DHCP."""
    return bytes((kind, len(value))) + value


def asks(guest: Guest, seconds: float = 3.0) -> str:
    """The address that a guest is offered."""
    packet = udp("0.0.0.0", "255.255.255.255", (68, 67), dhcp(1, guest.card))
    guest.send(ether(EVERYBODY, guest.card, IPV4, packet))
    answer = guest.wait(lambda frame: frame[12:14] == b"\x08\x00" and frame[34:38] == b"\0\x43\0\x44", seconds)
    return socket.inet_ntoa(answer[58:62]) if answer else ""


def names(guest: Guest, gateway: str, name: str, seconds: float = 3.0) -> str:
    """The first address that the gateway's resolver has for a name."""
    number = os.urandom(2)
    query = number + struct.pack("!5H", 0x0100, 1, 0, 0, 0)
    query += b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0\0\1\0\1"
    guest.send4(udp(guest.address4, gateway, (random.randrange(2000, 60_000), 53), query))
    answer = guest.wait(lambda frame: frame[34:36] == b"\0\x35" and frame[42:44] == number, seconds)
    return socket.inet_ntoa(answer[-4:]) if answer else ""


def spoofed(liar: Guest, victim: Guest, number: int) -> bytes:
    """A frame that says to be somebody else: one of eight kinds, each with an address that no other has."""
    low, high = number & 0xFFFF, number >> 16 & 0xFF
    four = f"10.20.{128 + high % 100}.{low % 250 + 3}"
    six = f"fd00:20::{high:x}:{low:x}:1"
    card = f"52:54:{low >> 8:02x}:{low & 255:02x}:{high:02x}:77"
    match number % 8:
        case 0:
            return ether(liar.gateway, card, IPV4, udp(liar.address4, victim.address4, (1, 2), WORD))
        case 1:
            return ether(liar.gateway, liar.card, IPV4, udp(four, victim.address4, (1, 2), WORD))
        case 2:
            return ether(liar.gateway, liar.card, IPV6, udp(six, victim.address6, (1, 2), WORD))
        case 3:
            return ether(liar.gateway, liar.card, IPV4, syn(four, victim.address4, (low, 80)) + WORD)
        case 4:
            return ether(liar.gateway, card, IPV6, udp(liar.address6, victim.address6, (1, 2), WORD))
        case 5:
            return ether(liar.gateway, liar.card, IPV4, udp(four, "10.20.255.1", (low, 53), WORD))
        case 6:
            return ether(liar.gateway, liar.card, IPV6, udp(six, "fd00:20::1", (low, 53), WORD))
        case _:
            return ether(liar.gateway, liar.card, IPV4, ipv4(four, "192.0.2.77", TCP, WORD * 5))
