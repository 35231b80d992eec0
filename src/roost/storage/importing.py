"""A foreign disk becomes an image: its format is judged by us, then its content is copied by a jailed tool into a clean qcow2."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from roost.errors import Invalid, Unavailable
from roost.host import files
from roost.host.paths import ImageFiles
from roost.model import size as sizes
from roost.storage import archives, compressed, conversion, formats, ova
from roost.storage.archives import Member
from roost.storage.conversion import Disk, Part
from roost.storage.formats import Span, Unfit, vmdk
from roost.storage.manifest import Manifest, Progress

_COPY = 64 << 20
_AGAIN = "export or download it again"
_DISK = 0.5
"""The part of the work that comes before the conversion, where there is something to be unpacked."""


class Task(NamedTuple):
    """One import: what it is called, an empty directory of its own for what must be unpacked, bytes that its disk may take, whom to tell."""

    name: str
    scratch: Path
    limit: int
    progress: Progress


async def rewrite(
    source: Path, product: ImageFiles, name: str, limit: int, progress: Progress = lambda *_: None
) -> Manifest:
    """Check the disk in `source` and write its content to `product.disk`, which takes at most `limit` bytes on the host.

    `source` is a disk in any format that we read, compressed or not, or an archive (tar, OVA) of one. Whatever its metadata say, the
    tool sees the files of the disk and no others, with every driver named, no backing file and no probing. Raises Invalid when it is
    not a whole, harmless disk; Unavailable.
    """
    task = Task(name, product.directory.parent, limit, progress)
    with opened(source) as content:
        disk = await find(content, source, task)
        _check_space(source, product)
        await write(disk, product.disk, task)
    with product.disk.open("rb") as file:
        virtual = formats.virtual_size(await asyncio.to_thread(file.read, formats.HEAD))
    return Manifest(
        name=name, arch=None, format="qcow2", virtual_size=virtual, firmwares=("bios", "uefi"), agent="none"
    )  # fmt: skip


async def write(disk: Disk, target: Path, task: Task) -> None:
    """Write the content of `disk` to the new file `target`, a clean qcow2. Raises Invalid, Unavailable."""
    await conversion.check(disk, task.name)
    target.touch(mode=0o600)
    report = partial(task.progress, "copying")
    await conversion.convert(disk, target, "qcow2", task.name, task.limit, lambda done: report(_DISK + done * _DISK))
    with opened(target) as copy:
        await asyncio.to_thread(formats.inspect, copy, f"the copy of {task.name}", "qcow2")


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Span]:
    """The content of a file of ours, which must not be a link."""
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield Span(descriptor, 0, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)


async def find(content: Span, file: Path, task: Task) -> Disk:
    """The one disk in `file`, whose content is `content`. Raises Invalid, Unavailable."""
    kind = formats.compression(content.read(0, formats.HEAD))
    if kind is None:
        return await _plain(content, file, task)
    unpacked = await _unpack(content, kind, task)
    with opened(unpacked) as inner:
        return await _plain(inner, unpacked, task)


async def _plain(content: Span, file: Path, task: Task) -> Disk:
    if not formats.is_tar(content.read(0, formats.HEAD)):
        checked = await asyncio.to_thread(formats.inspect, content, task.name)
        return conversion.whole(file, checked.format, checked.virtual_size)
    with _refused(task.name):
        found = {member.name: member for member in await asyncio.to_thread(archives.members, content)}
    if any(ova.is_descriptor(name) for name in found):
        package = await asyncio.to_thread(ova.read, content, task.name, tuple(found.values()))
        await ova.verify(content, package, task.name, partial(task.progress, "checking the manifest"))
        return await disk_of(content, file, package, ova.only_disk(package, task.name), task)
    return await _member(content, file, _main(content, found, task.name), found, task)


async def disk_of(content: Span, file: Path, package: ova.Package, disk: ova.ApplianceDisk, task: Task) -> Disk:
    """A disk of an appliance, read where it lies in the OVA `file`. Raises Invalid, Unavailable.

    `task.scratch` must be another directory for each disk.
    """
    member = package.members.get(disk.file)
    if member is None:
        raise Invalid(f"{task.name} can not be imported", f"it holds no file {disk.file!r}", _AGAIN)
    return await _member(content, file, member, package.members, task)


async def _member(content: Span, file: Path, member: Member, members: Mapping[str, Member], task: Task) -> Disk:
    """The disk that begins with one member of an archive: that alone, unpacked where it is compressed, or the extents that it names."""
    span = _span(content, member)
    head = span.read(0, formats.HEAD)
    kind = formats.compression(head)
    if kind is not None:
        unpacked = await _unpack(span, kind, task)
        with opened(unpacked) as inner:
            checked = await asyncio.to_thread(formats.inspect, inner, task.name)
        return conversion.whole(unpacked, checked.format, checked.virtual_size)
    if head.startswith(vmdk.DESCRIPTOR):
        with _refused(task.name):
            return await _split(content, file, member, members, task)
    checked = await asyncio.to_thread(formats.inspect, span, f"{member.name} in {task.name}")
    return Disk((Part(checked.format, file, span.start, span.size),), checked.virtual_size)


async def _split(content: Span, file: Path, member: Member, members: Mapping[str, Member], task: Task) -> Disk:
    """A VMDK in several extents, each of which must be a member beside the descriptor. Raises Unfit, Invalid."""
    span = _span(content, member)
    extents = vmdk.descriptor(span.read(0, vmdk.LONGEST + 1)).extents
    size = sum(extent.size for extent in extents)
    if not 0 < size <= formats.MAX_VIRTUAL:
        raise Unfit(f"its extents have {size} bytes together")
    folder = member.name.rpartition("/")[0]
    places = [_extent(content, extent, members, f"{folder}/" if folder else "") for extent in extents]
    if all(extent.kind != "sparse" for extent in extents):
        parts = [_flat(file, extent, place) for extent, place in zip(extents, places, strict=True)]
        return Disk(tuple(parts), size)
    return await _sparse(extents, places, size, task)


def _extent(content: Span, extent: vmdk.Extent, members: Mapping[str, Member], folder: str) -> Span | None:
    """Where an extent's data lie. Raises Unfit when the archive does not hold them, whole."""
    if extent.kind == "zero":
        return None
    member = members.get(folder + extent.file)
    if member is None:
        raise Unfit(f"its descriptor names {extent.file!r}, which is not in the archive")
    span = _span(content, member)
    held = vmdk.sparse(span) if extent.kind == "sparse" else span.size - extent.offset
    if held < extent.size:
        raise Unfit(f"its extent {extent.file!r} holds {held} bytes of {extent.size}: it is cut off")
    return span


