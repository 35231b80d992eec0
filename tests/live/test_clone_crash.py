"""The daemon, a parent or a child is killed at every step of a copy: the parent goes on as it was, children are whole or not there at all."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from roost.host.failpoints import POINTS
from tests import leftovers
from tests.daemon import ROOST, Daemon
from tests.live.copies import chain, check_disk, inside, recalls, remember, status, uid, wait_for
from tests.needs import needs_program

pytestmark = [needs_program("qemu-system-x86_64", "mmdebstrap", "qemu-img"), pytest.mark.timeout(900)]

ON_CLONE = (
    "machine.find-origin",
    "take.begin", "take.prepared",
    "checkpoint.stopped", "checkpoint.covered", "checkpoint.saved", "checkpoint.frozen", "checkpoint.resumed",
    "take.taken", "take.settled",
    "machine.fork", "fork.spawned", "fork.mapped", "fork.loaded",
)  # fmt: skip
"""Where a clone of a running machine passes, in this order."""

AFTER_FORK = ("machine.started", "machine.resume", "machine.resumed", "machine.greet")
"""Where it passes on as every start does."""

ON_DISK_CLONE = ("machine.make-disk",)
"""Where one without memory passes besides."""

ON_FIRST_LAUNCH = ("machine.await-origin", "warm.started", "warm.sealed", "checkpoint.frozen", "warm.taken")
"""Where the first launch of a kind passes, which makes the template."""

ON_WARM_LAUNCH = ("machine.find-origin", "machine.fork", "fork.spawned", "fork.mapped", "fork.loaded")
"""Where every later one passes."""

STANDING_STILL = ("checkpoint.stopped", "checkpoint.covered", "checkpoint.saved", "checkpoint.frozen")


IN_SHORT = frozenset(
    {
        "machine.fork", "take.taken", "checkpoint.frozen", "fork.loaded", "warm.sealed",
    }
)  # fmt: skip
"""Where everybody's suite kills; `scripts/test --soak` does it everywhere."""


def some(*points: str) -> list[object]:
    """All of them, most for the long suite only."""
    return [pytest.param(point, marks=() if point in IN_SHORT else pytest.mark.soak) for point in points]


def test_every_step_of_a_copy_is_placed() -> None:
    placed = {*ON_CLONE, *ON_DISK_CLONE, *ON_FIRST_LAUNCH, *ON_WARM_LAUNCH}
    known = {point for point in POINTS if point.startswith(("take.", "checkpoint.", "fork.", "warm."))}
    assert known - placed == set()
    assert placed <= set(POINTS)


