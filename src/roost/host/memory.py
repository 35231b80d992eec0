"""How much memory the host can still give."""

from __future__ import annotations

from pathlib import Path


def available() -> int:
    """Bytes the kernel estimates can be given out without swapping (MemAvailable of proc(5))."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
