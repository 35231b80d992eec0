"""A lab for the conformance suite of runtimes: `roost run` as a process, in a directory of its own, with the status document read."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from roost.testing.lab import PATIENCE, Ran
from tests.pool import CACHE

ROOST = (sys.executable, "-P", "-c", "import sys; from roost.cli.main import main; sys.exit(main())")
MARK = "ROOST_TEST_MARK"


def environment(**more: str) -> dict[str, str]:
    """What every run is given: a cache that all tests share, and no zygote."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ROOST_")}
    return {
        **kept,
        "ROOST_CACHE": str(CACHE / "run"),
        "ROOST_ZYGOTE": "0",
        "SECRET": "SECRET",
        "PASSED": "as it is",
        **more,
    }


class Process:
    """One `roost run` under way."""

    def __init__(
        self, argv: Sequence[str], place: Path, environ: dict[str, str], streams: dict[str, Any], *, status: bool
    ) -> None:
        ours, theirs = os.pipe()
        leak = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(leak, True)
        told = ["--status-json", str(theirs)] if status else []
        self._child = subprocess.Popen(
            [*ROOST, "run", *told, *argv], cwd=place, env=environ, pass_fds=(theirs, leak), **streams
        )
        os.close(theirs)
        os.close(leak)
        self._status = ours
        self._kept = b""

    def line(self) -> str:
        while b"\n" not in self._kept:
            piece = self._read()
            assert piece, f"no line: {self._kept!r} {self._errors()!r}"
            self._kept += piece
        line, _, self._kept = self._kept.partition(b"\n")
        return line.decode().rstrip("\r")

    def _read(self) -> bytes:
        assert self._child.stdout is not None
        assert select.select([self._child.stdout], [], [], PATIENCE)[0], "it says nothing"
        return os.read(self._child.stdout.fileno(), 1 << 16)

    def _errors(self) -> bytes:
        self._child.kill()
        assert self._child.stderr is not None
        return self._child.stderr.read()

    def say(self, data: bytes) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(data)
        self._child.stdin.flush()

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def leave(self) -> None:
        assert self._child.stdout is not None
        self._child.stdout.close()
        self._child.stdout = None

    def wait(self, stdin: bytes | None = None) -> Ran:
        try:
            out, err = self._child.communicate(stdin, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            raise AssertionError("it does not end") from None
        with os.fdopen(self._status, "rb") as status:
            text = status.read()
        code = self._child.returncode
        status_document = json.loads(text) if text else _Untold()
        return Ran(code if code >= 0 else 128 - code, self._kept + (out or b""), err or b"", status_document)


class _Untold(dict[str, Any]):
    """The status of a run that writes none."""

    def __missing__(self, name: str) -> Any:
        pytest.skip(f"who asks for the status ({name}) is not served by the zygote")


class Laboratory:
    """See `roost.testing.lab.Lab`."""

    def __init__(
        self, runtime: str, program: Path, place: Path, before: Sequence[str] = (), zygote: Path | None = None
    ) -> None:
        """`zygote` is the directory of one that runs are to go through; these write no status."""
        self.runtime = runtime
        self.program = program
        self.place = place
        self._before = before
        self._mark = uuid.uuid4().hex
        self._zygote = zygote

    def _process(self, words: Sequence[str], streams: dict[str, Any]) -> Process:
        chosen = {} if self._zygote is None else {"ROOST_ZYGOTE": "1", "ROOST_RUN": str(self._zygote)}
        environ = environment(**{MARK: self._mark}, **chosen)
        return Process(words, self.place, environ, streams, status=self._zygote is None)

    def _words(self, arguments: Sequence[str], flags: Sequence[str], program: Path | None = None) -> list[str]:
        return [*self._before, *flags, str(program or self.program), *arguments]

    def run(
        self, *arguments: str, flags: Sequence[str] = (), stdin: bytes | None = b"", program: Path | None = None
    ) -> Ran:
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
        if stdin is None:
            streams |= {"stdin": None, "preexec_fn": lambda: os.close(0)}
        return self._process(self._words(arguments, flags, program), streams).wait(stdin)

    def start(self, *arguments: str, flags: Sequence[str] = ()) -> Process:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE}
        return self._process(self._words(arguments, flags), streams)

    def on_terminal(self, *arguments: str) -> Ran:
        leader, terminal = pty.openpty()
        streams = {"stdin": terminal, "stdout": terminal, "stderr": terminal, "start_new_session": True}
        process = self._process(self._words(arguments, ()), streams)
        os.close(terminal)
        ran = process.wait()
        text = b""
        try:
            while piece := os.read(leader, 1 << 16):
                text += piece
        except OSError:  # EIO: nobody has the other side open any more
            os.close(leader)
        return ran._replace(out=text)

    def leftovers(self) -> list[str]:
        deadline = time.monotonic() + 5
        while (left := _marked(self._mark)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left


def _marked(mark: str) -> list[str]:
    """Processes whose environment at their start, or that of the `roost run` they came from, held the mark."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            try:
                if mark.encode() in (directory / "environ").read_bytes() + (directory / "cmdline").read_bytes():
                    found.append(f"{directory.name} {(directory / 'cmdline').read_bytes()!r}")
            except OSError:
                continue
    return found


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process, however."""
    process.send_signal(signal.SIGKILL)
    process.wait()
