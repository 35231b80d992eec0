"""A host whose disk is full: the guest that filled it stands still and goes on when there is space; nobody else notices."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon import Daemon
from tests.live.inside import check, disk_of, layers, sh, snapshots, status, until
from tests.needs import needs_program, needs_root

pytestmark = [
    pytest.mark.timeout(1200),
    needs_root,
    needs_program("qemu-system-x86_64", "passt", "qemu-img", "mmdebstrap", "e2fsck", "mkfs.ext4"),
]

MiB = 1 << 20
ROOM = 2048 * MiB
READ_ONLY = ("images", "recipes")
"""What fills a file system of its own, and no guest writes."""


class Cramped(Daemon):
    """A daemon whose state directory is a small file system, but for its images."""

    def __init__(self) -> None:
        super().__init__()
        self.outside = Path(tempfile.mkdtemp(prefix="outside-", dir=self.state.parent))
        self.mounts: list[Path] = []
        image = self.outside / "disk"
        with image.open("xb") as file:
            file.truncate(ROOM)
        # Without blocks kept for root, who the daemon is and QEMU is not: the worse case.
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, timeout=60)
        for name in READ_ONLY:
            (self.state / name).rename(self.outside / name)
        self._mount("-o", "loop", str(image), str(self.state))
        for name in READ_ONLY:
            (self.state / name).mkdir()
            self._mount("--bind", str(self.outside / name), str(self.state / name))

    def _mount(self, *words: str) -> None:
        subprocess.run(["mount", *words], check=True, timeout=60)
        self.mounts.append(Path(words[-1]))

    def unmount(self) -> None:
        """The directories are ordinary ones again, without what was on the small file system."""
        while self.mounts:
            subprocess.run(["umount", str(self.mounts.pop())], check=True, timeout=60)

    def _wind_up(self) -> None:
        try:
            super()._wind_up()
        finally:
            log = self.log_file.read_bytes()
            self.unmount()
            self.log_file.write_bytes(log)
            shutil.rmtree(self.outside)

    def free(self) -> int:
        """Bytes that anybody may still take."""
        found = os.statvfs(self.state)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def filled(self, rest: int) -> Iterator[Path]:
        """Somebody else takes all but `rest` bytes of the disk; returns the file."""
        ballast = self.state / "ballast"
        with ballast.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, self.free() - rest)
        try:
            yield ballast
        finally:
            ballast.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def cramped(shared_daemon: Daemon) -> Iterator[Cramped]:
    for template in ("tiny", "debian:12"):
        shared_daemon.provide(template)  # nothing can be built on so small a file system
    made = Cramped()
    try:
        yield made.start()  # type: ignore[misc]
    finally:
        left = made.close()
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def web(cramped: Cramped) -> str:
    """A running Debian whose disk is on the small file system."""
    cramped.roost("launch", "debian:12", "web", "--memory", "256MiB", "--cold", "--network", "none", timeout=1200)
    return "web"


@pytest.fixture(scope="module")
def other(cramped: Cramped) -> str:
    """A machine that has nothing to do with it."""
    cramped.roost("launch", "tiny", "other", "--memory", "128MiB", "--cold", "--network", "none")
    return "other"


COPIES = 12
WRITER = f"""
for n in $(seq {COPIES}); do
    cat /root/noise > /root/copy.$n && sync || echo $n >> /root/failed
