"""Starts that fail, are cancelled or are shot down half-way leave no process and no control group behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.errors import Conflict, NotStarted, RoostError, Unavailable
from roost.host import cgroups, jail, processes
from roost.host.jail import Bind, Jail
from roost.model.machine import Process
from tests.needs import needs_program, repetitions

SLEEP = Path("/usr/bin/sleep")
NAME = f"test-failures-{os.getpid()}"


def sleeper(*binds: Bind, words: tuple[str, ...] = (str(SLEEP), "600")) -> Jail:
    return Jail(NAME, words, [*jail.program_binds(SLEEP), *binds], uid=jail.FIRST_UID + 10)


def children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end meanwhile
            found.update((task / "children").read_text().split())
    return found


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def in_the_group() -> list[str]:
    return [str(path) for group in cgroups.find(NAME) for path in group.directories]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before, descriptors = children(), open_descriptors()
    yield
    assert children() - before == set()
    assert in_the_group() == []
    assert open_descriptors() <= descriptors + 1


async def test_a_missing_source_is_named() -> None:
    with pytest.raises(NotStarted, match="/no/such/kernel"):
        await jail.enter(sleeper(Bind(Path("/no/such/kernel"), "/kernel")))


async def test_a_program_that_can_not_be_executed_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"no program")
    script.chmod(0o755)
    tmp_path.chmod(0o755)
    with pytest.raises((NotStarted, Unavailable)):
        await jail.enter(Jail(NAME, ["/script"], [Bind(script, "/script")]))


async def test_a_record_that_can_not_be_written_stops_the_start() -> None:
    async def record(process: Process) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await jail.enter(sleeper(), record)


async def test_the_process_is_recorded_before_it_runs() -> None:
    seen: list[tuple[Process, str]] = []

    async def record(process: Process) -> None:
        seen.append((process, Path(f"/proc/{process.pid}/comm").read_text().strip()))

    jailed = await jail.enter(sleeper(), record)
    processes.signal_pidfd(jailed.pidfd, signal.SIGKILL)
    await processes.wait_pidfd(jailed.pidfd)
    os.close(jailed.pidfd)
    assert jailed.cgroup is None or await jailed.cgroup.remove()
    assert seen[0][0] == jailed.process
    assert seen[0][1].startswith("python")


async def test_a_second_jail_of_the_same_name_is_refused_while_the_first_runs() -> None:
    first = await jail.enter(sleeper())
    try:
        with pytest.raises(Conflict):
            await jail.enter(sleeper())
            pytest.skip("this host has no control groups for us")
    finally:
        processes.signal_pidfd(first.pidfd, signal.SIGKILL)
        await processes.wait_pidfd(first.pidfd)
        os.close(first.pidfd)
        assert first.cgroup is None or await first.cgroup.remove()


@pytest.mark.parametrize("after", [step / 1000 for step in range(0, 40, repetitions(4, 1))])
async def test_a_cancelled_start_leaves_nothing(after: float) -> None:
    start = asyncio.ensure_future(jail.enter(sleeper()))
    await asyncio.wait([start], timeout=after)
    start.cancel()
    try:
        jailed = await start
    except asyncio.CancelledError:
        return
    await clear(jailed)


@pytest.mark.parametrize("after", [step / 1000 for step in range(0, 40, repetitions(4, 1))])
async def test_a_launcher_shot_down_half_way_leaves_nothing(after: float) -> None:
    before = children()
    start = asyncio.ensure_future(jail.enter(sleeper()))
    await asyncio.wait([start], timeout=after)
    for pid in children() - before:
        os.kill(int(pid), signal.SIGKILL)
    try:
        jailed = await start
    except RoostError as error:
        assert isinstance(error, NotStarted)
        return
    await clear(jailed)


async def clear(jailed: jail.Jailed) -> None:
    processes.signal_pidfd(jailed.pidfd, signal.SIGKILL)
    await processes.wait_pidfd(jailed.pidfd)
    os.close(jailed.pidfd)
    assert jailed.cgroup is None or await jailed.cgroup.remove()


@needs_program("sleep")
async def test_a_tool_that_does_not_end_is_ended() -> None:
    with pytest.raises(RoostError, match="did not end"):
        await jail.run_in_jail(["sleep", "600"], readable={}, writable={}, timeout=0.3, memory=1 << 28, file_size=0)
