"""What every volume and snapshot of a directory pool takes, by the blocks that the host has given to its files."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from roost.errors import Unavailable
from roost.host.poolpaths import PoolFiles
from roost.storage import chains
from roost.storage.chains import Base, Chains
from roost.storage.pool import Usage

_BLOCK = 512
"""Bytes of a block that stat(2) counts."""


class _Volume(NamedTuple):
    """What was read of a volume, as long as `seen` (its directory and its file) stays the same: what its guest sees, what it stands on."""

    seen: tuple[int, int, int]
    size: int
    base: Base


class Accounting:
    """Looks at each volume with two calls of stat(2); reads only what has changed since the last time."""

    def __init__(self, place: PoolFiles, known: Chains) -> None:
        self._place = place
        self._chains = known
        self._volumes: dict[str, _Volume] = {}

    def usage(self, snapshots: Collection[str]) -> Mapping[str, Usage]:
        """Each volume and snapshot by its uid. A layer is somebody's own while nobody else stands on it. Raises OSError, Unavailable."""
        taken = self._look()
        known = self._volumes
        below = {uid: chain for uid in taken if (chain := self._layers(known[uid].base))}
        below |= {uid: self._layers(Base(layer=uid)) for uid in snapshots}
        users = Counter(layer for chain in below.values() for layer in chain)
        sizes = {layer: self._taken(layer) for layer in users}
        found = {uid: Usage(known[uid].size, own, 0) for uid, own in taken.items() if uid not in below}
        for uid, chain in below.items():
            shared = sum(sizes[layer] for layer in chain if users[layer] > 1)
            own = sum(sizes[layer] for layer in chain) - shared + taken.get(uid, 0)
            found[uid] = Usage(self._virtual(uid), own, shared)
        return found

    def _look(self) -> dict[str, int]:
        """Bytes that each volume's own file takes; what is known of others is forgotten."""
        known, taken = self._volumes, dict[str, int]()
        for uid, kept, disk in _stat_all(str(self._place.disks)):
            seen = (kept, disk.st_mtime_ns, disk.st_ino)
            if uid not in known or known[uid].seen != seen:
                known[uid] = self._read(uid, seen)
            taken[uid] = disk.st_blocks * _BLOCK
        for uid in known.keys() - taken.keys():
            del known[uid]
        return taken

    def _read(self, uid: str, seen: tuple[int, int, int]) -> _Volume:
        """What can not be read counts as nothing: `verify` tells of it, and the others are counted all the same."""
        size, bases = 0, list[Base]()
        with contextlib.suppress(Unavailable):
            bases = self._chains.bases(uid)
            size = chains.virtual_size(self._place.disk(uid).disk)
        return _Volume(seen, size, bases[0] if bases else Base())

    def _layers(self, base: Base) -> tuple[str, ...]:
        if not base.layer:
            return ()
        return tuple(link.layer for link in self._chains.links(base) if link.layer)

    def _virtual(self, uid: str) -> int:
        if uid in self._volumes:
            return self._volumes[uid].size
        layer = self._chains.layer(uid)
        return 0 if layer is None else layer.virtual_size

    def _taken(self, layer: str) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._place.layer(layer).disk.stat().st_blocks * _BLOCK
        return 0


def _stat_all(root: str) -> Iterator[tuple[str, int, os.stat_result]]:
    """The uid of each volume, when its directory changed, and its file. By strings: a Path for each costs more than the calls themselves."""
    try:
        with os.scandir(root) as entries:
            uids = [entry.name for entry in entries]
    except FileNotFoundError:
        return
    stat = os.stat
    for uid in uids:
        keep = f"{root}/{uid}"
        try:
            yield uid, stat(keep).st_mtime_ns, stat(keep + "/disk.qcow2")
        except (FileNotFoundError, NotADirectoryError):
            continue
