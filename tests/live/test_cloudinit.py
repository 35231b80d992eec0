"""User data on a real Debian: done once, kept secret, and not replaced by a disk that a guest forges."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.hypervisor import seed
from tests.daemon import Daemon
from tests.needs import needs_program

pytestmark = [pytest.mark.timeout(1800), needs_program("qemu-system-x86_64", "mmdebstrap", "qemu-img")]

CANARY = f"canary-{secrets.token_hex(16)}"
USER_DATA = f"""#cloud-config
write_files:
  - path: /etc/told
    permissions: '0600'
    content: {CANARY}
runcmd:
  - [sh, -c, "echo once >> /var/lib/ran"]
  - [touch, /run/finished]
cloud_init_modules: [write-files, set_hostname]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
"""
"""Of cloud-init's fifty modules those that these orders need: in emulation the others take as long as all the rest."""
IDLE = "ssh systemd-resolved systemd-logind systemd-binfmt systemd-update-utmp e2scrub_reap"
"""Services that a second boot can do without."""
FINISHED = (
    "timeout 300 sh -c 'until test -e /run/cloud-init/result.json; do sleep 0.5; done'; cat /run/cloud-init/result.json"
)
"""Shell: wait until cloud-init has come to its end, and show how. (Its own `status --wait` takes most of an emulated CPU.)"""


def inside(daemon: Daemon, script: str) -> str:
    """What a shell script says in the machine."""
    return daemon.roost("exec", "told", "--", "sh", "-c", script, timeout=400).stdout.strip()


@pytest.fixture(scope="module")
def told(shared_daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A Debian that was given user data, once it has done what they say: what `show` says of it."""
    document = tmp_path_factory.mktemp("user-data") / "document"
    document.write_text(USER_DATA)
    shared_daemon.roost("launch", "debian:12", "told", "--user-data", str(document), timeout=1200)
    document.unlink()
    assert json.loads(inside(shared_daemon, FINISHED))["v1"]["errors"] == []
    yield shared_daemon.json("show", "told")
    shared_daemon.roost("delete", "told", "--yes", check=False)


def test_it_is_done(shared_daemon: Daemon, told: dict[str, Any]) -> None:
    said = inside(shared_daemon, "cat /etc/told; echo; stat -c %a /etc/told; cat /var/lib/ran; hostname")
    assert said.split() == [CANARY, "600", "once", "told"]


def test_the_guest_has_one_seed_and_can_not_write_it(shared_daemon: Daemon, told: dict[str, Any]) -> None:
    script = "blkid -t LABEL=cidata -o device; cat /sys/block/vdb/ro /sys/block/vdb/serial; echo; dd if=/dev/zero of=/dev/vdb count=1 2>&1; true"
    device, read_only, serial, *refused = inside(shared_daemon, script).split()
    assert (device, read_only, serial) == ("/dev/vdb", "1", "roost-seed")
    assert "not" in refused or "permitted" in " ".join(refused)


@pytest.mark.fault(88)
def test_the_seed_is_closed_to_others(shared_daemon: Daemon, told: dict[str, Any]) -> None:
    directory = shared_daemon.state / "machines" / told["meta"]["uid"]
    # The guest's own disk has it too, for there it was to be written.
    others = [path for path in directory.iterdir() if path.is_file() and path.suffix != ".qcow2"]
    assert [path.name for path in others if CANARY.encode() in path.read_bytes()] == ["seed.iso"]
    assert [path.name for path in (directory, *directory.iterdir()) if path.stat().st_mode & 0o077] == []


@pytest.mark.fault(87)
def test_user_data_are_in_no_command_line_log_or_event(shared_daemon: Daemon, told: dict[str, Any]) -> None:
    assert CANARY in inside(shared_daemon, "cat /etc/told"), "nothing to look for"
    assert [line for line in _command_lines() if CANARY in line] == []
    assert CANARY not in shared_daemon.log()
    assert CANARY not in shared_daemon.roost("logs", "told").stdout
    assert CANARY not in json.dumps(shared_daemon.request("GET", "/v1/events?project=all"))
    assert CANARY not in str(shared_daemon.request("GET", "/metrics"))
    assert "told" in json.dumps(shared_daemon.request("GET", "/v1/events?project=all")), "no events to look in"


def _command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                yield (entry / name).read_text(errors="replace")
            except OSError:
                continue


@pytest.mark.fault(88)
def test_a_seed_forged_on_another_disk_does_not_win_at_the_next_boot(
    shared_daemon: Daemon, told: dict[str, Any]
) -> None:
    """Over the EFI partition, which the direct boot does not need, the guest writes a seed of another machine."""
    orders = "#cloud-config\nruncmd:\n  - [touch, /var/lib/forged]\nbootcmd:\n  - [touch, /var/lib/forged]\n"
    forged = seed.build(seed.contents("5ee80bad-0000-4000-8000-000000000000", "forged", orders))
    write = [
        "sh",
        "-c",
        "umount /boot/efi 2>/dev/null; dd of=/dev/vda2 conv=fsync 2>/dev/null; blkid -c /dev/null -t LABEL=cidata -o device",
    ]
    inside(shared_daemon, f"cd /etc/systemd/system; for unit in {IDLE}; do ln -sf /dev/null $unit.service; done")
    found = shared_daemon.roost("exec", "told", "--", *write, stdin=forged).stdout.split()
    assert sorted(found) == ["/dev/vda2", "/dev/vdb"], "the forgery does not look like a seed"
    shared_daemon.roost("restart", "told", timeout=300)
    assert json.loads(inside(shared_daemon, FINISHED))["v1"]["errors"] == []
    script = "cat /var/lib/cloud/data/instance-id /var/lib/ran; hostname; test -e /var/lib/forged; echo $?"
    assert inside(shared_daemon, script).split() == [told["meta"]["uid"], "once", "told", "1"]
