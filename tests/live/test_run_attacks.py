"""What hostile programs and clumsy callers do to `roost run`: nothing of it reaches the host, and every error says what to do."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from roost.runtimes import execution, script  # noqa: F401 - script, before an ordinary user can no longer read it
from roost.runtimes.base import Grant, MiB, Policy, Request, Result
from tests.conformance.laboratory import ROOST, environment
from tests.needs import needs_program, needs_root, repetitions
from tests.ordinary import WHO, run_as
from tests.programs.build import program

pytestmark = [pytest.mark.live, needs_program("python3", "setpriv")]

PYTHON = "/usr/bin/python3"
SPECIAL = """
import os, stat
for make in (
    lambda: os.open("/out/open", os.O_CREAT | os.O_WRONLY, 0o4755),
    lambda: os.open("/out", os.O_TMPFILE | os.O_WRONLY, 0o2755),
    lambda: os.mknod("/out/node", stat.S_IFREG | 0o4755),
    lambda: os.chmod("/out/kept", 0o6755),
    lambda: os.chmod(os.open("/out/kept", os.O_RDONLY), 0o4755),
    lambda: os.chmod("kept", 0o4755, dir_fd=os.open("/out", os.O_RDONLY)),
):
    try:
        make()
    except PermissionError:
        print("refused")
os.chmod("/out/kept", 0o755)
"""
SCORE = """
try:
    open("/proc/self/oom_score_adj", "w").write("0")
except OSError as error:
    print(error.strerror)
print(open("/proc/self/oom_score_adj").read())
"""
SOCKETS = """
import os, socket, time
kept = []
for _ in range(600):
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
        try:
            while True:
                end.send(bytes(65536))
        except BlockingIOError:
            pass
    kept.append(ends[{kept}])
    if len(kept) % 100 == 0:
        time.sleep(0.15)
time.sleep(1)
"""
TABLES = """
import mmap, time
size = 64 << 30
nothing = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, mmap.PROT_READ)
nothing.madvise(15)
for at in range(0, size, 2 << 20):
    nothing[at]
time.sleep(1)
"""
PROTOCOLS = """
import socket
for protocol in (132, 33, 262):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    except OSError as error:
        print(error.strerror)
"""


def run(who: str, text: str, policy: Policy | None = None, namespaces: bool = True) -> Result:
    async def main() -> Result:
        return execution.run(Request(PYTHON, ("-c", text), policy or Policy(), "/"), capture=True)

    result: Result = run_as(who, main, namespaces=namespaces)
    return result


@pytest.fixture(params=WHO)
def who(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.fault(62)
def test_no_file_in_a_lent_directory_gives_its_owners_rights_to_others(who: str, tmp_path: Path) -> None:
    """It would be the caller's, who may be root, and anybody on the host may execute it."""
    for path in (tmp_path, *tmp_path.parents[:3]):  # three with several workers of pytest
        path.chmod(0o755)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_bytes(b"")
    for path in (tmp_path / "out", tmp_path / "out/kept"):
        os.chown(path, 12345 if who == "user" else os.getuid(), -1)
    result = run(who, SPECIAL, Policy(fs=(Grant(str(tmp_path / "out"), "/out", True),)))
    assert (result.ending.code, result.stdout.split()) == (0, [b"refused"] * 6), result.stderr
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {"kept": 0o755}


@pytest.mark.fault(62)
def test_the_command_line_of_the_caller_is_not_shown(who: str) -> None:
    result = run(who, "print(open('/proc/1/cmdline').read().strip('\\0'))")
    assert (result.ending.code, result.stdout) == (0, b"\n"), result.stderr


@pytest.mark.fault(48)
def test_it_stays_the_first_to_go_when_memory_is_short(who: str) -> None:
    result = run(who, SCORE)
    assert result.ending.code == 0, result.stderr
    assert int(result.stdout.split()[-1]) >= 500


@pytest.mark.fault(48)
@pytest.mark.parametrize("kept", ["0:2", "0:1"], ids=["both ends", "the receiver alone"])
def test_what_waits_in_sockets_is_memory(who: str, kept: str) -> None:
    result = run(who, SOCKETS.format(kept=kept), Policy(memory=64 * MiB))
    assert result.ending.limit == "memory"


@pytest.mark.fault(48)
def test_page_tables_are_memory(who: str) -> None:
    assert run(who, TABLES, Policy(memory=64 * MiB)).ending.limit == "memory"


def test_no_module_of_the_kernel_is_loaded_for_a_protocol(who: str) -> None:
    result = run(who, PROTOCOLS)
    assert result.stdout.splitlines() == [b"Protocol not supported"] * 3


@needs_root
@pytest.mark.parametrize("lacking", ["-all", "-sys_admin", "-setfcap", "-setuid"])
def test_root_of_a_container_runs_programs(lacking: str) -> None:
    """Where it may not do what root may do, it runs them as an ordinary user would, or without namespaces."""
    words = [
        "setpriv",
        "--bounding-set",
        lacking,
        "--inh-caps",
        lacking,
        *ROOST,
        "run",
        str(program("probe")),
        "out",
        "x",
    ]
    done = subprocess.run(words, capture_output=True, timeout=30, check=False, env=environment())
    assert (done.returncode, done.stdout) == (0, b"x\n"), done.stderr


