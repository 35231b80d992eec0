"""Templates booted by QEMU alone, with nothing of Roost around them (test_boot has them as machines); and a build that is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from roost.host import processes
from roost.host.paths import MachineFiles, Paths
from roost.host.sockets import listen_unix
from roost.hypervisor import agent
from roost.hypervisor.base import Command
from roost.model.meta import GiB
from roost.storage.images import Images
from roost.storage.layers import Base, Layers
from roost.storage.manifest import Manifest
from tests.checkout import ROOT
from tests.live.world import template
from tests.needs import needs_program, needs_root
from tests.pool import fill, new_state

OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
BOOT = 180.0
"""Seconds for a boot in emulation on a busy host; an idle one takes a tenth."""

pytestmark = [pytest.mark.timeout(1800), needs_program("qemu-system-x86_64", "mmdebstrap", "qemu-img")]


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """A state directory that shares what was built before."""
    made = new_state()
    fill(made)
    try:
        yield made
    finally:
        shutil.rmtree(made)


@pytest.fixture(scope="module")
def images(state: Path) -> Images:
    """The images there."""
    return Images(Paths(state, state / "run"))


@contextmanager
def booted(pool: Images, image: Manifest, directory: Path, firmware: str) -> Iterator[Path]:
    """QEMU by hand, as small as it can be; gives the socket of the agent's port."""
    files, path = pool.files(image.digest), directory / "agent.sock"
    listener = listen_unix(path)
    argv = [
        "qemu-system-x86_64",
        "-accel",
        "tcg,tb-size=64",
        "-M",
        "q35",
        "-cpu",
        "Nehalem",
        "-m",
        "512",
        "-nodefaults",
        "-no-user-config",
    ]
    argv += [
        "-display",
        "none",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        f"socket,id=a,fd={listener.fileno()},server=on,wait=off",
    ]
    argv += ["-device", "virtserialport,chardev=a,name=roost.agent.0", "-serial", f"file:{directory / 'console'}"]
    if firmware == "direct":
        argv += ["-kernel", str(files.kernel), "-initrd", str(files.initramfs), "-append", image.command_line]
    if firmware == "uefi":
        argv += ["-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}"]
    if image.format == "qcow2":
        argv += ["-blockdev", f"qcow2,node-name=d,file.driver=file,file.filename={directory / 'root.qcow2'}"]
        argv += ["-device", "virtio-blk-pci,drive=d,bootindex=1"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=(listener.fileno(),))
    listener.close()
    try:
        yield path
    finally:
        process.kill()
        process.wait()


async def says(socket: Path, *argv: str) -> str:
    """What a command prints in the guest."""
    async with asyncio.timeout(BOOT):
        link = await agent.connect(socket)
        session = await link.execute(Command(argv))
        chunks = [chunk async for chunk in session.output()]
        await link.close()
    assert chunks[-1].code == 0, chunks
    return b"".join(chunk.data for chunk in chunks if chunk.stream == "stdout").decode()


async def test_tiny_boots_by_hand(state: Path, images: Images, tmp_path: Path) -> None:
    made = await asyncio.to_thread(template, state, images, "tiny")
    with booted(images, made, tmp_path, "direct") as socket:
        assert (await says(socket, "uname", "-m")).strip() == "x86_64"
        assert "eth0" not in await says(socket, "ip", "link")


@pytest.mark.parametrize("firmware", ["bios", "uefi"])
async def test_debian_13_boots_by_firmware(state: Path, images: Images, tmp_path: Path, firmware: str) -> None:
    if firmware == "uefi" and not OVMF.exists():
        pytest.skip("ovmf is not installed")
    made = await asyncio.to_thread(template, state, images, "debian:13")
    layers = Layers(images._paths, lambda digest: images.files(digest).disk)
    await layers.create_disk(Base(image=made.digest), MachineFiles(tmp_path, tmp_path), 20 * GiB)
    with booted(images, made, tmp_path, firmware) as socket:
        assert 'VERSION_ID="13"' in await says(socket, "cat", "/etc/os-release")
        assert (await says(socket, "findmnt", "-no", "PARTLABEL", "/")).strip() == "root"


BUILD = """
import asyncio, sys
from pathlib import Path
from roost.host.paths import MachineFiles, Paths
from roost.storage.images import Images
pool = Images(Paths(Path(sys.argv[1]), Path(sys.argv[1]) / "run"))
async def main():
    await pool.sweep()
    await pool.ensure_template("debian:12", "x86_64", lambda text, _: print(text, flush=True))
asyncio.run(main())
"""


@needs_root
@pytest.mark.parametrize("phase", ["fetching packages", "setting up packages"])
async def test_a_daemon_killed_in_the_middle_of_a_build_leaves_nothing(phase: str) -> None:
    state = new_state()
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUILD, str(state), stdout=asyncio.subprocess.PIPE, env=environ
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(600):
            while (await process.stdout.readline()).decode().strip() != phase:
                pass
        at_work = [os.pidfd_open(pid) for pid in tools(state) if pid != process.pid]
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(10):
            for pidfd in at_work:
                await processes.wait_exit(pidfd)
                os.close(pidfd)
        assert len(at_work) > 1
        assert [pid for pid in tools(state) if pid != process.pid] == []
        assert str(state) not in Path("/proc/mounts").read_text()
        after = Images(Paths(state, state / "run"))
        await after.sweep()
        assert sorted(path.name for path in state.rglob("*")) == ["building", "images", "recipes"]
    finally:
        if process.returncode is None:
            process.kill()
        shutil.rmtree(state)


def tools(state: Path) -> list[int]:
    """The processes that still work on a build."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(state).encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found
