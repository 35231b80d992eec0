"""Whether the files that others stand on are what they were: there, read-only, as long as ever and, on demand, every byte the same."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import msgspec

from roost.errors import Unavailable
from roost.host import files
from roost.host.paths import LayerFiles
from roost.storage import chains
from roost.storage.chains import NOTHING, Base, Chains, Layer, Place

Hash = Callable[[str], Awaitable[None]]
"""Computes and notes the digest of a layer that has none."""

_BLOCK = 8 << 20
"""Bytes hashed between two looks at whether somebody still wants to know: some 10 ms."""


class Finding(NamedTuple):
    """Something wrong with a file that others stand on. `users` are what stands on it (uids of disks, "snapshot ..." and the like)."""

    file: str
    problem: str
    fix: str
    users: tuple[str, ...] = ()


async def verify(paths: Place, known: Chains, others: Iterable[tuple[Base, str]], hash: Hash | None) -> list[Finding]:
    """Everything that is wrong with what disks and `others` stand on; with `hash` every byte is read."""
    users, findings = await asyncio.to_thread(_users, paths, known, tuple(others))
    for base, who in users.items():
        found = await _look(paths, known, base, hash)
        if found is not None:
            findings.append(found._replace(users=tuple(sorted(who))))
    return findings


async def complete(paths: Place, known: Chains, uid: str) -> None:
    """Compute and note the digest of a layer, unless its manifest has one; nobody removes it meanwhile. Raises Unavailable."""
    layer, where = known.layer(uid), paths.layer(uid)
    if layer is None or layer.digest:
        return
    try:
        done = msgspec.structs.replace(layer, digest=await _digest(where.disk))
        await asyncio.to_thread(write_manifest, where, done)
    except OSError as error:
        raise Unavailable(f"the digest of {where.disk} was not noted", str(error), "roost doctor storage") from error
    known.learn(done)


def write_manifest(where: LayerFiles, layer: Layer) -> None:
    """Write a layer's manifest, durable. Raises OSError."""
    files.atomic_write(where.manifest, msgspec.json.format(msgspec.json.encode(layer)), 0o444)


def _users(
    paths: Place, known: Chains, others: Iterable[tuple[Base, str]]
) -> tuple[dict[Base, set[str]], list[Finding]]:
    """Who stands on each layer and image, and what can not be read on the way."""
    users: dict[Base, set[str]] = {}
    findings: list[Finding] = []
    standing = list(others)
    for uid in known.uids():
        try:
            standing += [(base, uid) for base in known.bases(uid)]
        except Unavailable as error:
            findings.append(Finding(str(paths.disk(uid).keep), error.what + ": " + error.why, error.fix, (uid,)))
    for base, who in standing:
        with contextlib.suppress(Unavailable):  # a manifest that can not be read is found again by `_look`
            for link in known.links(base):
                users.setdefault(link, set()).add(who)
    users.pop(NOTHING, None)
    return users, findings


async def _look(paths: Place, known: Chains, base: Base, hash: Hash | None) -> Finding | None:
    """What is wrong with one file, None when nothing is."""
    try:
        layer = known.layer(base.layer) if base.layer else None
    except Unavailable as error:
        return Finding(str(paths.layer(base.layer).manifest), error.why, error.fix)
    disk = paths.layer(base.layer).disk if base.layer else paths.image(base.image).disk
    problem = "it is missing" if base.layer and layer is None else chains.flaw(disk, layer.size if layer else None)
    if not problem and hash is not None:
        digest = layer.digest if layer is not None else base.image
        if digest:
            problem = await _difference(disk, digest)
        else:
            await hash(base.layer)
    return Finding(str(disk), problem, chains.mend(disk, problem)) if problem else None


async def _difference(disk: Path, digest: str) -> str:
    try:
        found = await _digest(disk)
    except OSError as error:
        return f"it can not be read: {error}"
    return "" if found == digest else f"its content was changed: its digest is {found} and should be {digest}"


async def _digest(disk: Path) -> str:
    """SHA-256 of a file, in threads, a block at a time: whoever is cancelled need not wait for a large disk. Raises OSError."""
    digest = hashlib.sha256()
    with disk.open("rb", buffering=0) as file:
        while await asyncio.to_thread(_feed, file, digest):
            pass
    return f"sha256:{digest.hexdigest()}"


def _feed(file: FileIO, digest: hashlib._Hash) -> bool:
    block = file.read(_BLOCK)
    digest.update(block or b"")
    return bool(block)
