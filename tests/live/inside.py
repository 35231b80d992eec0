"""What live tests of snapshots and full disks share: a look into guests, and at their disks from outside."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.daemon import Daemon

_T = TypeVar("_T")


def sh(daemon: Daemon, name: str, script: str, timeout: float = 120.0) -> str:
    """What a script in a machine prints; it must succeed."""
    return daemon.roost("exec", name, "--", "sh", "-c", script, timeout=timeout).stdout.strip()


def until(look: Callable[[], _T], seconds: float = 60.0) -> _T:
    """The first true answer of `look`."""
    deadline = time.monotonic() + seconds
    while not (answer := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s; last seen: {answer}"
        time.sleep(0.1)
    return answer


def status(daemon: Daemon, name: str) -> dict[str, Any]:
    """A machine's status."""
    found: dict[str, Any] = daemon.machine(name)["status"]
    return found


def snapshots(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """The status of every snapshot by its name."""
    return {item["name"]: item["status"] for item in daemon.json("snapshots")}


def disk_of(daemon: Daemon, name: str) -> Path:
    """The root disk of a machine."""
    uid = daemon.machine(name)["meta"]["uid"]
    return daemon.state / "machines" / uid / "root.qcow2"


def kept(daemon: Daemon, snapshot: str) -> Path:
    """The directory of a snapshot's checkpoint."""
    (uid,) = (item["meta"]["uid"] for item in daemon.json("snapshots") if item["name"] == snapshot)
    return daemon.state / "checkpoints" / uid


def layers(daemon: Daemon) -> set[str]:
    """The layers that are there."""
    return {entry.name for entry in (daemon.state / "layers").iterdir()}


def chain(disk: Path) -> list[Path]:
    """The files of a disk, from itself down to its image."""
    told = subprocess.run(
        ["qemu-img", "info", "-U", "-f", "qcow2", "--backing-chain", "--output=json", str(disk)],
        capture_output=True, check=True, timeout=60,
    )  # fmt: skip
    return [Path(entry["filename"]) for entry in json.loads(told.stdout)]


def check_tables(disk: Path) -> None:
    """The tables of a qcow2 file that nobody uses must be whole; clusters may have leaked."""
    tables = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", "--output=json", str(disk)], capture_output=True, timeout=120, check=False
    )
    found = json.loads(tables.stdout)
    assert (tables.returncode in (0, 3), found["check-errors"], found.get("corruptions", 0)) == (True, 0, 0), found


def check(disk: Path, scratch: Path) -> str:
    """What `e2fsck -fn` says of the root file system on a disk that nobody uses: without errors, or the test fails; qcow2's tables too."""
    check_tables(disk)
    raw = scratch / "check.raw"
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw)], check=True, timeout=300,
        capture_output=True,
    )  # fmt: skip
    try:
        return check_raw(raw)
    finally:
        raw.unlink()


def check_raw(raw: Path) -> str:
    """The same of a raw disk: the last partition that sfdisk finds is the root's."""
    told = json.loads(subprocess.run(["sfdisk", "-J", str(raw)], capture_output=True, check=True, timeout=60).stdout)
    largest = max(told["partitiontable"]["partitions"], key=lambda entry: entry["size"])
    place = f"{raw}?offset={largest['start'] * 512}"
    done = subprocess.run(["e2fsck", "-fn", place], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def crash(daemon: Daemon, point: str, *command: str) -> None:
    """Restart the daemon so that it dies at `point`, and run the command that brings it there."""
    daemon.stop()
    daemon.start(ROOST_FAILPOINT=f"{point}:kill")
    daemon.roost(*command, check=False, ROOST_HOST=f"unix:{daemon.socket}")
    assert daemon.process is not None
    assert daemon.process.wait(60) == -9
    daemon.start()
