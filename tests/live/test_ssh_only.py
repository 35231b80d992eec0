"""An image that brings nothing but an SSH server and cloud-init is reached all the same, and keeps no agent of ours."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterator

import pytest

from tests.daemon import Daemon

IMAGE = "ssh-only"
pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]
"""Minutes long without KVM: cloud-init runs all its stages, after a boot by BIOS."""


@pytest.fixture(scope="module")
def plain(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A machine from an imported disk: Debian's, with every agent of ours switched off, so that SSH and cloud-init are all it has."""
    disk = tmp_path_factory.mktemp("disk") / "plain.qcow2"
    shared_daemon.roost("launch", "debian:12", "donor", timeout=1200)
    off = "systemctl disable roost-agent qemu-guest-agent; systemctl mask qemu-guest-agent; rm -f /etc/ssh/ssh_host_*; sync"
    shared_daemon.roost("exec", "donor", "--", "sh", "-c", off)
    shared_daemon.roost("stop", "donor", timeout=120)
    uid = shared_daemon.json("show", "donor")["meta"]["uid"]
    overlay = shared_daemon.state / "machines" / uid / "root.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", str(overlay), str(disk)], check=True)
    shared_daemon.roost("delete", "donor", "--yes")
    shared_daemon.roost("image", "import", str(disk), "--name", IMAGE, timeout=300)
    shared_daemon.roost("launch", IMAGE, "plain", "--hostname", "plain-host", timeout=600)
    yield "plain"
    shared_daemon.roost("delete", "plain", "--yes")
    shared_daemon.roost("image", "delete", IMAGE, "--yes")


def test_commands_and_copies_go_by_ssh(shared_daemon: Daemon, plain: str) -> None:
    nonce = secrets.token_hex(8)
    assert shared_daemon.json("show", plain)["status"]["agent"] == "ssh"
    done = shared_daemon.roost(
        "exec", plain, "--", "sh", "-c", f"hostname; echo {nonce} > /root/nonce; exit 7", check=False
    )
    assert (done.returncode, done.stdout) == (7, "plain-host\n")
    shared_daemon.roost("copy", f"{plain}:/root/nonce", str(shared_daemon.state / "nonce"))
    assert (shared_daemon.state / "nonce").read_text().strip() == nonce


def test_a_machine_with_only_ssh_shuts_down_when_asked(shared_daemon: Daemon, plain: str) -> None:
    shared_daemon.roost("stop", plain, timeout=120)
    assert "force" not in shared_daemon.json("show", plain)["status"]["exit"]
