"""What is more of networks than their objects: how one is by now, why something passes or not, and what passes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from roost.api.resources import Resources
from roost.api.services import Services
from roost.api.wire import Answer, Call, Streamed, json_answer
from roost.errors import Invalid, Problem
from roost.model.access import Verb
from roost.model.kinds import BY_NAME
from roost.model.network import Network
from roost.model.ruleset import Transport

_NETWORK = BY_NAME["network"]
MOST_FRAMES = 10**9
TRANSPORTS: tuple[Transport, ...] = ("tcp", "udp", "icmp")


class NetworkRoutes:
    """Routes that look into networks."""

    def __init__(self, services: Services, resources: Resources) -> None:
        self._services = services
        self._resources = resources

    async def picture(self, call: Call) -> Answer:
        """Who is plugged in, and what passed."""
        return json_answer(await self._services.networks.picture(await self._network(call, "get")))

    async def trace(self, call: Call) -> Answer:
        """What decides whether one machine reaches another, or the world."""
        network = await self._network(call, "get")
        asked = call.query("protocol", "tcp")
        protocol = next((known for known in TRANSPORTS if known == asked), None)
        if protocol is None:
            raise Invalid("the request is wrong", problems=[Problem("protocol", "is not tcp, udp or icmp")])
        port = call.number("port", 0, 0, 65_535)
        source, target = call.query("from"), call.query("to")
        if not source or not target:
            raise Invalid("the request is wrong", problems=[Problem("from", "say from whom, and to whom")])
        return json_answer(await self._services.networks.trace(network, source, target, protocol, port))

    async def capture(self, call: Call) -> Streamed:
        """What passes a port of a machine, as a pcap file."""
        network = await self._network(call, "exec")
        frames = call.number("frames", 0, 0, MOST_FRAMES) or None
        source: AsyncIterator[bytes] = await self._services.networks.capture(
            network, call.query("machine"), call.query("port"), frames
        )
        return Streamed(source, b"application/vnd.tcpdump.pcap")

    async def flows(self, call: Call) -> Streamed:
        """The connections that were allowed or refused, a line of JSON each."""
        network = await self._network(call, "get")
        lines = await self._services.networks.flows(network, follow=call.flag("follow"))
        return Streamed(lines, b"application/x-ndjson", heartbeat=b"\n")

    async def _network(self, call: Call, verb: Verb) -> Network:
        found = await self._resources.read(call, _NETWORK, verb)
        assert isinstance(found, Network)
        return found
