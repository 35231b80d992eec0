"""What is generated is current: the reference, and the SDK's blocking face."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.checkout import ROOT

REFERENCE = ROOT / "docs" / "reference"


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_reference_of_the_command_line_is_current() -> None:
    assert (REFERENCE / "cli.md").read_text() == run("-m", "roost.cli.reference"), "run scripts/docs"


def test_the_reference_of_the_api_is_current(tmp_path: Path) -> None:
    run("scripts/lib/reference.py", str(tmp_path))
    stale = [path.name for path in tmp_path.iterdir() if (REFERENCE / path.name).read_text() != path.read_text()]
    assert stale == [], "run scripts/docs"


def test_the_blocking_face_of_the_sdk_is_the_asynchronous_one() -> None:
    run("-m", "roost.client.derive", "--check")
