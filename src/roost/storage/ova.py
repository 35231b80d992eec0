"""OVA packages: a tar archive of an OVF descriptor, a manifest of digests, and disks; read where they lie, written as a stream."""

from __future__ import annotations

import asyncio
import hashlib
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from roost.errors import Invalid
from roost.storage import ovf, ovfwriter, ovfxml
from roost.storage.archives import BLOCK, Member
from roost.storage.formats.content import Span, Unfit
from roost.storage.ovf import Appliance, ApplianceDisk

__all__ = ["Appliance", "ApplianceDisk", "Package", "is_descriptor", "only_disk", "pack", "read", "verify"]

_LONGEST_MANIFEST = 1 << 20
_LINE = re.compile(r"(SHA1|SHA256|SHA512)\s*\(([^)]{1,255})\)\s*=\s*([0-9a-fA-F]{40,128})")
_PIECE = 1 << 20
_AGAIN = "export it again, as OVF 1.0 or 2.0, with its disks in it"


class Package(NamedTuple):
    """An OVA that was read: its machine, its members by name, the digests of its manifest as (algorithm, hex) by name, and what was left out."""

    appliance: Appliance
    members: Mapping[str, Member]
    digests: Mapping[str, tuple[str, str]]
    notes: tuple[str, ...]


def is_descriptor(name: str) -> bool:
    """Whether a member of this name is the descriptor of an appliance."""
    return name.lower().endswith(".ovf")


def read(content: Span, name: str, members: Sequence[Member]) -> Package:
    """What the OVA `name` holds. Raises Invalid when it can not be understood, names what it does not hold, or lacks digests in its manifest."""
    try:
        return _read(content, members)
    except Unfit as problem:
        raise Invalid(f"{name} is not an appliance that can be imported", str(problem), _AGAIN) from None


def _read(content: Span, members: Sequence[Member]) -> Package:
    descriptors = [member for member in members if is_descriptor(member.name)]
    if len(descriptors) != 1:
        raise Unfit(f"it holds {len(descriptors)} descriptors (.ovf), not one")
    found = {member.name: member for member in members}
    appliance, files = ovf.read(_bytes(content, descriptors[0], ovfxml.LONGEST))
    folder, slash, _ = descriptors[0].name.rpartition("/")
    for file in files.values():
        _check(file, found.get(folder + slash + file.name))
    disks = tuple(disk._replace(file=folder + slash + disk.file if disk.file else "") for disk in appliance.disks)
    digests = _manifest(content, descriptors[0].name, found)
    notes = list(appliance.notes)
    if not digests:
        notes.append("it has no manifest: nothing tells whether its files are what they were")
    if any(member.name.lower().endswith(".cert") for member in members):
        notes.append("its certificate (.cert) was not looked at: only the digests of the manifest were")
    used = {disk.file for disk in disks if disk.file}
    missing = sorted(name for name in {*used, descriptors[0].name} if digests and name not in digests)
    if missing:
        raise Unfit(f"its manifest does not tell of {missing[0]!r}")
    return Package(appliance._replace(disks=disks), found, digests, tuple(notes))


def _check(file: ovf.File, member: Member | None) -> None:
    if member is None:
        raise Unfit(f"its descriptor refers to {file.name[:200]!r}, which is not in the package")
    if file.size is not None and file.size != member.size and not file.gzip:
        raise Unfit(f"its file {file.name[:200]!r} has {member.size} bytes, not {file.size}")


def _bytes(content: Span, member: Member, most: int) -> bytes:
    if member.size > most:
        raise Unfit(f"its file {member.name!r} has more than {most} bytes")
    return content.read(member.start, member.size)


def _manifest(content: Span, descriptor: str, members: Mapping[str, Member]) -> dict[str, tuple[str, str]]:
    """The digests by member. A manifest is called as the descriptor is (DSP0243 6)."""
    member = members.get(descriptor[:-4] + ".mf")
    if member is None:
        return {}
    folder, slash, _ = descriptor.rpartition("/")
    digests: dict[str, tuple[str, str]] = {}
    for line in _bytes(content, member, _LONGEST_MANIFEST).decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line.strip())
        if match is None:
            if line.strip():
                raise Unfit(f"its manifest has a line that can not be read: {line[:120]!r}")
            continue
        name, algorithm = folder + slash + match[2], match[1].lower()
        if name not in members or name in digests:
            raise Unfit(f"its manifest tells of {match[2]!r}, which is not in the package, or twice")
        if len(match[3]) != hashlib.new(algorithm).digest_size * 2:
            raise Unfit(f"the digest of {match[2]!r} in its manifest is cut off")
        digests[name] = (algorithm, match[3].lower())
    return digests


async def verify(content: Span, package: Package, name: str, progress: Callable[[float], None]) -> None:
    """Every file is what the manifest says. Raises Invalid."""
    total = sum(package.members[file].size for file in package.digests) or 1
    done = 0
    for file, (algorithm, wanted) in package.digests.items():
        member = package.members[file]
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for at in range(0, member.size, _PIECE):
            await asyncio.to_thread(_feed, digest, content, member.start + at, min(_PIECE, member.size - at))
            done += _PIECE
            progress(min(done / total, 1.0))
        if digest.hexdigest() != wanted:
            raise Invalid(
                f"{name} is not imported",
                f"its file {file!r} is not what its manifest says ({algorithm} {digest.hexdigest()}, not {wanted})",
                "download or export it again",
            )


def _feed(digest: hashlib._Hash, content: Span, start: int, length: int) -> None:
    digest.update(content.read(start, length))


def only_disk(package: Package, name: str) -> ApplianceDisk:
    """The one disk of an appliance that becomes an image. Raises Invalid when there is another number of them."""
    disks = [disk for disk in package.appliance.disks if disk.file]
    if len(disks) != 1:
        raise Invalid(
            f"{name} does not become an image",
            f"an image is one disk, and it holds {len(disks)}",
            "unpack the disk that you mean (tar xf FILE), and import that",
        )
    return disks[0]


def pack(appliance: Appliance, files: Mapping[str, Path]) -> Iterator[bytes]:
    """An OVA of a machine, piece by piece: `files` are its disks (streamOptimized VMDK), by the names in `appliance.disks`. Reads each twice:
    the manifest comes before the disks, where an importer that reads a stream wants it."""
    descriptor = ovfwriter.write(appliance, {name: path.stat().st_size for name, path in files.items()})
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", appliance.name).lstrip(".-") or "machine"
    lines = [f"SHA256({stem}.ovf)= {hashlib.sha256(descriptor).hexdigest()}"]
    for name, path in files.items():
        with path.open("rb") as file:
            lines.append(f"SHA256({name})= {hashlib.file_digest(file, 'sha256').hexdigest()}")
    for name, data in ((f"{stem}.ovf", descriptor), (f"{stem}.mf", "\n".join((*lines, "")).encode())):
        yield _header(name, len(data)) + data + bytes(-len(data) % BLOCK)
    for name, path in files.items():
        size = path.stat().st_size
        yield _header(name, size)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece
        yield bytes(-size % BLOCK)
    yield bytes(2 * BLOCK)


def _header(name: str, size: int) -> bytes:
    """A member's header. Sizes beyond 8 GiB are in GNU's base 256, as both products write and read them."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)
