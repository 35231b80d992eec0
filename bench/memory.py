"""Resident memory of the QEMU of an idle 512 MiB tiny machine, against the peer's idle 512 MiB machine; and the daemon's own."""

from __future__ import annotations

import sys
import time

from bench.figures import PEER_NAME, peer, promise, resident, row
from tests.daemon import Daemon

MiB = 1 << 20
IDLE = 20.0


def main(idle: float) -> None:
    """Measure after `idle` seconds of rest, and print MiB."""
    daemon = Daemon()
    try:
        daemon.start()
        with daemon.host() as host:
            machine = host.machines.launch("tiny", name="idle", memory="512MiB", accelerator="tcg")
            machine.run("true").check()
            time.sleep(idle)
            pid = machine.refresh().status.pid
            ours = resident(pid or 0) / MiB
            own = resident(daemon.process.pid if daemon.process else 0) / MiB
    finally:
        daemon.close()
    theirs = peer(1, idle)["rss"] / MiB
    print(row("QEMU, idle 512 MiB machine", ours, theirs, PEER_NAME, "MiB"))
    print(promise("QEMU, idle 512 MiB machine", ours, 200.0, "MiB"))
    print(promise("daemon with one machine", own, 120.0, "MiB"))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else IDLE)
