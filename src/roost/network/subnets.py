"""Chooses subnets that meet nothing that is there, and addresses that nobody has or had a moment ago. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from roost.errors import Conflict
from roost.model.network import Subnet
from roost.network import names

Net: TypeAlias = IPv4Network | IPv6Network

POOLS = (IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))
"""RFC 1918, without 192.168.0.0/16, where homes and offices are."""
_TRIES = 4096


def choose(uid: str, taken: Iterable[str], versions: Collection[int] = (4, 6)) -> tuple[Subnet, ...]:
    """An IPv4 /24 and an IPv6 /64 (unique local, RFC 4193) for the network `uid` that overlap none of `taken`: routes of the host, subnets of
    other networks. The same answer for the same question. Raises Conflict when there is none."""
    known = _networks(taken)
    pools = {4: _blocks4(uid, 24), 6: _blocks6(uid, 64)}
    return tuple(Subnet(cidr=str(_free(pools[version], known))) for version in sorted(versions))


def transfer(uid: str, taken: Iterable[str]) -> tuple[str, str, str, str]:
    """The addresses of the two ends of a network's door (RFC 3021: a /31, and a /127): inside and outside, IPv4, then IPv6. Raises Conflict."""
    known = _networks(taken)
    four = _free(_blocks4(f"{uid}/door", 31), known)
    six = _free(_blocks6(f"{uid}/door", 127), known)
    return str(four[0]), str(four[1]), str(six[0]), str(six[1])


def filled(subnet: Subnet) -> Subnet:
    """The subnet with nothing left open: gateway, and the range of addresses that are given out."""
    net = ip_network(subnet.cidr)
    last = net.num_addresses - (2 if net.version == 4 else 1)
    return Subnet(
        cidr=str(net),
        gateway=str(ip_address(subnet.gateway) if subnet.gateway else net[1]),
        first=str(ip_address(subnet.first) if subnet.first else net[2 if last > 1 else 1]),
        last=str(ip_address(subnet.last) if subnet.last else net[min(last, 0xFFFF)]),
    )


def overlaps(subnets: Iterable[str], taken: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The pairs that meet."""
    known = _networks(taken)
    return tuple((str(one), str(two)) for one in _networks(subnets) for two in known if _meet(one, two))


def next_address(subnet: Subnet, taken: Collection[str], resting: Mapping[str, float], now: float) -> str:
    """The first address of the subnet's range that nobody has (`taken`, in any notation) and that is not `resting`: an address given back, and
    until when (seconds, the clock of `now`) somebody may still think that he has it. Raises Conflict when there is none."""
    whole = filled(subnet)
    busy = {int(ip_address(text)) for text in taken if ip_address(text).version == ip_network(whole.cidr).version}
    busy |= {int(ip_address(text)) for text, until in resting.items() if until > now}
    busy.add(int(ip_address(whole.gateway)))
    first, last = int(ip_address(whole.first)), int(ip_address(whole.last))
    free = next((number for number in range(first, last + 1) if number not in busy), None)
    if free is None:
        raise _full(whole, resting, now)
    return str(type(ip_address(whole.first))(free))


def _full(subnet: Subnet, resting: Mapping[str, float], now: float) -> Conflict:
    waiting = [
        until - now for text, until in resting.items() if until > now and ip_address(text) in ip_network(subnet.cidr)
    ]
    why = f"all from {subnet.first} to {subnet.last} are taken"
    if waiting:
        return Conflict(
            f"no address of {subnet.cidr} is free", f"{why}, or were a moment ago", f"wait {min(waiting):.0f} seconds"
        )
    return Conflict(
        f"no address of {subnet.cidr} is free", why, "delete a machine, or make a network with more addresses"
    )


def _networks(texts: Iterable[str]) -> list[Net]:
    return [ip_network(text, strict=False) for text in texts]


def _free(blocks: Iterator[Net], known: list[Net]) -> Net:
    block = next((block for block in blocks if not any(_meet(block, other) for other in known)), None)
    if block is None:
        why = f"{_TRIES} subnets were tried, and each meets a route of this host or another network"
        raise Conflict("no subnet is free", why, "name one: roost network create NAME --subnet 10.20.0.0/24")
    return block


def _meet(one: Net, two: Net) -> bool:
    """Whether they overlap; a route to everywhere (the default route, the halves of it that VPNs make) meets nothing."""
    if two.prefixlen <= 1 or one.version != two.version:
        return False
    return int(one[0]) <= int(two[-1]) and int(two[0]) <= int(one[-1])


def _blocks4(uid: str, prefix: int) -> Iterator[Net]:
    size = 1 << (32 - prefix)
    counts = [pool.num_addresses // size for pool in POOLS]
    start = int(names.digest(uid)[:12], 16)
    for step in range(_TRIES):
        place = (start + step * 7919) % sum(counts)
        pool = POOLS[0] if place < counts[0] else POOLS[1]
        offset = place if place < counts[0] else place - counts[0]
        yield IPv4Network((int(pool[0]) + offset * size, prefix))


def _blocks6(uid: str, prefix: int) -> Iterator[Net]:
    for step in range(_TRIES):
        bits = names.digest(f"{uid}/{step}")[:14]
        yield IPv6Network((int(f"fd{bits}", 16) << 64, prefix))
