"""Snapshots of real machines: memory, disk, firmware and TPM of one instant, put back, copied, deleted, and never half there."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.live.inside import chain, check, crash, disk_of, kept, sh, snapshots, status, until
from tests.needs import needs_program

pytestmark = [
    pytest.mark.timeout(1200),
    needs_program("qemu-system-x86_64", "passt", "qemu-img", "mmdebstrap", "e2fsck", "sfdisk"),
]

MEMORY = ("--memory", "256MiB", "--cold")
SMALL = ("--memory", "128MiB", "--cold")
DIED = "Roost was interrupted while it was saved"


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
    """A running Debian."""
    house.roost("launch", "debian:12", "web", *MEMORY, timeout=1200)
    return "web"


@pytest.fixture(scope="module")
def small(house: Daemon) -> str:
    """A running machine without a disk."""
    house.roost("launch", "tiny", "small", *SMALL, timeout=300)
    return "small"


@pytest.fixture(autouse=True)
def _tidy(house: Daemon) -> Iterator[None]:
    """Snapshots and further machines go after each test."""
    yield
    for name in snapshots(house):
        house.roost("delete", "snapshot", name, "--yes", check=False)
    house.delete_machines("web", "small", "firm")


def identity(daemon: Daemon, name: str) -> list[str]:
    """What tells a machine from others, as it sees it: host name, machine-id, and random bytes of its kernel."""
    return sh(daemon, name, "hostname; cat /etc/machine-id; od -An -v -tx1 -N16 /dev/urandom | tr -d ' '").split()


def reasons(daemon: Daemon, name: str) -> list[str]:
    """The reasons of an object's events, the oldest first."""
    return [event["spec"]["reason"] if "spec" in event else event["reason"] for event in daemon.json("events", name)]


@pytest.fixture(params=["web", "small"])
def running(request: pytest.FixtureRequest) -> str:
    """Each of the two machines."""
    name: str = request.getfixturevalue(request.param)
    return name


def test_a_machine_that_is_put_back_has_its_memory_its_disk_and_the_present_time(house: Daemon, running: str) -> None:
    nonce = secrets.token_hex(16)
    sh(house, running, f"echo {nonce} > /dev/shm/nonce || echo {nonce} > /tmp/nonce; echo {nonce} > /root/kept || true")
    sh(house, running, "sh -c 'while :; do sleep 1000; done' >/dev/null 2>&1 & echo $! > /pid")
    boot, pid = sh(house, running, "cat /proc/sys/kernel/random/boot_id"), sh(house, running, "cat /pid")
    _, machine_id, _ = identity(house, running)
    house.roost("snapshot", running, "ready")
    assert snapshots(house)[f"{running}.ready"]["memory"] is True
    sh(house, running, f"kill {pid}; rm -f /dev/shm/nonce /tmp/nonce /root/kept; sync")
    drawn = set()
    for _ in range(2):
        house.roost("restore", running, "ready")
        told = sh(house, running, f"cat /dev/shm/nonce 2>/dev/null || cat /tmp/nonce; kill -0 {pid} && echo alive")
        assert told.split() == [nonce, "alive"]
        assert sh(house, running, "cat /root/kept || true") in (nonce, "")
        assert sh(house, running, "cat /proc/sys/kernel/random/boot_id") == boot
        asked = time.time()
        assert asked - 2 < int(sh(house, running, "date +%s")) < time.time() + 2
        name, same, random = identity(house, running)
        assert (name, same) == (running, machine_id)
        drawn.add(random)
    assert len(drawn) == 2
    assert status(house, running)["timing"]["path"] == "restore"
    assert reasons(house, f"{running}.ready") == ["SnapshotTaken"]
    assert reasons(house, running)[-3:] == ["Stopped", "Started", "Ready"]


