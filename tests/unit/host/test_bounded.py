"""Work on hostile input in a process of its own: it is held to its bounds, has nothing of ours, and ends with us."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.host import bounded

BOUNDS = bounded.Bounds(memory=256 << 20, output=1 << 20, cpu=5, wall=5.0)


def _spin() -> int:
    while True:
        pass


def _eat() -> int:
    try:
        return len(bytearray(1 << 30)) and 0
    except MemoryError:
        return 9


def _fails(call: Callable[[], object]) -> Callable[[], int]:
    def work() -> int:
        try:
            call()
        except OSError:
            return 9
        return 0

    return work


def test_its_value_comes_back() -> None:
    assert bounded.run(lambda: 7, (), BOUNDS) == 7


@pytest.mark.fault(54)
def test_time_and_memory_end_it() -> None:
    with pytest.raises(TimeoutError):
        bounded.run(_spin, (), bounded.Bounds(256 << 20, 1 << 20, 5, 0.05))
    assert bounded.run(_eat, (), BOUNDS) == 9


@pytest.mark.fault(54)
@pytest.mark.parametrize("call", [
    lambda: os.open("/etc/hostname", os.O_RDONLY), os.fork, lambda: os.fstat(3), Path("/tmp/x").mkdir,
])  # fmt: skip
def test_it_reaches_nothing(call: Callable[[], object]) -> None:
    assert bounded.run(_fails(call), (), BOUNDS) == 9


@pytest.mark.fault(54)
def test_it_ends_with_the_process_that_asked_for_it() -> None:
    alive, inside = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(alive)
        try:
            bounded.run(lambda: os.write(inside, b"x") and _spin(), (inside,), BOUNDS)
        finally:
            os._exit(0)
    os.close(inside)
    assert os.read(alive, 1) == b"x"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert select.select([alive], [], [], 3)[0], "it still holds its end of the pipe"
    assert os.read(alive, 1) == b""
    os.close(alive)
