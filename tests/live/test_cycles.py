"""Many machines made, started and deleted leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from roost.client.progress import Sign
from tests import leftovers
from tests.daemon import Daemon

CYCLES = 200
STARTED = Sign("started", lambda machine: machine.status.phase == "running")
"""Its process runs; nothing inside needs to have booted."""


@pytest.mark.timeout(900)
def test_two_hundred_machines_leave_nothing(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon().start()
    daemon.roost("launch", "tiny", "warm-up", "--memory", "128MiB", timeout=300)
    daemon.roost("delete", "warm-up", "--yes")
    assert daemon.process is not None
    before = leftovers.descriptors(daemon.process.pid)

    def cycle(number: int) -> str:
        with daemon.host() as host:
            machine = host.machines.launch(
                "tiny", f"cycle-{number}", memory="128MiB", network="user" if number % 4 == 0 else "none", wait=False
            )
            machine.wait_for(STARTED)
            machine.delete()
            return machine.object.meta.uid

    with ThreadPoolExecutor(4) as threads:
        daemon.uids |= set(threads.map(cycle, range(CYCLES)))
    assert len(daemon.uids) == CYCLES
    assert daemon.machines() == []
    assert leftovers.descriptors(daemon.process.pid) <= before + 8
    daemon.stop()
    assert leftovers.wait_until_none(daemon.state, daemon.run, daemon.uids) == []
