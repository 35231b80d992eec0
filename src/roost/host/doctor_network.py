"""What of this host is in the way of networks, why, and the exact change: judged from what was seen (pure); `doctor_network_facts` looks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Literal, NamedTuple

from roost.host import doctor_firewall
from roost.host.doctor import Finding
from roost.host.doctor_firewall import Drop, Packet, Table
from roost.host.packages import apt

SETTINGS = "/etc/sysctl.d/99-roost.conf"
"""Where sysctls are written that are to hold after the next start of the host."""
POOLS = ("10.0.0.0/8", "172.16.0.0/12")
"""What subnets are chosen from; a test compares it with roost.network.subnets."""
DOORS = "rst"
"""How the links begin that lead from the host into networks; a test compares it with roost.network.names."""
USUAL_MTU = 1500

TOOLS: Mapping[str, tuple[str, str]] = {
    "nft": ("nftables", "no network can be guarded"),
    "dnsmasq": ("dnsmasq-base", "no network can give out addresses and names"),
    "pasta": ("passt", "networks have no door to the world but the host's kernel, and that only for root"),
}
"""Program: its Debian package, and what is not possible without it."""

FEATURES: Mapping[str, tuple[bool, str, str]] = {
    "user namespace": (True, "", "each network has one of its own"),
    "network namespace": (True, "", "each network is one"),
    "nf_tables": (True, "nf_tables", "the rules of networks are in it"),
    "tap": (True, "tun", "machines are plugged into networks with it"),
    "veth": (False, "veth", "it is the door of networks of root; without it they go through pasta"),
    "vxlan": (False, "vxlan", "networks that span several hosts are made of it"),
}
"""What the kernel must do: whether no network is possible without it, the module that brings it, and what for."""


class Link(NamedTuple):
    """A link of the host. `kind` as the kernel names it; `mtu` in bytes."""

    name: str
    kind: str
    mtu: int


class Route(NamedTuple):
    """Where a route of the host leads: a prefix, and through which link."""

    to: str
    interface: str


class Look(NamedTuple):
    """What was seen.

    `features`: what happened when each was tried, "" where it worked; what could not be tried is not in it. `sysctls`: by their path below
    /proc/sys, those that are there. `tun`: whether everybody, or the user who asks, may open /dev/net/tun. `learned`: the links whose default
    IPv6 route the kernel learned from a router. `subnets` of our networks. `tables` of all firewalls; None where they can not be read.
    `resolvers` of /etc/resolv.conf, and whether anybody has UDP port 53 of the host.
    """

    uid: int
    programs: frozenset[str]
    features: Mapping[str, str]
    sysctls: Mapping[str, str]
    tun: Literal["open", "closed", "absent"]
    links: tuple[Link, ...]
    routes: tuple[Route, ...]
    learned: tuple[str, ...]
    subnets: tuple[str, ...]
    tables: tuple[Table, ...] | None
    resolvers: tuple[str, ...]
    serves_names: bool


class Remedy(NamedTuple):
    """A change of the host: programs that are run, sysctls that are set and written to `SETTINGS`."""

    commands: tuple[tuple[str, ...], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    @property
    def line(self) -> str:
        """What a user would type to the same effect."""
        lines = [f"sudo {shlex.join(command)}" for command in self.commands]
        if self.settings:
            text = "\\n".join(f"{path} = {value}" for path, value in self.settings)
            lines += [f"printf '{text}\\n' | sudo tee -a {SETTINGS}", f"sudo sysctl -p {SETTINGS}"]
        return " && ".join(lines)


class Judged(NamedTuple):
    """A finding, and what `--fix` does about it, if it may."""

    finding: Finding
    remedy: Remedy | None = None


def judge(seen: Look) -> list[Judged]:
    """Everything that was looked at, good or not."""
    return [
        *_tools(seen),
        *_features(seen),
        _tun(seen),
        *(_of_root(seen) if seen.uid == 0 else _of_user()),
        _subnets(seen),
        *_mtu(seen),
        _resolvers(seen),
    ]


def _mended(name: str, state: Literal["warning", "missing"], detail: str, remedy: Remedy) -> Judged:
    return Judged(Finding(name, state, detail, remedy.line), remedy)


def _fine(name: str, detail: str) -> Judged:
    return Judged(Finding(name, "ok", detail))


def _tools(seen: Look) -> Iterator[Judged]:
    for name, (package, without) in TOOLS.items():
        if name in seen.programs:
            yield _fine(name, "is installed")
        else:
            state: Literal["warning", "missing"] = "warning" if name == "pasta" and seen.uid == 0 else "missing"
            yield Judged(Finding(name, state, f"is not installed: {without}", apt(package)))


# ------------------------------------------------------------------------------------------------ the kernel


def _features(seen: Look) -> Iterator[Judged]:
    for name, (needed, module, use) in FEATURES.items():
        why = seen.features.get(name)
        if why is None:
            continue
        if not why:
            yield _fine(name, use)
            continue
        remedy = _switched_off(seen) if name == "user namespace" else Remedy()
        if module:
            remedy = Remedy(commands=(("modprobe", module),))
        detail = f"can not be made ({why}): {use}"
        if remedy == Remedy():
            fix = "use a kernel with CONFIG_USER_NS and CONFIG_NET_NS; in a container: let it make namespaces"
            yield Judged(Finding(name, "missing", detail, fix))
        else:
            yield _mended(name, "missing" if needed else "warning", detail, remedy)


_USER_NAMESPACES = (
    ("user/max_user_namespaces", "0", "10000"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""A sysctl, the value with which there are no user namespaces, and one with which there are."""


