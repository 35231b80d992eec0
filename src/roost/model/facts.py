"""What a host has, as data: recorded once, it is enough to decide every command line again anywhere else."""

from __future__ import annotations

from typing import Literal

import msgspec

from roost.model.meta import Arch, Struct

KvmState = Literal["absent", "denied", "open"]


class Emulator(Struct, frozen=True, kw_only=True):
    """One QEMU binary: `version` is for people, everything that decides is what the binary itself lists.

    `machine` is the newest versioned type of the family we use (`pc-q35-10.0`); `machines`, `devices` and `cpus` hold names
    as `-machine help`, `-device help` and `-cpu help` print them, cut down to the families that a plan may choose from.
    """

    path: str
    version: str
    machine: str
    accelerators: tuple[str, ...] = ()
    cpus: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    netdevs: tuple[str, ...] = ()


class HostFacts(Struct, frozen=True, kw_only=True):
    """A host. `memory` is in bytes, `flags` are the CPU's as the kernel names them (`avx2`), sorted.

    `kvm`: "absent" no device node, "denied" we may not open it, "open" it answers with the API version that QEMU wants. Open
    proves nothing about guests: see `hypervisor.accel`. `files` are the firmware files that are there.
    """

    arch: Arch
    kernel: str
    boot: str
    cpus: int
    memory: int
    vendor: str = ""
    flags: tuple[str, ...] = ()
    kvm: KvmState = "absent"
    emulators: dict[str, Emulator] = msgspec.field(default_factory=dict)
    files: tuple[str, ...] = ()
    passt: str | None = None
    swtpm: str | None = None
