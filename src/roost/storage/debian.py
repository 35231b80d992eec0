"""The templates `debian:12` and `debian:13`: a small systemd Debian on a GPT disk that boots by BIOS, UEFI or directly."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from pathlib import Path
from typing import NamedTuple

from roost import guest
from roost.host import system
from roost.host.files import read_bounded
from roost.model.meta import GiB, MiB
from roost.storage import archive, bootdisk, debian_files, initramfs, kernels, namespaces
from roost.storage.manifest import Manifest
from roost.storage.template import Template, Workshop, kernel_in, modules_in

SIZE = 10 * GiB
"""Virtual size of the disk; unwritten space takes none on the host."""

_PACKAGES = (
    "ca-certificates", "cloud-init", "dbus", "e2fsprogs", "fdisk", "grub-efi-amd64-bin", "grub-pc-bin", "iproute2", "iputils-ping",
    "kmod", "less", "libpam-systemd", "linux-image-cloud-amd64", "nano", "netbase", "openssh-server", "procps", "qemu-guest-agent",
    "sudo", "systemd", "systemd-resolved", "systemd-sysv", "udev",
)  # fmt: skip

_MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "ext4")
"""What direct boot needs before the root file system is there, the agent's port among it: the agent must not wait for udev."""

_COMMAND_LINE = "roost.root=PARTLABEL=root rw console=ttyS0 quiet systemd.show_status=0 panic=10 cryptomgr.notests"

_TOOLS = ("mmdebstrap", "apt-get", "setpriv", "unshare", "mkfs.ext4", "mformat", "mcopy", "qemu-img")

_NODOC = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*")
_PHASES = {"Get:": "fetching packages", "Unpacking": "unpacking packages", "Setting up": "setting up packages"}
_LINES = 1900
"""About how many lines mmdebstrap prints; for the progress only."""

_MODULES_BIOS = "biosdisk part_gpt ext2 normal linux serial terminal echo reboot halt"
_MODULES_EFI = "part_gpt ext2 fat normal linux serial terminal echo reboot halt"

_FINISH = f"""\
{debian_files.PRUNE}
mount -t tmpfs none "$root/tmp"
chroot "$root" grub-mkimage -O i386-pc -o /tmp/core.img -p '(,gpt3)/boot/grub' {_MODULES_BIOS}
chroot "$root" grub-mkimage -O x86_64-efi -o /tmp/grub.efi -p '(,gpt3)/boot/grub' {_MODULES_EFI}
cp tmp/core.img tmp/grub.efi usr/lib/grub/i386-pc/boot.img "$2"
umount "$root/tmp"
MKE2FS_CONFIG="$2/mke2fs.conf" mkfs.ext4 -q -F -L root -m 1 -e remount-ro -E "offset=$4,lazy_itable_init=0,nodiscard" -d "$root" "$3" "$5k"
"""
"""Arguments: root directory, scratch directory, disk, offset of the root partition in bytes, its size in KiB."""

_MKE2FS = """\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
    features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
"""
"""The features of Debian 12's e2fsprogs, whatever the host's version would choose: GRUB and the guest's kernel must know them all."""


class _Files(NamedTuple):
    """Files of a build in the scratch directory."""

    scratch: Path

    @property
    def root(self) -> Path:
        return self.scratch / "root"

    @property
    def disk(self) -> Path:
        return self.scratch / "disk.raw"

    @property
    def esp(self) -> Path:
        return self.scratch / "esp.img"


async def build(template: Template, workshop: Workshop) -> Manifest:
    """Install the packages, make the disk, take the kernel out for direct boot. Raises Unavailable."""
    archive.require([*_TOOLS, *(() if os.geteuid() == 0 else ("newuidmap",))])
    work = _Files(workshop.scratch)
    await _install(template, workshop, work)
    workshop.progress("making the disk", 0.85)
    await _make_disk(template, work)
    workshop.progress("writing the image", 0.92)
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(work.disk), str(workshop.product.disk)]
    await archive.checked(argv, "the disk was not written", timeout=600)
    await asyncio.to_thread(_boot_files, template, workshop, work)
    return Manifest(
        name=template.name,
        arch=template.arch,
        format="qcow2",
        virtual_size=SIZE,
        kernel=True,
        initramfs=True,
        command_line=_COMMAND_LINE,
        firmwares=("direct", "bios", "uefi"),
        agent="roost",
        os=template.name,
    )


