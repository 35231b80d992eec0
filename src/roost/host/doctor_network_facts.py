"""Looks at a host for `doctor_network`: reads files and rules, and tries in namespaces of its own what the kernel can. Changes nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

from roost.config import Config
from roost.errors import RoostError
from roost.host import doctor_firewall, files, kernel, links, nftables, system, workers
from roost.host.doctor_firewall import Table
from roost.host.doctor_network import TOOLS, Link, Look, Route
from roost.host.links import Links
from roost.host.paths import Paths

_TUN = Path("/dev/net/tun")
_LIMIT, _PRINTED = 1 << 20, 64 << 20
_SECONDS = 20.0
_MOST_TOLD = 64 << 10
_DEFAULT_LEARNED = 0x0004_0000  # RTF_ADDRCONF, include/uapi/linux/ipv6_route.h
_RANGE = re.compile(r"^dhcp-range=[^,]+,([^,]+),static,(?:off-link,)?([^,]+),", re.M)
_SYSCTLS = (
    "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "user/max_user_namespaces",
    "kernel/unprivileged_userns_clone", "kernel/apparmor_restrict_unprivileged_userns",
)  # fmt: skip
_OF_LINK = ("net/ipv4/conf/{}/rp_filter", "net/ipv6/conf/{}/accept_ra")


def look(config: Config) -> Look:
    """Ask the host. Takes about half a second, most of it for the kernel."""
    features = _tried()
    with Links() as door:
        found = tuple(Link(name, it.kind, it.mtu) for name, it in door.all().items() if name != "lo")
        routes = tuple(Route(*it) for it in door.all_routes() if it[1] not in ("", "lo"))
    ways = {route.interface for route in routes}
    path = system.clean_environment()["PATH"]
    return Look(
        uid=os.getuid(),
        programs=frozenset(name for name in TOOLS if shutil.which(name, path=path)),
        features=features,
        sysctls=dict(_sysctls((*_SYSCTLS, *(name.format(way) for way in sorted(ways) for name in _OF_LINK)))),
        tun=_tun(),
        links=found,
        routes=routes,
        learned=tuple(_learned(_text("/proc/net/ipv6_route"))),
        subnets=tuple(_subnets(Paths.of(config).networks)),
        tables=tables() if os.geteuid() == 0 else None,
        resolvers=tuple(_resolvers(_text("/etc/resolv.conf"))),
        serves_names=any(_serves_names(_text(f"/proc/net/{name}")) for name in ("udp", "udp6")),
    )


def _text(path: str | Path) -> str:
    """What is in a file; "" for one that is not there."""
    try:
        return files.read_bounded(Path(path), _LIMIT).decode(errors="replace")
    except (OSError, RoostError):
        return ""


def _sysctls(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if text := _text(Path("/proc/sys") / path).strip():
            yield path, text


def _tun() -> Literal["open", "closed", "absent"]:
    try:
        mode = _TUN.stat().st_mode
    except OSError:
        return "absent"
    everybody = stat.S_IROTH | stat.S_IWOTH
    mine = os.getuid() != 0 and os.access(_TUN, os.R_OK | os.W_OK)
    return "open" if mine or mode & everybody == everybody else "closed"


def _learned(text: str) -> Iterator[str]:
    """The links of the default routes that the kernel has from router advertisements."""
    for words in map(str.split, text.splitlines()):
        if len(words) == 10 and words[0].strip("0") == "" and words[1] == "00" and int(words[8], 16) & _DEFAULT_LEARNED:
            yield words[9]


def _subnets(directory: Path) -> Iterator[str]:
    """Of our networks that are there, as their dnsmasq is told."""
    for path in sorted(directory.glob("*/dnsmasq/dnsmasq.conf")):
        for first, size in _RANGE.findall(_text(path)):
            yield str(ipaddress.ip_network(f"{first}/{size}"))


def _resolvers(text: str) -> Iterator[str]:
    for words in map(str.split, text.splitlines()):
        if len(words) > 1 and words[0] == "nameserver":
            try:
                yield str(ipaddress.ip_address(words[1]))
            except ValueError:
                continue


def _serves_names(text: str) -> bool:
    """Whether there is a socket with local port 53 (proc(5))."""
    rows = map(str.split, text.splitlines()[1:])
    return any(len(words) > 1 and words[1].endswith(":0035") for words in rows)


# ------------------------------------------------------------------------------------------------ firewalls


def tables() -> tuple[Table, ...] | None:
    """The tables of all firewalls of this network namespace; None where they can not be read.

    Those of iptables as iptables tells them: it knows what its own matches ask for.
    """
    found: list[Table] = []
    try:
        found += doctor_firewall.from_nft(nftables.listing("list ruleset"))
    except RoostError:
        return None
    kept = {(table.family, table.name) for table in found if table.name == "filter" and "FORWARD" in table.chains}
    for version, prefix in ((4, "ip"), (6, "ip6")):
        family = "ip" if version == 4 else "ip6"
        own = _saved(f"{prefix}tables", "nft", version) if (family, "filter") in kept else None
        if own is not None and "FORWARD" in own.chains:  # else it has rules that iptables does not know
            found = [table for table in found if (table.family, table.name) != (family, "filter")]
            found.append(own)
        if "filter" in _text(f"/proc/net/{prefix}_tables_names").split():
            legacy = _saved(f"{prefix}tables", "legacy", version)
            found += [legacy] if legacy is not None else []
    return tuple(found)


def _saved(program: str, kind: str, version: int) -> Table | None:
    """The table filter of one kind of iptables; None where that is not installed or does not answer."""
    path = system.clean_environment()["PATH"]
    tool = next((name for name in (f"{program}-{kind}", program) if shutil.which(f"{name}-save", path=path)), None)
    if tool is None:
        return None
    try:
        done = asyncio.run(system.run([f"{tool}-save", "-t", "filter"], timeout=_SECONDS, limit=_PRINTED))
    except RoostError:
        return None
    if done.code != 0:
        return None
    return doctor_firewall.from_iptables(tool, 6 if version == 6 else 4, done.stdout.decode(errors="replace"))


# ------------------------------------------------------------------------------------------------ what the kernel can


def _tried() -> dict[str, str]:
    """What happened to each of `doctor_network.FEATURES`, in a process that goes, and its namespaces with it."""
    read, write = os.pipe()
    try:
        worker = workers.fork_worker(lambda: _try_all(write))
    finally:
        os.close(write)
    with open(read, "rb") as told:
        answer = told.read(_MOST_TOLD)
    worker.wait()
    try:
        return {str(name): str(why) for name, why in json.loads(answer).items()}
    except ValueError:
        return {}


def _try_all(write: int) -> int:
    told: dict[str, str] = {}
    if _try(told, "user namespace", lambda: kernel.unshare(kernel.NEWUSER)) or os.geteuid() == 0:
        _try_in_namespace(told)
    os.write(write, json.dumps(told).encode())
    return 0


def _try_in_namespace(told: dict[str, str]) -> None:
    if not _try(told, "network namespace", lambda: kernel.unshare(kernel.NEWNET)):
        return
    if nftables.is_there():
        _try(told, "nf_tables", lambda: nftables.apply("add table inet tried"))
    if os.access(_TUN, os.R_OK | os.W_OK):
        _try(told, "tap", lambda: os.close(links.open_tap("tried0")))
    with Links() as door:
        _try(told, "veth", lambda: door.make("tried1", "veth", peer=("tried2", -1)))
        _try(told, "vxlan", lambda: door.make("tried3", "vxlan", vxlan=links.Vxlan(1, "127.0.0.1", 4789)))


def _try(told: dict[str, str], name: str, call: Callable[[], None]) -> bool:
    """Whether it worked; what was the matter is told."""
    try:
        call()
    except OSError as error:
        told[name] = os.strerror(error.errno) if error.errno else str(error)
    except RoostError as error:
        told[name] = error.why or error.what
    else:
        told[name] = ""
    return not told[name]
