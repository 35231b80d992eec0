"""The host's resolvers, and whether dnsmasq has begun."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path

from roost.errors import RoostError
from roost.host import files
from roost.network.kept import Kept

RESOLVERS = Path("/etc/resolv.conf")
_MOST, _LIMIT = 3, 64 << 10
_SECONDS, _STEP = 5.0, 0.01
_BEGUN = b"read /run/network/reservations"


def of_host() -> tuple[str, ...]:
    """The addresses of the host's resolvers, at most three, as resolv.conf(5) has it: without any, its loopback."""
    try:
        text = files.read_bounded(RESOLVERS, _LIMIT).decode(errors="replace")
    except (OSError, RoostError):
        return ("127.0.0.1",)
    found = [words[1] for line in text.splitlines() if len(words := line.split()) > 1 and words[0] == "nameserver"]
    return tuple(address for address in found if _is_address(address))[:_MOST] or ("127.0.0.1",)


def _is_address(text: str) -> bool:
    try:
        return not getattr(ip_address(text), "scope_id", None)
    except ValueError:
        return False


async def until_begun(output: Path, kept: Kept) -> None:
    """Wait until dnsmasq has read its files for the first time. Raises TimeoutError, also when it ended."""
    async with asyncio.timeout(_SECONDS):
        while kept.process is not None:
            if _BEGUN in output.read_bytes():
                return
            await asyncio.sleep(_STEP)  # it tells nobody but its log
    raise TimeoutError
