"""How fast the store is, as ratios against SQLite used plainly and against a bare file with fsync, side by side in one run.

    python bench/store.py [--seconds 3] [--directory DIR] [--json]

Every peer has the same durability (what is acknowledged survives the loss of power), the same 2 kB values and the same 50 writers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sqlite3
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import quantiles

from roost.host.clock import SystemClock
from roost.store.sqlite import SqliteStore

WRITERS = 50
VALUE = os.urandom(2048)


def key(number: int) -> str:
    return f"machines/default/m{number:06}"


async def store_writes(path: Path, seconds: float) -> tuple[float, list[float]]:
    """Writes a second by 50 concurrent writers through the store, and each one's time in ms."""
    store = await SqliteStore.open(path, clock=SystemClock())
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def writer(number: int) -> None:
        while (begin := time.perf_counter()) < end:
            await store.put(key(number), VALUE)
            times.append((time.perf_counter() - begin) * 1e3)

    begin = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(WRITERS)))
    rate = len(times) / (time.perf_counter() - begin)
    await store.close()
    return rate, times


def threads_writes(write: Callable[[int], None], seconds: float) -> float:
    """Writes a second by 50 threads."""
    counts = [0] * WRITERS
    end = time.perf_counter() + seconds

    def writer(number: int) -> None:
        while time.perf_counter() < end:
            write(number)
            counts[number] += 1

    threads = [threading.Thread(target=writer, args=(number,)) for number in range(WRITERS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def plain_sqlite(path: Path, seconds: float) -> float:
    """SQLite as one meets it: one transaction a write, WAL, synchronous=FULL, one connection behind a lock (its fairest set-up)."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB, revision INTEGER)")
    lock, revision = threading.Lock(), iter(range(1, 1 << 40))

    def write(number: int) -> None:
        with lock:
            connection.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", (key(number), VALUE, next(revision)))

    rate = threads_writes(write, seconds)
    connection.close()
    return rate


def plain_file(path: Path, seconds: float) -> float:
    """Append 2 kB and fsync, one after the other."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lock = threading.Lock()

    def write(number: int) -> None:
        with lock:
            os.write(fd, VALUE)
            os.fdatasync(fd)

    rate = threads_writes(write, seconds)
    os.close(fd)
    return rate


async def timed(call: Callable[[], Awaitable[object]], times: int) -> tuple[float, float]:
    """p50 and p99 in ms."""
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        await call()
        taken.append((time.perf_counter() - begin) * 1e3)
    return percentiles(taken)


def percentiles(times: list[float]) -> tuple[float, float]:
    cuts = quantiles(times, n=100)
    return cuts[49], cuts[98]


async def reads(path: Path, objects: int) -> dict[str, object]:
    """Reading while another task writes all the time."""
    store = await SqliteStore.open(path, clock=SystemClock())
    for begin in range(0, objects, 500):
        await asyncio.gather(*(store.put(key(n), VALUE) for n in range(begin, min(objects, begin + 500))))

    async def write() -> None:
        while True:
            await store.put(key(0), VALUE)

    writing = asyncio.ensure_future(write())
    get = await timed(lambda: store.get(key(objects // 2)), 1000)
    listed = await timed(lambda: store.list("machines/"), 200)
    writing.cancel()
    put = await timed(lambda: store.put(key(1), VALUE), 200)
    await store.close()
    begin_open = time.perf_counter()
    store = await SqliteStore.open(path, clock=SystemClock())
    opened = (time.perf_counter() - begin_open) * 1e3
    await store.close()
    return {"objects": objects, "get": get, "list": listed, "put": put, "open_ms": opened}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each kind of writing runs")
    parser.add_argument("--directory", type=Path, help="on the disk to measure (default: the temporary directory)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="roost-bench-", dir=options.directory) as name:
        directory = Path(name)
        rate, times = await store_writes(directory / "roost.db", options.seconds)
        sqlite_rate = plain_sqlite(directory / "plain.db", options.seconds)
        file_rate = plain_file(directory / "plain.log", options.seconds)
        read = [await reads(directory / f"read{objects}.db", objects) for objects in (1000, 10_000)]
    result = {
        "writes_per_second": rate,
        "write_ms": percentiles(times),
        "plain_sqlite_per_second": sqlite_rate,
        "plain_file_per_second": file_rate,
        "ratio_to_plain_sqlite": rate / sqlite_rate,
        "ratio_to_plain_file": rate / file_rate,
        "reads": read,
    }
    print(json.dumps(result) if options.json else text(result))


def held(holds: bool, promised: str) -> str:
    return f"promised: {promised}, {'held' if holds else 'NOT HELD'}"


def text(result: dict[str, object]) -> str:
    """For people."""
    p50, p99 = result["write_ms"]
    lines = [
        f"{platform.machine()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs",
        f"durable writes by {WRITERS} writers: {result['writes_per_second']:.0f}/s (p50 {p50:.1f} ms, p99 {p99:.1f} ms)",
        f"  {held(result['writes_per_second'] >= 2000, 'at least 2,000/s')}",
        f"  {result['ratio_to_plain_sqlite']:.1f} x SQLite, a transaction a write ({result['plain_sqlite_per_second']:.0f}/s)",
        f"  {result['ratio_to_plain_file']:.1f} x file append + fsync ({result['plain_file_per_second']:.0f}/s)",
    ]
    for row in result["reads"]:
        parts = [f"{verb} p50 {row[verb][0]:.2f} p99 {row[verb][1]:.2f}" for verb in ("get", "list", "put")]
        lines.append(f"with {row['objects']} objects (ms): {', '.join(parts)}, open {row['open_ms']:.0f}")
    worst = max(row[verb][1] for row in result["reads"] for verb in ("get", "list"))
    return "\n".join([*lines, f"  {held(worst <= 20, 'get and list p99 at most 20 ms')}"])


if __name__ == "__main__":
    asyncio.run(main())