def test_a_new_machine_of_a_snapshot_is_somebody_else_and_the_first_goes_on(house: Daemon, running: str) -> None:
    # Not in /tmp: a Debian that has only just answered still clears that.
    sh(house, running, "echo 1 > /before")
    house.roost("snapshot", running, "ready")
    sh(house, running, "echo 2 > /after")
    house.roost("restore", running, "ready", "--as", "kid")
    assert sh(house, "kid", "cat /before; ls /after 2>/dev/null || true") == "1"
    assert sh(house, running, "cat /after") == "2"
    kid, first = identity(house, "kid"), identity(house, running)
    assert (kid[0], first[0]) == ("kid", running)
    assert not set(kid) & set(first)
    # The snapshot of a machine outlives it.
    house.roost("restore", running, "ready", "--as", "second")
    house.roost("snapshot", "kid", "own")
    house.roost("delete", "kid", "--yes")
    house.roost("clone", "kid.own", "third")
    assert sh(house, "third", "cat /before") == "1"
    assert len({identity(house, name)[1] for name in (running, "second", "third")}) == 3


def test_the_disk_alone_of_a_running_machine_has_clean_file_systems(house: Daemon, web: str, tmp_path: Path) -> None:
    nonce = secrets.token_hex(16)
    # Not synced by us: that it is there is the freeze's doing.
    sh(house, web, f"echo {nonce} > /root/nonce; dd if=/dev/urandom of=/root/noise bs=1M count=8 2>/dev/null")
    checksum = sh(house, web, "sha256sum < /root/noise")
    house.roost("snapshot", web, "disk", "--no-memory")
    told = snapshots(house)["web.disk"]
    assert (told["memory"], told["phase"]) == (False, "ready")
    # The guest can write again.
    sh(house, web, "echo later > /root/later; sync")
    house.roost("restore", web, "disk", "--as", "cold")
    assert status(house, "cold")["phase"] == "stopped"
    assert "recovering journal" not in check(disk_of(house, "cold"), tmp_path)
    house.roost("start", "cold", timeout=300)
    assert sh(house, "cold", "cat /root/nonce; sha256sum < /root/noise; ls /root/later 2>/dev/null || true") == (
        f"{nonce}\n{checksum}"
    )
    assert identity(house, "cold")[:2] != identity(house, web)[:2]


def test_a_machine_can_be_put_back_to_the_disk_alone_and_boots_from_it(house: Daemon, web: str) -> None:
    sh(house, web, "echo before > /root/when; sync")
    _, machine_id, _ = identity(house, web)
    boot = sh(house, web, "cat /proc/sys/kernel/random/boot_id")
    house.roost("snapshot", web, "both")
    sh(house, web, "echo after > /root/when; sync")
    house.roost("restore", web, "both", "--no-memory", timeout=300)
    assert sh(house, web, "cat /root/when") == "before"
    assert sh(house, web, "cat /proc/sys/kernel/random/boot_id") != boot
    assert identity(house, web)[1] == machine_id


def test_a_stopped_machine_is_kept_and_put_back(house: Daemon, web: str, tmp_path: Path) -> None:
    sh(house, web, "echo before > /root/when")
    house.roost("stop", web, timeout=120)
    house.roost("snapshot", web, "off")
    told = snapshots(house)["web.off"]
    assert (told["memory"], told["pause"]) == (False, 0)
    refused = house.roost("snapshot", web, "no", "--memory", check=False)
    assert refused.returncode != 0
    assert "it is not running" in refused.stderr
    house.roost("start", web, timeout=300)
    sh(house, web, "echo after > /root/when; sync")
    house.roost("stop", web, timeout=120)
    house.roost("restore", web, "off")
    assert status(house, web)["phase"] == "stopped"
    check(disk_of(house, web), tmp_path)
    house.roost("start", web, timeout=300)
    assert sh(house, web, "cat /root/when") == "before"


def test_a_snapshot_in_the_middle_goes_while_the_guest_writes_and_the_others_stay(house: Daemon, web: str) -> None:
    writer = "n=0; while :; do n=$((n+1)); echo $n > /root/new; mv /root/new /root/count; sync; sleep 0.1; done"
    pid = sh(house, web, f"sh -c '{writer}' >/dev/null 2>&1 & echo $!")
    for number in range(4):
        sh(house, web, f"echo {number} > /root/number; dd if=/dev/urandom of=/root/noise bs=1M count=4 2>/dev/null")
        house.roost("snapshot", web, f"s{number}")
    house.roost("delete", "snapshot", "web.s1", "web.s2", "--yes")
    assert sorted(snapshots(house)) == ["web.s0", "web.s3"]
    assert sh(house, web, f"kill -0 {pid} && cat /root/number") == "3"
    for number in (0, 3, 0):
        house.roost("restore", web, f"s{number}")
        assert sh(house, web, f"cat /root/number; kill -0 {pid} && echo alive").split() == [str(number), "alive"]
        count = int(sh(house, web, "cat /root/count"))
        until(lambda count=count: int(sh(house, web, "cat /root/count") or 0) > count)  # type: ignore[misc]
    sh(house, web, f"kill {pid}")


