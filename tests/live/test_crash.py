"""The daemon is killed at every state transition: guests go on, and the next start puts things right."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from roost.host.failpoints import POINTS
from tests.daemon import ROOST, Daemon
from tests.live.test_warm import templates

ON_LAUNCH = tuple(
    point
    for point in POINTS
    if point
    in {
        "api.before-commit", "api.after-commit",
        "machine.create-disk", "machine.start", "machine.started", "machine.resume", "machine.resumed",
        "machine.greet",
    }
)  # fmt: skip
"""Where a launch passes, from the request to the first answer."""

ON_IMAGE = ("machine.find-image", "machine.await-image")
"""Where a launch also passes when its project does not know the image yet."""

FROM_TEMPLATE = ("machine.find-origin", "machine.fork", "fork.spawned", "fork.mapped", "fork.loaded", "machine.started")
"""Where a launch passes that goes on from a template."""

ON_STOP = ("machine.press-power", "machine.await-end", "machine.settle-exit", "machine.show-stopped")
ON_PAUSE = ("machine.pause",)
ON_DELETE = ("machine.kill", "machine.remove-files", "machine.remove-object")


@pytest.fixture(scope="module")
def crashing() -> Iterator[Daemon]:
    """A daemon to be killed, with one machine that must live through it all."""
    made = Daemon()
    # Naming the socket keeps the commands from starting a daemon of their own when this one dies.
    made.environ["ROOST_HOST"] = f"unix:{made.socket}"
    made.start()
    try:
        made.roost("launch", "tiny", "survivor", "--memory", "128MiB", timeout=300)
        yield made
    finally:
        left = made.close()
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture
def victim(crashing: Daemon) -> Iterator[Daemon]:
    """The same daemon; whatever the test does, it runs unarmed afterwards and only the survivor is left."""
    yield crashing
    if crashing.process is None or crashing.process.poll() is not None:
        crashing.start()
    crashing.delete_machines("survivor")


def _arm(daemon: Daemon, point: str) -> None:
    daemon.stop()
    daemon.start(ROOST_FAILPOINT=f"{point}:kill")


def _dies(daemon: Daemon, action: Callable[[], object]) -> None:
    """The action makes the armed daemon die; the action itself may fail or not."""
    assert daemon.process is not None
    with suppress(subprocess.TimeoutExpired):
        action()
    assert daemon.process.wait(60) == -9, "the failpoint was never reached"


def _survivor_answers(daemon: Daemon, pid: int) -> None:
    assert daemon.json("show", "survivor")["status"]["pid"] == pid
    nonce = secrets.token_hex(8)
    assert daemon.roost("exec", "survivor", "--", "echo", nonce).stdout.strip() == nonce


def _pid(daemon: Daemon) -> int:
    return int(daemon.json("show", "survivor")["status"]["pid"])


def _phase(daemon: Daemon, name: str, phase: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while (now := daemon.json("show", name)["status"]["phase"]) != phase:
        assert time.monotonic() < deadline, f"{name} is {now}, not {phase}\n{daemon.log()[-4000:]}"
        time.sleep(0.2)


@pytest.mark.fault(32)
@pytest.mark.parametrize("point", ON_LAUNCH)
def test_a_daemon_killed_during_a_launch(victim: Daemon, point: str) -> None:
    pid = _pid(victim)
    _arm(victim, point)
    _dies(victim, lambda: victim.roost("launch", "tiny", "child", "--memory", "128MiB", check=False, timeout=60))
    victim.start()
    again = victim.roost("launch", "tiny", "child", "--memory", "128MiB", check=False)
    assert again.returncode in (0, 4)
    _phase(victim, "child", "running")
    victim.roost("exec", "child", "--", "true")
    _survivor_answers(victim, pid)


@pytest.mark.parametrize("point", FROM_TEMPLATE)
def test_a_daemon_killed_during_a_launch_from_a_template(
    victim: Daemon, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(victim, "cold", False)
    pid = _pid(victim)
    victim.roost("launch", "tiny", "first", "--memory", "128MiB", timeout=300)
    templates(victim)
    _arm(victim, point)
    _dies(victim, lambda: victim.roost("launch", "tiny", "child", "--memory", "128MiB", check=False, timeout=60))
    victim.start()
    _phase(victim, "child", "running")
    assert victim.roost("exec", "child", "--", "hostname").stdout.strip() == "child"
    _survivor_answers(victim, pid)


def test_a_command_waits_until_its_machine_is_set_up(victim: Daemon) -> None:
    pid = _pid(victim)
    victim.stop()
    victim.start(ROOST_FAILPOINT="machine.greet:sleep")
    victim.roost("launch", "tiny", "child", "--memory", "128MiB", "--no-wait")
    _phase(victim, "child", "running")
    # The agent answers long before that; without the wait it would say "localhost".
    early = victim.roost("exec", "--timeout", "10", "child", "--", "hostname", check=False)
    assert (early.returncode, early.stdout) == (124, "")
    victim.stop()
    victim.start()
    assert victim.roost("exec", "child", "--", "hostname").stdout.strip() == "child"
    _survivor_answers(victim, pid)


@pytest.mark.parametrize("point", ON_IMAGE)
def test_a_daemon_killed_while_a_machine_waits_for_its_image(victim: Daemon, point: str) -> None:
    pid = _pid(victim)
    project = f"p-{secrets.token_hex(4)}"
    victim.roost("project", "create", project)
    _arm(victim, point)
    _dies(victim, lambda: victim.roost("launch", "tiny", "child", "--project", project, check=False, timeout=60))
    victim.start()
    victim.roost("start", "child", "--project", project)
    victim.roost("exec", "--project", project, "child", "--", "true")
    _survivor_answers(victim, pid)


@pytest.mark.fault(94)
@pytest.mark.parametrize("point", ON_STOP)
def test_a_daemon_killed_during_a_stop(victim: Daemon, point: str) -> None:
    pid = _pid(victim)
    victim.roost("launch", "tiny", "child", "--memory", "128MiB")
    _arm(victim, point)
    _dies(victim, lambda: _stop_twice(victim))
    victim.start()
    victim.roost("stop", "child", timeout=90)
    _phase(victim, "child", "stopped")
    _survivor_answers(victim, pid)


def _stop_twice(daemon: Daemon) -> None:
    """Stop the child, and once it has stopped change its wish again, so that its status has something to show."""
    with suppress(OSError, AssertionError):
        daemon.request("PATCH", "/v1/machines/default/child", {"spec": {"power": "stopped"}})
        _phase(daemon, "child", "stopped")
        daemon.request("PATCH", "/v1/machines/default/child", {"spec": {"stop_grace": 5}})


@pytest.mark.parametrize("point", ON_PAUSE)
def test_a_daemon_killed_during_a_pause(victim: Daemon, point: str) -> None:
    victim.roost("launch", "tiny", "child", "--memory", "128MiB")
    _arm(victim, point)
    _dies(victim, lambda: victim.roost("pause", "child", check=False, timeout=60))
    victim.start()
    _phase(victim, "child", "paused")


@pytest.mark.fault(94)
@pytest.mark.parametrize("point", ON_DELETE)
def test_a_daemon_killed_during_a_delete(victim: Daemon, point: str) -> None:
    pid = _pid(victim)
    victim.roost("launch", "tiny", "child", "--memory", "128MiB")
    uid = victim.json("show", "child")["meta"]["uid"]
    _arm(victim, point)
    _dies(victim, lambda: victim.roost("delete", "child", "--yes", check=False, timeout=60))
    victim.start()
    deadline = time.monotonic() + 30
    while victim.roost("show", "child", check=False).returncode != 3:
        assert time.monotonic() < deadline, victim.log()[-3000:]
        time.sleep(0.2)
    assert not (victim.state / "machines" / uid).exists()
    _survivor_answers(victim, pid)


@pytest.mark.fault(32)
def test_a_daemon_killed_during_exec(victim: Daemon) -> None:
    pid = _pid(victim)
    running = subprocess.Popen(
        [*ROOST, "exec", "survivor", "--", "sh", "-c", "echo begun; sleep 1000"],
        env=victim.environ,
        stdout=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"begun\n"
    victim.kill()
    assert running.wait(30) in range(124, 128)
    victim.start()
    _survivor_answers(victim, pid)
    assert "sleep 1000" not in victim.roost("exec", "survivor", "--", "ps").stdout


@pytest.mark.fault(33)
def test_a_record_that_names_a_foreign_process_harms_nobody(victim: Daemon) -> None:
    victim.roost("launch", "tiny", "child", "--memory", "128MiB")
    shown = victim.json("show", "child")
    victim.kill()
    foreign = subprocess.Popen(["sleep", "1000"])
    try:
        record = victim.run / "machines" / shown["meta"]["uid"] / "process.json"
        record.write_text(record.read_text().replace(f'"pid":{shown["status"]["pid"]}', f'"pid":{foreign.pid}'))
        subprocess.run(["kill", "-9", str(shown["status"]["pid"])], check=True)
        victim.start()
        _phase(victim, "child", "crashed")
        assert foreign.poll() is None
    finally:
        foreign.kill()
        foreign.wait()
