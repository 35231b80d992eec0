"""How a boxed program ends, what a start that fails leaves, and what holds on a host without namespaces."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from roost.errors import NotStarted, Unavailable
from roost.host import boxed, kernel
from roost.host.sandbox import start
from roost.runtimes.base import Mount
from tests import boxes
from tests.boxes import box, children, status_of
from tests.needs import needs_root
from tests.ordinary import WHO, run_as


@pytest.mark.parametrize(
    ("script", "ended"), [("exit 255", "exit 255"), ("kill -SEGV $$", "signal 11"), ("exit 0", "exit 0")]
)
def test_tells_exactly_how_the_program_ended(script: str, ended: str) -> None:
    assert boxes.run(box("/bin/sh", "-c", script)).ended == f"ended {ended}"


def test_passes_signals_on_to_the_program() -> None:
    started = start(box("/bin/sleep", "600"))
    started.link.send(b"signal 15")
    assert started.link.recv(64) == b"ended signal 15"
    boxes.end(started)


def test_what_the_program_left_running_ends_with_the_link() -> None:
    read, write = os.pipe()
    started = start(box("/bin/sh", "-c", "sleep 600 & sleep 600 & exit 3", fds={1: write}))
    os.close(write)
    assert started.link.recv(64) == b"ended exit 3"
    boxes.end(started)
    assert os.read(read, 1) == b""
    os.close(read)


def kill_a_supervisor() -> float:
    """Seconds until nobody inside held the other end of a pipe."""
    read, write = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        script = "sleep 600 & trap '' TERM HUP INT; sleep 600; sleep 600"
        start(box("/bin/sh", "-c", script, fds={1: write}))
        os.write(write, b"started")
        signal.pause()
    os.close(write)
    os.read(read, 64)
    os.kill(supervisor, signal.SIGKILL)
    os.waitpid(supervisor, 0)
    before = time.monotonic()
    assert os.read(read, 1) == b""
    os.close(read)
    return time.monotonic() - before


@pytest.mark.parametrize("who", WHO)
def test_the_death_of_the_supervisor_is_the_end_of_all(who: str) -> None:
    async def main() -> float:
        return kill_a_supervisor()

    assert run_as(who, main) < 2


def everything_of_ours() -> tuple[int, int]:
    descriptors = sum(1 for _ in Path("/proc/self/fd").iterdir())
    return descriptors, len(children(os.getpid()))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"argv": ("/bin/nothing",)}, "/bin/nothing"),
        ({"mounts": (("/no/such", "/x", "read", False),)}, "/no/such"),
        ({"mounts": (("/etc/hostname", "/usr/new", "read", False),)}, "Read-only"),
        ({"cwd": "/usr/none"}, "Read-only"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_nothing(changes: dict[str, Any], why: str) -> None:
    before = everything_of_ours()
    with pytest.raises(NotStarted, match=why):
        start(box("/bin/true")._replace(**changes))
    assert everything_of_ours() == before


def test_a_run_leaves_nothing() -> None:
    boxes.run(box("/bin/true"))
    before = everything_of_ours()
    mounts = Path("/proc/self/mountinfo").read_text()
    for _ in range(5):
        boxes.run(box("/bin/true"))
    assert everything_of_ours() == before
    assert Path("/proc/self/mountinfo").read_text() == mounts


@needs_root
@pytest.mark.parametrize("who", ["root", "user"])
def test_without_namespaces_landlock_and_seccomp_hold_and_the_missing_are_named(who: str) -> None:
    async def main() -> tuple[str, tuple[str, ...], tuple[str, ...], dict[str, str]]:
        ran = boxes.run(
            box("/bin/sh", "-c", "cat /etc/shadow; echo x >/tmp/roost-none; ls /usr >/dev/null && echo fine")
        )
        started = start(box("/bin/sleep", "600"))
        (program,) = children(started.pid)
        status = status_of(program)
        boxes.end(started)
        return ran.output, started.layers, started.missing, status

    output, layers, missing, status = run_as(who, main, namespaces=False)
    assert output.count("ermission denied") == 2
    assert output.endswith("fine\n")
    assert layers == ("no capabilities", "no new privileges", "resource limits", "seccomp", "landlock")
    assert {entry.partition(":")[0] for entry in missing} == {*boxed.NAMESPACES, "minimal root", "own uid"}
    assert (int(status["CapEff"], 16), status["Seccomp"], status["NoNewPrivs"]) == (0, "2", "1")


@needs_root
@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"mounts": (Mount("/usr", "/elsewhere"),)}, "it needs /elsewhere in a root of its own"),
        ({"doors": (("192.0.2.1", 80),)}, "--net needs a network namespace"),
    ],
    ids=["mount", "net"],
)
def test_what_only_namespaces_can_do_is_refused_in_words_where_there_are_none(more: dict[str, Any], named: str) -> None:
    async def main() -> str:
        try:
            start(box("/bin/true", **more))
        except NotStarted as error:
            return error.why
        return "it started"

    assert run_as("user", main, namespaces=False).startswith(named)


@needs_root
def test_without_namespaces_too_all_ends_with_the_link() -> None:
    async def main() -> bool:
        read, write = os.pipe()
        started = start(box("/bin/sh", "-c", "sleep 600 & setsid sleep 600 & exit 3", fds={1: write}))
        os.close(write)
        started.link.recv(64)
        boxes.end(started)
        return os.read(read, 1) == b""

    assert run_as("user", main, namespaces=False)


@needs_root
def test_a_required_layer_that_is_missing_stops_the_start() -> None:
    async def main() -> str:
        try:
            start(box("/bin/true", require=("seccomp", "pid namespace")))
        except Unavailable as error:
            return error.why
        return "it started"

    assert "pid namespace" in run_as("user", main, namespaces=False)


def test_a_file_on_stdin_can_be_opened_again_but_only_as_it_was_given() -> None:
    async def main() -> tuple[str, str]:
        path = Path(os.environ.get("TMPDIR", "/tmp")) / f"stdin-{os.getpid()}"
        path.write_text("given")
        path.chmod(0o666)
        given = os.open(path, os.O_RDONLY)
        read, write = os.pipe()
        started = start(
            box("/bin/sh", "-c", "cat /dev/stdin; echo x > /proc/self/fd/0", fds={0: given, 1: write, 2: write})
        )
        os.close(write)
        with open(read) as file:
            output = file.read()
        boxes.end(started)
        kept = path.read_text()
        path.unlink()
        return output, kept

    output, kept = run_as(WHO[-1], main)
    assert output.startswith("given")
    assert "ermission denied" in output
    assert kept == "given"


def test_a_watched_connect_is_told_and_answered_by_the_supervisor() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 443))"
    started = start(box("/usr/bin/python3", "-c", code, watch="connect", fds={2: os.open(os.devnull, os.O_WRONLY)}))
    assert started.notify >= 0
    boxes.end(started)


@pytest.mark.parametrize("bits", [kernel.NEWUSER, kernel.NEWNET])
def test_a_fork_into_namespaces_is_a_whole_python(bits: int) -> None:
    pid = kernel.clone(kernel.NEWUSER | bits)
    if pid == 0:
        os._exit(7 if os.getpid() > 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize("who", WHO)
def test_threads_of_a_caller_start_and_end_their_programs_side_by_side(who: str) -> None:
    async def main() -> list[str]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda number: boxes.run(box("/bin/sh", "-c", f"exit {number}")).ended, range(12)))

    assert run_as(who, main) == [f"ended exit {number}" for number in range(12)]
