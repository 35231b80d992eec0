"""Volumes: making, keeping and copying one of 20 GiB that nobody uses, and what 10,000 take, against qemu-img and du on the same file system.

Ours are durable when they return (fsync of file and directory); qemu-img makes nothing durable, so the comparison favours the peer.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

from bench.figures import Made, median, row
from roost.host.paths import Paths
from roost.storage.directory import DirectoryPool
from roost.storage.pool import Origin

GiB = 1 << 30
SIZE = 20 * GiB
RUNS = 20
VOLUMES = 10_000
SAMPLE = 50
"""Volumes that qemu-img is asked about, one after the other: 10,000 would take minutes."""


async def timed(doing: Callable[[], Awaitable[object]]) -> float:
    """Seconds of wall time."""
    begin = time.perf_counter()
    await doing()
    return time.perf_counter() - begin


def peer(*argv: object) -> float:
    """Seconds of wall time of a command that must succeed."""
    begin = time.perf_counter()
    subprocess.run([str(word) for word in argv], check=True, capture_output=True)
    return time.perf_counter() - begin


async def operations(pool: DirectoryPool, work: Path, made: Made) -> None:
    """Each operation and its peer in turn, on a volume of its own."""
    for number in range(RUNS):
        uid, snapshot, copy = (str(uuid.uuid4()) for _ in range(3))
        theirs = [work / f"{number}-{name}.qcow2" for name in ("disk", "overlay", "copy")]
        made.setdefault("create", []).append(await timed(lambda uid=uid: pool.create(uid, SIZE)))
        made.setdefault("create peer", []).append(peer("qemu-img", "create", "-q", "-f", "qcow2", theirs[0], SIZE))
        async with pool.opened(uid) as opened:
            fill(opened.file)
        fill(theirs[0])
        made.setdefault("snapshot", []).append(await timed(lambda uid=uid, it=snapshot: pool.snapshot(uid, it)))
        made.setdefault("snapshot peer", []).append(overlay(*theirs[:2]))
        made.setdefault("internal peer", []).append(peer("qemu-img", "snapshot", "-c", "one", theirs[0]))
        origin = Origin("snapshot", snapshot)
        made.setdefault("clone", []).append(await timed(lambda uid=copy, o=origin: pool.create(uid, None, o)))
        made.setdefault("clone peer", []).append(overlay(theirs[0], theirs[2]))


def overlay(below: Path, made: Path) -> float:
    """The peer's external snapshot, or copy."""
    return peer("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", made)


def fill(disk: Path | None) -> None:
    """16 MiB at the beginning, as a guest writes them."""
    subprocess.run(["qemu-io", "-c", "write -P 7 0 16M", str(disk)], check=True, capture_output=True)


async def accounting(pool: DirectoryPool, root: Path, made: Made) -> None:
    """What all volumes take: the first look of a daemon, and every later one; a hundredth of them stand on a snapshot each."""
    sync = os.fsync
    os.fsync = lambda descriptor: None
    for _ in range(VOLUMES - len(await pool.usage())):
        await pool.create(str(uuid.uuid4()), SIZE)
    os.fsync = sync
    made["first look"] = [await timed(pool.usage)]
    made["usage"] = [await timed(pool.usage) for _ in range(RUNS)]
    made["du"] = [peer("du", "-s", root) for _ in range(3)]
    disks = sorted((root / "volumes").glob("*/disk.qcow2"))[:SAMPLE]
    made["info"] = [sum(peer("qemu-img", "info", "-U", disk) for disk in disks) * VOLUMES / len(disks)]


async def main() -> None:
    made: Made = {}
    with tempfile.TemporaryDirectory(
        prefix="roost-bench-", dir=sys.argv[1] if len(sys.argv) > 1 else None
    ) as directory:
        work = Path(directory)
        paths = Paths(work / "state", work / "run")
        pool = DirectoryPool(paths, "bench", str(work), lambda digest: None)
        await pool.prepare()
        await operations(pool, work, made)
        await accounting(pool, work / "roost-pool", made)
    figures = {name: median(values) * 1000 for name, values in made.items()}
    for name in ("create", "snapshot", "clone"):
        print(row(f"{name} of {SIZE // GiB} GiB", figures[name], figures[f"{name} peer"], "qemu-img create", "ms"))
    print(row("snapshot of 20 GiB", figures["snapshot"], figures["internal peer"], "qemu-img snapshot -c", "ms"))
    print(row(f"usage of {VOLUMES} volumes", figures["usage"], figures["du"], "du -s", "ms"))
    print(
        row("the same, first look", figures["first look"], figures["info"], f"qemu-img info ({SAMPLE}, scaled)", "ms")
    )
    worst = max(made["snapshot"]) * 1000
    print(
        f"promises: snapshot <= 50 ms: {figures['snapshot']:.1f} (worst of {RUNS}: {worst:.1f}); usage <= 100 ms: {figures['usage']:.1f}"
    )


if __name__ == "__main__":
    asyncio.run(main())