def test_the_space_it_takes_is_what_the_disk_says(house: Daemon) -> None:
    # A machine of its own: the disk of one that has been through many snapshots may be flattened meanwhile, and stands on none of them then.
    house.roost("launch", "debian:12", "roomy", *MEMORY, timeout=1200)
    for number in range(2):
        sh(house, "roomy", "dd if=/dev/urandom of=/root/noise bs=1M count=16 2>/dev/null; sync")
        house.roost("snapshot", "roomy", f"s{number}")
    below = {path.stat().st_ino for path in chain(disk_of(house, "roomy"))}
    files = [path for path in (house.state / "layers").rglob("*") if path.is_file() and path.stat().st_ino in below]
    all_layers = sum(path.stat().st_blocks * 512 for path in files)
    told = settled_space(house, ("roomy.s0", "roomy.s1"))
    # Both share the first layer, the machine stands on both; what belongs to a snapshot alone is its memory.
    own = sum(used(kept(house, name)) for name in ("roomy.s0", "roomy.s1"))
    assert sum(entry["own"] for entry in told) == pytest.approx(own, abs=1 << 20)
    assert max(entry["shared"] for entry in told) == pytest.approx(all_layers, rel=0.05)
    house.roost("delete", "snapshot", "roomy.s0", "--yes")
    house.roost("delete", "roomy", "--yes")
    (alone,) = until(lambda: found if (found := settled_space(house, ("roomy.s1",)))[0]["shared"] == 0 else None, 180)
    assert alone["own"] == pytest.approx(used(kept(house, "roomy.s1")) + all_layers, rel=0.05)


def used(directory: Path) -> int:
    """What `du` counts."""
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())