def _switched_off(seen: Look) -> Remedy:
    return Remedy(settings=tuple((path, on) for path, off, on in _USER_NAMESPACES if seen.sysctls.get(path) == off))


def _tun(seen: Look) -> Judged:
    name = "/dev/net/tun"
    if seen.tun == "open":
        return _fine(name, "everybody may open it")
    if seen.tun == "absent":
        detail = "is not there: machines are plugged into networks with it"
        return _mended(name, "missing", detail, Remedy((("modprobe", "tun"),)))
    who = "pasta, which runs under an account of its own, can not open it" if seen.uid == 0 else "it is not open to you"
    detail = f"{who}; udev makes it everybody's, as what is made with it stays in one's own network namespace"
    return _mended(name, "warning" if seen.uid == 0 else "missing", detail, Remedy((("chmod", "0666", name),)))


# ------------------------------------------------------------------------------------------------ what only root's networks need


def _of_user() -> Iterator[Judged]:
    yield _fine(
        "forwarding", "networks of an ordinary user need no forwarding, and no firewall of the host is in their way"
    )


def _of_root(seen: Look) -> Iterator[Judged]:
    yield from _forwarding(seen)
    yield from _reverse_path(seen)
    yield from _firewalls(seen)


def _forwarding(seen: Look) -> Iterator[Judged]:
    for name, path in (("forwarding", "net/ipv4/ip_forward"), ("IPv6 forwarding", "net/ipv6/conf/all/forwarding")):
        value = seen.sysctls.get(path)
        if value == "0":
            detail = (
                "is off: Roost switches it on for a network and nothing keeps it on; whoever loads the sysctls again cuts "
                "all networks off"
            )
            yield _mended(name, "warning", detail, Remedy(settings=((path, "1"),)))
        elif value is None:
            yield _fine(name, "this kernel has none")
        else:
            yield _fine(name, "is on")
    for link in seen.learned:
        path = f"net/ipv6/conf/{link}/accept_ra"
        if seen.sysctls.get(path) == "1":
            detail = f"{link} has its way to the world from router advertisements, which a host that forwards ignores: it would lose it"
            yield _mended(f"IPv6 of {link}", "warning", detail, Remedy(settings=((path, "2"),)))


def _reverse_path(seen: Look) -> Iterator[Judged]:
    """Strict filtering drops what comes in by another link than the answer would take: with one way to the world, there is none."""
    ways = sorted({route.interface for route in seen.routes if _is_everywhere(route) and ":" not in route.to})
    strict = [link for link in ways if _reverse(seen, link) == 1]
    if len(ways) < 2 or not strict:
        yield _fine("rp_filter", "drops nothing that belongs to a network")
        return
    detail = (
        f"is strict on {', '.join(strict)}, and there are several ways to the world ({', '.join(ways)}): answers that come in by "
        "another than the request took are dropped; loose (2) still drops what can not come from anywhere"
    )
    settings = tuple((f"net/ipv4/conf/{link}/rp_filter", "2") for link in strict)
    yield _mended("rp_filter", "warning", detail, Remedy(settings=settings))


def _reverse(seen: Look, link: str) -> int:
    """What holds is the higher one of the link's own and that of all (Documentation/networking/ip-sysctl)."""
    return max(int(seen.sysctls.get(f"net/ipv4/conf/{name}/rp_filter") or 0) for name in ("all", link))


