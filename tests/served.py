"""An engine of networks with all that serves them, as the daemon has it: names, addresses, published ports, metadata."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from roost.network.fabric import NetworkFabric
from roost.network.metadata import Instance
from roost.network.services import Services
from tests.fabrics import paths


class Facts:
    """What is known of the host: where its passt is."""

    passt = shutil.which("passt")


@contextlib.asynccontextmanager
async def served(directory: Path | None = None) -> AsyncIterator[NetworkFabric]:
    """An engine whose networks are served; without a directory of its own all of them are removed at the end."""
    with contextlib.ExitStack() as stack:
        home = directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        fabric = start(home)
        try:
            yield fabric
        finally:
            for uid in [] if directory else list(fabric._networks):
                await fabric.remove(uid)
            await fabric.close()


def start(home: Path) -> NetworkFabric:
    """Such an engine over the networks of this directory."""
    facts: Any = Facts()
    where = paths(home)
    return NetworkFabric(
        where, facts, lambda changed: Services(where, facts, changed, lambda uid: Instance(uid, "guest", (), ""))
    )


def pids(fabric: NetworkFabric, uid: str) -> dict[str, int]:
    """The processes of a network, those that serve all, and the engine's own."""
    services: Any = fabric._services
    found = {name: kept.process for name, kept in services._networks[uid].kept.items()}
    found |= {"upstream": services._upstream.process, "metadata": services._metadata.process}
    place, worker = fabric._networks[uid].place, fabric._worker._child
    own = {
        "holder": place._record.process.pid if place and place.is_alive else 0,
        "worker": worker.pid if worker else 0,
    }
    return {name: process.pid for name, process in found.items() if process is not None} | {
        name: pid for name, pid in own.items() if pid
    }


def door() -> Any:
    """The one that whoever runs this has."""
    return "kernel" if os.geteuid() == 0 else "none"