def settled_space(daemon: Daemon, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The statuses, once housekeeping has looked after the last change and nothing moves any more of what belongs to snapshots."""

    def look() -> tuple[int, int, dict[str, dict[str, Any]]]:
        return used(daemon.state / "layers"), used(daemon.state / "checkpoints"), snapshots(daemon)

    def settled() -> list[dict[str, Any]]:
        before = look()
        time.sleep(6)
        after = look()
        return [after[2][name] for name in names] if before == after else []

    return until(settled, 180)


@pytest.mark.fault(46)
def test_a_memory_that_somebody_touched_is_refused_and_the_machine_goes_on(house: Daemon, small: str) -> None:
    house.roost("snapshot", small, "ready")
    memory = kept(house, f"{small}.ready") / "memory"
    # What the daemon holds in memory is sealed there: another one has to read the file.
    house.stop()
    house.start()
    before = (status(house, small)["pid"], sh(house, small, "echo 1 > /tmp/on; cat /proc/sys/kernel/random/boot_id"))
    whole = flip(memory)
    refused = house.roost("restore", small, "ready", check=False)
    assert refused.returncode != 0
    assert "does not match its seal" in refused.stderr
    copy = house.roost("restore", small, "ready", "--as", "kid", check=False)
    assert copy.returncode != 0
    assert "does not match its seal" in copy.stderr
    now = (status(house, small)["pid"], sh(house, small, "cat /tmp/on >&2; cat /proc/sys/kernel/random/boot_id"))
    assert now == before
    assert status(house, small)["phase"] == "running"
    assert reasons(house, small)[-1] == "RestoreFailed"
    memory.chmod(0o600)
    memory.write_bytes(whole)
    house.roost("restore", small, "ready")
    assert sh(house, small, "ls /tmp/on 2>/dev/null || true") == ""


def flip(file: Path) -> bytes:
    """Change one bit in the middle of what is in a file; returns what was there."""
    whole = file.read_bytes()
    place = next(at for at in range(len(whole) // 2, len(whole)) if whole[at])
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([whole[place] ^ 1]))
    return whole


def test_a_restore_that_can_not_be_leaves_the_machine_as_it_is(house: Daemon, small: str) -> None:
    house.roost("snapshot", small, "gone")
    pid = status(house, small)["pid"]
    house.roost("delete", "snapshot", f"{small}.gone", "--yes")
    for name in ("gone", "never"):
        refused = house.roost("restore", small, name, check=False)
        assert refused.returncode != 0
        assert f"{small}.{name}" in refused.stderr
    house.roost("launch", "tiny", "other", *SMALL)
    house.roost("snapshot", "other", "its")
    object_ = house.json("show", small)
    object_["spec"]["restore"] = {"snapshot": "other.its", "serial": object_["status"]["restored"] + 1}
    code, answer = house.request("PUT", f"/v1/machines/default/{small}", object_)
    assert code == 200, answer
    until(lambda: "is of another machine" in str(status(house, small)["error"]))
    assert (status(house, small)["pid"], status(house, small)["phase"]) == (pid, "running")
    assert reasons(house, small)[-1] == "RestoreFailed"


def test_snapshots_outlive_the_daemon(house: Daemon, small: str) -> None:
    sh(house, small, "echo 5 > /tmp/five")
    house.roost("snapshot", small, "ready")
    sh(house, small, "rm /tmp/five")
    house.kill()
    house.start()
    house.roost("restore", small, "ready")
    assert sh(house, small, "cat /tmp/five") == "5"


POINTS = (
    "take.begin", "take.prepared", "checkpoint.stopped", "checkpoint.covered", "checkpoint.saved", "checkpoint.frozen",
    "checkpoint.resumed", "take.taken", "take.settled",
)  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_that_dies_at_the_instant_leaves_no_half_snapshot_and_the_machine_runs(
    house: Daemon, web: str, point: str
) -> None:
    nonce, before = secrets.token_hex(8), status(house, web)["pid"]
    sh(house, web, f"echo {nonce} > /root/nonce; sync; echo {nonce} > /dev/shm/nonce")
    crash(house, point, "snapshot", web, "half")
    told = until(lambda: phase_of(house, "web.half", "failed"))
    assert DIED in told["error"]["why"]
    now = until(lambda: found if (found := status(house, web))["phase"] == "running" else None)
    assert now["pid"] == before
    assert sh(house, web, "cat /root/nonce /dev/shm/nonce; echo on > /root/on; sync").split() == [nonce, nonce]
    assert list((house.state / "checkpoints").iterdir()) == []
    house.roost("delete", "snapshot", "web.half", "--yes")
    house.roost("snapshot", web, "half")
    sh(house, web, "rm /dev/shm/nonce")
    house.roost("restore", web, "half")
    assert sh(house, web, "cat /root/nonce /dev/shm/nonce").split() == [nonce, nonce]


def phase_of(daemon: Daemon, name: str, phase: str) -> dict[str, Any] | None:
    """The snapshot's status, once it has this phase."""
    found = snapshots(daemon).get(name)
    return found if found is not None and found["phase"] == phase else None


def test_a_daemon_that_dies_when_it_is_kept_keeps_it(house: Daemon, small: str) -> None:
    sh(house, small, "echo 7 > /tmp/seven")
    crash(house, "snapshot.kept", "snapshot", small, "whole")
    until(lambda: phase_of(house, f"{small}.whole", "ready"))
    sh(house, small, "rm /tmp/seven")
    house.roost("restore", small, "whole")
    assert sh(house, small, "cat /tmp/seven") == "7"


def test_a_daemon_that_dies_when_it_has_forgotten_it_ends_that(house: Daemon, small: str) -> None:
    house.roost("snapshot", small, "gone")
    crash(house, "snapshot.forgotten", "delete", "snapshot", f"{small}.gone", "--yes")
    until(lambda: not snapshots(house))
    assert list((house.state / "checkpoints").iterdir()) == []
    assert sh(house, small, "echo on") == "on"


def test_they_are_listed_with_what_is_kept_of_each(house: Daemon, small: str, web: str) -> None:
    house.roost("snapshot", small, "ready", "--expire", "7d")
    house.roost("snapshot", web, "--no-memory")
    head, *rows = house.roost("snapshots").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "TAKEN", "MEMORY", "OWN", "SHARED", "EXPIRES"]
    assert re.fullmatch(r"small\.ready +ready +\S+Z +yes +\S+ +\S+ +20\S+Z", rows[0])
    assert re.fullmatch(r"web\.\d{8}-\d{6} +ready +\S+Z +no +\S+ +\S+ +never", rows[1])
    (mine,) = house.json("snapshots", small)
    assert (mine["name"], mine["status"]["own"] > 1 << 20) == ("small.ready", True)
    assert house.roost("snapshots", "nobody", check=False).returncode != 0


