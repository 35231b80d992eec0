"""Machines in and out: what an imported file says of its machine and its way to boot, and an OVA of a machine as a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from msgspec.structs import replace

from roost.errors import RoostError
from roost.host import files, jail
from roost.host.paths import ImageFiles
from roost.model.image import Hardware
from roost.model.meta import GiB
from roost.storage import archives, exporting, formats, importing, ova, partitions
from roost.storage.conversion import Disk
from roost.storage.formats import Unfit
from roost.storage.manifest import Manifest

_SECONDS = 60.0
_LONGEST_TEXT = 200


async def look(source: Path, product: ImageFiles, draft: Manifest) -> Manifest:
    """The manifest of a disk that was imported from `source`, with what the two tell of its machine. Raises Unavailable."""
    hardware = await asyncio.to_thread(_hardware, source, draft.name)
    found = partitions.firmwares(await _head(product))
    if hardware is not None and hardware.firmware in found:
        found = (hardware.firmware, *(firmware for firmware in found if firmware != hardware.firmware))
    return replace(draft, firmwares=found, hardware=hardware)


def _hardware(source: Path, name: str) -> Hardware | None:
    """The machine that an OVA describes; None for what is none, or is compressed as a whole."""
    with importing.opened(source) as content:
        if not formats.is_tar(content.read(0, formats.HEAD)):
            return None
        try:
            members = archives.members(content)
        except Unfit:
            return None
        if not any(ova.is_descriptor(member.name) for member in members):
            return None
        package = ova.read(content, name, members)
    told = package.appliance
    return Hardware(
        name=told.name[:_LONGEST_TEXT],
        cpus=told.cpus,
        memory=told.memory,
        firmware=told.firmware,
        cards=len(told.cards),
        os=told.os[:_LONGEST_TEXT],
        notes=tuple(note[:_LONGEST_TEXT] for note in package.notes[:16]),
    )


async def _head(product: ImageFiles) -> bytes:
    """The first bytes that a guest sees of a disk; nothing when the tool can not tell, which costs no more than a guess."""
    target = product.directory.parent / "head"
    target.touch(mode=0o600)
    with importing.opened(product.disk) as content:
        size = min(formats.virtual_size(content.read(0, formats.HEAD)), partitions.HEAD)
    disk = {"driver": "qcow2", "file": {"driver": "file", "filename": "/source"}, "backing": None}
    node = "json:" + json.dumps({"driver": "raw", "offset": 0, "size": size, "file": disk})
    try:
        await jail.run_in_jail(
            ["qemu-img", "convert", "-O", "raw", node, "/target"],
            readable={"/source": product.disk},
            writable={"/target": target},
            timeout=_SECONDS,
            memory=GiB,
            file_size=64 << 20,
        )
        return await asyncio.to_thread(files.read_bounded, target, partitions.HEAD)
    except RoostError:
        return b""
    finally:
        target.unlink()


async def stream(disk: Disk, scratch: Path, machine: ova.Appliance) -> AsyncIterator[bytes]:
    """An OVA of a machine whose one disk is `disk`, converted in `scratch`, where nothing stays. Raises Invalid, Unavailable before the
    first piece."""
    file = await exporting.converted(disk, scratch, "vmdk", machine.name)
    return _packed(machine, file)


async def _packed(machine: ova.Appliance, file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        # It has no name any more; this one is ours alone.
        pieces = ova.pack(machine, {machine.disks[0].file: Path(f"/proc/self/fd/{file.fileno()}")})
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
