"""The hand of a daemon on one volume of a machine that runs, to be killed at a failpoint (ROOST_FAILPOINT): what `python -m` runs.

STATE MACHINE attach|detach|cover|move LUN FILE UID
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from roost.host import facts
from roost.host.paths import Paths
from roost.hypervisor.base import Attachment, Guest, Medium, Overlay, Volumes
from roost.hypervisor.qemu import Qemu
from roost.network.usernet import UserNetwork


async def found(state: Path, uid: str) -> Guest:
    """The machine that somebody else has started."""
    paths = Paths(state, state / "run")
    here = await facts.gather(paths.emulators)
    guest = await Qemu(paths, here, UserNetwork(here)).adopt(paths.machine(uid), uid)
    assert guest is not None, "it is gone"
    return guest


def actions(volumes: Volumes, lun: int, file: Path, uid: str) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
    """What the hand can do."""
    medium = Medium("qcow2", file)
    return {
        "attach": lambda: volumes.attach(Attachment(uid, lun, "killed", medium)),
        "detach": lambda: volumes.detach(lun),
        "cover": lambda: volumes.cover(lun, Overlay(file, f"cover-{uid[:8]}")),
        "move": lambda: volumes.move(lun, medium, lambda done: None, nothing),
    }


async def nothing() -> None:
    """Nobody writes down that a move is about to be."""


async def main(state: str, machine: str, action: str, lun: str, file: str, uid: str) -> None:
    """Do it, and let go."""
    guest = await found(Path(state), machine)
    await actions(guest.volumes, int(lun), Path(file), uid)[action]()
    await guest.detach()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
