"""A pool: a place where the bytes of volumes live, and how full it may become."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Literal

import msgspec

from roost.errors import Problem
from roost.model.meta import Meta, Seconds, Struct, Trouble

PoolType = Literal["directory", "block", "nbd", "ceph"]
Percent = Annotated[int, msgspec.Meta(ge=1, le=100, description="percent of the pool's space")]

_VOLUME_GROUP = re.compile(r"[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,62}/[A-Za-z0-9_.+][A-Za-z0-9_.+-]{0,62}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,64}")
_SERVER = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.-]{1,253}):\d{1,5}")
_FIELDS: dict[PoolType, tuple[str, ...]] = {
    "directory": (),
    "block": ("thin_pool",),
    "nbd": ("servers", "export"),
    "ceph": ("servers", "export", "user", "keyring"),
}
"""What each type must be told."""


class PoolSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. `directory`: `path` (absolute; "" is the daemon's own directory). `block`: `thin_pool` ("GROUP/POOL" of LVM).
    `nbd`: one of `servers` ("HOST:PORT") and the `export`, which holds one volume. `ceph`: the monitors in `servers`, the Ceph pool in `export`,
    `user`, and the file `keyring` on this host.

    From `warn` percent on the pool says so, from `close` on nothing new begins in it, from `pause` on machines that write to it stand still
    until there is room again. `grace`: seconds that a deleted volume stays in the trash.
    """

    type: PoolType = "directory"
    path: str = ""
    thin_pool: str = ""
    servers: tuple[str, ...] = ()
    export: str = ""
    user: str = ""
    keyring: str = ""
    warn: Percent = 80
    close: Percent = 90
    pause: Percent = 97
    grace: Seconds = 86_400.0

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if not self.warn <= self.close <= self.pause:
            yield Problem("warn", "the watermarks must rise: warn <= close <= pause")
        needed = _FIELDS[self.type]
        for field in ("thin_pool", "servers", "export", "user", "keyring"):
            if bool(getattr(self, field)) != (field in needed):
                yield Problem(field, f"a pool of type {self.type} {'needs' if field in needed else 'has no'} {field}")
        for field in ("path", "keyring"):
            if (text := getattr(self, field)) and not _is_plain(text):
                yield Problem(field, f"{text[:200]!r} is not an absolute path without '..' or control characters")
        if self.path and self.type != "directory":
            yield Problem("path", f"a pool of type {self.type} has no path")
        yield from self._name_problems()

    def _name_problems(self) -> Iterator[Problem]:
        if self.thin_pool and not _VOLUME_GROUP.fullmatch(self.thin_pool):
            yield Problem("thin_pool", f"{self.thin_pool[:80]!r} is not GROUP/POOL")
        for index, server in enumerate(self.servers):
            if not _SERVER.fullmatch(server):
                yield Problem(f"servers[{index}]", f"{server[:80]!r} is not HOST:PORT")
        for field in ("export", "user"):
            if (text := getattr(self, field)) and not _WORD.fullmatch(text):
                yield Problem(field, f"{text[:80]!r} has other characters than letters, digits, '_', '.', '+' and '-'")


def _is_plain(path: str) -> bool:
    return path.startswith("/") and len(path) < 1024 and path.isprintable() and ".." not in PurePosixPath(path).parts


class PoolStatus(Struct, frozen=True, kw_only=True):
    """What is. Bytes: `size` of the whole place, `used` of it by whomever, `provisioned` what all volumes could take, `reclaimable` what goes with
    the trash. `level`: "ok", "warn", "closed" (nothing new begins), "paused" (its writers stand still)."""

    phase: Literal["pending", "ready", "failed"] = "pending"
    generation: int = 0
    level: Literal["ok", "warn", "closed", "paused"] = "ok"
    size: int = 0
    used: int = 0
    provisioned: int = 0
    reclaimable: int = 0
    volumes: int = 0
    error: Trouble | None = None


class Pool(Struct, frozen=True, kw_only=True):
    """A place for volumes, of the host: all projects may use it."""

    kind: Literal["pool"] = "pool"
    project: str = ""
    name: str
    meta: Meta = Meta()
    spec: PoolSpec = PoolSpec()
    status: PoolStatus = PoolStatus()
