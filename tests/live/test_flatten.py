"""A disk that stands on too many files is made to stand on its image alone, under a guest that writes and whoever dies meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.storage.layers import LONGEST
from tests.daemon import Daemon
from tests.live.inside import chain, check, check_tables, disk_of, layers, sh, status, until
from tests.needs import needs_program

pytestmark = [
    pytest.mark.timeout(1200),
    needs_program("qemu-system-x86_64", "passt", "qemu-img", "mmdebstrap", "e2fsck", "sfdisk"),
]

WRITER = "n=0; while :; do n=$((n+1)); echo $n > /var/next; mv /var/next /var/count; sync; sleep 0.1; done"


@pytest.fixture(scope="module")
def house() -> Iterator[Daemon]:
    """A daemon that tests here kill and start again."""
    made = Daemon()
    try:
        yield made.start()
    finally:
        left = made.close()
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="module")
def web(house: Daemon) -> str:
    """A running Debian, whose boot ends in next to no services: it is started again and again."""
    house.roost("launch", "debian:12", "web", "--memory", "256MiB", "--cold", "--network", "none", timeout=1200)
    sh(house, "web", "systemctl set-default sysinit.target")
    return "web"


def lengthen(daemon: Daemon, name: str) -> list[str]:
    """Take snapshots until the disk stands on more files than it should; something is written between each two. Returns the checksums of
    what was written."""
    sums = []
    while len(chain(disk_of(daemon, name))) - 1 <= LONGEST:
        number = len(sums)
        script = f"head -c 512K /dev/urandom > /root/part.{number}; sync; sha256sum < /root/part.{number}"
        sums.append(sh(daemon, name, script).split()[0])
        daemon.roost("snapshot", name, f"s{number}", "--no-memory")
    return sums


def thin(daemon: Daemon) -> None:
    """Delete all snapshots."""
    names = [item["name"] for item in daemon.json("snapshots")]
    daemon.roost("delete", "snapshot", *names, "--yes")


def read(daemon: Daemon, name: str, count: int) -> list[str]:
    """The checksums of what was written, as the disk has it now."""
    script = f"echo 3 > /proc/sys/vm/drop_caches; for n in $(seq 0 {count - 1}); do sha256sum < /root/part.$n; done"
    return [line.split()[0] for line in sh(daemon, name, script).splitlines()]


def flat(daemon: Daemon, name: str) -> bool:
    """Whether the disk stands on its image alone."""
    return len(chain(disk_of(daemon, name))) == 2


def events(daemon: Daemon, name: str) -> list[str]:
    """The reasons of a machine's events."""
    return [str(event.get("reason") or event["spec"]["reason"]) for event in daemon.json("events", name)]


@pytest.mark.fault(9)
def test_a_long_chain_is_flattened_by_itself_while_the_guest_writes(house: Daemon, web: str) -> None:
    writer = sh(house, web, f"sh -c '{WRITER}' >/dev/null 2>&1 & echo $!")
    pid, sums = status(house, web)["pid"], lengthen(house, web)
    before = int(sh(house, web, "cat /var/count"))
    until(lambda: flatten_seen(house, web, 1), 180)
    assert read(house, web, len(sums)) == sums
    assert int(sh(house, web, f"kill -0 {writer} && cat /var/count")) > before
    assert status(house, web)["pid"] == pid
    # The snapshots stand where they stood, and each is whole.
    assert len(layers(house)) >= LONGEST
    house.roost("restore", web, "s2", "--as", "third")
    house.roost("start", "third", timeout=300)
    assert read(house, "third", 3) == sums[:3]
    house.roost("delete", "third", "--yes")
    thin(house)
    until(lambda: not layers(house), 60)
    assert read(house, web, len(sums)) == sums
    sh(house, web, f"kill {writer}")


def flatten_seen(daemon: Daemon, name: str, times: int) -> bool:
    """Whether the disk was flattened that often, and stands on its image alone."""
    return events(daemon, name).count("Flattened") >= times


@pytest.mark.fault(8)
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("flatten.started", marks=pytest.mark.soak),
        "flatten.pending",
        pytest.param("flatten.concluded", marks=pytest.mark.soak),
    ],
)
def test_a_daemon_that_dies_while_it_flattens_leaves_the_disk_whole_and_ends_it_later(
    house: Daemon, web: str, point: str
) -> None:
    house.stop()
    house.start(ROOST_FAILPOINT=f"{point}:kill")
    pid, done = status(house, web)["pid"], events(house, web).count("Flattened")
    sums = lengthen(house, web)
    assert house.process is not None
    assert house.process.wait(180) == -9
    house.start()
    assert read(house, web, len(sums)) == sums
    until(lambda: flatten_seen(house, web, done + 1) or flat(house, web), 180)
    assert read(house, web, len(sums)) == sums
    assert flat(house, web)
    assert status(house, web)["pid"] == pid
    thin(house)
    until(lambda: not layers(house), 90)
    assert read(house, web, len(sums)) == sums


@pytest.mark.fault(8)
def test_a_qemu_that_dies_while_it_flattens_leaves_the_disk_whole(house: Daemon, web: str, tmp_path: Path) -> None:
    house.stop()
    house.start(ROOST_FAILPOINT="flatten.pending:sleep")
    started = events(house, web).count("Flattening")
    sums = lengthen(house, web)
    until(lambda: events(house, web).count("Flattening") > started, 60)
    os.kill(status(house, web)["pid"], 9)
    until(lambda: status(house, web)["phase"] == "crashed")
    check_tables(disk_of(house, web))
    house.stop()
    house.start()
    house.roost("start", web, timeout=300)
    assert read(house, web, len(sums)) == sums
    until(lambda: flat(house, web), 180)
    thin(house)
    until(lambda: not layers(house), 90)
    assert read(house, web, len(sums)) == sums
    house.roost("stop", web, timeout=120)
    check(disk_of(house, web), tmp_path)
