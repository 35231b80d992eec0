"""What a program may not get by itself when it was brought by somebody who is not the daemon's own user.

A file can name files of the host: an interpreter in its first line or header, libraries, a class path. `roost run` follows such names with the
rights of whoever calls it. The daemon must not follow them for others with its own.
"""

from __future__ import annotations

import os
import sys

from roost.errors import Forbidden
from roost.light import Iterable
from roost.runtimes import registry
from roost.runtimes.base import Found, Request

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where the interpreters of strangers' scripts are looked for: in no user's own directories."""

_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/dev",
    "/etc/alternatives",
    "/etc/ssl",
    "/etc/fonts",
    "/etc/mono",
    "/var/cache/fontconfig",
)
"""What everybody on a host may read anyway, and programs need."""

_JAVA = "/etc/java"


def check(found: Found, request: Request, cache: str) -> None:
    """Returns when the program is shown nothing but itself, the system and Roost's own files. Raises Forbidden; and whatever `prepare` raises.

    The name is judged before anything is looked up, so that nobody learns which files there are.
    """
    named = str(found.details.get("interpreter") or "/usr")
    if named.startswith("/") and not _below(os.path.normpath(named), _SYSTEM):
        raise _forbidden(named)
    runtime = registry.choose(found, request.vm)
    command = runtime.command(found, request, runtime.prepare(found, request))
    allowed = (*_SYSTEM, os.path.dirname(request.file), cache, *_roost())
    for mount in command.mounts:
        real = os.path.realpath(mount.source)
        if not real.startswith(_JAVA) and not _below(real, map(os.path.realpath, allowed)):
            raise _forbidden(mount.source)


def without_hints(refusals: Iterable[str]) -> tuple[str, ...]:
    """The refusals that do not tell which files there are on the host."""
    return tuple(line for line in refusals if " is not visible" not in line)


def _roost() -> tuple[str, ...]:
    return sys.prefix, sys.base_prefix, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _below(path: str, places: Iterable[str]) -> bool:
    return any(path == place or path.startswith(place.rstrip("/") + "/") for place in places)


def _forbidden(path: str) -> Forbidden:
    return Forbidden(
        "the program was not started",
        f"its file asks for {path}, which only an admin of this daemon may lend it",
        "run it without the daemon: roost run without --detach; or ask root on this host",
    )
