"""What differs between architectures, as tables: machine options, CPU models, firmware files, packages. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from roost.model.meta import Arch

_V2 = frozenset({"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"})
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
"""The levels of the x86-64 psABI (x86-64-v2 to v4) in the kernel's names for the flags."""


class CpuModel(NamedTuple):
    """A versioned CPU model for KVM and the host flags it takes to give it to a guest whole."""

    name: str
    needs: frozenset[str]


class Pflash(NamedTuple):
    """UEFI for a board: the read-only code and the variables that each machine gets its own copy of."""

    code: str
    variables: str


class Board(NamedTuple):
    """One architecture's table. `options` follow the machine type; `kvm_cpus` go by CPU vendor, best first.

    `builtin` is the firmware QEMU brings itself: "bios" can start a disk, "" nothing. `panic` lists the devices that carry a
    guest's panic to us, best first, `tpm` those that carry a TPM, `display` graphics cards.
    """

    package: str
    options: str
    kvm_options: str
    tcg_cpu: str
    kvm_cpus: dict[str, Sequence[CpuModel]]
    kvm_fallback: str
    builtin: str
    firmware: Sequence[Pflash]
    firmware_package: str
    smbios: bool
    strong_memory: bool
    panic: Sequence[str] = ("pvpanic-pci", "pvpanic")
    tpm: Sequence[str] = ()
    display: Sequence[str] = ("virtio-gpu-pci", "bochs-display")


BOARDS: dict[Arch, Board] = {
    "x86_64": Board(
        package="qemu-system-x86",
        # graphics=off: SeaBIOS and GRUB speak on the serial console. The rest is hardware no guest of ours drives.
        options="graphics=off,vmport=off,smm=off,sata=off,smbus=off",
        kvm_options="",
        # x86-64-v2; without vme, which TCG does not know and warns of; with rdrand, so that the guest's random pool is full at once.
        tcg_cpu="Nehalem-v1,vme=off,rdrand=on",
        kvm_cpus={
            "GenuineIntel": (
                CpuModel("Skylake-Server-v4", _V4 | {"clwb", "pku"}),
                CpuModel("Haswell-v4", _V3),
                CpuModel("Nehalem-v2", _V2),
            ),
            "AuthenticAMD": (
                CpuModel("EPYC-Milan-v1", _V3 | {"sha_ni", "clwb", "pku", "vaes"}),
                CpuModel("EPYC-v3", _V3 | {"sha_ni", "sse4a"}),
            ),
        },
        kvm_fallback="qemu64-v1",
        builtin="bios",
        firmware=(
            Pflash("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
            Pflash("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
            Pflash("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
        ),
        firmware_package="ovmf",
        smbios=True,
        strong_memory=True,
        tpm=("tpm-crb", "tpm-tis"),
        display=("VGA",),  # a BIOS draws on nothing else
    ),
    "aarch64": Board(
        package="qemu-system-arm",
        options="gic-version=3",
        kvm_options="gic-version=host",
        tcg_cpu="cortex-a72",
        kvm_cpus={},
        # KVM on Arm runs no model but the host's own (target/arm/kvm.c), so there is none to name.
        kvm_fallback="host",
        builtin="",
        firmware=(
            Pflash("/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
            Pflash("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        ),
        firmware_package="qemu-efi-aarch64",
        smbios=True,
        strong_memory=False,
        tpm=("tpm-tis-device",),
    ),
    "riscv64": Board(
        package="qemu-system-misc",
        options="",
        kvm_options="",
        tcg_cpu="rv64",
        kvm_cpus={},
        kvm_fallback="host",
        builtin="",
        firmware=(
            Pflash("/usr/share/qemu-efi-riscv64/RISCV_VIRT_CODE.fd", "/usr/share/qemu-efi-riscv64/RISCV_VIRT_VARS.fd"),
        ),
        firmware_package="qemu-efi-riscv64",
        smbios=False,
        strong_memory=False,
    ),
}


def kvm_cpu(board: Board, vendor: str, flags: Collection[str], offered: Collection[str]) -> str:
    """The best named model that this host can give whole and this QEMU knows; never `max`, which no other host could take over."""
    for model in board.kvm_cpus.get(vendor, ()):
        if model.needs <= set(flags) and model.name in offered:
            return model.name
    return board.kvm_fallback


def find_pflash(board: Board, files: Collection[str]) -> Pflash | None:
    """The first UEFI of the board whose two files are among the host's firmware `files`."""
    return next((pair for pair in board.firmware if pair.code in files and pair.variables in files), None)
