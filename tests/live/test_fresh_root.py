"""The two commands of the README on a computer that has nothing but Debian and python3."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.checkout import ROOT
from tests.needs import needs_program, needs_root

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600), needs_root, needs_program("mmdebstrap", "git")]


def fresh(*arguments: str) -> str:
    done = subprocess.run([ROOT / "scripts/fresh-root", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


def shape(text: str) -> list[str]:
    """The lines, with numbers as #; without progress, and without what depends on the host."""
    varying = re.compile(r" \.\.\. |^  (Linux|Note:) |^  Making a minimal")
    return [re.sub(r"[\d.]+", "#", line) for line in text.splitlines() if line and not varying.search(line)]


def test_the_readme_shows_what_quickstart_prints() -> None:
    shown = (ROOT / "README.md").read_text().partition("```text\n")[2].partition("```")[0]
    said = fresh("scripts/quickstart")
    assert shape(said) == shape(shown)


@pytest.mark.parametrize("who", [(), ("--user",)], ids=["root", "user"])
def test_quickstart_works_in_a_minimal_debian(who: tuple[str, ...]) -> None:
    said = fresh(*who)
    took = [float(seconds) for seconds in re.findall(r"^Done in ([\d.]+) s", said, re.MULTILINE)]
    assert len(took) == 2, said
    assert took[1] < 10, "the second run finds everything done"
    assert len(re.findall(r"^  Linux first ", said, re.MULTILINE)) == 2


def test_the_rules_hold_in_a_minimal_debian() -> None:
    assert " passed" in fresh("scripts/test", "--fast").splitlines()[-1]
