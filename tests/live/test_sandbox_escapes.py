"""The hostile stand-in in the sandbox of a program: nothing gets out, and nothing it does uses up the host."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from roost.host.box import Box, Limits
from roost.host.sandbox import start
from roost.runtimes import usage, wine_prefix
from tests import boxes
from tests.needs import needs_root
from tests.ordinary import WHO, run_as
from tests.pool import CACHE
from tests.programs.build import FOREIGN, host, program
from tests.programs.running import run, said

MiB = 1 << 20
ABSENT = "Function not implemented"


class Bait(NamedTuple):
    """What a host has left lying around, as open to everybody as it can be, and two granted directories."""

    words: tuple[str, ...]
    mounts: tuple[tuple[str, str, str, bool], ...]
    victim: subprocess.Popen[bytes]
    secret: Path
    granted: Path


@pytest.fixture(scope="module")
def stand_in() -> Iterator[Path]:
    """A copy that an ordinary user can read."""
    with tempfile.TemporaryDirectory(prefix="roost-test-") as directory:
        Path(directory).chmod(0o755)
        yield Path(shutil.copy(program("escape"), directory))


@contextlib.contextmanager
def lay_bait() -> Iterator[Bait]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="roost-bait-")))
        directory.chmod(0o755)
        private, out, data = (directory / name for name in ("private", "out", "data"))
        for place in (private, out, data):
            place.mkdir()
            place.chmod(0o777)
        (private / "secret").write_bytes(b"secret")
        (private / "secret").chmod(0o666)
        (data / "file").write_bytes(b"data")
        (out / "link").symlink_to(private)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        name = f"roost-bait-{uuid.uuid4()}"
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        stack.enter_context(open(private / "secret", "rb+"))
        victim = stack.enter_context(subprocess.Popen(["sleep", "600"]))
        stack.callback(victim.kill)
        port = str(listener.getsockname()[1])
        words = (str(victim.pid), port, str(private / "secret"), name, "/out", "/data")
        mounts = ((str(out), "/out", "write", True), (str(data), "/data", "read", True))
        yield Bait(words, mounts, victim, private / "secret", out)


def hostile(binary: Path, *words: str, mounts: Sequence[Any] = (), **changes: Any) -> Box:
    mounts = ((str(binary), "/app/escape", "read", True), *mounts)
    return boxes.box("/app/escape", *words, mounts=mounts, **changes)


def verdicts(output: str) -> dict[str, tuple[str, str]]:
    lines = (line.split("\t") for line in output.splitlines())
    return {words[0]: (words[1], words[2]) for words in lines if len(words) == 3}


def attempts(binary: Path, **changes: Any) -> tuple[dict[str, tuple[str, str]], str]:
    """Every attempt of the stand-in and what became of it; the second value tells what of the bait was touched."""
    with lay_bait() as bait:
        ran = boxes.run(hostile(binary, *bait.words, mounts=(*bait.mounts, *changes.pop("mounts", ())), **changes))
        untouched = bait.victim.poll() is None and bait.secret.read_bytes() == b"secret"
        beside = sorted(path.name for path in bait.secret.parent.iterdir())
    return verdicts(ran.output), "" if untouched and beside == ["secret"] else f"touched: {untouched} {beside}"


@pytest.mark.fault(62)
@pytest.mark.fault(91)
@pytest.mark.parametrize("who", WHO)
def test_no_attempt_of_a_hostile_program_gets_out(who: str, stand_in: Path) -> None:
    async def main() -> tuple[dict[str, tuple[str, str]], str]:
        return attempts(stand_in)

    tried, touched = run_as(who, main)
    assert {name: why for name, (verdict, why) in tried.items() if verdict != "held"} == {}
    assert touched == ""
    assert len(tried) > 90
    assert sum(why == ABSENT for _, why in tried.values()) < 4


@needs_root
@pytest.mark.parametrize("who", WHO)
def test_the_same_program_gets_out_where_nothing_holds_it(who: str, stand_in: Path) -> None:
    """So that the attempts are known to be real: outside most of what is harmless there succeeds."""
    harmless = ("victim_signal", "victim_environ", "secret", "loopback", "abstract", "link_found", "every_process")

    def outside() -> dict[str, tuple[str, str]]:
        with lay_bait() as bait:
            words = (*bait.words[:4], str(bait.granted), str(bait.granted))
            told = [
                subprocess.run([stand_in, "only", name, *words], capture_output=True, text=True, timeout=60).stdout
                for name in harmless
            ]
        return verdicts("".join(told))

    async def main() -> dict[str, tuple[str, str]]:
        return outside()

    assert {name: verdict for name, (verdict, _) in run_as(who, main).items()} == dict.fromkeys(harmless, "escaped")


@pytest.mark.fault(62)
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", ["x32", "int80"])
@pytest.mark.skipif(host() != "x86_64", reason="the second system call tables of x86_64")
def test_other_system_call_tables_are_the_end_of_the_program(who: str, name: str, stand_in: Path) -> None:
    async def main() -> tuple[str, str]:
        return boxes.run(hostile(stand_in, "deadly", name))[:2]

    assert run_as(who, main) == (f"ended signal {signal.SIGSYS.value}", "")


@pytest.mark.fault(68)
@pytest.mark.parametrize("who", WHO)
def test_a_fork_bomb_ends_at_its_bound_and_with_the_box(who: str, stand_in: Path) -> None:
    async def main() -> int:
        read, write = os.pipe()
        bomb = hostile(stand_in, "deadly", "fork", limits=Limits(processes=20), fds={1: write})
        boxed = start(bomb)
        os.close(write)
        os.read(read, 64)  # one of them could not be made: now there are as many as there may be
        made = len(usage.processes(boxed.pid)) - 1
        boxes.end(boxed)
        with open(read, "rb") as file:
            file.read()  # returns when all are gone
        return made

    assert 15 < run_as(who, main) <= 20


@needs_root
@pytest.mark.fault(68)
def test_a_memory_bomb_is_stopped_by_the_control_group(stand_in: Path) -> None:
    limits = Limits(memory=64 * MiB)
    bomb = hostile(stand_in, "deadly", "memory", limits=limits, require=("control group",))
    boxed = start(bomb)
    assert boxed.group is not None
    boxed.link.settimeout(60)
    try:
        ended = boxed.link.recv(512)
        kills = boxed.group.kills()
    finally:
        boxes.end(boxed)
    assert (ended, kills > 0) in {(b"ended signal 9", True), (b"", True)}
    assert boxed.group.remove()


@pytest.mark.fault(91)
@pytest.mark.parametrize(
    "machine", [name for name in ("aarch64", "arm", "riscv64", "s390x", "ppc64le") if name in FOREIGN]
)
def test_raw_system_calls_of_an_emulated_program_meet_the_same_walls(machine: str) -> None:
    emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
    if emulator is None:
        pytest.skip(f"not installed: qemu-{machine}")
    with lay_bait() as bait:
        mounts = ((str(program("escape", machine)), "/app/escape", "read", True), *bait.mounts)
        ran = boxes.run(boxes.box(emulator, "/app/escape", *bait.words, mounts=mounts))
        untouched = bait.victim.poll() is None and bait.secret.read_bytes() == b"secret"
    tried = verdicts(ran.output)
    assert {name: why for name, (verdict, why) in tried.items() if verdict != "held"} == {}
    assert untouched
    assert len(tried) > 80


@pytest.mark.fault(91)
@pytest.mark.skipif(wine_prefix.installation() is None, reason="not installed: wine64")
def test_a_windows_program_that_calls_the_kernel_meets_the_same_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_CACHE", str(CACHE / "run"))
    with lay_bait() as bait:
        tried = verdicts(said(run(program("rawcall", "exe"), str(bait.victim.pid), str(bait.secret))))
        assert bait.victim.poll() is None
    assert {name: why for name, (verdict, why) in tried.items() if verdict != "held"} == {}
    assert len(tried) == 17
