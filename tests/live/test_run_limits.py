"""Limits of programs: each names itself, holds what it says, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from roost.errors import Invalid, NotFound, NotStarted, RoostError
from roost.host import kernel, processes
from roost.runtimes import execution, native  # noqa: F401 - native, before an ordinary user can no longer read it
from roost.runtimes.base import GiB, KiB, MiB, Policy, Request, Result
from tests.needs import needs_program, needs_root
from tests.ordinary import WHO, run_as

pytestmark = [pytest.mark.live, needs_program("python3", "sh")]

PYTHON, SHELL = "/usr/bin/python3", "/bin/sh"
DRIVER = """
import sys
from roost.runtimes import execution
from roost.runtimes.base import Policy, Request
request = Request(sys.argv[1], tuple(sys.argv[2:]), Policy(memory=64 << 20, output=1 << 20), "/")
sys.exit(execution.run(request).ending.code)
"""
BOMB = """
import os, time
made = 0
try:
    while made < 4000:
        if os.fork() == 0:
            time.sleep(600)
        made += 1
except OSError as error:
    print(made, error.errno, flush=True)
"""

SHARED = """
import mmap, os, time
shared = mmap.mmap(-1, 48 << 20)
shared.write(b"x" * (48 << 20))
for _ in range(6):
    if os.fork() == 0:
        shared.find(b"y")
        time.sleep(0.4)
        os._exit(0)
time.sleep(0.6)
"""


def run(who: str, file: str, *arguments: str, policy: Policy | None = None, namespaces: bool = True) -> Result:
    async def main() -> Result:
        return execution.run(Request(file, arguments, policy or Policy(), "/"), capture=True)

    result: Result = run_as(who, main, namespaces=namespaces)
    return result


def inside() -> list[str]:
    """Processes that have "roost-live-mark" on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            command = b""
        if b"roost-live-mark" in command:
            found.append(entry.name)
    return found


def wait_until_none(seconds: float = 10.0) -> list[str]:
    deadline = time.monotonic() + seconds
    while (left := inside()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


@pytest.mark.parametrize("who", WHO)
def test_wall_time(who: str) -> None:
    begin = time.monotonic()
    result = run(who, SHELL, "-c", "sleep 600 & sleep 600", policy=Policy(wall=0.4))
    assert (result.ending.code, result.ending.reason, result.ending.limit) == (124, "limit", "wall")
    assert "0.4 s" in result.ending.message
    assert "--wall" in result.ending.message
    assert 0.4 <= result.timing["run"] <= time.monotonic() - begin < 5


@pytest.mark.parametrize("who", WHO)
def test_cpu_time_of_one_process(who: str) -> None:
    result = run(who, SHELL, "-c", "while :; do :; done", policy=Policy(cpu_time=0.5, wall=60))
    assert (result.ending.code, result.ending.limit) == (124, "cpu_time")
    assert 0.4 <= result.usage["cpu"] < 3


def test_cpu_time_counts_all_processes_together() -> None:
    spin = "for i in 1 2 3 4; do (while :; do :; done) & done; wait"
    result = run("root" if "root" in WHO else "user", SHELL, "-c", spin, policy=Policy(cpu_time=0.8, wall=60))
    assert (result.ending.code, result.ending.limit) == (124, "cpu_time")
    assert result.usage["cpu"] < 4, "four times as much would be a limit of each process"


def test_a_program_that_waits_uses_no_cpu_time() -> None:
    result = run(WHO[0], SHELL, "-c", "sleep 1", policy=Policy(cpu_time=0.5))
    assert result.ending.code == 0


@pytest.mark.fault(48)
@pytest.mark.parametrize("who", WHO)
def test_memory_of_all_processes_together(who: str) -> None:
    hungry = "import os\nos.fork(); os.fork()\nx = []\nwhile len(x) < 250: x.append(os.urandom(1 << 16) * 16)"
    result = run(who, PYTHON, "-c", hungry, policy=Policy(memory=128 * MiB, wall=60))
    assert (result.ending.code, result.ending.limit) == (124, "memory")
    assert "128MiB" in result.ending.message
    assert result.usage["memory"] < GiB, "it is stopped soon after"


def test_shared_memory_counts_once() -> None:
    shared = SHARED
    assert run(WHO[0], PYTHON, "-c", shared, policy=Policy(memory=128 * MiB)).ending.code == 0
    anonymous = shared.replace("48 <<", "160 <<")
    assert run(WHO[0], PYTHON, "-c", anonymous, policy=Policy(memory=128 * MiB)).ending.limit == "memory"


@pytest.mark.parametrize("who", WHO)
def test_memory_that_is_in_no_address_space_counts(who: str) -> None:
    hungry = "import os\nfile = os.memfd_create('x')\nfor _ in range(600): os.write(file, bytes(1 << 20))\nimport time; time.sleep(2)"
    result = run(who, PYTHON, "-c", hungry, policy=Policy(memory=128 * MiB, wall=20))
    assert (result.ending.code, result.ending.limit) == (124, "memory")


@needs_root
def test_a_control_group_holds_the_memory_when_it_is_required() -> None:
    hungry = "x = bytearray(400 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1"
    try:
        policy = Policy(memory=64 * MiB, wall=60, require=("control group",))
        result = execution.run(Request(PYTHON, ("-c", hungry), policy, "/"), capture=True)
    except RoostError as error:
        pytest.skip(f"no control group here: {error}")
    assert (result.ending.code, result.ending.limit) == (124, "memory")
    assert "control group" in result.layers
    assert not list(Path("/sys/fs/cgroup").glob(f"**/program-{os.getpid()}"))


@pytest.mark.fault(64)
@pytest.mark.parametrize("who", WHO)
def test_an_output_flood_ends_at_the_limit(who: str) -> None:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536); os.write(2, b'y' * 100)"
    result = run(who, PYTHON, "-c", flood, policy=Policy(output=MiB, wall=10))
    assert (result.ending.code, result.ending.limit) == (124, "output")
    assert len(result.stdout) + len(result.stderr) == MiB


