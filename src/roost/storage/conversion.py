"""Disks from one format to another by a jailed qemu-img, which is told the driver of every layer and sees no file but those of the disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from roost import log
from roost.errors import Invalid, OutcomeUnknown
from roost.host import jail
from roost.host.system import Finished
from roost.model import size as sizes
from roost.model.meta import GiB
from roost.storage import formats

_TIMEOUT = 3600.0
_MEMORY = GiB
_TARGET = "/target"
_LEAKS_ONLY = 3
"""Exit code of `qemu-img check` for clusters that are allocated but unused: wasteful, harmless."""

_LOOK = 0.5
_SECTOR = 512

OPTIONS: Mapping[formats.Format, str] = {
    "qcow2": "", "raw": "", "vdi": "", "vhdx": "subformat=dynamic", "vhd": "subformat=dynamic,force_size=on",
    "vmdk": "subformat=streamOptimized",
}  # fmt: skip
"""How each format is written: sparse, exactly as large as the disk is, and as other products expect it."""


class Part(NamedTuple):
    """`length` bytes from `start` of a file (None: all of it), read as `format` and as nothing else; without a `file`, zeros.
    What a qcow2 of ours does not hold is read from the qcow2 files `below`, the nearest first."""

    format: formats.Format
    file: Path | None
    start: int = 0
    length: int | None = None
    below: tuple[Path, ...] = ()


class Disk(NamedTuple):
    """A disk that passed the judge: its parts, one after the other, the size that its guest sees, and files that the parts name."""

    parts: tuple[Part, ...]
    virtual_size: int
    beside: Mapping[str, Path] = {}


def whole(file: Path, format: formats.Format, virtual_size: int = 0) -> Disk:
    """A disk that is all of one file."""
    return Disk((Part(format, file),), virtual_size)


def files_of(disk: Disk) -> dict[str, Path]:
    """The files of a disk by their names in the jail."""
    found = dict.fromkeys(file for part in disk.parts for file in (part.file, *part.below) if file is not None)
    return {f"/source{number}": file for number, file in enumerate(found)} | dict(disk.beside)


def nodes(disk: Disk) -> list[str]:
    """The parts as QEMU's tools take them: the driver of every layer named, so that nothing is probed, and no layer below it."""
    names = {file: name for name, file in files_of(disk).items()}
    return [
        _node(part, names[part.file] if part.file is not None else "", [names[file] for file in part.below])
        for part in disk.parts
    ]


def _node(part: Part, name: str, below: Sequence[str]) -> str:
    if part.file is None:
        return "json:" + json.dumps({"driver": "null-co", "size": part.length, "read-zeroes": True})
    node: dict[str, object] = {"driver": "file", "filename": name}
    if part.length is not None:
        # A tar pads its members to whole sectors, so there is always one more byte than the member has.
        node = {"driver": "raw", "offset": part.start, "size": -(-part.length // _SECTOR) * _SECTOR, "file": node}
    if part.format != "raw" or part.length is None:
        node = {"driver": formats.DRIVERS[part.format], "file": node}
    if part.format in ("qcow2", "vmdk"):
        node["backing"] = _below(below)
    return "json:" + json.dumps(node)


def _below(names: Sequence[str]) -> dict[str, object] | None:
    """The chain under a disk, the nearest first, each driver named."""
    node: dict[str, object] | None = None
    for name in reversed(names):
        node = {"driver": "qcow2", "file": {"driver": "file", "filename": name}, "backing": node}
    return node


async def check(disk: Disk, name: str) -> None:
    """Every reference of a qcow2 lies inside the file: a file that was cut off would read as zeros. Raises Invalid."""
    if disk.parts[0].format != "qcow2":
        return
    finished = await _jailed(["qemu-img", "check", nodes(disk)[0]], disk, {}, 16 << 20, name)
    if finished.code not in (0, _LEAKS_ONLY):
        raise Invalid(f"{name} is damaged or cut off", _last_words(finished), "download or export it again")


async def convert(
    disk: Disk,
    target: Path,
    format: formats.Format,
    name: str,
    limit: int,
    progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Copy the content of `disk` into the empty file `target`, at most `limit` bytes of it on the host.

    Raises Invalid when it can not be read, takes too long, or needs more.
    """
    argv = ["qemu-img", "convert", "-O", formats.DRIVERS[format]]
    argv += ["-o", OPTIONS[format]] if OPTIONS[format] else []
    # qemu-img writes ahead into holes: the bound on a sparse file is that of its length.
    most = max(limit, disk.virtual_size + (64 << 20)) if format == "raw" else limit
    async with _watched(target, disk, progress):
        finished = await _jailed([*argv, *nodes(disk), _TARGET], disk, {_TARGET: target}, most, name)
    if finished.code:
        why = _last_words(finished)
        # qemu-img writes at several places at once, so the size alone does not tell: EFBIG does.
        if os.strerror(errno.EFBIG) in why or target.stat().st_size >= most - (1 << 20):
            why = f"its content takes more than the {sizes.show(limit)} allowed"
        raise Invalid(f"{name} could not be copied", why, "check it with qemu-img check, or raise spec.limit")


@contextlib.asynccontextmanager
async def _watched(target: Path, disk: Disk, progress: Callable[[float], None]) -> AsyncIterator[None]:
    """Tell how far the tool is, as far as the size of what it writes says so."""
    whole = sum(file.stat().st_blocks * 512 for file in files_of(disk).values())

    async def watch() -> None:
        while True:
            await asyncio.sleep(_LOOK)
            progress(min(target.stat().st_blocks * 512 / max(whole, 1), 0.99))

    task = log.spawn_task(watch(), f"watch {target.name}")
    try:
        yield
    finally:
        task.cancel()


async def _jailed(argv: Sequence[str], disk: Disk, writable: dict[str, Path], file_size: int, name: str) -> Finished:
    try:
        return await jail.run_in_jail(
            argv, readable=files_of(disk), writable=writable, timeout=_TIMEOUT, memory=_MEMORY, file_size=file_size
        )
    except OutcomeUnknown as error:
        raise Invalid(
            f"{name} could not be read", error.why, "the disk is too large or built to stall its readers"
        ) from error


def _last_words(finished: Finished) -> str:
    text = (finished.stderr or finished.stdout).decode(errors="replace").strip()
    return text[-300:] or f"qemu-img ended with code {finished.code}"
