"""Networks: make them, plug machines into them, look into them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from roost.client.aio.objects import AsyncObjects
from roost.client.aio.session import AsyncSession
from roost.client.protocol import Request, path
from roost.errors import Conflict, NotFound
from roost.model.codec import plain
from roost.model.kinds import BY_NAME
from roost.model.machine import Machine
from roost.model.network import Network

ATTEMPTS = 5
"""Times that a change of a machine is tried that somebody else changes too."""


class AsyncNetworks(AsyncObjects[Network]):
    """The networks of a project."""

    def __init__(self, session: AsyncSession, project: str) -> None:
        super().__init__(session, BY_NAME["network"], Network, project)
        self._machines = AsyncObjects(session, BY_NAME["machine"], Machine, project)

    async def attach(self, network: str, machine: str, **port: Any) -> Machine:
        """Plug a machine into a network, running or not. `port` holds fields of PortSpec: `addresses`, `name`, `rulesets`, ... Raises NotFound,
        Conflict (it has a port of that name)."""
        await self.get(network)
        wish = {"network": network, **{name: value for name, value in port.items() if value}}
        title = wish.get("name", network)

        def change(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if any(title == (it["name"] or it["network"]) for it in ports):
                what = f'machine "{machine}" has a port "{title}" already'
                fix = f"roost edit machine {machine}; or, for another one, give that a name: --name"
                raise Conflict(what, "a port that is there is changed in the machine's spec.ports", fix)
            return [*ports, wish]

        return await self._change_ports(machine, change)

    async def detach(self, network: str, machine: str, name: str = "") -> Machine:
        """Unplug a machine from a network: the port `name`, or all that it has there. Raises NotFound."""

        def change(ports: list[dict[str, Any]]) -> list[dict[str, Any]]:
            left = [it for it in ports if it["network"] != network or (name and name != (it["name"] or network))]
            if len(left) == len(ports):
                raise NotFound(
                    f'machine "{machine}" has no such port', f"network {network}", f"roost network show {network}"
                )
            return left

        return await self._change_ports(machine, change)

    async def picture(self, name: str) -> dict[str, Any]:
        """Who is plugged in, with addresses, rule sets and what passed. Raises NotFound."""
        answer: dict[str, Any] = await self._session.call("GET", path("networks", self._project, name, "picture"))
        return answer

    async def trace(
        self, name: str, source: str, target: str, port: int | None = None, *, protocol: str = "tcp"
    ) -> dict[str, Any]:
        """What decides whether the machine `source` reaches `target` (a machine or an address). Raises NotFound."""
        words = {"from_": source, "to": target, "port": port, "protocol": protocol}
        answer: dict[str, Any] = await self._session.call(
            "GET", path("networks", self._project, name, "trace", **words)
        )
        return answer

    async def capture(
        self, name: str, machine: str, port: str = "", *, frames: int | None = None
    ) -> AsyncIterator[bytes]:
        """What passes a machine's port, as a pcap file, piece by piece, until `frames` came or the loop is left. Raises NotFound."""
        words = {"machine": machine, "port": port or None, "frames": frames}
        answer = await self._session.open(Request("GET", path("networks", self._project, name, "capture", **words)))
        try:
            async for piece in answer.pieces():
                yield piece
        finally:
            answer.close()

    async def flows(self, name: str, *, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
        """The flow log: a connection each, that was allowed or refused; with `follow` also what comes. Raises NotFound, Conflict (there is none)."""
        words = {"follow": "true" if follow else None}
        answer = await self._session.open(Request("GET", path("networks", self._project, name, "flows", **words)))
        rest = b""
        try:
            async for piece in answer.pieces():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    if line:
                        yield msgspec.json.decode(line, type=dict[str, Any])
        finally:
            answer.close()

    async def _change_ports(self, machine: str, change: Any) -> Machine:
        for _ in range(ATTEMPTS):
            seen = await self._machines.get(machine)
            ports: Sequence[Any] = change(plain(seen.spec.ports))
            body = {"spec": {"ports": ports}, "meta": {"revision": seen.meta.revision}}
            try:
                await self._session.call("PATCH", path("machines", self._project, machine), body)
            except Conflict as error:
                taken = error
                continue
            return await self._machines.get(machine)
        raise taken
