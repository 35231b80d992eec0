"""A process that writes is killed without warning, again and again: everything that it was told is kept is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roost.store.sqlite import SqliteStore
from roost.testing.clock import VirtualClock
from roost.testing.stores import take

KILLS = 20

WRITER = """
import asyncio, os, sys
from pathlib import Path
from roost.host.clock import SystemClock
from roost.store.base import Write
from roost.store.sqlite import SqliteStore
import roost.store.state, roost.store.sqlite

# Small bounds, so that compactions and checkpoints are killed too.
roost.store.state.HISTORY_REVISIONS = 300
roost.store.sqlite.CHECKPOINT_BYTES = 200_000

async def write(store, writer, begin):
    for number in range(begin, begin + 1_000_000):
        text = str(number).encode()
        revision = await store.commit([Write(f"w/{writer}", text.ljust(700)), Write(f"twin/{writer}", text)])
        os.write(1, f"{writer} {number} {revision}\\n".encode())

async def main():
    store = await SqliteStore.open(Path(sys.argv[1]), clock=SystemClock())
    os.write(1, b"open\\n")
    await asyncio.gather(*(write(store, writer, int(sys.argv[2])) for writer in range(10)))

asyncio.run(main())
"""


def write_until_killed(path: Path, begin: int, seconds: float) -> dict[str, tuple[int, int]]:
    """The last number and revision that each writer was told is kept."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(begin)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    timer = subprocess.Popen(["sleep", f"{seconds:.3f}"])
    timer.wait()
    os.kill(process.pid, signal.SIGKILL)
    told: dict[str, tuple[int, int]] = {}
    for line in process.stdout.read().decode().splitlines(keepends=True):
        if line.endswith("\n"):
            writer, number, revision = line.split()
            told[writer] = int(number), int(revision)
    process.wait()
    process.stdout.close()
    return told


@pytest.mark.timeout(300)
async def test_what_was_acknowledged_survives_twenty_kills(tmp_path: Path) -> None:
    path, chance = tmp_path / "roost.db", random.Random(1)
    acknowledged, last = 0, 0
    for kill in range(KILLS):
        told = write_until_killed(path, kill * 1_000_000, chance.uniform(0.02, 0.25))
        store = await SqliteStore.open(path, clock=VirtualClock())
        entries, revision = await store.list("w/")
        kept = {entry.key.removeprefix("w/"): (int(entry.value or b""), entry.revision) for entry in entries}
        assert all(kept[writer] >= number for writer, number in told.items())
        assert [int((await store.get(f"twin/{writer}")).value or b"") for writer in kept] == [
            n for n, _ in kept.values()
        ]
        newest = max((number for _, number in told.values()), default=0)
        assert revision >= max(newest, last)
        assert revision - newest <= 10 or not told
        since = max(0, revision - 5)
        assert [entry.revision for entry in await take(store.watch("w/", since=since), revision - since)] == [
            *range(since + 1, revision + 1)
        ]
        acknowledged, last = acknowledged + len(told), revision
        await store.close()
    assert acknowledged > KILLS
