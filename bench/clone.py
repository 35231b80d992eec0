"""Instant copies: warm launches, clones of a running machine, snapshots and restores, against the peers' ways to the same, in one run.

    scripts/bench clone                5 rounds, storms of 1, 8 and 32 clones; numbers and a plot in .cache/bench/clone.{json,png}
    python bench/clone.py 2 8          2 rounds, storms of 1 and 8

All of Roost is measured inside one SDK process. "Answers" is the answer of the guest's agent, "first command" the end of `true` after it.
The guest is debian:12 with 1 CPU and 512 MiB, emulated, and has 128 MiB of its memory written to. Peers: quick-sandbox (bench/peer_clone.py:
its own Alpine guest, for it runs no other) and `virsh save` and `restore` of the very same guest (bench/peer_virsh.py).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import roost
from bench import clone_plot, peer_virsh
from bench.boot import image_of
from bench.figures import FILL, PEER, PEER_NAME, ROOT, Made, median, peer_python, percentile, promise, row
from roost.client.results import Progress
from tests.daemon import ROOST, Daemon

ROUNDS, STORMS = 5, (1, 8, 32)
RESULTS = ROOT / ".cache" / "bench"
VIRSH_NAME = "virsh, same guest (TCG)"
MiB = 1 << 20
IDLE = 10.0
TEMPLATE = "debian:12"
TICK = "$|=1; while (1) { print qq(x\\n); select(undef, undef, undef, 0.002) }"
NETWORK = """ip neigh flush all
for i in $(seq 200); do ping -c1 -W0.05 10.0.2.2 >/dev/null 2>&1; ip neigh show 10.0.2.2 | grep -q lladdr && exit 0; done; exit 1"""
"""Ends when the gateway has answered an ARP question that was asked after the clone was made."""


class Counter:
    """A program in the guest that counts every 2 ms; what an observer outside sees of it."""

    def __init__(self, machine: roost.MachineHandle) -> None:
        self._execution = machine.stream("perl", "-e", TICK)
        self._seen: list[float] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for _ in self._execution:
            self._seen.append(time.perf_counter())

    def gap(self, begin: float, end: float) -> float:
        """Seconds of the longest time between `begin` and `end` in which nothing came."""
        times = [begin, *(moment for moment in self._seen if begin < moment < end), end]
        return max(after - before for before, after in itertools.pairwise(times))

    def close(self) -> None:
        """End the program."""
        self._execution.signal(signal.SIGKILL)
        self._reader.join(10)
        self._execution.close()


@contextmanager
def parent(host: roost.Host, name: str, memory: int, *, cold: bool = False) -> Iterator[roost.MachineHandle]:
    """A running machine of so many MiB that has written to a quarter of them."""
    machine = host.machines.launch(TEMPLATE, name=name, memory=f"{memory}MiB", accelerator="tcg", cold=cold)
    try:
        machine.run("sh", "-c", FILL.format(size=memory // 4)).check()
        yield machine
    finally:
        host.machines.delete(name)


def launches(host: roost.Host, made: Made, rounds: int) -> None:
    """Cold boots of the template's image, the first launch, which makes the warm template, and launches from that."""
    launch(host, "image", cold=True)  # which may have to be built
    for number in range(max(1, rounds // 2)):
        note(made, "cold", launch(host, f"cold-{number}", cold=True)[0])
    note(made, "first", launch(host, "first")[0])
    time.sleep(5)  # the template's spare QEMUs get ready
    for number in range(rounds):
        answers, command, timing = launch(host, f"warm-{number}")
        if timing.path != "warm":
            print(f"launch {number} came up {timing.path}, not warm")
        note(made, f"{timing.path}-answers", answers)
        note(made, f"{timing.path}-command", command)
        note(made, "spawn", timing.process)
        time.sleep(1)


def launch(host: roost.Host, name: str, *, cold: bool = False) -> tuple[float, float, roost.Timing]:
    """Seconds until a new machine answers and until it has run its first command, and what it says of its start; it is deleted."""
    begin = time.perf_counter()
    machine = host.machines.launch(TEMPLATE, name=name, memory="512MiB", accelerator="tcg", cold=cold)
    answers = time.perf_counter() - begin
    machine.run("true").check()
    command = time.perf_counter() - begin
    machine.refresh()
    host.machines.delete(name)
    return answers, command, machine.timing


def shell(daemon: Daemon, made: Made, rounds: int) -> None:
    """`roost launch` of a warm template, from the shell."""
    for number in range(rounds):
        begin = time.perf_counter()
        command = [*roost_command(), "launch", TEMPLATE, f"shell-{number}"]
        subprocess.run(command, env=daemon.environ, check=True, capture_output=True)
        note(made, "shell", time.perf_counter() - begin)
        daemon.roost("delete", f"shell-{number}", "--yes")


def roost_command() -> list[str]:
    """The installed command, as a shell would run it; the sources' own where nothing is installed."""
    installed = Path(sys.executable).with_name("roost")
    return [str(installed)] if installed.exists() else ROOST


def storm(machine: roost.MachineHandle, made: Made, count: int) -> list[roost.MachineHandle]:
    """`count` clones at once: until all answer, and until each does."""
    answers: dict[str, float] = {}

    def report(name: str, now: Progress) -> None:
        if now.text == "running":
            answers.setdefault(name, time.perf_counter() - begin)

    begin = time.perf_counter()
    outcomes = machine.clone(f"storm{count}", count=count, report=report)
    seconds = time.perf_counter() - begin
    kids = [kid for kid in outcomes if isinstance(kid, roost.MachineHandle)]
    if len(kids) < count:
        refused = next(kid for kid in outcomes if isinstance(kid, roost.RoostError))
        print(f"{count - len(kids)} of {count} clones were not made: {refused}")
        return kids
    note(made, f"storm-{count}", seconds)
    made.setdefault(f"answers-{count}", []).extend(answers.values())
    return kids


def storms(host: roost.Host, made: Made, rounds: int, counts: tuple[int, ...]) -> None:
    """Storms of clones of one running machine, and the private memory of the clones of the second when they have been idle."""
    with parent(host, "storm", 512) as machine:
        for count in counts:
            for _ in range(rounds if count == 1 else max(1, rounds // 2)):
                kids = storm(machine, made, count)
                if count == 8 and "private" not in made:
                    time.sleep(IDLE)
                    made["private"] = [private(kid.refresh().status.pid or 0) / MiB for kid in kids]
                for kid in kids:
                    host.machines.delete(kid.name)


def network(host: roost.Host, made: Made, rounds: int) -> None:
    """From the request for a clone to its first command's end, and to the end of one that waits for the network."""
    with parent(host, "net", 512) as machine:
        for number in range(rounds):
            for what, command in (("clone-command", "true"), ("network", NETWORK)):
                begin = time.perf_counter()
                kid = machine.clone(f"{what}-{number}")[0]
                if isinstance(kid, roost.RoostError):
                    raise kid
                answers = time.perf_counter() - begin
                done = kid.run("sh", "-c", command)
                if done.code == 0:
                    note(made, what, time.perf_counter() - begin)
                else:
                    print(f"{what}: it ended with {done.code} after {time.perf_counter() - begin:.1f} s")
                note(made, "clone-answers", answers)
                host.machines.delete(kid.name)


def pauses(host: roost.Host, made: Made, rounds: int, memory: int) -> None:
    """How long a parent of `memory` MiB stands still: by the host's clock, and as a counter in it shows to an observer outside.

    For the first clone of a parent that came from a warm template ("warm"; a quarter of its memory was written to since) and of one that
    booted ("cold"), and for the next clone of either ("again").
    """
    for kind, times in (("warm", rounds), ("cold", max(1, rounds // 2))):
        for number in range(times):
            with parent(host, f"{kind}-{memory}-{number}", memory, cold=kind == "cold") as machine:
                observe(machine, made, (f"{memory}-{kind}", f"{memory}-again"))


def observe(machine: roost.MachineHandle, made: Made, names: tuple[str, ...]) -> None:
    """Clone a machine that counts, once for each of the names. Beside each clone the longest gap of a second without one is taken, for
    other things hold up a counter too."""
    counter = Counter(machine)
    try:
        for name in names:
            time.sleep(2)
            begin = time.perf_counter()
            kid = machine.clone(f"{machine.name}-{name}")[0]
            end = time.perf_counter()
            if isinstance(kid, roost.RoostError):
                raise kid
            time.sleep(0.2)
            note(made, f"pause-{name}", kid.timing.pause)
            note(made, f"felt-{name}", counter.gap(begin, end))
            note(made, f"noise-{name}", counter.gap(begin - 1, begin))
            kid.delete()
    finally:
        counter.close()


def snapshots(host: roost.Host, made: Made, rounds: int) -> None:
    """Snapshots with memory, restores in place, and the first command after each."""
    with parent(host, "snap", 512) as machine:
        for number in range(rounds):
            begin = time.perf_counter()
            machine.snapshot(f"point{number}")
            note(made, "snapshot", time.perf_counter() - begin)
            begin = time.perf_counter()
            machine.restore(f"point{number}")
            note(made, "restore", time.perf_counter() - begin)
            machine.run("true").check()
            note(made, "restore-command", time.perf_counter() - begin)
        for taken in machine.snapshots():
            taken.delete()


def private(pid: int) -> int:
    """Bytes of memory that only this process has (smaps_rollup of proc(5))."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(kibibytes) for kibibytes in re.findall(r"^Private_(?:Clean|Dirty):\s+(\d+)", text, re.M)) * 1024


def note(made: Made, name: str, seconds: float) -> None:
    """Keep a figure."""
    made.setdefault(name, []).append(seconds)


def quick_sandbox(rounds: int) -> Made:
    """The peer's figures: see peer_clone.py."""
    command = [str(peer_python()), str(ROOT / "bench" / "peer_clone.py"), str(rounds), FILL.format(size=128)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PEER)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def virsh(image: Path, rounds: int) -> Made:
    """libvirt's figures; none where it can not be used, which is said."""
    if os.getuid() != 0 or not peer_virsh.installed():
        print("virsh: left out, for it is not installed or we are not root")
        return {}
    return peer_virsh.measure(image, 512, rounds)


def measure(rounds: int, counts: tuple[int, ...]) -> tuple[Made, Made]:
    """Roost's figures, and libvirt's of the same image."""
    made: Made = {}
    daemon = Daemon()
    try:
        daemon.start()
        with daemon.host() as host:
            launches(host, made, rounds)
            shell(daemon, made, rounds)
            network(host, made, rounds)
            storms(host, made, rounds, counts)
            for memory in (512, 2048):
                pauses(host, made, rounds, memory)
            snapshots(host, made, rounds)
        return made, virsh(image_of(daemon, TEMPLATE).directory, rounds)
    finally:
        daemon.close()


def report(made: Made, theirs: Made, libvirt: Made) -> None:
    """Print the rows: each against the peers' way to the same."""
    print(f"medians; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    ways = {"another machine: warm launch": "warm-command", "another machine: clone": "clone-command"}
    for what, name in {"another machine: cold boot": "cold", **ways}.items():
        against(what, made.get(name), PEER_NAME, theirs.get("boot"))
        against(what, made.get(name), VIRSH_NAME, libvirt.get("boot"))
    for name in ("pause-512-warm", "felt-512-warm", "pause-2048-warm", "felt-2048-warm"):
        against(f"stands still: {name}", made.get(name), PEER_NAME + " checkpoint", theirs.get("checkpoint"))
        against(f"stands still: {name}", made.get(name), VIRSH_NAME + " save", libvirt.get("save"))
    against("snapshot with memory", made.get("snapshot"), PEER_NAME, theirs.get("checkpoint"))
    against("snapshot with memory", made.get("snapshot"), VIRSH_NAME, libvirt.get("save"))
    against("restore", made.get("restore"), PEER_NAME, theirs.get("revert"))
    against("restore", made.get("restore"), VIRSH_NAME, libvirt.get("restore"))
    against("restore to the first command", made.get("restore-command"), PEER_NAME, theirs.get("answer"))
    against("restore to the first command", made.get("restore-command"), VIRSH_NAME, libvirt.get("answer"))


def against(what: str, ours: list[float] | None, peer: str, theirs: list[float] | None) -> None:
    """One row; nothing is made up for a figure that is missing."""
    if ours and theirs:
        print(row(what, median(ours), median(theirs), peer))
    else:
        print(f"{what:<34} {'no figure of ours' if not ours else 'no figure of ' + peer}")


PROMISES = (
    ("warm launch answers", "warm-answers", 0.25, "s"),
    ("warm launch, first command", "warm-command", 0.6, "s"),
    ("roost launch, warm, from the shell", "shell", 1.0, "s"),
    ("request to running, with the pool", "spawn", 0.06, "s"),
    *(
        (f"parent's pause, {memory} MiB, {kind}", f"pause-{memory}-{kind}", 0.04, "s")
        for memory in (512, 2048)
        for kind in ("warm", "cold", "again")
    ),
    ("clone answers", "clone-answers", 0.4, "s"),
    ("8 clones, all answer", "storm-8", 2.0, "s"),
    ("32 clones, all answer", "storm-32", 10.0, "s"),
    ("private memory of an idle clone", "private", 80.0, "MiB"),
    ("snapshot with memory, 512 MiB", "snapshot", 1.5, "s"),
    ("restore", "restore", 0.6, "s"),
)
"""(what, figure, the most that its median may be, unit)."""


def promises(made: Made, counts: tuple[int, ...]) -> None:
    """Print what SPECIFICATION.md promises against what was measured, and the figures that nothing is promised of."""
    for what, name, limit, unit in PROMISES:
        if name in made:
            print(promise(what, median(made[name]), limit, unit))
        else:
            print(f"{what:<34} not measured")
    for count in counts:
        show(f"each of {count} clones answers", made.get(f"answers-{count}"))
    show("clone, network ready", made.get("network"))
    for name in sorted(name for name in made if name.split("-")[0] in ("pause", "felt", "noise")):
        show(name, made[name])


def show(what: str, figures: list[float] | None) -> None:
    """One line of percentiles."""
    if figures:
        print(f"{what:<40} p50 {median(figures):7.3f} s   p95 {percentile(figures, 0.95):7.3f} s   of {len(figures)}")


def main(rounds: int, counts: tuple[int, ...]) -> None:
    """Measure, print, and write numbers and plot."""
    theirs = quick_sandbox(rounds)
    made, libvirt = measure(rounds, counts)
    report(made, theirs, libvirt)
    promises(made, counts)
    for peer, figures in ((PEER_NAME, theirs), (VIRSH_NAME, libvirt)):
        for name, values in figures.items():
            show(f"{peer}: {name}", values)
    RESULTS.mkdir(parents=True, exist_ok=True)
    everything = {"roost": made, "quick-sandbox": theirs, "virsh": libvirt}
    (RESULTS / "clone.json").write_text(json.dumps(everything, indent=1))
    clone_plot.draw(everything, RESULTS / "clone.png")
    print(f"numbers and plot: {RESULTS / 'clone.json'}, {RESULTS / 'clone.png'}")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    main(numbers[0] if numbers else ROUNDS, tuple(count for count in STORMS if count <= max(numbers[1:] or STORMS)))
