"""A laboratory for virtual networks: a "host" that is a network namespace of its own, or an ordinary user, and guests that are taps."""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 (an ordinary user may not be able to read the interpreter: what it loads later is loaded now)
import contextlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from roost.host import kernel
from roost.host.paths import Paths
from roost.model.network import Subnet
from roost.network import names, subnets
from roost.network.base import Attachment, Door, Wanted
from roost.network.fabric import NetworkFabric
from tests.checkout import ROOT
from tests.frames import Guest
from tests.ordinary import require_tun, run_as

LAN, OTHER = str(uuid.uuid4()), str(uuid.uuid4())


def on_host(who: str, main: Callable[[], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    """What `main` returns, run as root in a network namespace of its own, or as an ordinary user where he is."""

    async def there() -> Any:
        if os.geteuid() == 0:
            kernel.unshare(kernel.NEWNET)
            sh("ip link set lo up")
        return await main()

    if who == "user" and ROOT.stat().st_mode & 0o005 != 0o005:
        pytest.skip("an ordinary user can not read the sources here")
    require_tun()
    return run_as(who, there, **options)


def sh(command: str) -> str:
    """Run a line of shell here."""
    return subprocess.run(["sh", "-c", command], check=True, capture_output=True, text=True).stdout


def inside(fabric: NetworkFabric, uid: str, command: str) -> str:
    """Run a line of shell in a network's namespaces, as a foreign tool."""
    place = fabric._networks[uid].place
    assert place is not None
    user, net = place.namespaces
    pid = os.fork()
    if pid == 0:
        if os.geteuid() != 0:
            kernel.setns(user, kernel.NEWUSER)
        kernel.setns(net, kernel.NEWNET)
        os.execv("/bin/sh", ["sh", "-c", f"export PATH=$PATH:/usr/sbin:/sbin; {command}"])
    assert os.waitpid(pid, 0)[1] == 0, command
    return ""


def port(number: int, uid: str = LAN, **fields: Any) -> Attachment:
    """The port of machine `number` of a network."""
    machine = f"{number:08x}-{uid[:4]}-4000-8000-000000000000"
    usual = {
        "machine": f"m{number}", "uid": machine, "project": "default", "port": "lan", "mac": names.mac(machine, "lan"),
        "addresses": (f"10.20.{number // 250}.{number % 250 + 2}", f"fd00:20::{number + 2:x}"),
        "interface": names.tap(machine, "lan"),
    }  # fmt: skip
    return Attachment(**{**usual, **fields})


def wanted(ports: int = 2, uid: str = LAN, door: Door = "none", **fields: Any) -> Wanted:
    """A network 10.20.0.0/16 and fd00:20::/64 with so many ports."""
    usual = {
        "uid": uid, "project": "default", "name": "lan", "mode": "isolated" if door == "none" else "nat", "mtu": 1500,
        "subnets": (Subnet(cidr="10.20.0.0/16", gateway="10.20.255.1"), Subnet(cidr="fd00:20::/64", gateway="fd00:20::1")),
        "domain": "default.internal", "door": door, "ports": tuple(port(number, uid) for number in range(ports)),
        "transfer": subnets.transfer(uid, []) if door == "kernel" else (),
    }  # fmt: skip
    return Wanted(**{**usual, **fields})


@contextlib.asynccontextmanager
async def engine(directory: Path | None = None) -> AsyncIterator[NetworkFabric]:
    """An engine; without a directory of its own all its networks are removed at the end."""
    with contextlib.ExitStack() as stack:
        home = directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fabric = NetworkFabric(paths(home), None)  # type: ignore[arg-type]
        try:
            yield fabric
        finally:
            for uid in [] if directory else list(fabric._networks):
                await fabric.remove(uid)
            await fabric.close()


def paths(home: Path) -> Paths:
    return Paths(home / "state", home / "run")


async def plug(fabric: NetworkFabric, network: Wanted, *numbers: int) -> list[Guest]:
    """Guests on ports of a network, that have read what the kernel greets them with."""
    guests = []
    for number in numbers or range(len(network.ports)):
        one = network.ports[number]
        tap = await fabric.plug(network.uid, one.interface)
        guests.append(Guest(tap, one.mac, one.addresses[0], one.addresses[1], names.GATEWAY_MAC))
    for guest in guests:
        list(guest.frames(0.05))
    return guests


async def woken(fabric: NetworkFabric, act: Callable[[], object], seconds: float = 3.0) -> list[str]:
    """The networks that the engine says have changed after this; at least one."""
    told: list[str] = []
    event = asyncio.Event()

    def wake(uid: str) -> None:
        told.append(uid)
        event.set()

    fabric.on_change(wake)
    act()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return told