done
echo written > /root/end
"""


@pytest.mark.fault(10)
def test_a_guest_that_fills_the_disk_stands_still_until_there_is_space(
    cramped: Cramped, web: str, other: str, tmp_path: Path
) -> None:
    sh(cramped, web, "head -c 8M /dev/urandom > /root/noise; sync")
    checksum, pid = sh(cramped, web, "sha256sum < /root/noise"), status(cramped, web)["pid"]
    boot = sh(cramped, web, "cat /proc/sys/kernel/random/boot_id")
    with cramped.filled(48 * MiB):
        sh(cramped, web, f"( {WRITER} ) >/dev/null 2>&1 &")
        told = until(lambda: found if (found := status(cramped, web))["phase"] == "paused" else None, 90)
        assert "stands still" in told["error"]["what"]
        assert "the disk of the host is full" in told["error"]["why"]
        events = cramped.json("events", web)
        assert "DiskFull" in str(events[-1])
        # The others go on, and so does the control plane: it reads and writes.
        assert sh(cramped, other, "echo on") == "on"
        cramped.roost("project", "create", "while-full")
        cramped.roost("restart", other, timeout=120)
        assert sh(cramped, other, "echo on") == "on"
        assert status(cramped, web)["phase"] == "paused"
        assert web in cramped.roost("list").stdout
    back = until(lambda: found if (found := status(cramped, web))["phase"] == "running" else None, 30)
    assert (back["error"], back["pid"]) == (None, pid)
    until(lambda: sh(cramped, web, "cat /root/end 2>/dev/null || true"), 180)
    assert sh(cramped, web, "cat /proc/sys/kernel/random/boot_id") == boot
    look = f"for n in $(seq {COPIES}); do cmp /root/noise /root/copy.$n && echo same; done; ls /root"
    same = sh(cramped, web, f"echo 3 > /proc/sys/vm/drop_caches; sha256sum < /root/noise; {look}").splitlines()
    assert same[: COPIES + 1] == [checksum, *["same"] * COPIES]
    assert "failed" not in same
    sh(cramped, web, "rm /root/copy.* /root/end; sync")
    cramped.roost("stop", web, timeout=120)
    check(disk_of(cramped, web), cramped.outside)
    cramped.roost("start", web, timeout=300)


@pytest.mark.fault(10)
@pytest.mark.parametrize("rest", [8, 40], ids=["no-room-for-a-layer", "no-room-for-the-memory"])
def test_a_snapshot_that_finds_no_room_leaves_nothing(cramped: Cramped, web: str, rest: int) -> None:
    pid, before = status(cramped, web)["pid"], layers(cramped)
    sh(cramped, web, "echo 1 > /dev/shm/memory; echo 1 > /root/disk; sync")
    with cramped.filled(rest * MiB):
        refused = cramped.roost("snapshot", web, "full", check=False)
        assert refused.returncode != 0
        assert "full" in refused.stderr
        assert "fix: " in refused.stderr
        assert snapshots(cramped)["web.full"]["phase"] == "failed"
        assert not list((cramped.state / "checkpoints").iterdir())
        assert sh(cramped, web, "cat /dev/shm/memory /root/disk").split() == ["1", "1"]
        assert (status(cramped, web)["phase"], status(cramped, web)["pid"]) == ("running", pid)
        cramped.roost("delete", "snapshot", "web.full", "--yes")
    # A layer that was made before the memory found no room is the machine's alone.
    assert len(layers(cramped) - before) <= 1
    cramped.roost("snapshot", web, "full")
    sh(cramped, web, "rm /root/disk")
    cramped.roost("restore", web, "full")
    assert sh(cramped, web, "cat /dev/shm/memory /root/disk").split() == ["1", "1"]
    cramped.roost("delete", "snapshot", "web.full", "--yes")


@pytest.mark.fault(10)
def test_a_copy_that_finds_no_room_is_not_made(cramped: Cramped, web: str) -> None:
    before = {entry.name for entry in (cramped.state / "machines").iterdir()}
    pid = status(cramped, web)["pid"]
    with cramped.filled(8 * MiB):
        refused = cramped.roost("clone", web, "kid", check=False)
        assert refused.returncode != 0
        assert "full" in refused.stderr
        assert {entry.name for entry in (cramped.state / "machines").iterdir()} == before
        assert sh(cramped, web, "echo on") == "on"
        assert status(cramped, web)["pid"] == pid
    cramped.roost("delete", "kid", "--yes", check=False)
    cramped.roost("clone", web, "kid")
    assert sh(cramped, "kid", "hostname") == "kid"
    cramped.roost("delete", "kid", "--yes")


@pytest.mark.fault(10)
def test_a_template_that_finds_no_room_on_disk_stops_no_launch(cramped: Cramped) -> None:
    cramped.cold = False
    with cramped.filled(20 * MiB):
        for name in ("a", "b"):
            cramped.roost("launch", "tiny", name, "--memory", "128MiB", "--network", "none", timeout=300)
            assert sh(cramped, name, "hostname") == name
        assert not list((cramped.state / "checkpoints").iterdir())
    cramped.roost("delete", "a", "b", "--yes")
