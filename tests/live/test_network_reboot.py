"""Networks after the host itself went down: machines come back by themselves, in the networks they were in."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers
from tests.daemon import ROOST, Daemon
from tests.live.test_networks import PAGE, address_of, clear, inside, wait_for
from tests.live.test_usernet import free_port
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.timeout(600), needs_root, needs_program("qemu-system-x86_64", "nft", "dnsmasq", "unshare")]

BOOT = "/proc/sys/kernel/random/boot_id"


class Rebooted(Daemon):
    """A daemon that finds another boot id than the host's."""

    boot: Path | None = None

    def reboot(self, boot: Path) -> None:
        """All that ran is gone, and all that lived in memory; the daemon starts as the host does."""
        self.kill()
        for _ in range(3):  # what is started again by another that is not dead yet
            for pid in left(self):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.run)
        boot.write_text(f"{uuid.uuid4()}\n")
        self.boot = boot
        self.start()

    def is_back(self, machine: dict[str, Any]) -> bool:
        """Whether the machine was started since the reboot, and answers."""
        status = machine["status"]
        began = (
            status["process"] is not None
            and self.boot is not None
            and status["process"]["boot"] == self.boot.read_text().strip()
        )
        return began and status["phase"] == "running" and status["agent"] == "roost" and bool(status["timing"]["total"])

    def launch(self, **environ: str) -> subprocess.Popen[bytes]:
        """Start it without waiting, in a mount namespace of its own where the boot id is another."""
        if self.boot is None:
            return super().launch(**environ)
        script = f'mount --bind "{self.boot}" {BOOT} && exec "$@"'
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script, "sh", *ROOST, "serve"],
                env={**self.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.process


def left(daemon: Daemon) -> list[int]:
    """Everything of this daemon that still runs."""
    found = leftovers.find(daemon.state, daemon.run, daemon.uids)
    return [int(line.split()[1].rstrip(":")) for line in found if line.startswith("process ")]


def test_machines_are_in_their_networks_again_after_a_reboot(tmp_path: Path) -> None:
    daemon = Rebooted()
    try:
        daemon.start()
        daemon.provide("tiny")
        daemon.roost("network", "create", "lan", "--subnet", "10.20.0.0/24")
        for name in ("a", "b"):
            daemon.roost("launch", "tiny", name, "--memory", "128MiB", "--network", "lan")
        port = str(free_port())
        daemon.roost("forward", "create", f"{port}:80", "b", "--name", "page")
        before = {name: address_of(daemon, name) for name in ("a", "b")}
        daemon.machines()
        networks = daemon.request("GET", "/v1/networks")[1]["items"]
        daemon.uids |= {item["meta"]["uid"] for item in networks}
        daemon.reboot(tmp_path / "boot-id")
        wait_for(lambda: all(map(daemon.is_back, daemon.machines())), "the machines", seconds=120)
        assert {name: address_of(daemon, name) for name in ("a", "b")} == before
        inside(daemon, "b", PAGE.format("b"))
        assert " 0% packet loss" in inside(daemon, "a", "ping -c 2 -W 3 b").stdout
        page = ["curl", "-s", "-m", "10", f"http://127.0.0.1:{port}/"]
        wait_for(lambda: subprocess.run(page, capture_output=True, check=False).stdout == b"page-of-b\n", "the page")
        clear(daemon)
    finally:
        remains = daemon.close()
    assert not remains, "left behind:\n" + "\n".join(remains)
