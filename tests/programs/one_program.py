"""Runs one real program in all its builds through `roost run` on the same input, and compares what they write; see scripts/one-program."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.programs.third_party import ESBUILD_WASI, Artefact, fetch

VERSION = "0.27.2"
_DIGESTS = {
    "linux-x64": "4ac0a36a8573ef6b612263661e7c77343a38789485344e1875cf33a498292310",
    "linux-arm64": "c9e85311c05560f3659902c605434a890c47bc2b18a740ef21661e4968543824",
    "linux-arm": "8e7c3f25fc503e8bdeb1eeeca7ef8d2324eb724babaca91637ea034e7b144d2d",
    "linux-loong64": "cf2a7e9d0060cbf80ecc6a7c7396bb37c7776e01ced7cb798d2211790e55457c",
    "linux-mips64el": "b83a8243f9e65cd73fa71b89a21450826d06eff5c61ff3aa2f3030d9c7e55fbd",
    "linux-ppc64": "b9d896f1c678e0773e710e918d7be815172bd2e001af209976048ea5d273c650",
    "linux-riscv64": "97587ba6578da1a540b87d7115ed8c76f5d00e3c6771a21429f5ca4c4572a34a",
    "linux-s390x": "4c7c48fd7efb5836d4de773fda3a2a28e9cdaef7fbc0a903745659fceedeb1b0",
    "win32-x64": "2e673c044499751f79cfa2a45b85d8fe7ad52885bd17fa4c544053ee3d4a32b8",
}
BUILDS = {
    **{name: Artefact("npm", f"@esbuild/{name}", VERSION, digest) for name, digest in _DIGESTS.items()},
    "wasi-preview1": ESBUILD_WASI,
}
"""All builds of the release that a Linux host may run. (The one for i386 is not among them: QEMU up to 7.2 breaks threads of Go on it.)"""
ROOST = (sys.executable, "-P", "-c", "import sys; from roost.cli.main import main; sys.exit(main())")
_MODULES = 120
_SHAPE = 'export type Shape = { kind: "circle"; r: number } | { kind: "square"; side: bigint };'
_MODULE = """BEFORE