def _flat(file: Path, extent: vmdk.Extent, place: Span | None) -> Part:
    if place is None:
        return Part("raw", None, 0, extent.size)
    return Part("raw", file, place.start + extent.offset, extent.size)


async def _sparse(extents: tuple[vmdk.Extent, ...], places: list[Span | None], size: int, task: Task) -> Disk:
    """Sparse extents for QEMU: it opens them by the names in a descriptor, so they become files that a descriptor of ours names."""
    beside: dict[str, Path] = {}
    lines = []
    for number, (extent, place) in enumerate(zip(extents, places, strict=True)):
        sectors = extent.size // 512
        if place is None:
            raise Unfit("it has sparse extents and some of zeros")
        name = f"extent{number}"
        beside[f"/{name}"] = task.scratch / name
        await asyncio.to_thread(_copy, place, task.scratch / name)
        task.progress("unpacking", number / len(extents) * _DISK)
        kind = "SPARSE" if extent.kind == "sparse" else "FLAT"
        lines.append(f'RW {sectors} {kind} "{name}"' + (f" {extent.offset // 512}" if kind == "FLAT" else ""))
    descriptor = task.scratch / "descriptor"
    text = (
        vmdk.DESCRIPTOR.decode(),
        "version=1",
        "CID=fffffffe",
        "parentCID=ffffffff",
        'createType="twoGbMaxExtentSparse"',
    )
    descriptor.write_text("\n".join((*text, *lines, "")))
    return Disk((Part("vmdk", descriptor),), size, beside)


def _copy(place: Span, target: Path) -> None:
    """Copy a part of a file; where the file system can, without copying its blocks."""
    with target.open("xb") as file:
        done = 0
        while done < place.size:
            moved = os.copy_file_range(
                place.descriptor, file.fileno(), min(place.size - done, _COPY), place.start + done
            )
            if not moved:
                raise Unfit("the archive breaks off")
            done += moved


def _main(content: Span, found: Mapping[str, Member], name: str) -> Member:
    """The member of a plain archive that is the disk, or the descriptor that names its extents. Raises Invalid."""
    described = [member for member in found.values() if _span(content, member).read(0, 32).startswith(vmdk.DESCRIPTOR)]
    candidates = described or list(found.values())
    if len(candidates) == 1:
        return candidates[0]
    raise Invalid(
        f"{name} is not a disk that can be imported",
        f"it is an archive of {len(candidates)} files, and nothing says which is the disk",
        "archive the disk alone: tar cf disk.tar DISK",
    )


def _span(content: Span, member: Member) -> Span:
    return Span(content.descriptor, content.start + member.start, member.size)


@contextlib.contextmanager
def _refused(name: str) -> Iterator[None]:
    """Say in an error of ours why something is not taken."""
    try:
        yield
    except Unfit as problem:
        raise Invalid(f"{name} is not a disk that can be imported", str(problem), _AGAIN) from None


async def _unpack(content: Span, kind: formats.Compression, task: Task) -> Path:
    target = task.scratch / "unpacked"
    report = partial(task.progress, "unpacking")
    await compressed.unpack(content, target, kind, task.name, task.limit, lambda done: report(done * _DISK))
    return target


def _check_space(source: Path, product: ImageFiles) -> None:
    needed = source.stat().st_blocks * 512
    free = files.free_space(product.directory)
    if free < needed:
        raise Unavailable(
            "the image cannot be made: the disk is too full",
            f"about {sizes.show(needed)} are needed, {sizes.show(free)} are free",
            "remove images: roost image delete NAME",
        )