@pytest.mark.fault(64)
def test_a_flood_that_is_captured_is_bounded_without_a_limit_too() -> None:
    flood = "import os\nwhile True: os.write(1, b'x' * 65536)"
    result = run(WHO[0], PYTHON, "-c", flood, policy=Policy(wall=60))
    assert (result.ending.code, result.ending.limit) == (124, "output")
    assert len(result.stdout) == 64 * MiB


def test_exactly_the_limit_is_no_flood() -> None:
    result = run(WHO[0], PYTHON, "-c", "print('x' * 1023)", policy=Policy(output=KiB))
    assert (result.ending.code, len(result.stdout)) == (0, KiB)


def test_counted_output_arrives_in_order_and_whole(tmp_path: Path) -> None:
    place = tmp_path / "out"
    with place.open("wb") as file:
        request = Request(
            SHELL, ("-c", "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done"), Policy(output=MiB)
        )
        result = execution.run(request, stdout=file.fileno(), stderr=file.fileno())
    assert result.ending.code == 0
    assert place.read_text() == "".join(f"line {number}\n" for number in range(5000))


def test_wall_time_holds_while_nobody_reads_the_output() -> None:
    source, sink = os.pipe()
    request = Request(SHELL, ("-c", "while :; do echo line; done"), Policy(output=64 * MiB, wall=0.5))
    begin = time.monotonic()
    reader = subprocess.Popen([SHELL, "-c", "sleep 1; cat >/dev/null"], stdin=source)
    os.close(source)
    result = execution.run(request, stdout=sink)
    os.close(sink)
    reader.wait()
    assert result.ending.limit == "wall"
    assert time.monotonic() - begin < 10


def test_output_that_waits_for_its_reader_costs_nothing_and_can_be_interrupted() -> None:
    source, sink = os.pipe()
    code = "import os; os.write(1, bytes(100000))"
    driver = os.fork()
    if driver == 0:
        try:
            os.close(source)
            execution.run(Request(PYTHON, ("-c", code), Policy(output=MiB)), stdout=sink)
        finally:
            os._exit(7)
    os.close(sink)
    time.sleep(1.5)
    used = processes.cpu_seconds(driver)
    os.kill(driver, signal.SIGTERM)
    status = os.waitpid(driver, 0)[1]
    os.close(source)
    assert os.waitstatus_to_exitcode(status) == 7
    assert used < 0.7, "it slept"


def test_a_reader_that_goes_away_ends_the_program() -> None:
    source, sink = os.pipe()
    os.close(source)
    result = execution.run(
        Request(SHELL, ("-c", "while :; do echo line; done"), Policy(output=MiB, wall=30)), stdout=sink
    )
    os.close(sink)
    assert result.ending.signal == signal.SIGPIPE


@pytest.mark.fault(68)
@pytest.mark.parametrize("who", WHO)
def test_a_fork_bomb_ends_at_the_limit_of_processes(who: str) -> None:
    result = run(who, PYTHON, "-c", BOMB, policy=Policy(processes=40, wall=20))
    made, number = map(int, result.stdout.split()[:2])
    assert (result.ending.code, number) == (0, 11), "EAGAIN"
    assert made <= 40


@pytest.mark.parametrize("who", WHO)
def test_open_files(who: str) -> None:
    eager = "import os\ntry:\n  while True: last = os.dup(0)\nexcept OSError as error: print(last, error.errno)"
    result = run(who, PYTHON, "-c", eager, policy=Policy(files=64))
    assert result.stdout.split() == [b"63", b"24"]


def test_what_it_left_running_ends_with_it() -> None:
    result = run(WHO[0], SHELL, "-c", "(sleep 600; echo roost-live-mark) & echo started")
    assert (result.ending.code, result.stdout) == (0, b"started\n")
    assert result.timing["run"] < 5
    assert not wait_until_none()


