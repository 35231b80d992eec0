"""Where the sandbox shows the file of the program itself."""

from __future__ import annotations

import os

from roost.errors import Unavailable
from roost.runtimes import host_programs
from roost.runtimes.base import Mount, Request

PLACE = "/app"
"""The directory of the program's file, where nothing that is granted holds it."""


def shown(request: Request, *, system: bool = False) -> tuple[str, tuple[Mount, ...]]:
    """Its path inside, and the mounts that make it so.

    A program that lies in a directory it is granted runs there, so that it finds what lies beside it, and so does one of the host's own where
    those are shown (`system`); any other is alone in PLACE.
    """
    real = os.path.realpath(request.file)
    if system and host_programs.shown(real) and host_programs.shown(os.path.normpath(request.file)):
        return request.file, ()
    for grant in sorted(request.policy.fs, key=lambda grant: -len(grant.source)):
        around = os.path.realpath(grant.source).rstrip("/")
        if real.startswith(around + "/"):
            return grant.target.rstrip("/") + real[len(around) :], ()
    inside = f"{PLACE}/{os.path.basename(request.file)}"
    return inside, (Mount(request.file, inside, lent=True),)


def check_mode(request: Request) -> None:
    """Nothing for a file that may be executed by anybody. Raises Unavailable."""
    if not os.stat(request.file).st_mode & 0o111:
        why = "its mode says that it is no program (a download or an archive may have lost that)"
        fix = f"chmod +x {request.name or request.file}"
        raise Unavailable(f"{os.path.basename(request.file)} can not run", why, fix)
