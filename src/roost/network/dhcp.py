"""dnsmasq, a network's DHCP, router advertisements and names: unprivileged, in a jail, in the network's namespaces."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from roost import guest
from roost.host import files, jail
from roost.host.jail import Bind, Entrance, Jail, Limits
from roost.host.system import find_program
from roost.model.meta import MiB
from roost.network.base import Resolver

CAP_NET_RAW = 13
"""For router advertisements, which are sent over a raw ICMPv6 socket: include/uapi/linux/capability.h."""

_INSIDE = "/run/network"
_CONFIG = f"{_INSIDE}/dnsmasq.conf"
_PRELOADED = "/capget.so"
"""See guest/capget.c: dnsmasq insists on a capability that it does not need."""
_RANDOM = Path("/dev/urandom")
_ERRORS = 2
LOG_BYTES = 64 << 10


def write(directory: Path, resolver: Resolver) -> bool:
    """Bring its files up to date; whether one that it reads again (on SIGHUP) is another now."""
    directory.mkdir(mode=0o755, exist_ok=True)
    directory.chmod(0o755)
    _write(directory / "dnsmasq.conf", resolver.config)
    changed = [_write(directory / "hosts", resolver.hosts), _write(directory / "reservations", resolver.reservations)]
    return any(changed)


def _write(path: Path, text: str) -> bool:
    data = text.encode()
    if path.is_file() and path.read_bytes() == data:
        return False
    files.atomic_write(path, data, 0o644, durable=False)
    return True


def _digest(name: str) -> str:
    """Sixteen bytes as dnsmasq takes them."""
    return ":".join(f"{byte:02x}" for byte in hashlib.sha256(name.encode()).digest()[:16])


def make(name: str, directory: Path, account: int, entrance: Entrance, errors: int) -> Jail:
    """The jail for dnsmasq over its files; `errors` is where it logs. It forks for questions over TCP. Raises Unavailable when it is not
    installed."""
    program = find_program("dnsmasq")
    return Jail(
        name=name,
        argv=(
            str(program),
            f"--conf-file={_CONFIG}",
            "--keep-in-foreground",
            "--user=",
            "--group=",
            "--pid-file=",
            "--log-facility=-",
            # Who asks has no address yet. To send to the one it gets, dnsmasq would need power over the network.
            "--dhcp-broadcast",
            # Else made of the MAC address of a card, and a network without ports has none; and of the time, though it is to be kept.
            f"--dhcp-duid=0,{_digest(name)}",
        ),
        binds=(
            *jail.program_binds(program),
            Bind(directory, _INSIDE),
            Bind(_RANDOM, str(_RANDOM), device=True),
            Bind(guest.binary(os.uname().machine, "capget.so"), _PRELOADED),
        ),
        fds={_ERRORS: errors},
        env={"LD_PRELOAD": _PRELOADED},
        limits=Limits(memory=128 * MiB, processes=64, files=2048, file_size=LOG_BYTES),
        uid=account,
        entrance=entrance._replace(capabilities=(CAP_NET_RAW,)),
        forks=True,
    )
