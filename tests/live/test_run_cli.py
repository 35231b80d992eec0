"""`roost run` from a terminal and from Python: keys, progress, descriptors, and results."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import subprocess
import termios
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import roost
from roost.errors import CommandFailed, Invalid, NotFound
from tests.conformance.laboratory import ROOST, environment
from tests.programs import build

pytestmark = pytest.mark.live

KINDS: dict[str, Callable[[], Path]] = {
    "wasm": lambda: build.program("probe", "wasm"),
    "native": lambda: build.program("probe"),
}


@pytest.fixture(params=KINDS)
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ROOST_CACHE", environment()["ROOST_CACHE"])
    return str(KINDS[request.param]())


def call(*words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    how = {"stdin": subprocess.DEVNULL, "env": environment(), **how}
    return subprocess.run([*ROOST, *words], capture_output=True, timeout=30, check=False, **how)


class Terminal:
    """A command that has a terminal of its own, as a shell would give it."""

    def __init__(self, *words: str) -> None:
        self.leader, terminal = pty.openpty()
        streams: dict[str, Any] = {"stdin": terminal, "stdout": terminal, "stderr": terminal}
        self.process = subprocess.Popen(
            [*ROOST, *words],
            env=environment(ROOST_ZYGOTE="1"),
            start_new_session=True,
            preexec_fn=take_terminal,
            **streams,
        )
        os.close(terminal)
        self.text = b""

    def until(self, text: bytes) -> None:
        while text not in self.text:
            assert select.select([self.leader], [], [], 20)[0], self.text
            self.text += os.read(self.leader, 4096)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.leader)


def take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_ends_it(program: str) -> None:
    terminal = Terminal("run", program, "wait")
    terminal.until(b"ready")
    os.write(terminal.leader, b"\x03")
    assert terminal.process.wait(10) in (130, -2)
    terminal.close()


def test_what_is_typed_is_read_until_the_end_of_the_input(program: str) -> None:
    terminal = Terminal("run", program, "lines")
    os.write(terminal.leader, b"one\n")
    terminal.until(b"got one")
    os.write(terminal.leader, b"\x04")
    assert terminal.process.wait(10) == 0
    terminal.close()


def test_the_end_of_the_terminal_is_its_end(program: str) -> None:
    terminal = Terminal("run", program, "wait")
    terminal.until(b"ready")
    os.close(terminal.leader)
    assert terminal.process.wait(10) in (129, -1)


def test_global_options_may_stand_before_the_verb(program: str) -> None:
    assert call("-q", "run", program, "out", "x").stdout == b"x\n"
    assert call("--project", "p", "run", program, "exit", "3").returncode == 3


@pytest.mark.parametrize("closed", [(0,), (1,), (0, 1, 2)])
def test_closed_descriptors_are_not_somebody_else_s(program: str, closed: tuple[int, ...]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    done = call("run", program, "cat", preexec_fn=close)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_the_result_is_printed_as_json(program: str) -> None:
    done = call("run", "-o", "json", program, "out", "x")
    assert b'"stdout": "x\\n"' in done.stdout and b'"code": 0' in done.stdout


def test_python_runs_it_too(program: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("here")
    assert roost.run(program, "out", "a b", "ä").stdout == "a b ä\n"
    assert roost.run(program, "cat", stdin=b"\0\xff").stdout_bytes == b"\0\xff"
    assert roost.run(program, "cat", stdin="text").stdout == "text"
    assert roost.run(program, "read", "in.txt", fs=["in.txt:ro"], cwd=tmp_path).stdout == "here"
    assert roost.run(program, "env", "K", env={"K": "v"}).stdout == "v\n"
    done = roost.run(program, "read", "in.txt", cwd=tmp_path)
    assert done.code == 1 and any("--fs" in line for line in done.refusals)
    assert "seccomp" in done.layers


def test_python_is_told_what_failed(program: str) -> None:
    with pytest.raises(CommandFailed, match="failed") as caught:
        roost.run(program, "exit", "3", check=True)
    assert "exit code 3" in caught.value.why
    assert roost.run(program, "wait", wall=0.2).ending.limit == "wall"
    with pytest.raises(Invalid):
        roost.run(program, memory="much")
    with pytest.raises(NotFound):
        roost.run("/nonexistent/x.wasm")


def test_python_runs_many_at_once(program: str) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=number: found.append(roost.run(program, "out", str(n)).stdout))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"{number}\n" for number in range(8)]


async def test_python_runs_it_beside_a_loop(program: str) -> None:
    done = await asyncio.gather(*(asyncio.to_thread(roost.run, program, "out", "x") for _ in range(3)))
    assert [each.stdout for each in done] == ["x\n"] * 3
