"""Proves that tests can fail: switches one defence off in a copy of the checkout, and the test that holds it must notice.

Each `NN.toml` beside this file (NN: a row of the fault catalogue, `NN-word.toml` for further ones) says in its first line what is switched
off, names a `test`, and has `[[edit]]` tables of `file`, `old` (occurs exactly once) and `new`. Run by `scripts/test --mutate NN|all`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from tests.checkout import files  # noqa: E402 - the checkout is not installed

LINKED = (".venv", ".cache")
"""What the copy shares with the checkout: nothing in there is edited."""
BUILT = ("src/roost/guest/bin",)
"""What is made by tools but belongs to the sources as a test sees them."""
TIMEOUT = 900.0
FAILED, PASSED = 1, 0


class Mutation(NamedTuple):
    """One defence switched off."""

    name: str
    what: str
    test: str
    edits: list[dict[str, str]]


class Outcome(NamedTuple):
    """How the test ended without the defence and with it: pytest's exit code, or a word."""

    name: str
    mutated: str
    intact: str
    seconds: float

    @property
    def caught(self) -> bool:
        """Whether the test failed without the defence and passed with it."""
        return (self.mutated, self.intact) == ("failed", "passed")


def load(path: Path) -> Mutation:
    """A mutation from its file."""
    text = path.read_text()
    content = tomllib.loads(text)
    return Mutation(path.stem, text.splitlines()[0].lstrip("# "), content["test"], content["edit"])


def chosen(words: Iterable[str]) -> list[Mutation]:
    """The mutations of the rows named, or all."""
    wanted = list(words)
    numbers = {int(word) for word in wanted if word.isdigit()}
    paths = [
        path for path in sorted(HERE.glob("*.toml")) if "all" in wanted or path.stem in wanted or row(path) in numbers
    ]
    if not paths:
        raise SystemExit(
            f"no mutation is called {' '.join(wanted)}; there are: {' '.join(path.stem for path in sorted(HERE.glob('*.toml')))}"
        )
    return [load(path) for path in paths]


def row(path: Path) -> int:
    """The row of the fault catalogue that a mutation file belongs to."""
    match = re.match(r"\d+", path.stem)
    return int(match[0]) if match else -1


def copy_checkout(target: Path) -> None:
    """The files under version control, and links to what tools made."""
    for path in files():
        place = target / path.relative_to(ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, place, follow_symlinks=False)
    for name in BUILT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, dirs_exist_ok=True)
    for name in LINKED:
        if (ROOT / name).exists():
            (target / name).symlink_to(ROOT / name)


def apply(mutation: Mutation, target: Path) -> None:
    """Make the edits; each old text must occur exactly once."""
    for edit in mutation.edits:
        path = target / edit["file"]
        text = path.read_text()
        if text.count(edit["old"]) != 1:
            raise SystemExit(
                f"{mutation.name}: the old text occurs {text.count(edit['old'])} times in {edit['file']}, not once"
            )
        path.write_text(text.replace(edit["old"], edit["new"]))


def run_test(test: str, checkout: Path) -> str:
    """How the test ends in that checkout: "failed", "passed", "skipped", or what else happened."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", test]
    environ = {**os.environ, "PYTHONPATH": str(checkout / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=checkout,
            env=environ,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {TIMEOUT:.0f} s"
    if done.returncode == FAILED:
        return "failed"
    if done.returncode == PASSED:
        return "passed" if re.search(r"\d+ passed", done.stdout) else "skipped"
    return f"pytest ended with {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"


def attempt(mutation: Mutation) -> Outcome:
    """Run the test without the defence, then with it."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="roost-mutation-") as directory:
        checkout = Path(directory)
        copy_checkout(checkout)
        apply(mutation, checkout)
        mutated = run_test(mutation.test, checkout)
    intact = run_test(mutation.test, ROOT)
    return Outcome(mutation.name, mutated, intact, time.monotonic() - begin)


def main(words: list[str]) -> int:
    """Try the mutations named; 0 when every one was caught."""
    outcomes = []
    for mutation in chosen(words):
        outcome = attempt(mutation)
        outcomes.append(outcome)
        verdict = "caught" if outcome.caught else "NOT CAUGHT"
        print(f"{mutation.name:>12}  {verdict:<10}  {outcome.seconds:6.1f} s  {mutation.what}")
        print(
            f"{'':>12}  without the defence: {outcome.mutated}; with it: {outcome.intact}  ({mutation.test})",
            flush=True,
        )
    missed = [outcome.name for outcome in outcomes if not outcome.caught]
    print(
        f"{len(outcomes) - len(missed)} of {len(outcomes)} mutations caught"
        + (f"; not caught: {' '.join(missed)}" if missed else "")
    )
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
