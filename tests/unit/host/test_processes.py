"""A recorded process is the same one, or it is none: never another that has its pid by now."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from roost.host import processes, system
from roost.host.system import NOTHING, Child
from roost.model.machine import Process


@pytest.fixture
async def child() -> AsyncIterator[Child]:
    started = system.start(["sleep", "600"], (NOTHING, NOTHING, NOTHING))
    yield started
    await started.end()


@pytest.fixture
def record(child: Child) -> Process:
    identity = processes.identify(child.pid)
    assert identity is not None
    return identity


def test_a_process_is_found_again_by_its_record(record: Process) -> None:
    pidfd = processes.open_process(record)
    assert pidfd is not None
    assert processes.is_alive(pidfd)
    os.close(pidfd)


@pytest.mark.fault(33)
@pytest.mark.parametrize("change", [{"start": 1}, {"uid": 65534}, {"boot": "another-boot"}])
def test_a_record_of_an_earlier_owner_of_the_pid_opens_nothing(record: Process, change: dict[str, object]) -> None:
    assert processes.open_process(msgspec.structs.replace(record, **change)) is None


@pytest.mark.fault(33)
def test_a_pid_that_is_nobodys_opens_nothing(record: Process) -> None:
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    assert processes.open_process(msgspec.structs.replace(record, pid=beyond)) is None


@pytest.mark.parametrize("pid", [0, -1])
def test_a_senseless_pid_in_a_record_opens_nothing(record: Process, pid: int) -> None:
    assert processes.open_process(msgspec.structs.replace(record, pid=pid)) is None


async def test_a_process_that_has_ended_opens_nothing_even_before_it_is_reaped(child: Child, record: Process) -> None:
    os.kill(child.pid, signal.SIGKILL)
    await processes.wait_exit(child.pidfd)
    assert processes.open_process(record) is None
    assert processes.identify(child.pid) is None


def test_a_name_with_brackets_and_spaces_hides_no_field(record: Process) -> None:
    Path("/proc/self/comm").write_text(") R 1 (x")
    identity = processes.identify(os.getpid())
    Path("/proc/self/comm").write_text("pytest")
    assert identity is not None
    assert identity.start > 0
    assert identity.uid == os.getuid()


async def test_waiting_tells_the_signal_that_ended_it(child: Child) -> None:
    assert processes.signal_pidfd(child.pidfd, signal.SIGTERM)
    assert await processes.wait_pidfd(child.pidfd) == -signal.SIGTERM
    child._process.returncode = -signal.SIGTERM


async def test_many_wait_for_one_process(child: Child) -> None:
    waiting = [asyncio.ensure_future(processes.wait_exit(child.pidfd)) for _ in range(3)]
    await asyncio.sleep(0)
    processes.signal_pidfd(child.pidfd, signal.SIGKILL)
    await asyncio.gather(*waiting)


async def test_signalling_what_has_ended_is_told(child: Child) -> None:
    copy = os.dup(child.pidfd)
    await child.end()
    assert not processes.signal_pidfd(copy, signal.SIGTERM)
    os.close(copy)
