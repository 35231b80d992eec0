"""Raw frames on taps: a guest that is only a descriptor, for tests of what a network lets through."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address

HEADER = 10
"""Bytes before each frame: struct virtio_net_hdr, all zero for frames that need no help."""
EVERYBODY = "ff:ff:ff:ff:ff:ff"
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN, RST, ACK = 2, 4, 16


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(to: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac(to) + mac(source) + struct.pack("!H", kind) + payload


def ipv4(source: str, to: str, protocol: int, payload: bytes, ttl: int = 64) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, ttl, protocol, 0)
    ends = ip_address(source).packed + ip_address(to).packed
    return head[:10] + struct.pack("!H", checksum(head + ends)) + ends + payload


def ipv6(source: str, to: str, protocol: int, payload: bytes, hops: int = 64) -> bytes:
    return (
        struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops)
        + ip_address(source).packed
        + ip_address(to).packed
        + payload
    )


def _transport(source: str, to: str, protocol: int, data: bytes, at: int) -> bytes:
    """The packet with the checksum that covers the addresses too."""
    ends = ip_address(source).packed + ip_address(to).packed
    size = struct.pack("!BBH", 0, protocol, len(data)) if len(ends) == 8 else struct.pack("!II", len(data), protocol)
    data = data[:at] + struct.pack("!H", checksum(ends + size + data)) + data[at + 2 :]
    return (ipv4 if len(ends) == 8 else ipv6)(source, to, protocol, data)


def udp(source: str, to: str, ports: tuple[int, int], data: bytes = b"x") -> bytes:
    return _transport(source, to, UDP, struct.pack("!HHHH", *ports, 8 + len(data), 0) + data, 6)


def syn(source: str, to: str, ports: tuple[int, int]) -> bytes:
    return tcp(source, to, ports, SYN)


def tcp(source: str, to: str, ports: tuple[int, int], flags: int, *, sequence: int = 1, acknowledged: int = 0) -> bytes:
    numbers = (sequence, acknowledged, 0x50, flags, 65535, 0, 0)
    return _transport(source, to, TCP, struct.pack("!HHIIBBHHH", *ports, *numbers), 16)


def icmpv6(source: str, to: str, kind: int, body: bytes) -> bytes:
    packet = _transport(source, to, ICMPV6, struct.pack("!BBH", kind, 0, 0) + body, 2)
    return packet[:7] + b"\xff" + packet[8:]  # a hop limit of 255, as RFC 4861 wants it


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    parts = [mac(sender[0]), ip_address(sender[1]).packed, mac(target[0]), ip_address(target[1]).packed]
    return struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + b"".join(parts)


class Guest:
    """A machine of which there is only the card: the tap's descriptor, a MAC address, and an address of each version."""

    def __init__(self, tap: int, card: str, address4: str, address6: str, gateway: str) -> None:
        self.tap, self.card, self.address4, self.address6, self.gateway = tap, card, address4, address6, gateway

    def send(self, frame: bytes) -> None:
        os.write(self.tap, bytes(HEADER) + frame)

    def send4(self, packet: bytes) -> None:
        self.send(ether(self.gateway, self.card, IPV4, packet))

    def send6(self, packet: bytes) -> None:
        self.send(ether(self.gateway, self.card, IPV6, packet))

    def frames(self, seconds: float = 0.0) -> Iterator[bytes]:
        """What comes until nothing has come for so long."""
        poll = select.poll()
        poll.register(self.tap, select.POLLIN)
        while poll.poll(seconds * 1000):
            yield os.read(self.tap, 70_000)[HEADER:]

    def wait(self, fits: Callable[[bytes], bool], seconds: float = 2.0) -> bytes | None:
        """The first frame that fits."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for frame in self.frames(min(left, 0.2)):
                if fits(frame):
                    return frame
        return None

    def hears(self, data: bytes, seconds: float = 2.0) -> bool:
        """Whether a frame with this in it comes."""
        return self.wait(lambda frame: data in frame, seconds) is not None

    def resolves(self, address: str) -> str | None:
        """The MAC address that is said to be that of an IPv4 address."""
        self.send(ether(EVERYBODY, self.card, ARP, arp(1, (self.card, self.address4), ("00:00:00:00:00:00", address))))
        answer = self.wait(lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == socket.inet_aton(address))
        return answer[22:28].hex(":") if answer else None

    def close(self) -> None:
        os.close(self.tap)
