"""The template `tiny`: Debian's kernel and a small initramfs of busybox and the agent; no disk, answers within seconds."""

from __future__ import annotations

import asyncio
from pathlib import Path

from roost import guest
from roost.model.meta import Arch, MiB
from roost.storage import archive, initramfs, kernels
from roost.storage.manifest import Manifest
from roost.storage.template import Template, Workshop, kernel_in, modules_in

_AGENT_MODULES = ("virtio_pci", "pvpanic_pci", "virtio_console")
"""The bus, the report of a panic, for whoever is told to from then on, and the agent's port: the agent starts as soon as these are loaded."""

_MODULES = ("virtio_net", "virtio_rng", "virtio_blk", "evdev", "button", "virtio_scsi", "sd_mod")
"""Network, random numbers, disk, and the power button as an input event; volumes."""

_KERNELS: dict[Arch, tuple[str, str, str]] = {
    "x86_64": ("bookworm", "linux-image-cloud-amd64", "ttyS0"),
    "aarch64": ("bookworm", "linux-image-cloud-arm64", "ttyAMA0"),
    "riscv64": ("trixie", "linux-image-riscv64", "ttyS0"),  # Debian 12 has no riscv64
}
_COMMAND_LINE = "console={console} quiet panic=-1 cryptomgr.notests"
"""The self-tests of the kernel's ciphers take 0.25 s of the 1.6 s without KVM; nothing else measured as worth it."""


async def build(template: Template, workshop: Workshop) -> Manifest:
    """Fetch a kernel and busybox, put them together. Raises Unavailable."""
    suite, package, console = _KERNELS[template.arch]
    workshop.progress("fetching the package lists", None)
    sources = archive.sources_for(suite, workshop.mirror)
    packages = await archive.Archive.open(workshop.scratch / "apt", sources, template.arch)
    workshop.progress("fetching the kernel", 0.3)
    tree = workshop.scratch / "tree"
    await packages.unpack([await packages.dependency(package, r"linux-image-\d.*"), "busybox-static"], tree)
    workshop.progress("making the initramfs", 0.8)
    await asyncio.to_thread(_assemble, template.arch, tree, workshop)
    return Manifest(
        name=template.name,
        arch=template.arch,
        format="none",
        kernel=True,
        initramfs=True,
        command_line=_COMMAND_LINE.format(console=console),
        firmwares=("direct",),
        agent="roost",
        os="tiny",
    )


def _assemble(arch: Arch, tree: Path, workshop: Workshop) -> None:
    workshop.product.kernel.write_bytes(kernels.direct(kernel_in(tree).read_bytes()))
    busybox = next(path for path in (tree / "bin/busybox", tree / "usr/bin/busybox") if path.is_file())
    sources = guest.binary(arch, "init"), guest.binary(arch, "agent"), busybox, guest.source("udhcpc.script")
    programs = initramfs.Programs(*(path.read_bytes() for path in sources))
    early, everything = modules_in(tree, _AGENT_MODULES), modules_in(tree, _AGENT_MODULES + _MODULES)
    archive_ = initramfs.tiny(programs, early, everything[len(early) :])
    workshop.product.initramfs.write_bytes(archive_.finish())


def _template(arch: Arch) -> Template:
    ingredients = repr((2, _KERNELS[arch], _AGENT_MODULES, _MODULES, _COMMAND_LINE))
    return Template("tiny", arch, _KERNELS[arch][0], ingredients, 768 * MiB, build)


TEMPLATES = tuple(_template(arch) for arch in _KERNELS)