def test_one_whose_time_is_over_goes_by_itself(house: Daemon, small: str) -> None:
    house.roost("snapshot", small, "short", "--expire", "5s")
    until(lambda: not snapshots(house))
    assert reasons(house, "small.short")[-3:] == ["SnapshotTaken", "Expired", "SnapshotDeleted"]


PASSWORD = "00000009 40000009 0000 00 0000"
TPM = {
    "extend": f"8002 00000041 00000182 00000010 {PASSWORD} 00000001 000b {'ab' * 32}",
    "register": "8001 00000014 0000017e 00000001 000b 03 000001",
    "define": f"8002 0000002d 0000012a 40000001 {PASSWORD} 0000 000e 01500001 000b 00060006 0000 0008",
    "write": f"8002 0000002b 00000137 40000001 01500001 {PASSWORD} 0008 1122334455667788 0000",
    "overwrite": f"8002 0000002b 00000137 40000001 01500001 {PASSWORD} 0008 8877665544332211 0000",
    "read": f"8002 00000023 0000014e 40000001 01500001 {PASSWORD} 0008 0000",
}
"""TPM 2.0 commands: register 16 extended and read; eight bytes of storage defined, written and read."""


def ask(daemon: Daemon, name: str, command: str) -> str:
    """The TPM's answer to one command, in hexadecimal."""
    octal = "".join(f"\\{byte:03o}" for byte in bytes.fromhex(TPM[command]))
    write = f"exec 3<>/dev/tpm0; printf '{octal}' >&3"
    return sh(daemon, name, f"{write} && dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1 | tr -d ' \\n'")


VARIABLE = "/sys/firmware/efi/efivars/RoostTest-3c9e1e4a-7d5b-4c7e-9a53-5b1f0f2d6e10"


@needs_program("swtpm")
@pytest.mark.parametrize("memory", [True, False], ids=["running", "disk"])
def test_firmware_variables_and_tpm_belong_to_the_instant(house: Daemon, firm: str, memory: bool) -> None:
    how = () if memory else ("--no-memory",)
    sh(house, firm, f"chattr -i {VARIABLE} 2>/dev/null; printf '\\7\\0\\0\\0first' > /tmp/v; cat /tmp/v > {VARIABLE}")
    ask(house, firm, "write")
    before = ask(house, firm, "register")
    house.roost("snapshot", firm, "ready", *how)
    sh(house, firm, f"chattr -i {VARIABLE} 2>/dev/null; printf '\\7\\0\\0\\0later' > /tmp/v; cat /tmp/v > {VARIABLE}")
    ask(house, firm, "overwrite")
    ask(house, firm, "extend")
    assert ask(house, firm, "register") != before
    house.roost("restore", firm, "ready", timeout=300)
    assert sh(house, firm, f"tail -c 5 {VARIABLE}") == "first"
    assert "1122334455667788" in ask(house, firm, "read")
    assert (ask(house, firm, "register") == before) is memory
    uid = house.json("show", firm)["meta"]["uid"]
    assert list((house.state / "machines" / uid).rglob("*.checkpoint")) == []


@pytest.fixture(scope="module")
def firm(house: Daemon) -> str:
    """A Debian that was started by UEFI and has a TPM."""
    options = (*MEMORY, "--tpm", "--firmware", "uefi", "--network", "none")
    house.roost("launch", "debian:12", "firm", *options, timeout=1200)
    assert ask(house, "firm", "extend")[12:20] == "00000000"
    assert ask(house, "firm", "define")[12:20] == "00000000"
    return "firm"
