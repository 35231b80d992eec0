"""pasta as a network's door to the world: ordinary sockets of the host, no privilege, in a jail in the network's user namespace."""

from __future__ import annotations

import os
from pathlib import Path

from roost.errors import Unavailable
from roost.host import jail
from roost.host.jail import Bind, Entrance, Jail, Limits
from roost.model.meta import MiB

INTERFACE = "up0"
ADDRESSES = ("192.0.0.2", "fd72:6f6f:7374::2")
"""pasta's side of the network sees all that goes out as coming from these: of RFC 7335, and a unique local one. Both never leave the host."""
_GATEWAYS = ("192.0.0.1", "fd72:6f6f:7374::1")
_PREFIX = "29"
_TUN = Path("/dev/net/tun")
_INSIDE = "/run/network/net"
_ERRORS = 2
_CAP_NET_ADMIN, _CAP_SYS_ADMIN = 12, 21
_LOG_BYTES = 64 << 10


def pasta(program: str, mtu: int) -> tuple[str, ...]:
    """pasta's arguments: it makes `INTERFACE` with its addresses and routes, publishes nothing, and leads nowhere into the host."""
    addresses = [word for address in ADDRESSES for word in ("--address", address)]
    gateways = [word for gateway in _GATEWAYS for word in ("--gateway", gateway)]
    closed = [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]
    return (
        program,
        "--foreground", "--quiet", "--stderr",
        "--config-net", "--ns-ifname", INTERFACE, "--mtu", str(mtu),
        *addresses, "--netmask", _PREFIX, *gateways,
        "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra", *closed,
        "--netns-only", "--netns", _INSIDE,
    )  # fmt: skip


def make(name: str, program: str | None, account: int, entrance: Entrance, errors: int, mtu: int) -> Jail:
    """The jail for pasta. It lives in the host's network, where its sockets are, and has power over the entered one alone.

    Raises Unavailable when it is not installed or the host keeps /dev/net/tun to itself.
    """
    what = "the network has no door to the world"
    if program is None:
        raise Unavailable(what, "pasta is not installed", "sudo apt-get install --no-install-recommends passt")
    if not os.access(_TUN, os.R_OK | os.W_OK):
        raise Unavailable(what, f"{_TUN} can not be opened", f"sudo chmod 0666 {_TUN}")
    return Jail(
        name=name,
        argv=pasta(program, mtu),
        binds=(*jail.program_binds(Path(program)), Bind(_TUN, str(_TUN), device=True)),
        fds={_ERRORS: errors},
        limits=Limits(memory=512 * MiB, processes=16, files=16384, file_size=_LOG_BYTES),
        uid=account,
        sandboxes_itself=True,
        entrance=entrance._replace(capabilities=(_CAP_NET_ADMIN, _CAP_SYS_ADMIN), at=_INSIDE),
    )
