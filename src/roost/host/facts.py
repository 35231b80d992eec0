"""Looks at this host: its CPUs, memory, KVM, and what each installed QEMU can do, asked of QEMU itself and cached."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import platform
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

import msgspec

from roost.errors import RoostError, Unavailable
from roost.host import files, processes, system
from roost.model.facts import Emulator, HostFacts, KvmState
from roost.model.meta import Arch

__all__ = ["HostFacts", "ask", "gather", "newest_machine"]

_KVM_GET_API_VERSION = 0xAE00
_KVM_API_VERSION = 12  # the only one there has ever been: Documentation/virt/kvm/api.rst, 4.1
_HELP_SECONDS = 20.0
_CACHE_LIMIT = 4 << 20

_FAMILIES = {"x86_64": "pc-q35-", "aarch64": "virt-", "riscv64": "virt"}
_DEVICES = re.compile(
    r"virtio-(?:blk|net|rng|serial|scsi|gpu|balloon)-(?:pci|device)|virtserialport|pvpanic(?:-pci)?|vmgenid|pcie-root-port"
    r"|tpm-(?:crb|tis|tis-device)|VGA|bochs-display"
)
_FIRMWARE = (
    "/usr/share/OVMF",
    "/usr/share/AAVMF",
    "/usr/share/qemu-efi-riscv64",
    "/usr/share/edk2/x64",
    "/usr/share/edk2/aarch64",
)


class _Cached(msgspec.Struct):
    """An emulator with what tells its file apart from a later one at the same path."""

    mtime: int
    size: int
    emulator: Emulator
    wanted: str = ""
    """What was looked for in its answers: a later Roost may look for more."""


async def gather(cache: Path | None = None) -> HostFacts:
    """The facts of this host now. `cache` (`Paths.emulators`) keeps what the QEMU binaries said, by path, time and size.

    What is missing (no QEMU, no KVM, no passt, no swtpm) is a fact, never an error.
    """
    cpu = _cpu_information(await asyncio.to_thread(Path("/proc/cpuinfo").read_text))
    return HostFacts(
        arch=_architecture(),
        kernel=platform.release(),
        boot=processes.boot_id(),
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        vendor=cpu.get("vendor_id", cpu.get("CPU implementer", "")),
        flags=tuple(sorted(cpu.get("flags", cpu.get("Features", "")).split())),
        kvm=_kvm(Path("/dev/kvm")),
        emulators=await _emulators(cache),
        files=tuple(sorted(str(file) for directory in _FIRMWARE for file in Path(directory).glob("*.fd"))),
        passt=_which("passt"),
        swtpm=_which("swtpm"),
    )


def _architecture() -> Arch:
    machine = platform.machine()
    if machine not in get_args(Arch):
        raise Unavailable(f"Roost does not run on {machine}", "its jail knows x86_64, aarch64 and riscv64 only")
    return cast("Arch", machine)


def _cpu_information(text: str) -> dict[str, str]:
    """The fields of the first CPU in /proc/cpuinfo."""
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _kvm(node: Path) -> KvmState:
    try:
        descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return "denied"
    except OSError:
        return "absent"
    try:
        return "open" if fcntl.ioctl(descriptor, _KVM_GET_API_VERSION) == _KVM_API_VERSION else "absent"
    except OSError:
        return "absent"
    finally:
        os.close(descriptor)


def _which(name: str) -> str | None:
    return shutil.which(name, path=system.clean_environment()["PATH"])


async def _emulators(cache: Path | None) -> dict[str, Emulator]:
    """Every installed QEMU by the architecture it emulates."""
    known = await asyncio.to_thread(_load, cache)
    paths = {arch: _which(f"qemu-system-{arch}") for arch in get_args(Arch)}
    found = {arch: await _cached(arch, path, known) for arch, path in paths.items() if path}
    answered = {arch: entry for arch, entry in found.items() if entry is not None}
    if cache is not None and answered != known:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(files.atomic_write, cache, msgspec.json.encode(answered))
    return {arch: entry.emulator for arch, entry in answered.items()}


def _load(cache: Path | None) -> dict[str, _Cached]:
    if cache is None:
        return {}
    try:
        return msgspec.json.decode(files.read_bounded(cache, _CACHE_LIMIT), type=dict[str, _Cached])
    except (OSError, RoostError, msgspec.MsgspecError):
        return {}


async def _cached(arch: str, path: str, known: dict[str, _Cached]) -> _Cached | None:
    entry = known.get(arch)
    status = Path(path).stat()
    seen = (path, status.st_mtime_ns, status.st_size, _DEVICES.pattern)
    if entry and (entry.emulator.path, entry.mtime, entry.size, entry.wanted) == seen:
        return entry
    try:
        return _Cached(status.st_mtime_ns, status.st_size, await ask(arch, path), _DEVICES.pattern)
    except RoostError:
        return None  # a binary that cannot even print its help is as good as none


async def ask(arch: str, path: str) -> Emulator:
    """What the QEMU binary at `path` says of itself. Raises Unavailable or OutcomeUnknown when it does not answer."""
    version, machines, accelerators, cpus, devices, netdevs = await asyncio.gather(
        _help(path, ["--version"]),
        _help(path, ["-machine", "help"]),
        _help(path, ["-accel", "help"]),
        _help(path, ["-machine", "none" if arch == "x86_64" else "virt", "-cpu", "help"]),
        _help(path, ["-machine", "none", "-device", "help"]),
        _help(path, ["-machine", "none", "-netdev", "help"]),
    )
    return Emulator(
        path=path,
        version=version.splitlines()[0].removeprefix("QEMU emulator version ") if version else "",
        machine=newest_machine(machines, _FAMILIES[arch]),
        accelerators=tuple(word for word in accelerators.split() if word in ("kvm", "tcg")),
        cpus=_cpu_models(cpus),
        devices=tuple(
            sorted(name for name in re.findall(r'^name "([^"]+)"', devices, re.M) if _DEVICES.fullmatch(name))
        ),
        netdevs=tuple(netdevs.partition(":")[2].split()),
    )


async def _help(path: str, arguments: Sequence[str]) -> str:
    finished = await system.run([path, *arguments], timeout=_HELP_SECONDS, limit=1 << 20)
    if finished.code != 0:
        why = finished.stderr.decode(errors="replace").strip()[:500]
        raise Unavailable(f"{path} does not work", f"`{' '.join(arguments)}` ended with code {finished.code}: {why}")
    return finished.stdout.decode(errors="replace")


def newest_machine(text: str, family: str) -> str:
    """The newest versioned machine type of a family in the output of `-machine help`, "" when it has none.

    QEMU lists a versioned type for each release; where the family has no versions (riscv64) its only name is the answer.
    """
    names = [line.split()[0] for line in text.splitlines()[1:] if line.startswith(family)]
    return max(
        names, key=lambda name: [int(part) for part in re.findall(r"\d+", name.removeprefix(family))], default=""
    )


def _cpu_models(text: str) -> tuple[str, ...]:
    """Model names in the output of `-cpu help`, which differs between targets and releases: the first word that is not "x86"."""
    names = set[str]()
    for line in text.partition("Recognized CPUID")[0].splitlines():
        words = line.removeprefix("x86 ").split()
        if words and not line.endswith(":"):
            names.add(words[0])
    return tuple(sorted(names))
