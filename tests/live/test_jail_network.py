"""passt in its jail: it forwards, and holds nothing but its sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.host import jail, processes
from roost.host.jail import Bind, Jail, Limits
from tests.needs import needs_program
from tests.ordinary import WHO, run_as

GUEST, GATEWAY = bytes([10, 9, 0, 2]), bytes([10, 9, 0, 1])
HARDWARE = bytes.fromhex("525400000001")
ARP, IPV4, TCP = 0x0806, 0x0800, 6
PASST = Path("/usr/bin/passt")

pytestmark = needs_program("passt")


class Seen(NamedTuple):
    """What came over the link, and what /proc says of passt."""

    arp_reply: bytes
    syn: bytes
    status: dict[str, str]
    root: set[str]
    layers: tuple[str, ...]
    exit: int | None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def frames(link: socket.socket) -> AsyncIterator[bytes]:
    reader, _ = await asyncio.open_connection(sock=link)
    while True:
        yield await reader.readexactly(struct.unpack("!I", await reader.readexactly(4))[0])


def arp(operation: int, target: bytes, sender: bytes) -> bytes:
    body = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation) + HARDWARE + sender + bytes(6) + target
    return b"\xff" * 6 + HARDWARE + struct.pack("!H", ARP) + body


async def use_passt() -> Seen:
    ours, theirs = socket.socketpair()
    port = free_port()
    words = ["-f", "-q", "-4", "-a", "10.9.0.2", "-n", "24", "-g", "10.9.0.1", "--no-map-gw"]
    words += ["-t", f"127.0.0.1/{port}:22", "-u", "none", "--fd", "3"]
    binds = [*jail.program_binds(PASST), Bind(Path("/etc/resolv.conf").resolve(), "/etc/resolv.conf")]
    passt = Jail(f"test-passt-{os.getpid()}", [str(PASST), *words], binds, fds={3: theirs.fileno()})
    with theirs:
        jailed = await jail.enter(
            passt._replace(
                uid=jail.FIRST_UID + 11,
                network="host",
                sandboxes_itself=True,
                limits=Limits(memory=128 << 20, processes=4),
            )
        )
    received = frames(ours)
    async with asyncio.timeout(20):
        ours.sendall(struct.pack("!I", 42) + arp(1, GATEWAY, GUEST))
        reply = await anext(received)
        with socket.socket() as caller:
            caller.connect(("127.0.0.1", port))
            asked = await anext(received)  # who has the guest's address, or at once the connection itself
            if asked[12:14] == struct.pack("!H", ARP):
                ours.sendall(struct.pack("!I", 42) + arp(2, GATEWAY, GUEST))
                asked = await anext(received)
        lines = Path(f"/proc/{jailed.process.pid}/status").read_text().splitlines()
        mounts = Path(f"/proc/{jailed.process.pid}/mountinfo").read_text().splitlines()
        ours.shutdown(socket.SHUT_RDWR)
        code = await processes.wait_pidfd(jailed.pidfd)
    os.close(jailed.pidfd)
    assert jailed.cgroup is None or await jailed.cgroup.remove()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return Seen(reply, asked, status, {line.split()[4] for line in mounts}, jailed.layers, code)


@pytest.fixture(scope="module", params=WHO)
def seen(request: pytest.FixtureRequest) -> Seen:
    return run_as(request.param, use_passt)


def test_the_gateway_answers(seen: Seen) -> None:
    assert struct.unpack("!H", seen.arp_reply[20:22]) == (2,)
    assert seen.arp_reply[28:32] == GATEWAY


def test_a_published_port_leads_to_the_guest(seen: Seen) -> None:
    assert (struct.unpack("!H", seen.syn[12:14])[0], seen.syn[23]) == (IPV4, TCP)
    assert seen.syn[30:34] == GUEST
    assert struct.unpack("!H", seen.syn[36:38]) == (22,)


def test_it_is_nobody_and_can_become_nobody_else(seen: Seen) -> None:
    assert seen.status["Uid"].split()[0] != "0"
    assert int(seen.status["CapEff"], 16) == int(seen.status["CapPrm"], 16) == 0
    assert (seen.status["NoNewPrivs"], seen.status["Seccomp"]) == ("1", "2")


def test_it_sees_no_file(seen: Seen) -> None:
    assert seen.root == {"/"}


def test_it_ends_with_its_machine(seen: Seen) -> None:
    assert seen.exit == 0
