"""Flattening a disk offline: a jailed qemu-img writes all that its chain adds to the image into a new disk over the image alone."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from pathlib import Path

from roost.errors import OutcomeUnknown, Unavailable
from roost.host import files, jail
from roost.model import size as sizes
from roost.model.meta import GiB, MiB
from roost.storage import chains, formats

_TARGET = "/target"
_MEMORY = GiB
_RESERVE = GiB // 2
"""Bytes of disk that no flattened disk may take: the store and running guests need them more."""
_CACHE = 4 * MiB
"""For the tables of each disk (32 GiB of it): a chain of many large disks would take gigabytes with QEMU's default."""
_SLOWEST = 10 * MiB
"""Bytes a second that any host manages; with _PATIENCE seconds it bounds how long the tool may take."""
_PATIENCE = 600.0


async def rebase(target: Path, chain: Sequence[Path], hint: str) -> None:
    """Write into `target`, an empty overlay, what a guest sees of `chain` (nearest first, the image last) where it differs from the image.

    `hint` is what the target's header says of the image. Durable when it returns. Raises Unavailable; `target` is then of no use.
    """
    what = f"{chain[0]} can not be flattened"
    room = files.free_space(target.parent) - _RESERVE
    if room <= 0:
        raise Unavailable(what, f"the disk is too full: {sizes.show(_RESERVE)} must stay free", _fix(target))
    largest = chains.virtual_size(target) * 11 // 10 + 64 * MiB
    length = sum(file.stat().st_size for file in chain)
    places = {f"/{number}": file for number, file in enumerate(chain)}
    argv = ["qemu-img", "rebase", "-b", list(places)[-1], "-F", "qcow2", _node((_TARGET, *places))]
    try:
        finished = await jail.run_in_jail(
            argv,
            readable=places,
            writable={_TARGET: target},
            timeout=_PATIENCE + length / _SLOWEST,
            memory=_MEMORY,
            file_size=min(largest, room),
        )
    except OutcomeUnknown as error:
        raise Unavailable(what, error.why, "try again when the host has less to do") from error
    if finished.code:
        why = (finished.stderr or finished.stdout).decode(errors="replace").strip()[-300:]
        raise Unavailable(what, why or f"qemu-img ended with code {finished.code}", _fix(target))
    try:
        await asyncio.to_thread(_finish, target, hint)
    except OSError as error:
        raise Unavailable(what, str(error), _fix(target)) from error


def _node(names: Sequence[str]) -> str:
    """A chain as QEMU's tools take it: every driver and every file named, so that no header is believed."""
    node: dict[str, object] = {}
    for name in reversed(names):
        file = {"driver": "file", "filename": name}
        node = {"driver": "qcow2", "file": file, "backing": node or None, "l2-cache-size": _CACHE}
    return "json:" + json.dumps({**node, "discard": "unmap", "detect-zeroes": "unmap"})


def _finish(target: Path, hint: str) -> None:
    """qemu-img named the image as the jail knows it; then make all of it durable."""
    with target.open("r+b") as file:
        head = file.read(formats.HEAD)
        file.seek(0)
        file.write(formats.rename_backing(head, hint))
        file.flush()
        os.fsync(file.fileno())


def _fix(target: Path) -> str:
    return f"make room: du -xh --max-depth=2 {target.parent.parent.parent}"
