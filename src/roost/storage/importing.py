"""A foreign disk becomes an image: its header is judged by us, then its content is copied by a jailed qemu-img into a clean qcow2."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from roost.errors import Invalid, OutcomeUnknown, Unavailable
from roost.host import files, jail
from roost.host.paths import ImageFiles
from roost.host.system import Finished
from roost.model import size as sizes
from roost.model.meta import GiB
from roost.storage import formats
from roost.storage.manifest import Manifest

_TIMEOUT = 3600.0
_MEMORY = GiB
_SOURCE, _TARGET = "/source", "/target"
_LEAKS_ONLY = 3
"""Exit code of `qemu-img check` for clusters that are allocated but unused: wasteful, harmless."""


async def rewrite(source: Path, product: ImageFiles, name: str, limit: int) -> Manifest:
    """Check the disk in `source` and write its content to `product.disk`, which takes at most `limit` bytes on the host.

    Whatever the source's metadata say, the tool sees two files and no others, with every driver named, no backing file and no probing.
    Raises Invalid when the source is not a whole, harmless qcow2 or raw disk; Unavailable.
    """
    length = source.stat().st_size
    with source.open("rb") as file:
        checked = formats.inspect(file.read(formats.HEAD), length, name)
    _check_space(source, product)
    if checked.format == "qcow2":
        await _check(source, name)
    product.disk.touch(mode=0o600)
    await convert(source, product.disk, checked.format, name, limit)
    return Manifest(
        name=name,
        arch=None,
        format="qcow2",
        virtual_size=checked.virtual_size,
        firmwares=("bios", "uefi"),
        agent="none",
    )


def node(driver: formats.Format, filename: str) -> str:
    """A disk as QEMU's tools take it: the driver of every layer named, so that nothing is probed, and no layer below it."""
    options: dict[str, object] = {"driver": driver, "file": {"driver": "file", "filename": filename}}
    if driver == "qcow2":
        options["backing"] = None
    return "json:" + json.dumps(options)


async def _check(source: Path, name: str) -> None:
    """Every reference of the qcow2 lies inside the file: a file that was cut off would read as zeros."""
    argv = ["qemu-img", "check", node("qcow2", _SOURCE)]
    finished = await _jailed(argv, source, {}, 16 << 20)
    if finished.code not in (0, _LEAKS_ONLY):
        raise Invalid(f"{name} is damaged or cut off", _last_words(finished), "download or export it again")


async def convert(source: Path, target: Path, driver: formats.Format, name: str, limit: int) -> None:
    """Copy the content of `source`, read as `driver` and as nothing else, into the empty file `target`, at most `limit` bytes on the host."""
    argv = ["qemu-img", "convert", "-O", "qcow2", node(driver, _SOURCE), _TARGET]
    finished = await _jailed(argv, source, {_TARGET: target}, limit)
    if finished.code:
        why = _last_words(finished)
        # qemu-img writes at several places at once, so the size alone does not tell: EFBIG does.
        if os.strerror(errno.EFBIG) in why or target.stat().st_size >= limit - (1 << 20):
            why = f"its content takes more than the {sizes.show(limit)} allowed"
        raise Invalid(f"{name} could not be copied", why, "check it with qemu-img check, or raise spec.limit")
    with target.open("rb") as file:
        head = await asyncio.to_thread(file.read, formats.HEAD)
    formats.inspect(head, target.stat().st_size, f"the copy of {name}", "qcow2")


async def _jailed(argv: Sequence[str], source: Path, writable: dict[str, Path], file_size: int) -> Finished:
    try:
        return await jail.run_in_jail(
            argv, readable={_SOURCE: source}, writable=writable, timeout=_TIMEOUT, memory=_MEMORY, file_size=file_size
        )
    except OutcomeUnknown as error:
        raise Invalid(
            f"{source.name} could not be read", error.why, "the disk is too large or built to stall its readers"
        ) from error


def _check_space(source: Path, product: ImageFiles) -> None:
    needed = source.stat().st_blocks * 512
    free = files.free_space(product.directory)
    if free < needed:
        raise Unavailable(
            "the image cannot be made: the disk is too full",
            f"about {sizes.show(needed)} are needed, {sizes.show(free)} are free",
            "remove images: roost image delete NAME",
        )


def _last_words(finished: Finished) -> str:
    text = (finished.stderr or finished.stdout).decode(errors="replace").strip()
    return text[-300:] or f"qemu-img ended with code {finished.code}"
