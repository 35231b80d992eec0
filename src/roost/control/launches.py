"""From a machine and its image to a Launch and a first-boot set-up: all decisions that need no look at the world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from roost.control.ports import blank_cards
from roost.control.preparation import Prepared
from roost.errors import Invalid
from roost.host.paths import Paths
from roost.hypervisor.base import DirectBoot, Disk, Launch, Setup
from roost.model.machine import Machine, Traits
from roost.model.meta import Arch, Firmware
from roost.storage.manifest import Manifest


class Choice(NamedTuple):
    """What was chosen for one start, with warnings for what the user may not expect."""

    accelerator: Literal["kvm", "tcg"]
    firmware: Firmware
    warnings: tuple[str, ...]


def firmware_of(machine: Machine, manifest: Manifest) -> Firmware:
    """The firmware for this start: as asked, or the image's first. Raises Invalid when the image can not boot so."""
    asked = machine.spec.firmware
    if asked == "auto":
        return _without_initramfs(machine, manifest) if machine.spec.tpm else manifest.firmwares[0]
    if asked not in manifest.firmwares:
        what = f'machine "{machine.name}" did not start'
        can = ", ".join(manifest.firmwares)
        raise Invalid(
            what,
            f'image "{machine.spec.image}" does not boot by firmware {asked!r}, only by {can}',
            "choose one of them: --firmware",
        )
    return asked


def _without_initramfs(machine: Machine, manifest: Manifest) -> Firmware:
    """On x86_64 a TPM's event log moves the firmware's tables to where QEMU puts the initramfs of a direct boot. Raises Invalid."""
    if arch_of(manifest, "x86_64") != "x86_64":
        return manifest.firmwares[0]
    for firmware in ("uefi", "bios"):
        if firmware in manifest.firmwares:
            return firmware
    what = f'machine "{machine.name}" did not start'
    why = f'with a TPM it has to boot by its firmware, and image "{machine.spec.image}" boots directly only'
    raise Invalid(what, why, "launch it without --tpm, or another image")


def launch_of(
    machine: Machine, manifest: Manifest, paths: Paths, choice: Choice, prepared: Prepared, below: Sequence[Path]
) -> Launch:
    """Everything the hypervisor needs to start the machine, whose root disk stands on the files `below`."""
    image, where, spec = paths.image(manifest.digest), paths.machine(machine.meta.uid), machine.spec
    diskless = manifest.format == "none"
    exact = spec.source is not None and spec.source.keep_identity
    direct = None
    if choice.firmware == "direct":
        direct = DirectBoot(image.kernel, image.initramfs if manifest.initramfs else None, manifest.command_line)
    return Launch(
        uid=machine.meta.uid,
        arch=manifest.arch or spec.arch or "x86_64",
        cpus=spec.cpus,
        memory=spec.memory,
        accelerator=choice.accelerator,
        firmware=choice.firmware,
        files=where,
        direct=direct,
        disks=() if diskless else (Disk(where.disk, below, serial="root"),),
        seed=prepared.seed,
        network="unplugged" if exact and spec.network == "user" else spec.network,
        cards=blank_cards(machine),
        publish=(*(spec.publish if spec.network == "user" else ()), *prepared.publish),
        hostname=spec.hostname or machine.name,
        tpm=spec.tpm,
    )


def traits_of(launch: Launch, image: str, shape: str) -> Traits:
    """As what the machine is started."""
    return Traits(
        image=image,
        arch=launch.arch,
        cpus=launch.cpus,
        memory=launch.memory,
        accelerator=launch.accelerator,
        firmware=launch.firmware,
        network=launch.network != "none" or any(card.slot == 0 for card in launch.cards),
        seed=launch.seed is not None,
        tpm=launch.tpm,
        ports=tuple(sorted(card.slot for card in launch.cards)),
        shape=shape,
    )


def arch_of(manifest: Manifest, otherwise: Arch) -> Arch:
    """The image's architecture; an upload that did not say has the `otherwise`."""
    return manifest.arch or otherwise


def setup_of(machine: Machine) -> Setup:
    """The first-boot set-up. The machine-id is the uid without dashes (machine-id(5): 32 hexadecimal digits)."""
    spec = machine.spec
    return Setup(
        hostname=spec.hostname or machine.name,
        machine_id=machine.meta.uid.replace("-", ""),
        ssh_keys=spec.ssh_keys,
        users=tuple((user.name, user.ssh_keys, user.sudo) for user in spec.users),
        grow_root=spec.disk is not None,
    )