def _is_everywhere(route: Route) -> bool:
    """The default route, or one of the two halves that VPNs make."""
    return ip_network(route.to).prefixlen <= 1


# ------------------------------------------------------------------------------------------------ firewalls


def _firewalls(seen: Look) -> Iterator[Judged]:
    if seen.tables is None:
        yield Judged(Finding("firewall", "warning", "its rules could not be read", "roost doctor network, as root"))
        return
    found: dict[str, list[Drop]] = {}
    for drop in _forward_drops(seen):
        found.setdefault(_owner(drop.table), []).append(drop)
    for owner, dropped in found.items():
        yield _opened(owner, dropped)
    if not found:
        yield _fine("firewall", "lets networks of ours through to the world")
    yield from _closed_to_others(seen)


def _packets(seen: Look) -> Iterator[Packet]:
    """One out of a network into the world, and the answer, in each version of IP that leads there."""
    versions: tuple[tuple[Literal[4, 6], str], ...] = ((4, "0.0.0.0/"), (6, "::/"))
    for version, everywhere in versions:
        ways = [it.interface for it in seen.routes if it.to.startswith(everywhere) and _is_everywhere(it)]
        if ways or version == 4:
            world = ways[0] if ways else "the world"
            yield Packet(f"{DOORS}00000000", world, "new", version)
            yield Packet(world, f"{DOORS}00000000", "established", version)


def _forward_drops(seen: Look) -> Iterator[Drop]:
    for packet in _packets(seen):
        yield from doctor_firewall.drops(seen.tables or (), "forward", packet)


def _owner(table: Table) -> str:
    """Whose rules they are, as far as they tell."""
    if table.tool == "nft":
        return table.name if table.name == "firewalld" else f"table {table.family} {table.name}"
    if _docker(table):
        return "Docker"
    return "ufw" if _ufw(table) else table.tool


def _docker(table: Table) -> bool:
    return "DOCKER-USER" in table.chains


def _ufw(table: Table) -> str:
    """The chain of ufw in which routed traffic is let through, "" without ufw."""
    return next((name for name in ("ufw-user-forward", "ufw6-user-forward") if name in table.chains), "")


_HARM = "networks then go through pasta, which is slower, and routed ones reach nothing"
_GUARDED = "Roost's own table decides before it what may come out of networks and into them"


def _opened(owner: str, dropped: list[Drop]) -> Judged:
    commands = dict.fromkeys(command for drop in dropped for command in _opening(owner, drop))
    chains = ", ".join(dict.fromkeys(f"{drop.table.family} {drop.table.name} {drop.chain}" for drop in dropped))
    lasts = "" if owner in ("ufw", "firewalld") else "; the change holds until the host starts again"
    detail = f"what machines send into the world is dropped in {chains}: {_HARM}; {_GUARDED}{lasts}"
    if not commands:
        return Judged(Finding(f"firewall {owner}", "warning", detail, "sudo nft list ruleset, and ask who made it"))
    return _mended(f"firewall {owner}", "warning", detail, Remedy(tuple(commands)))


_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
"""A name that nft takes as it is: it reads its words as one text."""


def _opening(owner: str, drop: Drop) -> Iterator[tuple[str, ...]]:
    """The least that lets the packet through, as the owner of the rules has it."""
    table = drop.table
    if owner == "firewalld":
        yield ("firewall-cmd", "--permanent", "--zone=trusted", f"--add-interface={DOORS}+")
        yield ("firewall-cmd", "--zone=trusted", f"--add-interface={DOORS}+")
    elif table.tool == "nft":
        if not (_PLAIN.fullmatch(table.name) and _PLAIN.fullmatch(drop.chain)):
            return
        for way in ("iifname", "oifname"):
            yield ("nft", "insert", "rule", table.family, table.name, drop.chain, way, f'"{DOORS}*"', "accept")
    elif owner == "ufw" and not _is_open(table, _ufw(table)):
        yield ("ufw", "route", "allow", "in", "on", f"{DOORS}+")
    else:
        chain = "DOCKER-USER" if owner == "Docker" and not _is_open(table, "DOCKER-USER") else drop.chain
        for option in ("-i", "-o"):
            yield (table.tool, "-w", "-I", chain, option, f"{DOORS}+", "-j", "ACCEPT")