def start_supervisor(who: str, output: int) -> int:
    """A process of that user that runs a stubborn program; its pid."""
    stubborn = "import os, time, signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nos.fork()\nprint('up', flush=True)\ntime.sleep(600)"
    pid = os.fork()
    if pid == 0:
        try:
            if who == "user" and os.getuid() == 0:
                os.setgroups([])
                os.setresgid(12345, 12345, 12345)
                os.setresuid(12345, 12345, 12345)
                kernel.prctl(kernel.PR_SET_DUMPABLE, 1)
            execution.run(Request(PYTHON, ("-c", stubborn, "roost-live-mark"), Policy(output=MiB)), stdout=output)
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize("who", WHO)
def test_a_supervisor_that_is_killed_leaves_nothing(who: str) -> None:
    source, sink = os.pipe()
    pid = start_supervisor(who, sink)
    os.close(sink)
    assert os.read(source, 3) == b"up\n"
    assert len(inside()) >= 2
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(source)
    assert not wait_until_none()


def test_a_layer_that_is_not_known_is_refused_before_anything_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    policy = Policy(require=("moat",))
    with pytest.raises(Invalid, match="moat"):
        execution.run(Request(SHELL, ("-c", f"touch {mark}"), policy))
    assert not mark.exists()


@needs_root  # only root can make such a host
@pytest.mark.parametrize("who", WHO)
def test_a_host_without_namespaces_holds_the_limits_and_says_what_is_missing(who: str) -> None:
    result = run(who, SHELL, "-c", "sleep 600 & sleep 600", policy=Policy(wall=0.4), namespaces=False)
    assert result.ending.limit == "wall"
    assert {"seccomp", "landlock", "watchdog"} <= set(result.layers)
    assert any(line.startswith("pid namespace: ") for line in result.missing)


@needs_root
@pytest.mark.parametrize("layer", ["pid namespace", "minimal root"])
def test_a_required_layer_that_is_missing_stops_the_run_before_it_begins(layer: str) -> None:
    async def main() -> str:
        try:
            execution.run(Request(SHELL, ("-c", "echo ran"), Policy(require=(layer,)), "/"), capture=True)
        except NotStarted as error:
            return f"{error.why}"
        return "it ran"

    assert layer in run_as("root", main, namespaces=False)


def test_the_watchdog_can_be_required() -> None:
    assert "watchdog" in execution.run(Request(SHELL, ("-c", ":"), Policy(require=("watchdog",)))).layers
    with pytest.raises(Invalid, match="watchdog"):
        execution.run(Request(SHELL, ("-c", ":"), Policy(require=("watchdog",), memory=None)))


def test_a_directory_to_lend_must_be_there(tmp_path: Path) -> None:
    from roost.runtimes.base import Grant

    with pytest.raises(NotFound, match="none") as caught:
        execution.run(Request(SHELL, ("-c", ":"), Policy(fs=(Grant(str(tmp_path / "none"), "/none", writable=True),))))
    assert caught.value.fix == f"mkdir -p {tmp_path / 'none'}"


@pytest.mark.parametrize("code", [0, 1, 2, 124, 125, 126, 127, 128, 130, 137, 255])
def test_every_exit_code_is_its_own(code: int) -> None:
    result = execution.run(Request(SHELL, ("-c", f"exit {code}")))
    assert (result.ending.code, result.ending.reason) == (code, "exit")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGTERM, 40])
def test_death_by_a_signal_is_told(number: int) -> None:
    result = execution.run(
        Request(PYTHON, ("-c", f"import os; os.kill(os.getpid(), {int(number)}); import time; time.sleep(9)"))
    )
    assert (result.ending.code, result.ending.reason, result.ending.signal) == (128 + number, "signal", number)


def test_closed_descriptors_become_null() -> None:
    code = "import sys; sys.stdin.read(); print('fine'); print('fine', file=sys.stderr)"
    environ = {**os.environ, "PYTHONPATH": str(Path(execution.__file__).parents[2])}
    for closed, ends in (("<&-", 0), (">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0)):
        line = f'exec "$0" -c "$1" "$2" -c "$3" {closed}'
        done = subprocess.run(
            [SHELL, "-c", line, sys.executable, DRIVER, PYTHON, code],
            env=environ,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )
        assert done.returncode == ends, (closed, done)


def test_nothing_turns_while_a_program_waits() -> None:
    before = time.process_time()
    execution.run(Request(SHELL, ("-c", "sleep 1.5"), Policy(memory=None, wall=60)))
    assert time.process_time() - before < 0.1


def test_no_descriptor_is_left() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    execution.run(Request(SHELL, ("-c", ":"), Policy(output=KiB)))
    before = count()
    for _ in range(3):
        execution.run(Request(SHELL, ("-c", "echo x"), Policy(output=KiB, wall=5)), capture=True)
    assert count() == before
