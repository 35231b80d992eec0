"""What the API needs of networks, without any."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from roost.errors import Conflict, NotFound
from roost.model.network import Network
from roost.model.ruleset import Transport


class FakeNetworks:
    """Every network has one machine, "web", which reaches everybody."""

    async def picture(self, network: Network) -> Mapping[str, Any]:
        port = {
            "machine": "web", "port": network.name, "mac": "52:54:00:00:00:01", "addresses": ["10.20.0.2"], "interface": "tap0", "link": True,
            "plugged": True, "down": None, "up": None, "rulesets": ["default"], "in_packets": 1, "in_bytes": 2048, "out_packets": 1,
            "out_bytes": 1024, "dropped_packets": 3,
        }  # fmt: skip
        published = {
            "key": "f", "address": "127.0.0.1", "host_port": 8080, "protocol": "tcp", "target": "10.20.0.2", "target_port": 80, "trouble": "",
        }  # fmt: skip
        return {
            "project": network.project, "name": network.name, "phase": "ready", "mode": "nat", "door": "kernel", "mtu": 1500,
            "domain": f"{network.project}.internal", "subnets": [{"cidr": "10.20.0.0/24", "gateway": "10.20.0.1"}], "alive": [], "ports": [port],
            "published": [published], "rules": {}, "drops": {"spoof": 2, "ra": 0}, "differs": [], "warnings": [],
        }  # fmt: skip

    async def trace(
        self, network: Network, source: str, target: str, protocol: Transport, port: int
    ) -> Mapping[str, Any]:
        return {"passes": target != "db", "why": f"{protocol} {port} from {source}", "steps": ["one", "two"]}

    async def capture(self, network: Network, machine: str, port: str, frames: int | None) -> AsyncIterator[bytes]:
        if machine != "web":
            raise NotFound(f'machine "{machine}" is not plugged in')
        return _pieces(frames or 3)

    async def flows(self, network: Network, *, follow: bool) -> AsyncIterator[bytes]:
        del follow
        if not network.spec.flow_log:
            raise Conflict(f'network "{network.name}" keeps no flow log')
        return _pieces(1)

    async def pictures(self) -> Sequence[Mapping[str, Any]]:
        return self.counted

    counted: Sequence[Mapping[str, Any]] = ()


async def _pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"frame"
