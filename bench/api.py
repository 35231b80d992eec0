"""The control plane with a fake hypervisor: creates per second, p50 and p99 of get, list and put, the daemon's memory.

    python bench/api.py [--machines 1000 10000] [--workers 50]

A real daemon process (SQLite store, reconcilers, unix socket), guests that are objects in its memory, and a client in this process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figures import percentile, promise, resident
from roost.config import Config

SAMPLES = 400
DAEMON = Path(__file__).resolve().parent.parent / "tests" / "live" / "daemon_process.py"


class Client:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, path: Path) -> Client:
        return cls(*await asyncio.open_unix_connection(str(path), limit=1 << 22))

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        content = b"" if body is None else json.dumps(body).encode()
        self._writer.write(
            f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content
        )
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(head[9:12]), await self._reader.readexactly(size)


async def create(socket: Path, names: list[str], workers: int) -> float:
    """Creates per second by `workers` clients at once."""
    waiting = iter(names)

    async def work() -> None:
        client = await Client.connect(socket)
        for name in waiting:
            status, answer = await client.call(
                "POST", "/v1/machines", {"name": name, "spec": {"image": "tiny", "memory": "128MiB"}}
            )
            assert status == 201, answer

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(work())
    return len(names) / (time.perf_counter() - began)


async def settled(client: Client, count: int) -> float:
    """Seconds until all machines run."""
    began = time.perf_counter()
    while True:
        text = (await client.call("GET", "/metrics"))[1].decode()
        if f'roost_machines{{phase="running"}} {count:.1f}' in text and "roost_reconciles_queued 0.0" in text:
            return time.perf_counter() - began
        await asyncio.sleep(0.5)


async def latency(do: Callable[[int], Awaitable[tuple[int, bytes]]]) -> tuple[float, float]:
    """p50 and p99 in milliseconds, one request after another."""
    times = []
    for number in range(SAMPLES):
        began = time.perf_counter()
        status, answer = await do(number)
        times.append((time.perf_counter() - began) * 1000)
        assert status == 200, answer
    return percentile(times, 0.5), percentile(times, 0.99)


async def measure(client: Client, count: int) -> None:
    """Get, list and put among `count` machines."""

    async def get(number: int) -> tuple[int, bytes]:
        return await client.call("GET", f"/v1/machines/default/m{number * 7919 % count}")

    async def page(number: int) -> tuple[int, bytes]:
        return await client.call(
            "GET",
            f"/v1/machines?project=all&continue=default/m{number * 7919 % count}" if number % 4 else "/v1/machines",
        )

    async def put(number: int) -> tuple[int, bytes]:
        patch = {"meta": {"labels": {"round": str(number)}}}
        return await client.call("PATCH", f"/v1/machines/default/m{number * 7919 % count}", patch)

    for what, do, limit in (("get", get, 20.0), ("list (pages of 500)", page, 20.0), ("put (durable)", put, 50.0)):
        half, most = await latency(do)
        print(f"{what:<34} p50 {half:.2f} ms")
        print(promise(f"{what}, p99 of {count}", most, limit, "ms"))


async def run(counts: list[int], workers: int) -> None:
    directory = Path(tempfile.mkdtemp(prefix="roost-bench-"))
    config = Config(directory / "state", directory / "run")
    environ = {**os.environ, "ROOST_STATE": str(config.state), "ROOST_RUN": str(config.run)}
    with (directory / "log").open("wb") as output:
        daemon = await asyncio.create_subprocess_exec(sys.executable, str(DAEMON), env=environ, stderr=output)
    try:
        async with asyncio.timeout(60):
            while not config.socket.exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.05)
        client = await Client.connect(config.socket)
        print(f"{'daemon without machines':<34} {resident(daemon.pid) / (1 << 20):.1f} MiB")
        made = 0
        for count in counts:
            rate = await create(config.socket, [f"m{number}" for number in range(made, count)], workers)
            print(
                f"{'creates/s, up to ' + str(count):<34} {rate:9.0f}      promised: at least 300     {'held' if rate >= 300 else 'NOT HELD'}"
            )
            print(f"{'all of them running after another':<34} {await settled(client, count):9.1f} s")
            made = count
            limit = 120.0 if count <= 1000 else 400.0
            print(promise(f"memory of the daemon with {count}", resident(daemon.pid) / (1 << 20), limit, "MiB"))
            await measure(client, count)
    finally:
        daemon.terminate()
        await daemon.wait()
        sys.stdout.flush()
        if daemon.returncode:
            print((directory / "log").read_text()[-3000:], file=sys.stderr)
        shutil.rmtree(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--workers", type=int, default=50)
    given = parser.parse_args()
    asyncio.run(run(sorted(given.machines), given.workers))


if __name__ == "__main__":
    main()
