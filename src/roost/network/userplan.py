"""Decides how passt is started: from the published ports to its arguments. Pure.

The addresses are the same in every machine, for each has a network of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address

from roost.errors import Invalid, Problem
from roost.model.machine import Publish

ADDRESS = "10.0.2.15"
GATEWAY = "10.0.2.2"
RESOLVER = "10.0.2.3"
_PREFIX = "24"


def passt(program: str, publish: Sequence[Publish], descriptor: int) -> tuple[str, ...]:
    """passt's arguments for one machine whose frames come over `descriptor`. Raises Invalid for a port it can not publish.

    IPv4 only: the fence before it lets nothing else through. --no-map-gw keeps the gateway's address from leading to the
    host's loopback; --dns-forward gives the guest a resolver also where the host's own is on that loopback. Nothing is
    published that was not asked for.
    """
    ports = tuple(word for entry in _checked(publish) for word in (f"--{entry.protocol}-ports", _port(entry)))
    return (
        program,
        "--foreground",
        "--quiet",
        "--ipv4-only",
        "--no-map-gw",
        "--address", ADDRESS, "--netmask", _PREFIX, "--gateway", GATEWAY,
        "--dns-forward", RESOLVER,
        *ports,
        "--fd", str(descriptor),
    )  # fmt: skip


def _port(entry: Publish) -> str:
    return f"{ip_address(entry.host_ip)}/{entry.host_port}:{entry.guest_port}"


def _checked(publish: Sequence[Publish]) -> Sequence[Publish]:
    problems = list(_problems(publish))
    if problems:
        raise Invalid("the machine's ports can not be published", problems=problems)
    return publish


def _problems(publish: Sequence[Publish]) -> Iterator[Problem]:
    for index, entry in enumerate(publish):
        try:
            version = ip_address(entry.host_ip).version
        except ValueError:
            yield Problem(f"spec.publish[{index}].host_ip", f"{entry.host_ip!r} is not an IP address")
            continue
        if version != 4:
            yield Problem(
                f"spec.publish[{index}].host_ip", f"{entry.host_ip} is not IPv4, and user networks carry only that yet"
            )
