"""exec, shell and console on a real terminal (a pseudo terminal): raw while the guest has it, put back afterwards."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.client.served import Echo, Served, Talkers


class Terminal:
    """A command on a pseudo terminal."""

    def __init__(self, socket: Path, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        environment = {**os.environ, "ROOST_HOST": f"unix:{socket}", "TERM": "xterm"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "roost.cli.main", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        self.seen = b""

    def until(self, text: bytes) -> bytes:
        while text not in self.seen:
            assert select.select([self.ours], [], [], 10)[0], self.seen
            self.seen += os.read(self.ours, 65536)
        return self.seen

    def type(self, text: bytes) -> None:
        os.write(self.ours, text)

    def end(self) -> int:
        return self.process.wait(10)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.ours)
        os.close(self.theirs)


@pytest.fixture(scope="module")
def web(daemon: Served) -> str:
    environment = {**os.environ, "ROOST_HOST": f"unix:{daemon.socket}"}
    subprocess.run(
        [sys.executable, "-m", "roost.cli.main", "launch", "tiny", "web", "-q"],
        env=environment,
        capture_output=True,
        check=True,
    )
    return "web"


@pytest.fixture
def terminals(daemon: Served) -> Iterator[list[Terminal]]:
    found: list[Terminal] = []
    yield found
    for terminal in found:
        terminal.close()


def opened(terminals: list[Terminal], daemon: Served, *words: str) -> Terminal:
    terminals.append(Terminal(daemon.socket, *words))
    return terminals[-1]


def test_keys_reach_the_guest_as_they_are_pressed(terminals: list[Terminal], daemon: Served, web: str) -> None:
    terminal = opened(terminals, daemon, "exec", web, "--", "cat")
    terminal.until(b"cat\n")
    terminal.type(b"\x03\x1a~")
    assert b"\x03\x1a~" in terminal.until(b"~")
    assert b"^C" not in terminal.seen


def test_signals_and_sizes_reach_the_guest_and_the_terminal_is_put_back(
    terminals: list[Terminal], daemon: Served, web: str
) -> None:
    guest = daemon.guest(web)
    guest.answering = agent = Talkers()
    terminal = opened(terminals, daemon, "shell", web)
    terminal.until(b"-l; done")
    assert termios.tcgetattr(terminal.theirs) != terminal.before
    fcntl.ioctl(terminal.theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, 132, 0, 0))
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.end() == 0
    (session,) = agent.sessions
    assert session.signals == [signal.SIGTERM]
    assert session.sizes[0] == (24, 80)
    assert session.sizes[-1] == (50, 132)
    assert termios.tcgetattr(terminal.theirs) == terminal.before


def test_control_bracket_leaves_the_console_and_the_machine_goes_on(
    terminals: list[Terminal], daemon: Served, web: str
) -> None:
    daemon.guest(web).console = Echo()
    terminal = opened(terminals, daemon, "console", web)
    terminal.until(b"login: ")
    terminal.type(b"root\r")
    terminal.until(b"root\r")
    terminal.type(b"\x1d")
    assert terminal.end() == 0
    assert b"goes on" in terminal.until(b"goes on")
    assert termios.tcgetattr(terminal.theirs) == terminal.before