enum GrößeNN { Klein = NN, Mittel, Groß = Klein << 2 }
abstract class BaseNN<T extends object> {
  static #count = 0;
  constructor(protected readonly inner: T, private label: string = `m-${GrößeNN.Mittel}`) { BaseNN.#count++; }
  abstract area(shape: Shape): number;
  async *each(): AsyncGenerator<string> {
    for (const [key, entry] of Object.entries(this.inner)) yield `${key}=${entry ?? "—"}`;
  }
}
export class ModuleNN extends BaseNN<Record<string, unknown>> {
  area(shape: Shape) { return shape.kind === "circle" ? Math.PI * shape.r ** 2 : Number(shape.side * shape.side); }
  get 名前(): string {
    const { a = NN, ...rest } = this.inner as any;
    return JSON.stringify({ a, rest, 'ключ': /[\\p{L}]+/u.source });
  }
}
export const valueNN: number = new ModuleNN({ x: NN }).area({ kind: "circle", r: NN }) + SUM;
"""
_SECONDS = 300


class Ran(NamedTuple):
    """What one build did: the process VM, the first and the best time in seconds, the digest of what it wrote, what went wrong ("")."""

    build: str
    runtime: str = "-"
    first: float = 0.0
    best: float = 0.0
    digest: str = ""
    problem: str = ""


def executable(build: str) -> Path:
    """The program of one build, fetched when it is not there. Skips where it can not be had."""
    package = fetch(BUILDS[build]) / "package"
    return next(package / name for name in ("bin/esbuild", "esbuild.exe", "esbuild.wasm") if (package / name).is_file())


def write_input(directory: Path) -> None:
    """A TypeScript program of many modules that uses what a bundler must take apart: types, enums, JSX, generators, names of any script."""
    source = directory / "source"
    source.mkdir()
    for number in range(_MODULES):
        before = f'import {{ value{number - 1}, type Shape }} from "./module{number - 1}";' if number else _SHAPE
        sum_so_far = f"value{number - 1}" if number else "0"
        text = _MODULE.replace("BEFORE", before).replace("SUM", sum_so_far).replace("NN", str(number))
        (source / f"module{number}.ts").write_text(text)
    last = _MODULES - 1
    (source / "main.tsx").write_text(
        f'import {{ value{last}, Module{last} }} from "./module{last}";\n'
        f"export default () => <main title={{`${{value{last}}}`}}>{{[1, 2].map(n => <Row key={{n}} n={{n}}/>)}}</main>;\n"
        f"const Row = ({{ n }}: {{ n: number }}) => <li>{{new Module{last}({{ n }}).名前}}</li>;\n"
    )


def run(build: str, directory: Path, runs: int) -> Ran:
    """One build, `runs` times and once before; `directory` holds the input and is all that it sees."""
    try:
        program = executable(build)
    except pytest.skip.Exception as skipped:
        return Ran(build, problem=str(skipped))
    target = directory / "out" / build
    target.mkdir(parents=True)
    arguments = [
        "source/main.tsx",
        "--bundle",
        "--minify",
        "--sourcemap",
        "--format=esm",
        "--target=es2020",
        "--log-level=error",
    ]
    command = [
        "--fs",
        ".",
        "--memory",
        "1GiB",
        "--wall",
        str(_SECONDS),
        str(program),
        *arguments,
        f"--outfile=out/{build}/bundle.js",
    ]
    times, runtime = [], ""
    for _ in range(runs + 1):
        ours, theirs = os.pipe()
        started = time.monotonic()
        done = subprocess.run(
            [*ROOST, "run", "--status-json", str(theirs), *command],
            cwd=directory,
            pass_fds=(theirs,),
            capture_output=True,
            check=False,
        )
        times.append(time.monotonic() - started)
        os.close(theirs)
        with open(ours, "rb") as status:
            runtime = _runtime(status.read())
        if done.returncode:
            return Ran(
                build,
                runtime,
                problem=f"it ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}",
            )
    return Ran(build, runtime, times[0], min(times[1:]), _digest(target))


def _runtime(status: bytes) -> str:
    try:
        return str(json.loads(status)["runtime"])
    except (ValueError, KeyError):
        return "-"


def _digest(directory: Path) -> str:
    """Of the bundle and its source map."""
    content = hashlib.sha256()
    for name in ("bundle.js", "bundle.js.map"):
        content.update((directory / name).read_bytes())
    return content.hexdigest()


def table(ran: list[Ran]) -> str:
    """The results as lines."""
    native = next((one.best for one in ran if one.runtime == "native" and one.best), 0.0)
    lines = [f"{'build':16} {'runs by':9} {'first':>9} {'best':>9} {'to native':>9}  output"]
    for one in ran:
        ratio = f"{one.best / native:8.1f}x" if native and one.best else ""
        times = f"{one.first * 1000:6.0f} ms {one.best * 1000:6.0f} ms" if one.best else f"{'':19}"
        lines.append(f"{one.build:16} {one.runtime:9} {times} {ratio:>9}  {one.problem or one.digest[:16]}")
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run all builds; 0 when all ran and wrote the same."""
    parser = argparse.ArgumentParser(prog="scripts/one-program")
    parser.add_argument("--runs", type=int, default=3, choices=range(1, 101), metavar="N")
    runs = parser.parse_args(words).runs
    with tempfile.TemporaryDirectory(prefix="one-program-") as name:
        directory = Path(name)
        write_input(directory)
        ran = [run(build, directory, runs) for build in BUILDS]
        size = max((path.stat().st_size for path in directory.glob("out/*/bundle.js")), default=0)
    print(table(ran))
    digests = {one.digest for one in ran}
    if len(digests) == 1 and not any(one.problem for one in ran):
        print(
            f"\nesbuild {VERSION}: {len(ran)} builds wrote the same bundle ({size} bytes) and source map, to the byte."
        )
        return 0
    print(f"\nesbuild {VERSION}: the outputs are not all equal.")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