def call(*words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    how = {"stdin": subprocess.DEVNULL, "env": environment(), **how}
    return subprocess.run([*ROOST, "run", *words], capture_output=True, timeout=60, check=False, **how)


def told(done: subprocess.CompletedProcess[bytes]) -> str:
    """What an error says, which is what, why and the next step, and no traceback."""
    assert b"Traceback" not in done.stderr, done.stderr
    assert done.stderr.count(b"error: ") == 1, done.stderr
    assert b"\n  why: " in done.stderr, done.stderr
    assert b"\n  fix: " in done.stderr, done.stderr
    return done.stderr.decode()


@pytest.mark.parametrize("zygote", ["0", "1"])
def test_a_directory_that_was_removed_is_told(tmp_path: Path, zygote: str) -> None:
    (tmp_path / "gone").mkdir()
    command = f'cd {tmp_path}/gone && rmdir ../gone && exec "$@"'
    words = ["sh", "-c", command, "sh", *ROOST, "run", str(program("probe", "wasm")), "out", "x"]
    done = subprocess.run(
        words,
        capture_output=True,
        timeout=30,
        check=False,
        env=environment(ROOST_ZYGOTE=zygote, ROOST_RUN=str(tmp_path)),
    )
    assert "current directory" in told(done)
    assert done.returncode == 125


def test_a_status_that_nobody_can_be_told_is_told_before_anything_runs() -> None:
    done = call("--status-json", "99", str(program("probe")), "out", "x")
    assert (done.returncode, done.stdout) == (125, b"")
    assert "99>status.json" in told(done)


def test_too_few_descriptors_are_told() -> None:
    words = ["sh", "-c", 'ulimit -n 24; exec "$@"', "sh", *ROOST, "run", str(program("probe")), "out", "x"]
    done = subprocess.run(words, capture_output=True, timeout=30, check=False, env=environment())
    assert done.returncode == 125
    assert "ulimit -n 1024" in told(done)


def test_a_directory_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    done = call("--fs", f"{tmp_path}:/etc/passwd", str(program("probe")), "out", "x")
    assert done.returncode == 125
    assert "is a directory" in told(done)


WORDS = [
    *[
        "--memory",
        "--wall",
        "--cpu-time",
        "--processes",
        "--files",
        "--output",
        "--tmp",
        "--fuel",
        "--fs",
        "--net",
        "--env",
        "--publish",
        "--require",
        "--vm",
    ],
    *[
        "--learn",
        "--status-json",
        "--gui",
        "-o",
        "-q",
        "--",
        "-",
        "-1",
        "0",
        "1",
        "99999999999999999999",
        "1e9",
        "nan",
        "inf",
        "..",
        "/",
        "/proc",
        "/dev/null",
    ],
    *[
        ":",
        "::",
        "::",
        "a:b:c",
        "=x",
        "x=",
        "�",
        "\x1b[31m",
        "1s",
        "1MiB",
        "ro",
        ":ro",
        "*",
        "127.0.0.1:1",
        "[::1]:1",
        "0.0.0.0:0",
        "169.254.169.254:80",
        "wasm",
        "native",
    ],
]


def test_no_command_line_ends_in_a_traceback(tmp_path: Path) -> None:
    chance = random.Random(5)
    file = str(program("probe"))
    for _ in range(repetitions(12, 300)):
        words = chance.choices(WORDS, k=chance.randint(1, 5))
        done = call(*words, file, "exit", "0", cwd=tmp_path)
        assert b"Traceback" not in done.stderr, (words, done.stderr)
        assert b"a fault in Roost" not in done.stderr, (words, done.stderr)
        assert done.returncode in (0, 64, 124, 125, 126, 127), (words, done.stderr)


def left_of(mark: str) -> dict[int, str]:
    """The processes that have the mark in their environment, and their command lines."""
    found = {}
    for entry in Path("/proc").glob("[1-9]*"):
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue
    return found


def mounts() -> int:
    return len(Path("/proc/self/mountinfo").read_text().splitlines())


@pytest.mark.fault(68)
def test_whatever_is_killed_at_whatever_moment_nothing_is_left(tmp_path: Path) -> None:
    chance = random.Random(int(os.environ.get("ROOST_SEED", "7")))
    mark, mounted = str(tmp_path / "run"), mounts()
    native, wasm = str(program("probe")), str(program("probe", "wasm"))
    commands = [
        [wasm, "wait"],
        [native, "orphan"],
        ["--net", "127.0.0.1:9", "--fs", f"{tmp_path}:/out", native, "fork", "20"],
    ]
    for turn in range(repetitions(15, 300)):
        running = subprocess.Popen(
            [*ROOST, "run", *commands[turn % 3]],
            env=environment(ROOST_ZYGOTE=str(turn % 2), ROOST_RUN=mark),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time_out(chance.uniform(0.02, 0.3))
        os.kill(chance.choice([running.pid, *children(running.pid)]), signal.SIGKILL)
        running.kill()
        running.wait(timeout=20)
    for zygote in [pid for pid, words in left_of(mark).items() if "serve()" in words]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(zygote, signal.SIGKILL)
    end = time.monotonic() + 5
    while (left := left_of(mark)) and time.monotonic() < end:
        time_out(0.05)
    assert left == {}
    assert mounts() == mounted


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def time_out(seconds: float) -> None:
    signal.sigtimedwait([], seconds)
