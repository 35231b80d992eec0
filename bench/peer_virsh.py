"""libvirt as the peer of bench/clone.py: `virsh save` and `virsh restore` of the very guest that Roost runs, with the same QEMU binary.

libvirt's driver is embedded in one virsh below a directory of its own (`qemu:///embed?root=...`): nothing of this host's libvirt is touched,
and no time goes into connecting. The guest has the same kernel, initramfs, disk, memory, CPU model and number, translation cache and agent.
Needs root.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

from bench.figures import FILL, Made
from roost.hypervisor import agent
from roost.hypervisor.base import Command

_CONFIGURATION = """user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
"""
_DOMAIN = """<domain type='qemu'><name>peer</name><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd><cmdline>{command_line}</cmdline></os>
<features><acpi/><apic/><tcg><tb-cache unit='MiB'>32</tb-cache></tcg></features>
<cpu mode='custom' match='exact'><model fallback='allow'>Nehalem</model></cpu>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
<channel type='unix'><source mode='bind' path='{agent}'/><target type='virtio' name='roost.agent.0'/></channel>
<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
<controller type='usb' model='none'/><memballoon model='none'/><audio id='1' type='none'/></devices></domain>
"""


class Virsh:
    """A virsh that takes one command after the other."""

    def __init__(self, root: Path) -> None:
        command = ["virsh", "-q", "-c", f"qemu:///embed?root={root}"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
        self._count = 0

    def do(self, command: str) -> float:
        """Seconds that a command took. Ends the benchmark with what virsh said when it failed."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both were asked for")
        self._count += 1
        begin = time.perf_counter()
        # virsh repeats what it reads: the quotes tell that from what `echo` prints, which has no end of line.
        self._process.stdin.write(f"{command}\necho 'do'ne-{self._count}-\n".encode())
        said = b""
        while f"done-{self._count}-".encode() not in said:
            more = self._process.stdout.read(4096)
            said += more
            if not more or b"error:" in said:
                raise SystemExit(f"virsh {command}: {said.decode(errors='replace')}")
        return time.perf_counter() - begin

    def close(self) -> None:
        """End it."""
        self._process.communicate(b"quit\n", timeout=30)


class Guest:
    """The guest under libvirt, in a directory of its own."""

    def __init__(self, virsh: Virsh, directory: Path) -> None:
        self._virsh = virsh
        self._agent = directory / "agent"
        self._saved = directory / "saved"

    def boot(self) -> float:
        """Seconds of a cold boot to the first answer."""
        begin = time.perf_counter()
        self._virsh.do("start peer")
        self.run("true")
        return time.perf_counter() - begin

    def save(self) -> float:
        """Seconds of `virsh save`: the guest stands still all the time, and is gone after it."""
        return self._virsh.do(f"save peer {self._saved}")

    def restore(self) -> float:
        """Seconds of `virsh restore`."""
        return self._virsh.do(f"restore {self._saved}")

    def answer(self) -> float:
        """Seconds until it has run `true`."""
        begin = time.perf_counter()
        self.run("true")
        return time.perf_counter() - begin

    def run(self, *argv: str) -> None:
        """Run a command to its end, which must be a success."""
        code = asyncio.run(self._run(argv))
        if code != 0:
            raise SystemExit(f"in libvirt's guest {argv[0]} ended with {code}")

    async def _run(self, argv: Sequence[str]) -> int:
        answering = await agent.connect(self._agent)
        try:
            await answering.ping(300)
            session = await answering.execute(Command(argv))
            return [chunk.code async for chunk in session.output()][-1]
        finally:
            await answering.close()


def installed() -> bool:
    """Whether virsh is there, with libvirt's driver for QEMU."""
    return shutil.which("virsh") is not None and shutil.which("libvirtd") is not None


@contextmanager
def guest(image: Path, memory: int) -> Iterator[Guest]:
    """The guest of an image's directory with `memory` MiB; it is gone at the end, with all that was made for it."""
    with tempfile.TemporaryDirectory(prefix="virt-") as name:
        directory = Path(name)
        (directory / "root" / "etc").mkdir(parents=True)
        (directory / "root" / "etc" / "qemu.conf").write_text(_CONFIGURATION)
        disk = directory / "disk.qcow2"
        below = ["-b", str(image / "disk.qcow2"), "-F", "qcow2"]
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *below, str(disk)], check=True)
        manifest = json.loads((image / "manifest.json").read_text())
        values = {"kernel": image / "kernel", "initrd": image / "initramfs", "disk": disk, "agent": directory / "agent"}
        text = {what: escape(str(value)) for what, value in values.items()}
        text["command_line"] = escape(manifest["command_line"])
        (directory / "domain.xml").write_text(_DOMAIN.format(memory=memory, **text))
        virsh = Virsh(directory / "root")
        try:
            virsh.do(f"define {directory / 'domain.xml'}")
            yield Guest(virsh, directory)
        finally:
            try:
                virsh.do("destroy peer")
            finally:
                virsh.close()


def measure(image: Path, memory: int, rounds: int) -> Made:
    """A cold boot, then `rounds` times save and restore; `answer` is a restore and a command after it."""
    made: Made = {"boot": [], "save": [], "restore": [], "answer": []}
    with guest(image, memory) as peer:
        made["boot"].append(peer.boot())
        peer.run("sh", "-c", FILL.format(size=memory // 4))
        for _ in range(rounds):
            made["save"].append(peer.save())
            made["restore"].append(peer.restore())
            made["answer"].append(made["restore"][-1] + peer.answer())
    return made
