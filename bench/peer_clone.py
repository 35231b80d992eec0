"""The peer's side of bench/clone.py: runs inside the peer's own venv and prints one JSON object (seconds, bytes).

The peer is as in peer_boot.py. Its `checkpoint` and `revert` keep memory and disk of a machine and put that one machine back to it; a
second machine can not be made of them, so what it takes to get another machine that answers is its cold start.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from quicksand import AlpineSandbox


async def timed(action: object) -> float:
    """Seconds that something takes."""
    begin = time.perf_counter()
    await action  # type: ignore[misc]
    return time.perf_counter() - begin


async def run(sandbox: AlpineSandbox, command: str) -> None:
    """Return when the sandbox has run a command, which must succeed."""
    result = await sandbox.execute(command)
    if result.exit_code != 0:
        raise SystemExit(f"the peer's `{command}` ended with {result.exit_code}: {result.stderr}")


async def measure(rounds: int, fill: str) -> dict[str, list[float]]:
    """A cold start to the first answer, the command `fill`, then `rounds` checkpoints and reverts; `answer` is a revert and a command after it."""
    made: dict[str, list[float]] = {"boot": [], "checkpoint": [], "revert": [], "answer": []}
    begin = time.perf_counter()
    sandbox = AlpineSandbox(memory="512M", cpus=1, accel=None)
    await sandbox.start()
    try:
        await run(sandbox, "true")
        made["boot"].append(time.perf_counter() - begin)
        await run(sandbox, fill)
        for number in range(rounds):
            made["checkpoint"].append(await timed(sandbox.checkpoint(f"point{number}")))
            begin = time.perf_counter()
            made["revert"].append(await timed(sandbox.revert(f"point{number}")))
            await run(sandbox, "true")
            made["answer"].append(time.perf_counter() - begin)
    finally:
        await sandbox.stop()
    return made


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1]), sys.argv[2]))))
