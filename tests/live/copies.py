"""What tests of copies share: a nonce in a guest's memory and on its disk, what tells machines apart, their disks, their jails."""

from __future__ import annotations

import itertools
import json
import re
import secrets
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from roost.host.paths import Paths
from roost.storage.layers import Layers
from tests.daemon import Daemon

T = TypeVar("T")

ASK = "echo x >/run/ask; cat /run/answer"
"""Shell: what the process of `remember` knows."""


def inside(daemon: Daemon, name: str, script: str, *, check: bool = True, timeout: float = 60) -> str:
    """What a shell script prints in a machine."""
    done = daemon.roost(
        "exec", "--timeout", str(timeout), name, "--", "sh", "-c", script, check=check, timeout=timeout + 30
    )
    return done.stdout.strip()


def remember(daemon: Daemon, name: str) -> str:
    """Put a nonce into the memory of a process inside, and nowhere else: it says it to whoever asks."""
    nonce = secrets.token_hex(16)
    serve = "while read x </run/ask; do echo $N >/run/answer; done"
    script = f"mkfifo /run/ask /run/answer; read N; ({serve}) </dev/null >/dev/null 2>&1 &"
    daemon.roost("exec", "--interactive", name, "--", "sh", "-c", script, stdin=f"{nonce}\n".encode())
    return nonce


def recalls(daemon: Daemon, name: str) -> str:
    """The nonce that the machine knows."""
    return inside(daemon, name, ASK)


def status(daemon: Daemon, name: str) -> dict[str, Any]:
    """A machine's status."""
    told: dict[str, Any] = daemon.machine(name)["status"]
    return told


def uid(daemon: Daemon, name: str) -> str:
    """A machine's uid."""
    return str(daemon.machine(name)["meta"]["uid"])


def record(daemon: Daemon, name: str) -> dict[str, Any]:
    """What is written down about a machine's process."""
    told: dict[str, Any] = json.loads((daemon.run / "machines" / uid(daemon, name) / "process.json").read_text())
    return told


def network_of(daemon: Daemon, name: str) -> list[int]:
    """The processes that are a machine's network."""
    return [entry["process"]["pid"] for entry in record(daemon, name)["beside"]]


def wait_for(daemon: Daemon, name: str, phase: str, seconds: float = 60) -> dict[str, Any]:
    """The status, once the machine is in this phase."""
    deadline = time.monotonic() + seconds
    while (told := status(daemon, name))["phase"] != phase:
        assert time.monotonic() < deadline, f"{name}: {told['phase']} {told['error']}\n{daemon.log()[-4000:]}"
        time.sleep(0.1)
    return told