def _is_open(table: Table, chain: str) -> bool:
    """Whether it has been opened there already, to no avail."""
    rules = table.chains[chain].rules
    return any(rule.iif == (f"{DOORS}*",) and rule.verdict == "accept" for rule in rules)


_PORT_OPENERS = {"ufw": "sudo ufw allow PORT/tcp", "firewalld": "sudo firewall-cmd --add-port=PORT/tcp"}


def _closed_to_others(seen: Look) -> Iterator[Judged]:
    """Which ports others may reach is the owner's to say: nothing is changed."""
    way = next(_packets(seen)).oif
    for drop in doctor_firewall.drops(seen.tables or (), "input", Packet(way, "", "new", 4)):
        table, owner = drop.table, _owner(drop.table)
        by_nft = f"sudo nft insert rule {table.family} {table.name} {drop.chain} tcp dport PORT accept"
        plain = by_nft if table.tool == "nft" else f"sudo {table.tool} -I {drop.chain} -p tcp --dport PORT -j ACCEPT"
        if _ufw(table):
            owner = "ufw"
        detail = "lets other hosts reach no port that it has not been told of; open the published ones that are meant for them:"
        yield _fine(f"incoming {owner}", f"{detail} {_PORT_OPENERS.get(owner, plain)}")


# ------------------------------------------------------------------------------------------------ routes, sizes, names


def _subnets(seen: Look) -> Judged:
    theirs = [it for it in seen.routes if not _is_everywhere(it) and not it.interface.startswith(DOORS)]
    meeting = [
        (ours, route)
        for ours in seen.subnets
        for route in theirs
        if ip_network(ours).version == ip_network(route.to).version and _overlap(ours, route.to)
    ]
    if meeting:
        ours, route = meeting[0]
        detail = f"{ours} of a network overlaps the host's route to {route.to} ({route.interface}): its machines do not reach what is there"
        fix = "roost network create NAME, without --subnet, chooses one that meets no route; then move the machines"
        return Judged(Finding("subnets", "warning", detail, fix))
    if all(_is_covered(pool, theirs) for pool in POOLS):
        detail = f"the host has routes to all of {' and '.join(POOLS)}: no subnet can be chosen"
        return Judged(Finding("subnets", "warning", detail, "roost network create NAME --subnet 192.168.240.0/24"))
    return _fine("subnets", "no network overlaps a route of the host")


def _overlap(one: str, two: str) -> bool:
    first, second = ip_network(one), ip_network(two)
    if isinstance(first, IPv4Network):
        return isinstance(second, IPv4Network) and first.overlaps(second)
    return isinstance(second, IPv6Network) and first.overlaps(second)


def _is_covered(pool: str, routes: list[Route]) -> bool:
    nets = [IPv4Network(route.to) for route in routes if ":" not in route.to]
    return any(IPv4Network(pool).subnet_of(net) for net in collapse_addresses(nets))


def _mtu(seen: Look) -> Iterator[Judged]:
    links = {link.name: link for link in seen.links}
    used = dict.fromkeys(it.interface for it in seen.routes if not it.interface.startswith((DOORS, "tap")))
    small = [links[name] for name in used if name in links and 0 < links[name].mtu < USUAL_MTU]
    if not small:
        yield _fine("packet size", f"no way out takes less than {USUAL_MTU} bytes")
    for link in small:
        least = max(link.mtu, 1280)
        detail = (
            f"{link.name} takes packets of {link.mtu} bytes at most (a VPN, or a network over another): bigger ones are lost where "
            "somebody on the way drops the messages that say so"
        )
        yield Judged(Finding(f"packet size {link.name}", "warning", detail, f"roost network create NAME --mtu {least}"))


def _resolvers(seen: Look) -> Judged:
    """One on the host's loopback is asked by a process in the host's own network, so it serves as well, if it is there."""
    usable = [address for address in seen.resolvers if "%" not in address]
    if not usable:
        detail = "/etc/resolv.conf names no resolver that networks could ask: machines find no names of the world"
        return Judged(Finding("resolver", "warning", detail, "roost network create NAME --resolver ADDRESS"))
    if all(ip_address(address).is_loopback for address in usable) and not seen.serves_names:
        detail = f"{', '.join(usable)} is this host itself, where nobody serves names (UDP port 53)"
        return Judged(
            Finding("resolver", "warning", detail, "sudo systemctl restart systemd-resolved, or what serves names here")
        )
    return _fine("resolver", f"{', '.join(usable)}")
