"""The door to other programs: bounded, cancellable, without a shell, leaving nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from roost.errors import OutcomeUnknown, Unavailable
from roost.host import processes, system


def children() -> set[str]:
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_input_goes_in_and_both_outputs_and_the_code_come_back() -> None:
    finished = await system.run(["sh", "-c", "cat; echo bad >&2; exit 3"], timeout=10, stdin=b"in\0put")
    assert finished == (3, b"in\0put", b"bad\n")


async def test_large_input_and_output_at_once_do_not_block_each_other() -> None:
    data = bytes(1 << 20)
    assert (await system.run(["cat"], timeout=10, stdin=data)).stdout == data


async def test_arguments_are_no_shell_words() -> None:
    assert (await system.run(["printf", "%s", "$(id) `id` ; id"], timeout=10)).stdout == b"$(id) `id` ; id"


async def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    names = {line.partition(b"=")[0] for line in (await system.run(["env"], timeout=10)).stdout.splitlines()}
    assert names == {b"PATH", b"LANG", b"HOME"}


async def test_a_timeout_ends_the_whole_group() -> None:
    before = children()
    with pytest.raises(OutcomeUnknown, match=r"did not end within 0\.05 s"):
        await system.run(["sh", "-c", "sleep 600 & sleep 600"], timeout=0.05)
    assert children() == before


async def test_output_without_end_is_stopped() -> None:
    with pytest.raises(OutcomeUnknown, match="more than 1000 bytes"):
        await system.run(["yes"], timeout=10, limit=1000)


async def test_output_of_exactly_the_limit_is_fine() -> None:
    assert len((await system.run(["head", "-c", "1000", "/dev/zero"], timeout=10, limit=1000)).stdout) == 1000


async def test_a_cancelled_run_leaves_no_process_and_no_descriptor() -> None:
    before, descriptors = children(), open_descriptors()
    task = asyncio.ensure_future(system.run(["sleep", "600"], timeout=600))
    await asyncio.wait([task], timeout=0.02)
    assert children() != before
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == before
    assert open_descriptors() <= descriptors + 1


async def test_ending_what_has_ended_closes_its_descriptor() -> None:
    descriptors = open_descriptors()
    child = system.start(["true"], (system.NOTHING, system.NOTHING, system.NOTHING))
    await processes.wait_exit(child.pidfd)
    await child.end()
    assert open_descriptors() == descriptors


async def test_a_background_process_does_not_hold_up_the_end() -> None:
    assert (await system.run(["sh", "-c", "sleep 600 & echo done"], timeout=10)).stdout == b"done\n"


async def test_a_killed_program_is_told_by_the_signal() -> None:
    assert (await system.run(["sh", "-c", "kill -9 $$"], timeout=10)).code == -9


async def test_a_missing_program_is_told_with_the_line_that_installs_it() -> None:
    with pytest.raises(Unavailable, match="apt-get install --no-install-recommends qemu-utils"):
        await system.run(["qemu-img"], timeout=10, env={"PATH": "/nonexistent"})


async def test_a_file_that_is_not_executable_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(Unavailable, match="chmod"):
        await system.run([str(tmp_path / "x")], timeout=10)


async def test_lines_come_one_by_one_also_those_of_a_progress_bar() -> None:
    lines: list[str] = []
    code = await system.stream(["printf", r"1%%\r2%%\nend"], timeout=10, on_line=lines.append)
    assert (code, lines) == (0, ["1%", "2%", "end"])


async def test_a_line_without_end_is_cut() -> None:
    lines: list[str] = []
    await system.stream(["head", "-c", "200000", "/dev/zero"], timeout=10, on_line=lines.append)
    assert max(map(len, lines)) == 64 << 10
    assert sum(map(len, lines)) == 200000