def together(ask: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """What each machine says, asked at once."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, names))


COUNT = "import itertools, time\nfor number in itertools.count(): print(number, flush=True); time.sleep(0.02)"
"""Python: without a process for each number, which takes an emulated machine longer than the pause."""


class Counter:
    """A loop that counts inside a machine, its output streamed to us all the time."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.seen: list[tuple[float, int]] = []
        self._over = False
        self._host = daemon.host()
        self._stream = self._host.__enter__().machines.handle(name).stream("python3", "-ISc", COUNT)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        self.wait(10)

    def _follow(self) -> None:
        rest = ""
        with self._stream as stream:
            for chunk in stream:
                if self._over:
                    return
                *lines, rest = (rest + chunk.text).split("\n")
                self.seen += [(time.monotonic(), int(line)) for line in lines]

    def wait(self, count: int, seconds: float = 90) -> None:
        """Until `count` more numbers came."""
        wanted, deadline = len(self.seen) + count, time.monotonic() + seconds
        while len(self.seen) < wanted:
            assert time.monotonic() < deadline, "the counter stands still"
            time.sleep(0.02)

    def lost(self) -> list[int]:
        """Numbers that did not follow on the one before."""
        numbers = [number for _, number in self.seen]
        return [number for before, number in itertools.pairwise(numbers) if number != before + 1]

    def longest_silence(self) -> float:
        """Seconds."""
        times = [when for when, _ in self.seen]
        return max(after - before for before, after in itertools.pairwise(times))

    def close(self) -> None:
        """Stop counting."""
        self._over = True
        self._thread.join(30)
        self._host.__exit__(None, None, None)


# ---------------------------------------------------------------------- disks


def chain(daemon: Daemon, name: str) -> tuple[Path, ...]:
    """The files of a machine's disk, the one it writes first; nothing for one without a disk."""
    shown = daemon.json("show", name)
    paths = Paths(daemon.state, daemon.run)
    where = paths.machine(shown["meta"]["uid"])
    if not where.disk.exists():
        return ()
    layers = Layers(paths, lambda digest: paths.image(digest).disk)
    return (where.disk, *layers.below(layers.base_of(where, shown["status"]["image"])))


def check_disk(files: tuple[Path, ...], scratch: Path, partition: int = 3) -> None:
    """Every file is whole, and so is the file system in what they make together, as after a power cut: its journal is replayed, no more."""
    for path in files:
        done = _run("qemu-img", "check", "-f", "qcow2", path)
        # 3: clusters that nothing uses, which a QEMU that was killed leaves; they waste space and harm nothing.
        assert done.returncode in (0, 3), (path, done.stdout, done.stderr)
    head, system = scratch / "head.raw", scratch / "system.raw"
    _extract(files, head, 0, 1 << 20)
    entry = head.read_bytes()[1024 + 128 * (partition - 1) :][
        :128
    ]  # UEFI specification 5.3.3: first and last block at byte 32
    first, last = struct.unpack_from("<2Q", entry, 32)
    try:
        _extract(files, system, first * 512, (last + 1 - first) * 512)
        done = _run("e2fsck", "-p", system)
        assert done.returncode in (0, 1), (done.stdout, done.stderr)
        done = _run("e2fsck", "-fn", system)
        assert done.returncode == 0, (done.stdout, done.stderr)
    finally:
        system.unlink(missing_ok=True)


def _run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, argv)], capture_output=True, text=True, timeout=300, check=False)


def _extract(files: tuple[Path, ...], target: Path, offset: int, size: int) -> None:
    """A part of what the files make together, as the tools take them, no header believed."""
    options: dict[str, object] | None = None
    for path in reversed(files):
        options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": options}
    part = {"driver": "raw", "offset": offset, "size": size, "file": options}
    done = _run("qemu-img", "convert", "-O", "raw", "json:" + json.dumps(part), target)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- jails

CAPABILITIES = ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")
SPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
OURS = ("socket:", "anon_inode:", "/dev/null", "/memfd:", "pipe:", "/dev/urandom")


def jail_gaps(daemon: Daemon, name: str) -> list[str]:
    """Layers that do not hold a machine's QEMU, as the kernel tells it; of all files it may have open those of its disk, and the one that its memory
    began as, which has no name any more."""
    place = Path(f"/proc/{status(daemon, name)['pid']}")
    # By what they are: one that became a layer is still called what it was.
    disk = {(path.stat().st_dev, path.stat().st_ino) for path in chain(daemon, name)}
    memory = re.compile(rf"{re.escape(str(daemon.run))}/machines/[0-9a-f-]{{36}}/memory \(deleted\)")
    lines = (place / "status").read_text().splitlines()
    told = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    targets = {str(entry.readlink()): entry.stat() for entry in (place / "fd").iterdir()}
    foreign = [
        name
        for name, what in targets.items()
        if not name.startswith(OURS) and (what.st_dev, what.st_ino) not in disk and not memory.fullmatch(name)
    ]
    inner = place / "root/proc"
    return [
        *(f"uid {number}" for number in told["Uid"].split() if int(number) < 300_000),
        *(f"{name} {told[name]}" for name in CAPABILITIES if int(told[name], 16)),
        *(f"{name} {told[name]}" for name, good in (("NoNewPrivs", "1"), ("Seccomp", "2")) if told[name] != good),
        *(f"pid {told['NSpid']}" for _ in range(told["NSpid"].split()[1] != "1")),
        *(f"{name} namespace" for name in SPACES if (place / "ns" / name).readlink() == _own(name)),
        *(f"descriptor of {target}" for target in foreign),
        *(f"{entry}" for entry in (inner.iterdir() if inner.exists() else ())),
    ]


def _own(space: str) -> Path:
    return Path(f"/proc/self/ns/{space}").readlink()
