"""The examples of docs/howto that can be run as they stand."""

from __future__ import annotations

import json
import os
import py_compile
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.checkout import ROOT
from tests.daemon import ROOST, Daemon

HOWTO = ROOT / "docs/howto"


def blocks(document: str, language: str) -> list[str]:
    """The blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", (HOWTO / document).read_text(), re.MULTILINE | re.DOTALL)


FOLLOW = "import doctest, sys; done = doctest.testfile(sys.argv[1], module_relative=False); print(done.attempted); sys.exit(done.failed)"


def test_webassembly_from_python_says_what_happens() -> None:
    # In a process of its own: what runs WASI in itself leaves threads of wasmtime to all tests after it.
    document = str(HOWTO / "webassembly-from-python.md")
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, document], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) >= 20


@pytest.fixture
def with_runtime(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python into which the package of the document is installed."""
    (code,), (project,) = blocks("bring-a-runtime.md", "python"), blocks("bring-a-runtime.md", "toml")
    package = tomllib.loads(project)["project"]
    site = tmp_path / "site"
    about = site / f"{package['name'].replace('-', '_')}-{package['version']}.dist-info"
    about.mkdir(parents=True)
    (site / "roost_pyc.py").write_text(code)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package['name']}\nVersion: {package['version']}\n")
    points = package["entry-points"]["roost.runtimes"]
    (about / "entry_points.txt").write_text("[roost.runtimes]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    return {"PYTHONPATH": str(site)}


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    """hello.pyc, for the interpreter that the document names; the test is skipped where it is of another version than this one."""
    source, made = tmp_path / "hello.py", tmp_path / "hello.pyc"
    source.write_text("import sys; print('hello', *sys.argv[1:]); sys.exit(len(sys.argv))")
    py_compile.compile(str(source), str(made), doraise=True)
    if subprocess.run(["/usr/bin/python3", made], capture_output=True, check=False).returncode != 1:
        pytest.skip("/usr/bin/python3 can not run what this Python compiles")
    return made


def roost(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A verb that needs no daemon."""
    return subprocess.run(
        [*ROOST, *words], env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_runtime_of_a_package_runs_its_files(with_runtime: dict[str, str], compiled: Path) -> None:
    done = roost(with_runtime, "run", "--require", "seccomp", str(compiled), "you")
    assert (done.stdout, done.stderr, done.returncode) == ("hello you\n", "", 2)
    assert json.loads(roost(with_runtime, "inspect", "-o", "json", str(compiled)).stdout)["runtime"] == "pyc"
    assert roost({}, "run", str(compiled)).returncode == 127


def test_the_daemon_keeps_programs_of_such_a_runtime(with_runtime: dict[str, str], compiled: Path) -> None:
    daemon = Daemon(**with_runtime)
    try:
        daemon.start().roost("run", "--detach", "--name", "hello", str(compiled), "you")
        said = daemon.roost("logs", "hello", "--follow")
        shown = daemon.json("show", "hello")["status"]
        assert (said.stdout, shown["runtime"], shown["exit"]["code"]) == ("hello you\n", "pyc", 2)
    finally:
        left = daemon.close()
    assert not left


def test_a_runtime_that_does_not_load_is_passed_over_unless_it_is_asked_for(
    with_runtime: dict[str, str], compiled: Path
) -> None:
    (Path(with_runtime["PYTHONPATH"]) / "roost_pyc.py").write_text("import nothing_of_this_name")
    assert roost(with_runtime, "run", str(compiled)).returncode == 127
    asked = roost(with_runtime, "run", "--vm", "pyc", str(compiled))
    assert asked.returncode == 126
    assert "nothing_of_this_name" in asked.stderr
