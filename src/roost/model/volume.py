"""A volume: a virtual disk with a life of its own, wherever its bytes are; and its snapshots."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from roost.errors import Problem
from roost.model.meta import IMAGE_NAME, NAME, SNAPSHOT_NAME, Meta, MiB, Size, Struct, Trouble

VOLUME_LENGTH = 36
"""Characters of a volume's name: as many as a SCSI disk's serial has (QEMU's MAX_SERIAL_LEN)."""

VOLUME_NAME = re.compile(rf"[a-z0-9](?:[a-z0-9-]{{0,{VOLUME_LENGTH - 2}}}[a-z0-9])?(?:--trash-[0-9a-f]{{6}})?")
"""Names of volumes; in the trash they have an ending."""

TRASH_NAME = re.compile(r"(.+)--trash-[0-9a-f]{6}")
"""Names of volumes in the trash: what it was called, and an ending that tells it from others that were called so."""

MOST_VOLUMES = 16
"""Volumes that may be attached to a machine."""

LARGEST = 16 << 40
"""Bytes of the largest volume: see storage.formats.MAX_VIRTUAL."""

PoolName = Annotated[str, msgspec.Meta(pattern=NAME.pattern)]


class Limits(Struct, frozen=True, kw_only=True):
    """How fast a volume may be read and written together; 0 is no limit. `burst_*` may be used for up to a second at a time."""

    iops: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    bandwidth: Size = 0
    burst_iops: Annotated[int, msgspec.Meta(ge=0, le=10_000_000)] = 0
    burst_bandwidth: Size = 0

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        for burst, limit in (("burst_iops", self.iops), ("burst_bandwidth", self.bandwidth)):
            if (value := getattr(self, burst)) and not 0 < limit <= value:
                yield Problem(burst, "is above a limit that must be given too")


class VolumeSource(Struct, frozen=True, kw_only=True):
    """What a volume is a copy of, in the same project: exactly one of an image, a volume and a snapshot of a volume."""

    image: str | None = None
    volume: str | None = None
    snapshot: str | None = None


class VolumeSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. `size` None: that of its source. Another `pool` than before moves it there, a larger `size` grows it, while the
    machine that has it runs. `sharing` "read-only" lets several machines read it and none write. `protected` refuses its deletion. One more in
    `rekeys` is not offered yet."""

    pool: PoolName = "default"
    size: Size | None = None
    source: VolumeSource | None = None
    encrypted: bool = False
    limits: Limits = Limits()
    sharing: Literal["none", "read-only"] = "none"
    protected: bool = False
    rekeys: Annotated[int, msgspec.Meta(ge=0)] = 0

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if self.size is None and self.source is None:
            yield Problem("size", "say how large it is: --size 10GiB")
        if self.size is not None and (not MiB <= self.size <= LARGEST or self.size % 512):
            yield Problem("size", f"{self.size} bytes is not between 1MiB and 16TiB in whole 512 byte sectors")
        if self.source is not None:
            yield from _source_problems(self.source)
        for problem in self.limits.problems():
            yield Problem(f"limits.{problem.path}", problem.message)


def _source_problems(source: VolumeSource) -> Iterator[Problem]:
    if (source.image is not None) + (source.volume is not None) + (source.snapshot is not None) != 1:
        yield Problem("source", "name exactly one: image, volume or snapshot")
    for field, pattern in (("image", IMAGE_NAME), ("volume", NAME), ("snapshot", SNAPSHOT_NAME)):
        if (name := getattr(source, field)) is not None and not pattern.fullmatch(name):
            yield Problem(f"source.{field}", f"{name[:80]!r} is not the name of one")


class VolumeStatus(Struct, frozen=True, kw_only=True):
    """What is. `pool` is where its bytes are. Bytes: `size` what a guest sees, `used` what goes with it, `shared` what others stand on too.
    `machines` have it attached (or are about to), `holders` are their uids. `trashed` is the time (RFC 3339) since which it is in the trash.
    `keyed` names the key that it is encrypted with; while that is changed to `rekeying`, either may open it. `rekeys` is the wish for another key
    that was carried out last. `target` is the pool that it moves to; from `switching` on that has every byte, too."""

    phase: Literal["pending", "creating", "ready", "moving", "trash", "failed"] = "pending"
    generation: int = 0
    pool: str = ""
    size: int = 0
    used: int = 0
    shared: int = 0
    machines: tuple[str, ...] = ()
    holders: tuple[str, ...] = ()
    limits: Limits = Limits()
    target: str = ""
    switching: bool = False
    keyed: str = ""
    rekeying: str = ""
    rekeys: int = 0
    trashed: str = ""
    progress: str = ""
    fraction: float | None = None
    warnings: tuple[str, ...] = ()
    error: Trouble | None = None


class Volume(Struct, frozen=True, kw_only=True):
    """A virtual disk."""

    kind: Literal["volume"] = "volume"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: VolumeSpec
    status: VolumeStatus = VolumeStatus()


class VolumeSnapshotSpec(Struct, frozen=True, kw_only=True):
    """What the user wants: this volume as it is now."""

    volume: str

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if not NAME.fullmatch(self.volume):
            yield Problem("volume", f"{self.volume[:80]!r} is not the name of a volume")


class VolumeSnapshotStatus(Struct, frozen=True, kw_only=True):
    """What is. Bytes as in VolumeStatus; `taken` is its instant (RFC 3339)."""

    phase: Literal["pending", "saving", "ready", "failed"] = "pending"
    generation: int = 0
    volume_uid: str = ""
    pool: str = ""
    taken: str = ""
    size: int = 0
    own: int = 0
    shared: int = 0
    keyed: str = ""
    error: Trouble | None = None


class VolumeSnapshot(Struct, frozen=True, kw_only=True):
    """One instant of a volume."""

    kind: Literal["volumesnapshot"] = "volumesnapshot"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: VolumeSnapshotSpec
    status: VolumeSnapshotStatus = VolumeSnapshotStatus()


class Mount(Struct, frozen=True, kw_only=True):
    """A volume that a machine is to have attached. The guest finds it as the SCSI disk whose serial is the volume's name."""

    volume: Annotated[str, msgspec.Meta(pattern=NAME.pattern)]
    read_only: bool = False


class MountStatus(Struct, frozen=True, kw_only=True):
    """A volume that is attached, or about to be, or about to go: `lun` is its number at the controller. `error` is why it is not yet."""

    volume: str
    volume_uid: str
    lun: int
    read_only: bool = False
    phase: Literal["attaching", "attached", "detaching"] = "attaching"
    error: Trouble | None = None
