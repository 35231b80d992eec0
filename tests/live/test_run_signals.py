"""Signals and terminals of programs: what a shell does to a job works as for a program of the host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.runtimes import execution
from tests.needs import needs_program

pytestmark = [pytest.mark.live, needs_program("python3", "sh", "bash")]

DRIVER = """
import sys
from roost.runtimes import execution
from roost.runtimes.base import Policy, Request
ending = execution.run(Request("/usr/bin/python3", ("-uc", sys.argv[1]), Policy(wall=60), "/")).ending
print("ended", ending.code, ending.reason, ending.message, flush=True)
sys.exit(ending.code)
"""
COUNT = """
import signal, time
def caught(number, _):
    global times
    times += 1
    print("caught", number, times)
times = 0
for name in ("HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "CONT"):
    signal.signal(getattr(signal, "SIG" + name), caught)
print("rea" + "dy")
end = time.monotonic() + 30
while time.monotonic() < end:
    time.sleep(0.05)
"""
SIZES = """
import os, signal, time
def show(*_):
    print("size", *os.get_terminal_size(), os.isatty(0))
signal.signal(signal.SIGWINCH, show)
show()
print("rea" + "dy")
for _ in range(300):
    time.sleep(0.1)
"""


def environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(execution.__file__).parents[2])}


@contextlib.contextmanager
def supervised(program: str, *prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs the program, which has printed "ready"."""
    command = [*prefix, sys.executable, "-c", DRIVER, program]
    process = subprocess.Popen(command, env=environ(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


class Terminal:
    """An interactive shell on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.execvpe("bash", ["bash", "--norc", "--noediting", "-i"], {**environ(), "PS1": "$ "})
        self.seen = b""

    def type(self, text: bytes) -> None:
        os.write(self.descriptor, text)

    def wait_for(self, word: bytes, seconds: float = 20.0) -> bytes:
        """What was printed up to the word."""
        deadline = time.monotonic() + seconds
        while word not in self.seen:
            assert time.monotonic() < deadline, (word, self.seen)
            if select.select([self.descriptor], [], [], 0.2)[0]:
                self.seen += os.read(self.descriptor, 65536)
        before, _, self.seen = self.seen.partition(word)
        return before + word

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    shell = Terminal()
    shell.type(b"stty -echo; echo up$((1+1))\n")
    shell.wait_for(b"up2")
    yield shell
    shell.close()


def start(terminal: Terminal, tmp_path: Path, program: str) -> None:
    """Run a program from the shell; it prints "ready"."""
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "program.py").write_text(program)
    words = f'{sys.executable} {tmp_path}/driver.py "$(cat {tmp_path}/program.py)"'
    terminal.type(f"{words}; echo code=$?.\n".encode())
    terminal.wait_for(b"ready")


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "WINCH", "CONT"])
def test_a_signal_reaches_the_program_once(name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    with supervised(COUNT) as process:
        process.send_signal(number)
        assert line(process) == f"caught {int(number)} 1"
        time.sleep(0.3)
        process.send_signal(signal.SIGUSR1 if number != signal.SIGUSR1 else signal.SIGUSR2)
        assert line(process).endswith(" 2")


def test_a_signal_that_it_does_not_catch_ends_it() -> None:
    with supervised("import time; print('ready'); time.sleep(30)") as process:
        process.terminate()
        assert line(process) == "ended 143 signal it was killed by SIGTERM"
        assert process.wait() == 143


def test_a_second_interrupt_kills_it() -> None:
    with supervised(COUNT) as process:
        process.send_signal(signal.SIGINT)
        assert line(process) == "caught 2 1"
        process.send_signal(signal.SIGINT)
        assert line(process).startswith("ended 130 signal it did not end on Ctrl-C")


def test_what_was_to_be_ignored_stays_ignored() -> None:
    with supervised(COUNT, "nohup") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert line(process) == f"caught {int(signal.SIGUSR1)} 1"


def test_ctrl_c_reaches_it_once(terminal: Terminal, tmp_path: Path) -> None:
    start(terminal, tmp_path, COUNT)
    terminal.type(b"\x03")
    terminal.wait_for(b"caught 2 1")
    time.sleep(0.3)
    assert b"caught" not in terminal.seen
    time.sleep(2)  # not in a row with the next one
    terminal.type(b"\x1c")
    terminal.wait_for(b"caught 3 2")


def test_ctrl_c_ends_a_program_and_the_shell_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    start(terminal, tmp_path, "print('rea' + 'dy'); input()")
    terminal.type(b"\x03")
    terminal.wait_for(b"ended 130 signal")
    terminal.type(b"echo still $((40+2))\n")
    terminal.wait_for(b"still 42")


def test_ctrl_z_stops_the_job_and_fg_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    start(terminal, tmp_path, "print('rea' + 'dy'); print('got', input())")
    terminal.type(b"\x1a")
    terminal.wait_for(b"Stopped")
    terminal.type(b"jobs\n")
    terminal.wait_for(b"Stopped")
    terminal.type(b"fg\n")
    terminal.wait_for(b"driver.py")  # the shell names what goes on, and reads no more
    time.sleep(0.5)
    terminal.type(b"hello\n")
    terminal.wait_for(b"got hello")
    terminal.wait_for(b"ended 0 exit")


def test_it_sees_the_terminal_and_its_size(terminal: Terminal, tmp_path: Path) -> None:
    fcntl.ioctl(terminal.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "program.py").write_text(SIZES)
    terminal.type(f'{sys.executable} {tmp_path}/driver.py "$(cat {tmp_path}/program.py)"\n'.encode())
    terminal.wait_for(b"size 101 33 True")
    terminal.wait_for(b"ready")
    fcntl.ioctl(terminal.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 55, 0, 0))
    terminal.wait_for(b"size 55 44 True")
    assert b"size" not in terminal.seen


def test_the_end_of_the_terminal_ends_it(terminal: Terminal, tmp_path: Path) -> None:
    start(terminal, tmp_path, "import time; print('rea' + 'dy'); time.sleep(600)  # roost-hangup-mark")
    os.kill(terminal.pid, signal.SIGHUP)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _marked():
        time.sleep(0.1)
    assert not _marked()


def test_the_end_of_a_terminal_that_is_its_own_ends_it() -> None:
    pid, descriptor = pty.fork()
    if pid == 0:
        program = "import time; print('rea' + 'dy'); time.sleep(600)  # roost-hangup-mark"
        os.execve(sys.executable, [sys.executable, "-c", DRIVER, program], environ())
    seen = b""
    while b"ready" not in seen:
        seen += os.read(descriptor, 4096)
    os.close(descriptor)
    os.waitpid(pid, 0)
    assert not _marked()


def _marked() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"roost-hangup-mark" in (entry / "cmdline").read_bytes():
                found.append(entry.name)
    return found


def test_input_ends_where_ours_ends() -> None:
    program = "import sys; print('got', repr(sys.stdin.read()))"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, program],
        env=environ(),
        input=b"a\0b",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.startswith(b"got 'a\\x00b'\n")
