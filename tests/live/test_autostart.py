"""Commands without a daemon: one is started, it survives its starter, and a launch survives its death."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.daemon import ROOST, Daemon


@pytest.fixture
def absent(new_daemon: Callable[..., Daemon]) -> Iterator[Daemon]:
    """Directories without a daemon; what a test's commands started is stopped by the verb for it."""
    daemon = new_daemon()
    yield daemon
    daemon.roost("serve", "--stop")
    daemon.served = True


def pid_of(daemon: Daemon) -> int:
    return int(daemon.json("version")["daemon"]["pid"])


def test_many_commands_at_once_start_one_daemon(absent: Daemon) -> None:
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: absent.roost("list", "-o", "json").stdout, range(6)))
    assert answers == ["[]\n"] * 6
    assert absent.json("version")["daemon"]["build"] == absent.json("version")["command"]["build"]
    assert (absent.state / "daemon.log").read_text().count('"serving"') == 1


def test_the_daemon_can_be_stopped_and_machines_go_on(absent: Daemon) -> None:
    absent.roost("launch", "tiny", "web", "--memory", "256MiB")
    boot = absent.roost("exec", "web", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
    absent.roost("serve", "--stop")
    assert "not running" in absent.roost("version").stdout
    assert absent.roost("exec", "web", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout == boot


def test_a_launch_survives_the_death_of_the_daemon(absent: Daemon) -> None:
    absent.roost("list")
    launch = subprocess.Popen(
        [*ROOST, "launch", "tiny", "web", "--memory", "256MiB"], env=absent.environ, stdout=subprocess.PIPE
    )
    os.kill(pid_of(absent), signal.SIGKILL)
    out, _ = launch.communicate(timeout=120)
    assert (launch.returncode, out.split()[:2]) == (0, [b"web", b"runs"])


def test_an_interrupted_launch_says_what_goes_on(absent: Daemon) -> None:
    absent.roost("launch", "tiny", "web", "--memory", "256MiB", "--no-wait")
    waiting = subprocess.Popen([*ROOST, "start", "web"], env=absent.environ, stderr=subprocess.PIPE)
    assert absent.roost("list", "-o", "name").stdout == "web\n"
    waiting.send_signal(signal.SIGINT)
    _, told = waiting.communicate(timeout=30)
    assert waiting.returncode in (0, 130)
    assert b"Traceback" not in told
