"""Layers under real tools: long chains hold what was written, flattening keeps every byte whenever it is killed, a full disk harms nothing."""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - an ordinary user may not be able to read the interpreter later
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from roost.errors import Unavailable
from roost.host.paths import MachineFiles, Paths
from roost.storage import flattening
from roost.storage.layers import Base, Layers
from tests.needs import needs_program, needs_root
from tests.ordinary import WHO, run_as

pytestmark = [pytest.mark.timeout(600), needs_program("qemu-img", "qemu-io")]

MiB = 1 << 20
SMALL, LARGE = 24 * MiB, 40 * MiB
"""Bytes of the image, and of the machine's larger disk."""


def run(*argv: object) -> str:
    return subprocess.run([*map(str, argv)], check=True, capture_output=True, text=True, timeout=120).stdout


def node(chain: tuple[Path, ...]) -> str:
    """A chain as the tools take it, no header believed."""
    options: dict[str, object] | None = None
    for path in reversed(chain):
        options = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": options}
    return "json:" + json.dumps(options)


class Host:
    """A state directory with an image of random content, and what a machine on it should see."""

    def __init__(self, state: Path, seed: int = 7) -> None:
        self.random = random.Random(seed)
        self.paths = Paths(state, state / "run")
        draft = state / "disk.raw"
        state.mkdir(exist_ok=True)
        state.chmod(0o755)
        self.content = bytearray(self.random.randbytes(SMALL // 2) + bytes(SMALL // 2))
        draft.write_bytes(self.content)
        run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", draft, state / "disk.qcow2")
        draft.unlink()
        self.image = f"sha256:{hashlib.sha256((state / 'disk.qcow2').read_bytes()).hexdigest()}"
        where = self.paths.image(self.image)
        where.directory.mkdir(parents=True, mode=0o700)
        (state / "disk.qcow2").rename(where.disk)
        where.disk.chmod(0o444)
        self.layers = self.restart()

    def restart(self) -> Layers:
        self.layers = Layers(self.paths, lambda digest: self.paths.image(digest).disk)
        return self.layers

    def machine(self, uid: str) -> MachineFiles:
        made = self.paths.machine(uid)
        made.keep.mkdir(parents=True, mode=0o700)
        return made

    def chain(self, machine: MachineFiles) -> tuple[Path, ...]:
        return (machine.disk, *self.layers.below(self.layers.base_of(machine, self.image)))

    def write(self, machine: MachineFiles, *, pieces: int = 4, longest: int = 200_000) -> None:
        """Write random pieces, zeros among them, as a guest would, and note them in `content`."""
        commands: list[str] = []
        for _ in range(pieces):
            length = self.random.randrange(1, longest // 512) * 512
            offset = self.random.randrange(0, (len(self.content) - length) // 512) * 512
            pattern = self.random.choice([0, *range(1, 256)])
            commands += ["-c", f"write -P {pattern} {offset} {length}"]
            self.content[offset : offset + length] = bytes([pattern]) * length
        offset = self.random.randrange(0, len(self.content) // 65536) * 65536
        commands += ["-c", f"write -z -u {offset} 65536"]
        self.content[offset : offset + 65536] = bytes(len(self.content[offset : offset + 65536]))
        run("qemu-io", *commands, node(self.chain(machine)))

    async def cover(self, machine: MachineFiles) -> Base:
        await self.layers.prepare(machine, self.image)
        return await self.layers.settle(machine, self.image, covered=True)

    def seen(self, machine: MachineFiles) -> str:
        """A digest of what the guest sees."""
        out = self.paths.state / "seen.raw"
        run("qemu-img", "convert", "-O", "raw", node(self.chain(machine)), out)
        digest = hashlib.sha256(out.read_bytes()).hexdigest()
        out.unlink()
        return digest

    def expected(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    async def chained(self, uid: str, depth: int, **pieces: int) -> tuple[MachineFiles, list[Base]]:
        """A machine that wrote `depth` times with a checkpoint after each."""
        machine = self.machine(uid)
        await self.layers.create_disk(Base(image=self.image), machine, LARGE)
        self.content += bytes(LARGE - len(self.content))
        bases = []
        for _ in range(depth):
            self.write(machine, **pieces)
            bases.append(await self.cover(machine))
        self.write(machine, **pieces)
        return machine, bases


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "state")


@pytest.mark.fault(9)
async def test_a_chain_of_fifty_layers_holds_what_was_written_and_is_flattened_to_one(host: Host) -> None:
    machine, bases = await host.chained("web", 50)
    assert len(host.chain(machine)) == 52
    assert host.seen(machine) == host.expected()
    await host.layers.flatten(machine, host.image)
    assert host.chain(machine) == (machine.disk, host.paths.image(host.image).disk)
    assert host.seen(machine) == host.expected()
    info = json.loads(run("qemu-img", "info", "--output=json", machine.disk))
    assert Path(machine.keep, info["backing-filename"]).resolve() == host.paths.image(host.image).disk.resolve()
    run("qemu-img", "check", "-f", "qcow2", machine.disk)
    assert machine.disk.stat().st_mode & 0o777 == 0o600
    assert machine.disk.stat().st_uid == os.geteuid()
    assert sorted(await host.layers.collect([])) == sorted(base.layer for base in bases)
    assert host.seen(machine) == host.expected()


@pytest.mark.fault(9)
async def test_a_layer_in_the_middle_keeps_what_it_stands_on_and_nothing_else(host: Host) -> None:
    machine, bases = await host.chained("web", 10)
    kid = host.machine("kid")
    await host.layers.create_disk(bases[4], kid)
    before = host.seen(kid)
    shutil.rmtree(machine.keep)
    assert sorted(await host.layers.collect([])) == sorted(base.layer for base in bases[5:])
    assert host.seen(kid) == before
    assert await host.layers.verify(thorough=True) == []


@pytest.mark.parametrize("who", WHO)
def test_root_and_an_ordinary_user_flatten(who: str) -> None:
    async def main() -> tuple[bool, str]:
        with tempfile.TemporaryDirectory() as directory:
            host = Host(Path(directory) / "state")
            machine, _ = await host.chained("web", 3)
            await host.layers.flatten(machine, host.image)
            return host.seen(machine) == host.expected(), host.layers.base_of(machine, "").layer

    assert run_as(who, main) == (True, "")


async def test_flattening_a_machine_leaves_the_others_on_its_layers_alone(host: Host) -> None:
    machine, bases = await host.chained("web", 3)
    kid = host.machine("kid")
    await host.layers.create_disk(bases[2], kid)
    before = host.seen(kid)
    await host.layers.flatten(machine, host.image)
    assert await host.layers.collect([]) == []
    assert host.seen(kid) == before


class Qemu:
    """A QEMU whose guest does not run; its disk is written by its own `qemu-io`. Disks come as descriptors, for reading and for writing."""

    def __init__(self, chain: tuple[Path, ...]) -> None:
        self._monitor, theirs = socket.socketpair()
        self._sets = 0
        argv = ["qemu-system-x86_64", "-S", "-nodefaults", "-display", "none", "-accel", "tcg"]
        argv += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        with theirs:
            self._process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
        self._answers = self._monitor.makefile()
        self.ask("qmp_capabilities")
        below = json.loads(node(chain[1:]).removeprefix("json:"))
        self.ask("blockdev-add", **{**below, "node-name": "image", "read-only": True})
        self.open(chain[0], "disk", "image")
        self.ask("device_add", driver="virtio-blk-pci", drive="disk", id="disk0")

    def ask(self, command: str, descriptors: Sequence[int] = (), **arguments: object) -> Any:
        message = json.dumps({"execute": command, "arguments": arguments}).encode()
        socket.send_fds(self._monitor, [message], descriptors)
        answers = (json.loads(line) for line in self._answers)
        return next(answer for answer in answers if "return" in answer or "error" in answer)["return"]

    def open(self, disk: Path, name: str, backing: str | None) -> None:
        self._sets += 1
        for mode in (os.O_RDWR, os.O_RDONLY):
            descriptor = os.open(disk, mode)
            self.ask("add-fd", (descriptor,), **{"fdset-id": self._sets})
            os.close(descriptor)
        file = {"driver": "file", "filename": f"/dev/fdset/{self._sets}"}
        self.ask("blockdev-add", **{"node-name": name, "driver": "qcow2", "file": file, "backing": backing})

    def write(self, offset: int, length: int) -> None:
        command = f'qemu-io -d /machine/peripheral/disk0/virtio-backend "write -P 7 {offset} {length}"'
        assert self.ask("human-monitor-command", **{"command-line": command}) == ""

    def end(self) -> None:
        self.ask("quit")
        self._process.wait(30)
        self._answers.close()
        self._monitor.close()


@needs_program("qemu-system-x86_64")
@pytest.mark.fault(7)
async def test_qemu_changes_no_byte_of_a_disk_that_was_covered(host: Host) -> None:
    machine = host.machine("web")
    await host.layers.create_disk(Base(image=host.image), machine, LARGE)
    qemu, top = Qemu(host.chain(machine)), "disk"
    try:
        for number in range(3):
            qemu.write(number * MiB, 299_520)
            following = await host.layers.prepare(machine, host.image)
            qemu.open(following.file, following.node, None)
            qemu.ask("blockdev-snapshot", node=top, overlay=following.node)
            top = following.node
            base = await host.layers.settle(machine, host.image, covered=True)
            await host.layers.hash(base.layer)
            qemu.write(number * MiB + 4096, MiB)
    finally:
        qemu.end()
    assert await host.layers.verify(thorough=True) == []
    for disk in host.chain(machine):
        run("qemu-img", "check", node((disk,)))
    expected = bytearray(host.content + bytes(LARGE - SMALL))
    expected[: 3 * MiB + 4096] = b"\7" * (3 * MiB + 4096)
    assert host.seen(machine) == hashlib.sha256(expected).hexdigest()


FLATTEN = textwrap.dedent("""
    import asyncio, os, signal, sys
    from pathlib import Path
    from roost.host.paths import Paths
    from roost.storage.layers import Layers

    state, image, allowed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    kept, asked = str(state / "machines"), 0

    def watch(event, arguments):
        global asked
        writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writing or event in ("os.rename", "os.remove", "os.chown", "os.chmod")) and str(arguments[0]).startswith(kept):
            asked += 1
            if asked > allowed:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    paths = Paths(state, state / "run")
    layers = Layers(paths, lambda digest: paths.image(digest).disk)
    asyncio.run(layers.flatten(paths.machine("web"), image))
    print(asked)
""")
"""Flattens the machine `web`, and dies at the change of a file after the given number of them."""


def start_flattening(host: Host, changes: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", FLATTEN, str(host.paths.state), host.image, str(changes)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


@pytest.mark.fault(8)
async def test_flattening_that_is_killed_at_any_change_leaves_the_disk_whole(host: Host) -> None:
    machine, _ = await host.chained("web", 3)
    original = host.paths.state / "original"
    shutil.copytree(machine.keep, original)
    killed = 0
    while True:
        with start_flattening(host, killed) as process:
            out, _ = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        await host.restart().sweep()
        if host.layers.pending(machine) is not None:
            await host.layers.settle(machine, host.image, covered=True)
        assert host.seen(machine) == host.expected(), f"after {killed} changes"
        assert {path.name for path in machine.keep.iterdir() if path.name[0] != "."} == {"root.qcow2", "base.json"}
        shutil.rmtree(machine.keep)
        shutil.copytree(original, machine.keep)
        killed += 1
    assert killed == int(out)
    assert killed >= 8
    assert host.restart().base_of(machine, "") == Base(image=host.image)
    assert host.seen(machine) == host.expected()


@pytest.mark.fault(8)
async def test_flattening_that_is_killed_while_it_copies_is_begun_anew(host: Host) -> None:
    machine, bases = await host.chained("web", 3, pieces=8, longest=4 * MiB)
    with start_flattening(host, 1000) as process:
        while process.poll() is None and not (machine.next_disk.exists() and machine.next_disk.stat().st_size > MiB):
            pass
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert host.restart().base_of(machine, "") == bases[-1]
    assert host.layers.pending(machine) is None
    await host.layers.sweep()
    assert not machine.next_disk.exists()
    assert host.seen(machine) == host.expected()
    await host.layers.flatten(machine, host.image)
    assert host.seen(machine) == host.expected()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    place = tmp_path / "full"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "roost-test", place)
    try:
        yield place
    finally:
        run("umount", place)


def fill(place: Path, leave: int) -> None:
    """Take all of a file system but so many bytes."""
    status = os.statvfs(place)
    with (place / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - leave)


@needs_root
async def test_a_full_disk_harms_no_disk_and_nothing_is_left(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flattening, "_RESERVE", 0)
    monkeypatch.setattr("roost.storage.layers._ROOM", 0)
    host = Host(full / "state")
    machine, bases = await host.chained("web", 2, longest=6 * MiB, pieces=2)
    kid = host.machine("kid")
    fill(full, MiB)
    before = sorted(path for path in host.paths.state.rglob("*"))
    with pytest.raises(Unavailable) as flattened:
        await host.layers.flatten(machine, host.image)
    fill_up = full / "more"
    fill_up.write_bytes(bytes(os.statvfs(full).f_bavail * 4096 - 4 * 1024))
    with pytest.raises(Unavailable) as prepared:
        await host.layers.prepare(machine, host.image)
    with pytest.raises(Unavailable) as created:
        await host.layers.create_disk(bases[0], kid)
    with pytest.raises(Unavailable):
        await host.layers.create_disk(bases[0], machine)
    assert all(caught.value.fix for caught in (flattened, prepared, created))
    assert "File too large" in flattened.value.why
    assert "No space left" in prepared.value.why
    assert "No space left" in created.value.why
    assert sorted(path for path in host.paths.state.rglob("*")) == before
    fill_up.unlink()
    (full / "ballast").unlink()
    assert host.seen(machine) == host.expected()


@needs_root
async def test_room_is_kept_for_others(full: Path) -> None:
    host = Host(full / "state")
    machine, _ = await host.chained("web", 1, pieces=1, longest=MiB)
    with pytest.raises(Unavailable, match="can not be flattened"):
        await host.layers.flatten(machine, host.image)
    fill(full, 8 * MiB)
    with pytest.raises(Unavailable, match="can not be covered"):
        await host.layers.prepare(machine, host.image)
    assert [path.name for path in sorted(machine.keep.iterdir())] == ["base.json", "root.qcow2"]
