"""A forward: an address and port of the host, or of another network, that leads to a port of a machine."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from typing import Literal

from roost.errors import Problem
from roost.model.meta import NAME, Meta, Port, Struct, Trouble


class ForwardSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. `address` is one of the host. `port` names one of the machine's ports, "" the first."""

    machine: str
    host_port: Port
    guest_port: Port
    address: str = "127.0.0.1"
    protocol: Literal["tcp", "udp"] = "tcp"
    port: str = ""

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if not NAME.fullmatch(self.machine):
            yield Problem("machine", f"{self.machine[:80]!r} is not the name of a machine")
        if self.port and not NAME.fullmatch(self.port):
            yield Problem("port", f"{self.port[:80]!r} is not the name of a port")
        try:
            multicast = ip_address(self.address).is_multicast
        except ValueError:
            yield Problem("address", f"{self.address[:80]!r} is not an IP address")
            return
        if multicast:
            yield Problem("address", f"{self.address} is no address of a host")


class ForwardStatus(Struct, frozen=True, kw_only=True):
    """What is. "waiting": the machine is not there or not running."""

    phase: Literal["pending", "waiting", "active", "failed"] = "pending"
    generation: int = 0
    target: str = ""
    error: Trouble | None = None


class Forward(Struct, frozen=True, kw_only=True):
    """A published port."""

    kind: Literal["forward"] = "forward"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: ForwardSpec
    status: ForwardStatus = ForwardStatus()