async def _install(template: Template, workshop: Workshop, work: _Files) -> None:
    """mmdebstrap into the root directory, our files laid over it before the packages are configured."""
    workshop.progress("fetching the package lists", 0.0)
    sources = archive.sources_for(template.suite, workshop.mirror)
    lists = await archive.Archive.open(work.scratch / "apt", sources, template.arch)
    (work.scratch / "sources.list").write_text("".join(source.line() for source in lists.sources))
    (work.scratch / "aptopts").write_text(await archive.host_network() + 'Acquire::Languages "none";\n')
    unit, agent = guest.source("roost-agent.service"), guest.binary(template.arch, "agent")
    (work.scratch / "overlay.tar").write_bytes(debian_files.overlay(agent.read_bytes(), unit.read_bytes()))
    last: deque[str] = deque(maxlen=50)
    seen, phase = 0, "installing Debian"

    def on_line(line: str) -> None:
        nonlocal seen, phase
        seen, phase = seen + 1, _phase(line, phase)
        last.append(line)
        workshop.progress(phase, min(0.84, 0.02 + 0.82 * seen / _LINES))

    argv = namespaces.inside(["mmdebstrap", *_mmdebstrap_options(template, work)])
    code = await system.stream(argv, timeout=1800, on_line=on_line, cwd=work.scratch)
    if code:
        raise archive.failed(f"template {template.name} was not built", code, list(last))


def _mmdebstrap_options(template: Template, work: _Files) -> list[str]:
    hooks = Path("/usr/share/mmdebstrap/hooks/merged-usr")
    return [
        "--mode=root",
        "--variant=minbase",
        "--verbose",
        "--format=directory",
        f"--include={','.join(_PACKAGES)}",
        f"--aptopt={work.scratch / 'aptopts'}",
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NODOC),
        *([f"--hook-dir={hooks}"] if hooks.is_dir() else []),
        "--essential-hook=tar-in overlay.tar /",
        template.suite,
        str(work.root),
        str(work.scratch / "sources.list"),
    ]


def _phase(line: str, before: str) -> str:
    for start, text in _PHASES.items():
        if line.startswith(start):
            return text
    return before


async def _make_disk(template: Template, work: _Files) -> None:
    plan = bootdisk.layout(SIZE)
    with work.disk.open("xb") as file:
        file.truncate(SIZE)
    (work.scratch / "mke2fs.conf").write_text(_MKE2FS)
    offset, size = plan.root.first * bootdisk.SECTOR, plan.root.sectors * bootdisk.SECTOR
    arguments = [str(work.root), str(work.scratch), str(work.disk), str(offset), str(size >> 10)]
    what = f"the disk of {template.name} was not made"
    await archive.checked(namespaces.inside(["sh", "-c", _FINISH, "sh", *arguments]), what, timeout=600)
    await _make_esp(work, plan.esp, what)
    await asyncio.to_thread(_assemble, plan, work, template.name)


async def _make_esp(work: _Files, esp: bootdisk.Partition, what: str) -> None:
    """The EFI system partition: FAT with GRUB where firmware looks on a disk it has not seen before."""
    image = ["-i", str(work.esp)]
    for argv in (
        ["mformat", *image, "-C", "-v", "ESP", "-N", "526f6f73", "-T", str(esp.sectors), "-h", "64", "-s", "32", "::"],
        ["mmd", *image, "::/EFI", "::/EFI/BOOT"],
        ["mcopy", *image, str(work.scratch / "grub.efi"), "::/EFI/BOOT/BOOTX64.EFI"],
    ):
        await archive.checked(argv, what, timeout=60)


def _assemble(plan: bootdisk.Layout, work: _Files, seed: str) -> None:
    front, back = bootdisk.partition_tables(plan, seed)
    boot, core = (read_bounded(work.scratch / name, MiB) for name in ("boot.img", "core.img"))
    first, core = bootdisk.bios_boot(boot, core, front, plan.bios.first)
    with work.disk.open("r+b") as disk:
        for sector, data in (
            (0, first),
            (plan.bios.first, core),
            (plan.esp.first, work.esp.read_bytes()),
            (plan.sectors - len(back) // bootdisk.SECTOR, back),
        ):
            disk.seek(sector * bootdisk.SECTOR)
            disk.write(data)


def _boot_files(template: Template, workshop: Workshop, work: _Files) -> None:
    workshop.product.kernel.write_bytes(kernels.direct(kernel_in(work.root).read_bytes()))
    init = guest.binary(template.arch, "init").read_bytes()
    workshop.product.initramfs.write_bytes(initramfs.accelerator(init, modules_in(work.root, _MODULES)).finish())


def _template(name: str, suite: str) -> Template:
    ingredients = repr((1, _PACKAGES, _MODULES, _COMMAND_LINE, _FINISH, _MKE2FS, SIZE, debian_files.overlay(b"", b"")))
    return Template(name, "x86_64", suite, ingredients, 3 * GiB, build)


TEMPLATES = (_template("debian:12", "bookworm"), _template("debian:13", "trixie"))
