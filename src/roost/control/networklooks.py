"""What can be asked about networks, beyond their objects: who is plugged in, what passed, what would, and what does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from roost.control.networks import Networks
from roost.control.networkview import absent, picture, stopped, traced
from roost.control.records import Records
from roost.errors import Conflict, NotFound
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.network import Network
from roost.model.ruleset import Transport
from roost.network import pcap
from roost.network.base import Seen

FRESH = 5.0
"""For how many seconds what was counted is good enough for whoever collects numbers."""
BUDGET = 1.0
"""Seconds of one collection that may be spent on looking at networks; those that are left keep the numbers they had."""


class NetworkLooks:
    """Networks as the API sees them."""

    def __init__(self, records: Records, networks: Networks) -> None:
        self._records = records
        self._networks = networks
        self._counted: dict[str, tuple[float, Mapping[str, Any]]] = {}

    async def picture(self, network: Network) -> Mapping[str, Any]:
        """Who is plugged in, and what passed; without the latter where the network is not there."""
        seen: Seen | None = None
        with suppress(NotFound):
            seen = await self._networks.look(network)
        return picture(network, await self._networks.wanted(network), seen, self._networks.unpublished)

    async def pictures(self) -> Sequence[Mapping[str, Any]]:
        """Those of all networks that are ready, at most so old as it takes to look at all of them in turn."""
        ready = {it.meta.uid: it for it in await self._records.all(Network) if it.status.phase == "ready"}
        self._counted = {uid: told for uid, told in self._counted.items() if uid in ready}
        until = time.monotonic() + BUDGET
        for uid in sorted(ready, key=lambda uid: self._age(uid), reverse=True):
            if time.monotonic() > until or self._age(uid) < FRESH:
                break
            self._counted[uid] = time.monotonic(), await self.picture(ready[uid])
        return sorted((told for _, told in self._counted.values()), key=lambda it: (it["project"], it["name"]))

    def _age(self, uid: str) -> float:
        return time.monotonic() - self._counted[uid][0] if uid in self._counted else float("inf")

    async def trace(
        self, network: Network, source: str, target: str, protocol: Transport, port: int
    ) -> Mapping[str, Any]:
        """What decides. Raises NotFound, Invalid."""
        wanted = await self._networks.wanted(network)
        for place in (source, target):
            machine: Machine | None = None
            with suppress(NotFound):
                machine = await self._records.machine(key_of(BY_NAME["machine"], network.project, place))
            if why := absent(wanted, place, machine):
                return stopped(why)
        return traced(wanted, source, target, protocol, port, self._networks.unpublished)

    async def capture(self, network: Network, machine: str, port: str, frames: int | None) -> AsyncIterator[bytes]:
        """What passes a port. Raises NotFound."""
        ports = (await self._networks.wanted(network)).ports
        found = next((it for it in ports if it.machine == machine and port in ("", it.port)), None)
        if found is None:
            what = f'machine "{machine}" is not plugged into network "{network.name}"'
            raise NotFound(what, "it does not run, or has no port there", f"roost network show {network.name}")
        return pcap.record(await self._networks.capture(network, found.interface), frames)

    async def flows(self, network: Network, *, follow: bool) -> AsyncIterator[bytes]:
        """The flow log, as lines of JSON. Raises Conflict when none is kept."""
        if not network.spec.flow_log:
            what = f'network "{network.name}" keeps no flow log'
            raise Conflict(what, "nobody asked for one", f"roost network flows {network.name} --on")
        return self._networks.flows(network, follow=follow)
