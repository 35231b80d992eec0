"""The disk of a machine that runs: nobody else writes it, and what the guest was told is on it stays on it when QEMU is killed."""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import ROOST, Daemon
from tests.live.inside import status
from tests.needs import needs_program, repetitions

pytestmark = [pytest.mark.timeout(7200), needs_program("qemu-system-x86_64", "mmdebstrap", "qemu-img", "qemu-io")]

BLOCKS = 4096
"""How many blocks of 4 KiB the writer goes round in."""

BODY = """
def body(number, secret):
    return (f"{number} {secret} " * 256).encode()[:4096]
"""
"""In the guest: what block `number` holds, different in every byte range from any other block's."""

WRITER = f"""
import itertools, os, sys
{BODY}
first, secret = int(sys.argv[1]), sys.argv[2]
file = os.open("/var/blocks", os.O_RDWR | os.O_CREAT)
noise = os.open("/var/noise", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
for number in itertools.count(first):
    os.pwrite(noise, os.urandom(65536), number % 1024 << 17)
    os.pwrite(file, body(number, secret), number % {BLOCKS} * 4096)
    os.fsync(file)
    print(number, flush=True)
"""
"""In the guest: writes numbered blocks and says each number once fsync has returned; noise beside them lets QEMU die while it
allocates clusters."""

READER = f"""
import os, sys
{BODY}
first, last, secret = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
file = os.open("/var/blocks", os.O_RDONLY)
for number in range(max(first, last - {BLOCKS} + 2), last + 1):
    if os.pread(file, 4096, number % {BLOCKS} * 4096) != body(number, secret):
        print("lost", number)
print("checked")
"""

PYTHON = ("python3", "-I", "-S", "-c")
"""Without site: emulated, its imports take longer than the test's own."""


@pytest.fixture(scope="module")
def written(shared_daemon: Daemon) -> Iterator[Path]:
    """The disk of a Debian that is killed again and again, by the name "written"."""
    shared_daemon.roost("launch", "debian:12", "written", "--network", "none", timeout=1200)
    # It is booted again and again, and the agent needs no more of the system.
    shared_daemon.roost("exec", "written", "--", "systemctl", "set-default", "sysinit.target")
    uid = shared_daemon.json("show", "written")["meta"]["uid"]
    yield shared_daemon.state / "machines" / uid / "root.qcow2"
    shared_daemon.roost("delete", "written", "--yes", check=False)


@pytest.mark.fault(1)
@pytest.mark.parametrize("tool", [["qemu-io", "-c", "write 0 64k"], ["qemu-img", "resize", "-f", "qcow2"]])
def test_nobody_else_writes_the_disk_of_a_running_machine(
    shared_daemon: Daemon, written: Path, tool: list[str]
) -> None:
    more = ["+1G"] if "resize" in tool else []
    done = subprocess.run([*tool, str(written), *more], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "lock" in done.stderr
    nonce = secrets.token_hex(8)
    script = f"echo {nonce} > /var/nonce; sync; echo 3 > /proc/sys/vm/drop_caches; cat /var/nonce"
    assert shared_daemon.roost("exec", "written", "--", "sh", "-c", script).stdout.strip() == nonce


@pytest.mark.fault(4)
def test_what_fsync_promised_outlives_a_killed_qemu(shared_daemon: Daemon, written: Path) -> None:
    secret, first = secrets.token_hex(8), 0
    dice = random.Random(secret)
    for _ in range(repetitions(3, 100)):
        last = _write_until_killed(shared_daemon, first, secret, dice.uniform(0.2, 3.0))
        assert last >= first, "nothing was acknowledged"
        _check(written)
        shared_daemon.roost("start", "written", timeout=300)
        reader = [*PYTHON, READER, str(first), str(last), secret]
        assert shared_daemon.roost("exec", "written", "--", *reader).stdout == "checked\n"
        first = last + 1


def _write_until_killed(daemon: Daemon, first: int, secret: str, seconds: float) -> int:
    """Kill QEMU that long after the first block is acknowledged; returns the last number that was."""
    writer = ["exec", "written", "--", *PYTHON, WRITER, str(first), secret]
    pid = daemon.json("show", "written")["status"]["pid"]
    with subprocess.Popen([*ROOST, *writer], env=daemon.environ, stdout=subprocess.PIPE, text=True) as session:
        assert session.stdout is not None
        lines = iter(session.stdout)
        begun = list(itertools.islice(lines, 1))
        assert begun, "the writer did not begin"
        killer = threading.Timer(seconds, os.kill, (pid, 9))
        killer.start()
        numbers = [int(line) for line in (*begun, *lines) if line.endswith("\n")]
        killer.join()
    deadline = time.monotonic() + 60
    while (phase := status(daemon, "written")["phase"]) != "crashed":
        assert time.monotonic() < deadline, phase
        time.sleep(0.2)
    return numbers[-1]


def _check(disk: Path) -> None:
    """Clusters may have leaked; nothing else may be wrong."""
    done = subprocess.run(
        ["qemu-img", "check", "-f", "qcow2", "--output=json", str(disk)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["check-errors"], found.get("corruptions", 0)) == (0, 0), found
