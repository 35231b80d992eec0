"""A laboratory of several hosts on one wire: network namespaces joined by a bridge, each with an engine of networks of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from roost.host import kernel
from roost.model.network import Vxlan, VxlanPeer
from roost.network.base import Attachment, Wanted
from roost.network.fabric import NetworkFabric
from tests.fabrics import LAN, engine, port, sh, wanted
from tests.frames import Guest, ether, ipv4

ID = 42


class Host:
    """A host: number N has the addresses 192.0.2.N and 2001:db8:7::N on the wire."""

    def __init__(self, number: int, net: int, fabric: NetworkFabric, home: Path) -> None:
        self.number, self.net, self.fabric, self.home = number, net, fabric, home

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """This process is on the host meanwhile."""
        with inside(self.net):
            yield

    async def start(self) -> None:
        """The engine's worker is where it is started."""
        with self.here():
            await self.fabric.host_addresses()


@contextlib.contextmanager
def inside(net: int) -> Iterator[None]:
    """This process is in another network namespace meanwhile."""
    back = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.setns(net, kernel.NEWNET)
    try:
        yield
    finally:
        kernel.setns(back, kernel.NEWNET)
        os.close(back)


def on_wire(number: int, *, version: int = 4) -> str:
    """The address of a host."""
    return f"192.0.2.{number}" if version == 4 else f"2001:db8:7::{number}"


def joined(number: int) -> int:
    """A new namespace on the wire, which is the bridge of the one that this process is in."""
    back = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.unshare(kernel.NEWNET)
    net = os.open("/proc/self/ns/net", os.O_RDONLY)
    sh("ip link set lo up")
    kernel.setns(back, kernel.NEWNET)
    os.close(back)
    sh(f"ip link add w{number} type veth peer name eth0 netns /proc/{os.getpid()}/fd/{net}")
    sh(f"ip link set w{number} master wire up")
    with inside(net):
        sh(f"ip addr add 192.0.2.{number}/24 dev eth0; ip -6 addr add 2001:db8:7::{number}/64 dev eth0 nodad")
        sh(f"ip link set eth0 address 02:00:00:07:00:{number:02x} up")
    return net


@contextlib.asynccontextmanager
async def hosts(count: int) -> AsyncIterator[list[Host]]:
    """So many hosts, numbered from 1."""
    sh("ip link add wire type bridge && ip link set wire up")
    async with contextlib.AsyncExitStack() as stack:
        yield [await added(stack, number) for number in range(1, count + 1)]


async def added(stack: contextlib.AsyncExitStack, number: int) -> Host:
    """One host more; its networks are removed with the stack."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    net = joined(number)
    stack.callback(os.close, net)
    host = Host(number, net, await stack.enter_async_context(engine()), home)
    await host.start()
    return host


def share(number: int) -> tuple[str, str]:
    """The addresses that host `number` gives out."""
    return f"10.20.{number}.0/24", f"fd00:20::{number}:0/112"


def spanned(number: int, peers: Sequence[int], *, id: int = ID, version: int = 4) -> Vxlan:
    """The network as host `number` sees it, with its peers."""
    return Vxlan(
        id=id, local=on_wire(number, version=version), subnets=share(number),
        peers=tuple(VxlanPeer(address=on_wire(one, version=version), subnets=share(one)) for one in peers),
    )  # fmt: skip


def ports(number: int, count: int = 1, uid: str = LAN) -> tuple[Attachment, ...]:
    """Ports on host `number`, with addresses that it gives out."""
    return tuple(
        port(250 * number + it, uid, addresses=(f"10.20.{number}.{it + 2}", f"fd00:20::{number}:{it + 2:x}"))
        for it in range(count)
    )


def network(number: int, peers: Sequence[int], *, id: int = ID, version: int = 4, **fields: object) -> Wanted:
    """A network that goes on on other hosts, with one port on this one."""
    uid = str(uuid.uuid5(uuid.UUID(LAN), f"{number}/{id}"))
    vxlan = spanned(number, peers, id=id, version=version)
    usual = {"ports": ports(number, uid=uid), "mtu": 1450 if version == 4 else 1430, "vxlan": vxlan}
    return wanted(0, uid, fields.pop("door", "none"))._replace(**{**usual, **fields})  # type: ignore[arg-type]


def packed(inner: bytes, *, id: int = ID) -> bytes:
    """A frame as VXLAN carries it (RFC 7348)."""
    return struct.pack("!II", 0x08000000, id << 8) + inner


def carried(to: str, card: str, source: str, guest: Guest, payload: bytes) -> bytes:
    """A frame for the end of a VXLAN with that card, with a packet from `source` to the guest in it."""
    head = struct.pack("!HHHH", 7, 7, 8 + len(payload), 0)
    return ether(to, card, 0x0800, ipv4(source, guest.address4, 17, head + payload))


def sender(source: str = "") -> socket.socket:
    """A socket of a process here."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((source, 0))
    return made


def here() -> int:
    """The network namespace that this process is in."""
    return os.open("/proc/self/ns/net", os.O_RDONLY)
