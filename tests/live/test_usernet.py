"""The user network with a guest that writes its own frames: what it reaches, what it must not, and that it ends with the machine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from roost.errors import Conflict, Unavailable
from roost.host import facts, jail, processes
from roost.host.jail import Jailed
from roost.model.machine import Publish
from roost.network import userplan
from roost.network.usernet import UserNetwork
from tests.needs import needs_program, needs_root

pytestmark = needs_program("passt")

MAC = bytes.fromhex("525400123456")
IPV4 = b"\x08\x00"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def checksum(data: bytes) -> bytes:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)


def packet(protocol: int, to: str, payload: bytes, source: str = userplan.ADDRESS) -> bytes:
    """An IPv4 packet (RFC 791); `payload` with its checksum zero at its protocol's place."""
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    place = 16 if protocol == socket.IPPROTO_TCP else 6
    sum_ = checksum(addresses + struct.pack("!BBH", 0, protocol, len(payload)) + payload)
    payload = payload[:place] + sum_ + payload[place + 2 :]
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses
    return header[:10] + checksum(header) + header[12:] + payload


def syn(to: str, port: int, source: str = userplan.ADDRESS) -> bytes:
    segment = struct.pack("!HHIIBBHHH", 40000, port, 1000, 0, 5 << 4, 2, 65535, 0, 0)
    return packet(socket.IPPROTO_TCP, to, segment, source)


def datagram(to: str, port: int) -> bytes:
    return packet(socket.IPPROTO_UDP, to, struct.pack("!HHHH", 40001, port, 11, 0) + b"hey")


class Wire:
    """The guest's end of its network."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    async def send(self, content: bytes, kind: bytes = IPV4) -> None:
        frame = b"\xff" * 6 + MAC + kind + content
        await asyncio.get_running_loop().sock_sendall(self._link, struct.pack("!I", len(frame)) + frame)

    async def receive(self, seconds: float) -> list[bytes]:
        """The frames that come within a time."""
        data = b""
        try:
            async with asyncio.timeout(seconds):
                while more := await asyncio.get_running_loop().sock_recv(self._link, 65536):
                    data += more
        except TimeoutError:
            pass
        frames = []
        while data:
            size = int.from_bytes(data[:4], "big")
            frames.append(data[4 : 4 + size])
            data = data[4 + size :]
        return frames


@asynccontextmanager
async def network(*publish: Publish) -> AsyncIterator[tuple[Wire, socket.socket, tuple[Jailed, ...]]]:
    """A network, and its processes, ended at the end."""
    here = await facts.gather()
    link, far = socket.socketpair()
    with far:
        jailed, addresses = await UserNetwork(here).connect(str(uuid.uuid4()), 400_001, publish, (link, far))
    assert addresses == (userplan.ADDRESS,)
    try:
        yield Wire(link), link, jailed
    finally:
        link.close()
        for one in jailed:
            await jail.end(one)


@pytest.fixture
def listener() -> socket.socket:
    """A service on the host's loopback."""
    service = socket.create_server(("127.0.0.1", 0))
    service.setblocking(False)
    return service


@pytest.mark.parametrize("to", ["127.0.0.1", "0.0.0.0", "127.255.255.254", userplan.GATEWAY, "169.254.169.254"])
async def test_no_frame_reaches_the_loopback_of_the_host(listener: socket.socket, to: str) -> None:
    port = listener.getsockname()[1]
    with listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        async with network() as (wire, _, _):
            await wire.send(syn(to, port))
            await wire.send(syn(to, port, source="127.0.0.1"))
            await wire.send(datagram(to, datagrams.getsockname()[1]))
            answers = await wire.receive(0.5)
            assert not [frame for frame in answers if frame[12:14] == IPV4 and frame[23] == 6 and frame[47] & 2]
            with pytest.raises(BlockingIOError):
                listener.accept()
            with pytest.raises(BlockingIOError):
                datagrams.recv(10)


async def test_a_published_port_leads_into_the_guest_and_only_from_the_loopback() -> None:
    port = free_port()
    async with network(Publish(host_port=port, guest_port=22)) as (wire, _, _):
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.connect(("127.0.0.1", port))
            [frame] = [frame for frame in await wire.receive(1) if frame[12:14] == IPV4]
            assert struct.unpack("!H", frame[36:38]) == (22,)
        with socket.socket() as other, pytest.raises(OSError):
            other.settimeout(1)
            other.connect(("127.0.0.2", port))


async def test_a_taken_port_is_named_with_the_way_to_find_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(Conflict) as caught:
            async with network(Publish(host_port=port, guest_port=22)):
                pass
        assert str(port) in caught.value.what
        assert "ss -ltnup" in caught.value.fix


@needs_root
async def test_a_port_that_needs_privilege_says_so() -> None:
    with pytest.raises(Unavailable, match="ip_unprivileged_port_start=80"):
        async with network(Publish(host_port=80, guest_port=80)):
            pass


async def test_both_processes_end_with_the_machine() -> None:
    async with network() as (_, link, jailed):
        link.close()
        async with asyncio.timeout(30):
            for one in jailed:
                await processes.wait_exit(one.pidfd)


async def test_passt_does_not_outlive_the_fence() -> None:
    async with network() as (_, _, (passt, fence)):
        processes.signal_pidfd(fence.pidfd, signal.SIGKILL)
        async with asyncio.timeout(30):
            await processes.wait_exit(passt.pidfd)


async def test_a_guest_that_breaks_the_framing_loses_its_network() -> None:
    async with network() as (_, link, (_, fence)):
        link.send(struct.pack("!I", 1 << 31))
        async with asyncio.timeout(30):
            await processes.wait_exit(fence.pidfd)


async def test_a_guest_that_sends_without_reading_is_held_back() -> None:
    async with network() as (wire, link, jailed):
        frame = struct.pack("!I", 60) + b"\xff" * 6 + MAC + b"\x86\xdd" + bytes(46)
        for _ in range(2000):
            await asyncio.get_running_loop().sock_sendall(link, frame * 16)
        await wire.send(syn(userplan.GATEWAY, 1))
        assert all(processes.is_alive(one.pidfd) for one in jailed)


async def test_the_processes_have_no_privilege() -> None:
    async with network() as (_, _, jailed):
        assert os.getuid() != 0 or {one.process.uid for one in jailed} == {400_001}