class Victim:
    """A daemon that is killed, and a Debian that lives through all of it; `files` were written to its disk before and after."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        daemon.roost("launch", "debian:12", "parent", timeout=1200)
        self.nonce = remember(daemon, "parent")
        self.files: dict[str, str] = {}
        self.pid = status(daemon, "parent")["pid"]
        self.uid = uid(daemon, "parent")

    def write(self) -> None:
        """One more file."""
        name, content = f"/var/mark-{len(self.files)}", secrets.token_hex(16)
        inside(self.daemon, "parent", f"echo {content} >{name}; sync -f {name}")
        self.files[name] = content

    def read(self) -> None:
        """All files are there."""
        script = f"echo 3 >/proc/sys/vm/drop_caches; cat {' '.join(self.files)}"
        assert inside(self.daemon, "parent", script).split() == list(self.files.values())

    def arm(self, point: str, action: str = "kill") -> None:
        """Start the daemon so that it dies there."""
        self.daemon.stop()
        self.daemon.start(ROOST_FAILPOINT=f"{point}:{action}")

    def dies(self, *arguments: str) -> None:
        """The verb makes the armed daemon die; then another one is started."""
        with suppress(subprocess.TimeoutExpired):
            self.daemon.roost(*arguments, check=False, timeout=60)
        assert self.daemon.process is not None
        assert self.daemon.process.wait(60) == -9, "the failpoint was never reached"
        self.daemon.start()

    def unharmed(self) -> None:
        """The parent goes on: same process, same memory, and its disk."""
        assert status(self.daemon, "parent")["pid"] == self.pid
        assert recalls(self.daemon, "parent") == self.nonce
        self.write()
        self.read()

    def kids(self) -> dict[str, dict[str, Any]]:
        """All machines but the parent, once each runs and has been made somebody, or has failed."""
        deadline = time.monotonic() + 90
        while True:
            told = {item["name"]: item for item in self.daemon.machines() if item["name"] != "parent"}
            if all(_is_settled(item["status"]) for item in told.values()):
                return told
            assert time.monotonic() < deadline, f"{[item['status'] for item in told.values()]}\n{self.daemon.log()}"
            time.sleep(0.2)

    def whole_or_not_at_all(self) -> list[str]:
        """Every kid knows the nonce and its own name, or has no file; returns those that run."""
        kids = self.kids()
        running = [name for name, item in kids.items() if item["status"]["phase"] == "running"]
        assert [recalls(self.daemon, name) for name in running] == [self.nonce] * len(running)
        assert [inside(self.daemon, name, "hostname") for name in running] == running
        failed = [item["meta"]["uid"] for name, item in kids.items() if name not in running]
        tops = (self.daemon.state / "machines", self.daemon.run / "machines")
        assert [one for one in failed for top in tops if (top / one).exists()] == []
        return running

    def nothing_left(self) -> None:
        """Once the kids are deleted, of them and of what was to become them."""
        uids = [item["meta"]["uid"] for item in self.daemon.machines() if item["name"] != "parent"]
        self.daemon.delete_machines("parent")
        assert leftovers.wait_until_none(Path("/nonexistent/state"), Path("/nonexistent/run"), uids) == []
        assert {entry.name for entry in (self.daemon.state / "machines").iterdir()} == {self.uid}


def _is_settled(told: dict[str, Any]) -> bool:
    return told["phase"] == "failed" or (told["phase"] == "running" and told["agent"] == "roost")


@pytest.fixture(scope="module")
def shared_victim() -> Iterator[Victim]:
    """One for all tests here."""
    daemon = Daemon()
    # Naming the socket keeps the commands from starting a daemon of their own when this one dies.
    daemon.environ["ROOST_HOST"] = f"unix:{daemon.socket}"
    try:
        yield Victim(daemon.start())
    finally:
        left = daemon.close()
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture
def victim(shared_victim: Victim) -> Iterator[Victim]:
    """The same; whatever the test does, the daemon runs unarmed afterwards and only the parent is left."""
    yield shared_victim
    daemon = shared_victim.daemon
    daemon.cold = True
    if daemon.process is None or daemon.process.poll() is not None:
        daemon.start()
    daemon.delete_machines("parent")


@pytest.mark.fault(8)
@pytest.mark.fault(32)
@pytest.mark.parametrize("point", some(*ON_CLONE, *AFTER_FORK))
def test_a_daemon_killed_during_a_clone(victim: Victim, point: str) -> None:
    victim.write()
    victim.arm(point)
    victim.dies("clone", "parent", "kid", "--count", "2")
    victim.whole_or_not_at_all()
    victim.unharmed()
    victim.daemon.roost("clone", "parent", "later")
    assert recalls(victim.daemon, "later") == victim.nonce
    victim.nothing_left()


@pytest.mark.fault(32)
@pytest.mark.parametrize("point", ON_DISK_CLONE)
def test_a_daemon_killed_while_a_disk_is_cloned(victim: Victim, point: str) -> None:
    victim.write()
    victim.arm(point)
    victim.dies("clone", "parent", "kid", "--no-memory")
    (kid,) = victim.kids()
    assert inside(victim.daemon, kid, f"cat {' '.join(victim.files)}; hostname").split() == [
        *victim.files.values(), "kid"
    ]  # fmt: skip
    victim.unharmed()
    victim.nothing_left()


@pytest.mark.fault(32)
@pytest.mark.parametrize("point", some(*ON_FIRST_LAUNCH))
def test_a_daemon_killed_while_a_template_is_made(victim: Victim, point: str) -> None:
    project = f"p-{secrets.token_hex(4)}"
    victim.daemon.roost("project", "create", project)
    _launch_through(victim, point, "--project", project)


@pytest.mark.fault(32)
@pytest.mark.parametrize("point", some(*ON_WARM_LAUNCH))
def test_a_daemon_killed_during_a_warm_launch(victim: Victim, point: str) -> None:
    victim.daemon.cold = False
    victim.daemon.roost("launch", "tiny", "first", "--memory", "128MiB", timeout=300)
    victim.daemon.roost("delete", "first", "--yes")
    _launch_through(victim, point)


def _launch_through(victim: Victim, point: str, *options: str) -> None:
    """A warm launch in which the daemon dies, and which the next one ends."""
    daemon = victim.daemon
    daemon.cold = False
    victim.arm(point)
    victim.dies("launch", "tiny", "child", "--memory", "128MiB", *options)
    daemon.roost("launch", "tiny", "child", "--memory", "128MiB", *options, check=False, timeout=120)
    assert [item["status"]["phase"] for item in victim.kids().values()] == ["running"]
    shown = daemon.roost("exec", *options, "child", "--", "sh", "-c", "hostname; cat /etc/machine-id").stdout.split()
    (item,) = victim.kids().values()
    assert shown == ["child", item["meta"]["uid"].replace("-", "")]
    assert {entry.name for entry in (daemon.run / "machines").iterdir()} >= {victim.uid, item["meta"]["uid"]}
    victim.unharmed()
    victim.nothing_left()


# ---------------------------------------------------------------------- QEMU itself dies


def test_a_child_that_is_killed_harms_nobody_and_boots_from_its_own_disk(victim: Victim) -> None:
    daemon = victim.daemon
    victim.write()
    daemon.roost("clone", "parent", "kid", "--count", "2")
    os.kill(status(daemon, "kid-1")["pid"], signal.SIGKILL)
    wait_for(daemon, "kid-1", "crashed")
    victim.unharmed()
    assert recalls(daemon, "kid-2") == victim.nonce
    daemon.roost("start", "kid-1", timeout=300)
    assert inside(daemon, "kid-1", "cat /var/mark-0; hostname").split() == [victim.files["/var/mark-0"], "kid-1"]
    victim.nothing_left()


@pytest.mark.parametrize("point", ["fork.spawned", "fork.loaded"])
def test_a_child_that_is_killed_before_it_runs_is_not_there_at_all(victim: Victim, point: str) -> None:
    daemon = victim.daemon
    victim.arm(point, "sleep")
    asked = _ask(daemon, "clone", "parent", "kid")
    try:
        os.kill(_until(lambda: _qemu_of(daemon, "kid")), signal.SIGKILL)
    finally:
        asked.kill()
        asked.wait()
    daemon.stop()
    daemon.start()
    victim.whole_or_not_at_all()
    victim.unharmed()
    victim.nothing_left()


@pytest.mark.parametrize("point", some(*STANDING_STILL, "take.prepared", "take.taken"))
def test_a_parent_that_is_killed_while_it_is_copied_starts_again(victim: Victim, point: str) -> None:
    daemon = victim.daemon
    victim.write()
    victim.arm(point, "sleep")
    asked = _ask(daemon, "clone", "parent", "kid")
    try:
        _until(lambda: (daemon.state / "machines" / victim.uid / "next.json").exists())
        time.sleep(0.5)
        os.kill(victim.pid, signal.SIGKILL)
    finally:
        asked.kill()
        asked.wait()
    daemon.stop()
    daemon.start()
    _starts_again(victim)


def test_a_parent_that_does_not_answer_and_is_killed_ends_the_copy(victim: Victim) -> None:
    daemon = victim.daemon
    victim.write()
    os.kill(victim.pid, signal.SIGSTOP)
    asked = _ask(daemon, "clone", "parent", "kid")
    _until(lambda: "kid" in {item["name"] for item in daemon.machines()})
    time.sleep(1)
    os.kill(victim.pid, signal.SIGKILL)
    assert asked.wait(60) != 0
    _starts_again(victim)


def _starts_again(victim: Victim) -> None:
    """The parent boots and all files are there; a kid is not there at all, or is a copy of its disk, for it has no more than that."""
    daemon = victim.daemon
    wait_for(daemon, "parent", "crashed")
    running = [name for name, item in victim.kids().items() if item["status"]["phase"] == "running"]
    read = f"cat {' '.join(victim.files)}; hostname"
    assert [inside(daemon, name, read).split() for name in running] == [
        [*victim.files.values(), name] for name in running
    ]
    daemon.roost("start", "parent", timeout=300)
    victim.pid = status(daemon, "parent")["pid"]
    victim.nonce = remember(daemon, "parent")
    victim.unharmed()
    daemon.roost("clone", "parent", "again")
    assert recalls(daemon, "again") == victim.nonce
    victim.nothing_left()


def _ask(daemon: Daemon, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*ROOST, *arguments], env=daemon.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _qemu_of(daemon: Daemon, name: str) -> int:
    """The QEMU that was started for a machine, by its record."""
    (found,) = [item["meta"]["uid"] for item in daemon.machines() if item["name"] == name] or [""]
    path = daemon.run / "machines" / found / "process.json"
    return int(json.loads(path.read_text())["qemu"]["process"]["pid"]) if found and path.exists() else 0


def _until(look: Callable[[], int]) -> int:
    deadline = time.monotonic() + 60
    while not (seen := look()):
        assert time.monotonic() < deadline, "it never comes to that"
        time.sleep(0.05)
    return seen


# ---------------------------------------------------------------------- after all that


def test_what_was_written_all_the_time_is_on_the_disk_and_nothing_else_is_kept(victim: Victim, tmp_path: Path) -> None:
    daemon = victim.daemon
    daemon.stop()
    daemon.start()
    daemon.roost("stop", "parent", "--force")
    files = chain(daemon, "parent")
    check_disk(files, tmp_path)
    deadline = time.monotonic() + 30
    wanted = {path.parent.name for path in files[1:]}
    while not {entry.name for entry in (daemon.state / "layers").iterdir()} <= wanted:
        assert time.monotonic() < deadline, "layers that nobody stands on are kept"
        time.sleep(0.2)
    daemon.roost("start", "parent", timeout=300)
    victim.read()
