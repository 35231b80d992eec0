"""Machines out: the disk of one that is stopped, whole in one file of another format, or as an appliance."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeAlias

from roost.control.custody import Custody
from roost.control.records import Records
from roost.control.taking import House
from roost.control.world import Layers
from roost.errors import Conflict
from roost.host.paths import Paths
from roost.model.image import DiskFormat
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.storage import formats
from roost.storage.conversion import Disk, Part
from roost.storage.manifest import Manifest
from roost.storage.ova import Appliance, ApplianceDisk
from roost.storage.ovf import Card

ExportFormat: TypeAlias = DiskFormat | Literal["ova"]

_RESTS = frozenset({"pending", "stopped", "crashed", "failed"})


class Pool(Protocol):
    """What is needed of the image pool: see storage.images.Images."""

    def find(self, digest: str) -> Manifest | None:
        """The manifest of an image that is there."""
        ...

    async def export_disk(self, disk: Disk, format: DiskFormat, name: str) -> AsyncIterator[bytes]:
        """A disk in one format, as a stream."""
        ...

    async def export_appliance(self, disk: Disk, machine: Appliance) -> AsyncIterator[bytes]:
        """An OVA, as a stream."""
        ...


class Exports(NamedTuple):
    """What exports machines, and what it acts upon."""

    records: Records
    custody: Custody
    layers: Layers
    house: House
    pool: Pool
    paths: Paths

    async def export(self, machine: Machine, format: ExportFormat) -> AsyncIterator[bytes]:
        """The disk as it is, converted before this returns; volumes stay where they are. A start meanwhile is refused by QEMU's own locks.

        Raises Conflict (it does not rest, or has no disk), Invalid, Unavailable.
        """
        held = await self.custody.looked(machine)
        if held.guest is not None or machine.status.phase not in _RESTS or machine.spec.power != "stopped":
            why = f"it is {machine.status.phase}: only the disk of a machine at rest is whole"
            raise Conflict(f'machine "{machine.name}" was not exported', why, f"roost stop {machine.name}")
        async with self.house.using(machine.meta.uid):
            disk, manifest = await self._disk(machine)
            if format == "ova":
                return await self.pool.export_appliance(disk, appliance(machine, manifest, disk.virtual_size))
            return await self.pool.export_disk(disk, format, machine.name)

    async def _disk(self, machine: Machine) -> tuple[Disk, Manifest]:
        where, what = self.paths.machine(machine.meta.uid), f'machine "{machine.name}" was not exported'
        digest = machine.status.image
        if not digest:
            image = await self.records.image(key_of(BY_NAME["image"], machine.project, machine.spec.image))
            digest = image.status.digest
        manifest = self.pool.find(digest)
        if manifest is None or manifest.format == "none":
            why = "it has no disk, only a kernel" if manifest is not None else "its image is gone"
            raise Conflict(what, why, f"roost show {machine.name}")
        if not where.disk.exists():
            return Disk((Part("qcow2", self.paths.image(digest).disk),), manifest.virtual_size), manifest
        if self.layers.pending(where) is not None:
            raise Conflict(what, "a snapshot of its disk was not ended", f"roost start {machine.name}")
        below = self.layers.below(self.layers.base_of(where, digest))
        return Disk((Part("qcow2", where.disk, below=tuple(below)),), _size(where.disk)), manifest


def appliance(machine: Machine, manifest: Manifest, size: int) -> Appliance:
    """A machine with a disk of `size` bytes as other products are told of it (pure). They start it by firmware, never by a kernel of ours."""
    wanted = (machine.spec.firmware, machine.status.firmware, *manifest.firmwares)
    cards = [Card("NAT")] if machine.spec.network == "user" else []
    cards += [Card(port.network, mac=port.mac or "") for port in machine.spec.ports]
    return Appliance(
        name=machine.name,
        cpus=machine.spec.cpus,
        memory=machine.spec.memory,
        disks=(ApplianceDisk("disk1", f"{machine.name}-disk1.vmdk", size, bus="sata"),),
        cards=tuple(cards),
        firmware="uefi" if next((it for it in wanted if it in ("bios", "uefi")), "bios") == "uefi" else "bios",
    )


def _size(disk: Path) -> int:
    with disk.open("rb") as file:
        return formats.virtual_size(file.read(formats.HEAD))
