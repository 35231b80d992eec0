"""Windows programs: exact arguments, ends and exceptions, Go and Rust programs, and a Windows that every run finds as new."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roost.errors import Invalid, Unavailable
from roost.runtimes import execution, wine, wine_prefix
from roost.runtimes.base import Found, Grant, MiB, Policy, Request
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.pool import CACHE
from tests.programs import managed
from tests.programs.build import program
from tests.programs.running import run, said
from tests.programs.third_party import Artefact, fetch

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(wine_prefix.installation() is None, reason="not installed: wine64"),
]

_WINDOWS = ("--platform", "win_amd64", "--only-binary", ":all:")
RUFF = Artefact("pip", "ruff", "0.17.6", "9cd2fd9923e9806b8b6b67a3469e2258e84bd4d21e45d5a1a690afdfb9c8e57d", _WINDOWS)
UV = Artefact("pip", "uv", "0.13.9", "6a44b2ed8111d2f60d2b92627c5dccda3f7ed7570b18ce115e569cd68c28246b", _WINDOWS)
NINJA = Artefact("pip", "ninja", "1.13.2", "1293f4078278b70d0ee4b6cc8f3a9e030656c9b2f59909970343c4fe76070118", _WINDOWS)
ESBUILD = Artefact(
    "npm", "@esbuild/win32-x64", "0.27.2", "2e673c044499751f79cfa2a45b85d8fe7ad52885bd17fa4c544053ee3d4a32b8"
)
WORDS = ("", "a b", "ünïcode", "日本", "--", 'q"\\', 'a\\\\"b', "trailing\\", "%PATH%", "^&|<>", "x" * 4000)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """One prepared Windows for all tests."""
    monkeypatch.setenv("ROOST_CACHE", str(CACHE / "run"))


@pytest.fixture
def probe() -> Path:
    """The probe as a Windows program."""
    return program("probe", "exe")


def test_arguments_and_ends_are_exact(probe: Path) -> None:
    assert said(run(probe, "args", *WORDS)).splitlines() == [word.encode().hex() for word in WORDS]
    assert [run(probe, "exit", str(code)).ending.code for code in (0, 1, 5, 77, 253, 255)] == [0, 1, 5, 77, 253, 255]
    assert run(probe, "cat", stdin=bytes(range(256)) * 999).stdout == bytes(range(256)) * 999
    assert said(run(probe, "compute", "1")) == said(run(program(), "compute", "1"))


@pytest.mark.parametrize(("verb", "number"), [("segv", signal.SIGSEGV), ("trap", signal.SIGILL)])
def test_an_exception_that_nobody_handles_is_the_signal_it_would_be_elsewhere(
    probe: Path, verb: str, number: int
) -> None:
    ending = run(probe, verb).ending
    assert (ending.code, ending.reason, ending.signal) == (128 + number, "signal", number)
    assert "the program ended by" in ending.message


def test_it_sees_the_current_directory_on_drive_z_and_only_what_is_granted(probe: Path, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("given")
    grant = (Grant(str(tmp_path), str(tmp_path), True),)
    inside = {"cwd": str(tmp_path), "fs": grant}
    assert said(run(probe, "cwd", **inside)) == "Z:" + str(tmp_path).replace("/", "\\") + "\n"
    assert said(run(probe, "read", "in.txt", **inside)) == "given"
    assert run(probe, "write", "out.txt", "made", **inside).ending.code == 0
    assert (tmp_path / "out.txt").read_text() == "made"
    assert b"missing" in run(probe, "read", str(tmp_path / "in.txt")).stderr
    assert b"missing" in run(probe, "read", "Z:\\etc\\shadow").stderr


def test_what_a_program_changes_in_its_windows_is_gone_afterwards(probe: Path) -> None:
    file = "C:\\windows\\system32\\mine.txt"
    assert run(probe, "write", file, "x").ending.code == 0
    assert b"missing" in run(probe, "read", file).stderr
    assert said(run(probe, "list", "C:\\users")) == said(run(probe, "list", "C:\\users"))


def test_the_prepared_windows_is_small_and_made_once(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_CACHE", str(tmp_path))
    told: list[str] = []
    for _ in range(2):
        result = execution.run(Request(str(probe), ("out", "hello")), capture=True, progress=told.append)
        assert result.stdout == b"hello\n"
    assert told == ["preparing Windows (once)"]
    (prefix,) = (path for path in (tmp_path / "wine").iterdir() if path.is_dir())
    sizes = [path.lstat().st_size for path in prefix.rglob("*") if not path.is_symlink()]
    assert sum(sizes) < 60 * MiB
    assert (prefix / "drive_c/windows/system32/bcryptprimitives.dll").exists()


def test_a_process_left_behind_does_not_hold_the_output_open(probe: Path) -> None:
    result = run(probe, "orphan", wall=20.0)
    assert (result.ending.code, result.ending.reason) == (0, "exit")


@pytest.mark.fault(91)
def test_raw_system_calls_meet_the_sandbox(tmp_path: Path) -> None:
    hostile = tmp_path / "raw.exe"
    hostile.write_bytes(managed.raw("exe").read_bytes())
    (tmp_path / "secret.txt").write_text("")
    tried = managed.refusals(run(hostile).stdout)
    assert len(tried) == 20
    assert {name for name, result in tried.items() if result >= 0} == set()


def test_a_connection_is_refused_with_the_flag_that_allows_it(probe: Path) -> None:
    result = run(probe, "connect", "192.0.2.1", "80")
    assert b"denied" in result.stderr
    assert "connect to 192.0.2.1:80; allow it with --net 192.0.2.1:80" in result.refusals


def test_memory_beyond_the_limit_ends_by_that_limit(probe: Path) -> None:
    ending = run(probe, "eat", "1500", memory=256 * MiB).ending
    assert (ending.code, ending.limit) == (124, "memory")


@pytest.mark.parametrize(("verb", "code"), [("wait", 130), ("handle", 42)])
def test_ctrl_c_reaches_it(probe: Path, verb: str, code: int) -> None:
    text = "import sys; from roost.runtimes import execution; from roost.runtimes.base import Request\n"
    text += f"sys.exit(execution.run(Request(sys.argv[1], ({verb!r},))).ending.code)"
    child = subprocess.Popen([sys.executable, "-c", text, str(probe)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"ready"
    child.send_signal(signal.SIGINT)
    assert child.wait(20) == code
    child.stdout.close()


def test_programs_of_rust_go_and_c_run(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import os\n")
    (tmp_path / "a.ts").write_text("let x: number = 1; export { x }\n")
    grant = (Grant(str(tmp_path), str(tmp_path)),)
    ruff, uv = next(fetch(RUFF).rglob("ruff.exe")), next(fetch(UV).rglob("uv.exe"))
    checked = run(ruff, "check", "--no-cache", "a.py", cwd=str(tmp_path), fs=grant)
    assert (checked.ending.code, b"F401" in checked.stdout, checked.stderr) == (1, True, b"")
    assert said(run(uv, "--version")).startswith("uv 0.13.9")
    assert said(run(next(fetch(NINJA).rglob("ninja.exe")), "--version")).startswith("1.13.2")
    built = run(next(fetch(ESBUILD).rglob("esbuild.exe")), "a.ts", "--minify", cwd=str(tmp_path), fs=grant)
    assert said(built) == "let e=1;export{e as x};\n"


def test_a_program_with_windows_is_refused_with_the_flag() -> None:
    with pytest.raises(Invalid) as refused:
        run(next(fetch(UV).rglob("uvw.exe")))
    assert "--gui" in refused.value.fix
    assert execution.exit_code(refused.value) == 125


@needs_program("Xvfb")
def test_windows_open_on_the_display_that_is_given(probe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, told = os.pipe()
    screen = subprocess.Popen(
        ["Xvfb", "-displayfd", str(told), "-nolisten", "tcp"], pass_fds=[told], stderr=subprocess.DEVNULL
    )
    try:
        os.close(told)
        with os.fdopen(ready) as number:
            monkeypatch.setenv("DISPLAY", f":{number.readline().strip()}")
        request = Request(str(probe), ("out", "hello"), Policy(gui=True))
        found = Found("exe", "x86_64", {"subsystem": "gui"})
        result = execution.run(request, found=found, capture=True)
        assert (result.ending.code, result.stdout) == (0, b"hello\n")
    finally:
        screen.kill()
        screen.wait()


def test_a_damaged_program_says_so_in_one_message(tmp_path: Path, probe: Path) -> None:
    damaged = tmp_path / "damaged.exe"
    damaged.write_bytes(probe.read_bytes()[:512])
    with pytest.raises(Unavailable):
        run(damaged)


@pytest.mark.parametrize("who", WHO)
def test_it_runs_for_everybody(who: str, probe: Path) -> None:
    source = probe.read_bytes()

    async def main() -> tuple[str, int]:
        file = Path(os.environ["HOME"]) / "probe.exe"
        file.write_bytes(source)
        os.environ["ROOST_CACHE"] = str(CACHE / "run") if who == "root" else str(file.parent / "cache")
        return said(run(file, "out", "hello")), run(file, "exit", "77").ending.code

    assert wine.Wine().name == "wine"  # loaded, before an ordinary user can no longer read the checkout
    assert run_as(who, main) == ("hello\n", 77)
