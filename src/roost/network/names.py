"""What things of a network are called on the host: derived from identities, so that whoever asks gets the same name. Pure."""

from __future__ import annotations

import hashlib
import re
from ipaddress import IPv6Address, ip_address

from roost.model.meta import NAME

GATEWAY_MAC = "02:52:4f:4f:53:54"
"""The gateway's, on every tap of every network: a clone that is plugged in elsewhere finds its gateway where it was."""

GATEWAY_LINK_LOCAL = "fe80::1"
METADATA = "169.254.169.254"
"""Where clouds have their metadata service (cloud-init's data source Ec2)."""

GATEWAY = "lo"
"""What has the gateway's addresses, tap or no tap: the loopback, as many kernels have no interface of the kind dummy."""
UPLINK = "up0"
TUNNEL = "vx0"
TAP = re.compile(r"tap[0-9a-f]{8}")
OUTSIDE_PREFIX = "rst"


LOOSE = "loose0"
"""A tap that leads nowhere, alone in its namespace."""


def tap(machine_uid: str, port: str) -> str:
    """The interface of a machine's port."""
    return f"tap{digest(f'{machine_uid}/{port}')[:8]}"


def veth(network_uid: str) -> str:
    """The host's end of a network's door."""
    return f"{OUTSIDE_PREFIX}{digest(network_uid)[:8]}"


def mac(machine_uid: str, port: str) -> str:
    """The MAC address of a machine's port that asks for none: QEMU's prefix, locally administered."""
    tail = digest(f"mac/{machine_uid}/{port}")
    return f"52:54:00:{tail[:2]}:{tail[2:4]}:{tail[4:6]}"


def tunnel_mac(underlay: str) -> str:
    """The MAC address of a VXLAN's end on the host with that address: known on all hosts without asking."""
    tail = digest(f"vxlan/{ip_address(underlay)}")
    return "02:" + ":".join(tail[index : index + 2] for index in range(0, 10, 2))


def link_local(card: str) -> str:
    """The IPv6 link-local address that goes with a MAC address (RFC 4291, modified EUI-64)."""
    parts = bytes.fromhex(card.replace(":", ""))
    identifier = bytes((parts[0] ^ 2,)) + parts[1:3] + b"\xff\xfe" + parts[3:]
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def host(machine: str, domain: str) -> str:
    """The machine's name on its network."""
    return f"{safe(machine)}.{domain}"


def safe(name: str) -> str:
    """The name where it is one (model.meta.NAME), else what stands for it: whatever it is, nothing else is said with it."""
    return name if NAME.fullmatch(name) else f"x{digest(name)[:32]}"


def digest(text: str) -> str:
    """The text in 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
