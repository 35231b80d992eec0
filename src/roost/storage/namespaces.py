"""Building a root directory as root or as an ordinary user: in namespaces of its own, where the builder owns a range of uids."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from roost.errors import Unavailable
from roost.host import files, system
from roost.storage.archive import bound

_REMOVE = 300.0


def inside(argv: Sequence[str]) -> list[str]:
    """`argv` as root of its own mount and pid namespace, so that no mount leaks and its end ends all it started.

    An ordinary user becomes root of a user namespace too, in which the uids of /etc/subuid are the others (needs uidmap).
    """
    options = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    if os.geteuid() != 0:
        options += ["--user", "--map-root-user", "--map-auto"]
    return bound(["unshare", *options, "--", *argv])


async def remove_tree(path: Path) -> None:
    """Remove a directory, also where it holds files of the range of uids. Raises Unavailable when something stays."""
    try:
        await asyncio.to_thread(files.remove_tree, path)
    except PermissionError as error:
        finished = await system.run(inside(["rm", "-rf", "--", str(path)]), timeout=_REMOVE)
        if finished.code:
            why = finished.stderr.decode(errors="replace").strip() or str(error)
            raise Unavailable(f"{path} was not removed", why, f"sudo rm -rf {path}") from error
