"""A run that lasts is in a control group of its own, where the host has them for us, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roost.host import boxed_group
from roost.runtimes import execution, usage
from roost.runtimes.base import MiB, Policy, Request, Result

pytestmark = pytest.mark.live

GREEDY = "sleep 0.4; exec head -c 600m /dev/zero | tail -c 500m"
"""Holds 500 MB, once it has been moved."""
OUTSIDE = """
import sys
from roost.runtimes import execution
from roost.runtimes.base import Policy, Request
execution.run(Request("/bin/sh", ("-c", "sleep 0.4; echo moved; sleep 60"), Policy()), stdout=1)
"""


def shell(script: str, policy: Policy | None = None) -> Result:
    return execution.run(Request("/bin/sh", ("-c", script), policy or Policy()), capture=True, stdin=-1)


def groups() -> set[str]:
    return {path.name for parent in boxed_group._parents() for path in Path(parent).glob("program-*")}


@pytest.fixture(autouse=True)
def here() -> None:
    made, why = boxed_group.create(os.getpid(), None, 10)
    if made is None:
        pytest.skip(f"no control group here: {why}")
    made.remove()


def test_a_run_that_lasts_is_bounded_by_the_kernel_and_says_so() -> None:
    result = shell("sleep 0.5")
    assert "control group" in result.layers
    assert not any(line.startswith("control group") for line in result.missing)


def test_a_short_run_says_that_the_watchdog_held_it() -> None:
    result = shell("true")
    assert "control group" not in result.layers
    assert "watchdog" in result.layers
    assert any(line.startswith("control group: a run that lasts joins one") for line in result.missing)


def test_all_that_it_started_before_is_in_the_group_too() -> None:
    result = shell("sleep 0.6 & sleep 0.6 & sleep 0.5; cat /proc/1/cgroup /proc/self/cgroup; wait")
    assert "control group" in result.layers
    lines = [line for line in result.stdout.decode().splitlines() if "memory:" in line or line.startswith("0::/")]
    assert len(lines) % 2 == 0
    assert set(lines[: len(lines) // 2]) == set(lines[len(lines) // 2 :])


def test_the_kernel_holds_the_memory_where_the_watchdog_sees_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "memory", lambda *_: 0)
    ending = shell(GREEDY, Policy(memory=64 * MiB, tmp=16 * MiB, wall=30.0)).ending
    assert (ending.code, ending.limit) == (124, "memory")


def test_files_of_its_own_in_tmp_are_no_memory_of_the_program() -> None:
    result = shell("sleep 0.4; head -c 100m /dev/zero > /tmp/file && echo written", Policy(memory=64 * MiB))
    assert (result.ending.code, result.stdout) == (0, b"written\n")


def test_the_group_is_gone_with_the_run() -> None:
    before = groups()
    assert "control group" in shell("sleep 0.4").layers
    assert groups() <= before


def test_the_group_of_a_run_that_was_shot_down_goes_with_the_next_one() -> None:
    before = groups()
    running = subprocess.Popen([sys.executable, "-c", OUTSIDE], stdout=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stdout.readline() == b"moved\n"
    (left,) = groups() - before
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.read()  # until the program is gone too
    assert left in groups()
    shell("sleep 0.4")
    assert left not in groups()
