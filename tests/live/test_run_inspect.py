"""`roost inspect` on this host: the layers it promises are those that a run has, for root and for an ordinary user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roost.runtimes import execution, inspection, native
from roost.runtimes.base import Request
from tests.ordinary import WHO, run_as
from tests.programs.build import program

pytestmark = pytest.mark.live


def roost(*words: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "roost.cli.main", *words], capture_output=True, text=True, check=False, **how
    )


@pytest.mark.parametrize("who", WHO)
def test_the_layers_are_those_of_a_run(who: str) -> None:
    path = str(program("probe"))
    assert native.Native().name == "native"

    async def both() -> tuple[dict[str, Any], tuple[str, ...]]:
        home = Path(os.environ["HOME"]) / "probe"
        home.write_bytes(content)
        home.chmod(0o755)
        return inspection.inspect(str(home)), execution.run(
            Request(str(home), ("exit", "0")), stdin=-1, stdout=-1, stderr=-1
        ).layers

    content = Path(path).read_bytes()
    seen, held = run_as(who, both)
    assert seen["code"] == 0
    assert set(seen["layers"]) == set(held)
    assert {"seccomp", "minimal root", "network namespace"} <= set(held)


def test_nothing_is_left_and_nothing_of_the_file_runs(tmp_path: Path) -> None:
    script = tmp_path / "touch.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    done = roost("inspect", "-o", "json", "--fs", f"{tmp_path}:{tmp_path}", str(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["runtime"] == "script"
    assert [entry.name for entry in tmp_path.iterdir()] == ["touch.sh"]


def test_a_policy_that_is_wrong_is_a_wrong_usage_and_an_unknown_file_has_its_code(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(bytes(range(256)))
    assert roost("inspect", "--wall", "soon", "noise", cwd=tmp_path).returncode == 2
    assert roost("inspect", "gone", cwd=tmp_path).returncode == 3
    unknown = roost("inspect", "noise", cwd=tmp_path)
    assert (unknown.returncode, "begins with 00 01 02 03" in unknown.stdout) == (127, True)


def test_an_installed_third_party_runtime_is_found(tmp_path: Path) -> None:
    """As pip would install it: a module and its entry point beside each other on the path."""
    (tmp_path / "dosvm.py").write_text(
        "class Dos:\n name = 'dosbox'\n def probe(self): return {'path': '/x'}\n def score(self, found): return 9 * (found.kind == 'dos')\n"
        " def needs(self, found): return ()\n"
    )
    metadata = tmp_path / "dosvm-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dosvm\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[roost.runtimes]\ndosbox = dosvm:Dos\n")
    (tmp_path / "old.exe").write_bytes(b"MZ" + bytes(100))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = roost("inspect", "-o", "json", str(tmp_path / "old.exe"), env={**os.environ, "PYTHONPATH": path})
    assert json.loads(done.stdout)["runtime"] == "dosbox"
