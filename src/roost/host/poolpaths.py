"""Every file name in a pool of volumes that is a directory; pure: nothing here touches the file system."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

from roost.host.paths import ImageFiles, LayerFiles, Paths


class DiskFiles(Protocol):
    """The files of one disk that stands on others, be it a machine's or a volume."""

    @property
    def keep(self) -> Path:
        """The directory of all the others, named by the uid of what the disk belongs to."""
        ...

    @property
    def disk(self) -> Path:
        """The disk (qcow2)."""
        ...

    @property
    def base(self) -> Path:
        """What the disk stands on (JSON)."""
        ...

    @property
    def next_disk(self) -> Path:
        """The file that is to take the disk's place; of no use without `next_base`."""
        ...

    @property
    def next_base(self) -> Path:
        """What `next_disk` stands on (JSON), written when that is whole: it then becomes `base`."""
        ...


class VolumeFiles(NamedTuple):
    """One volume's files, in its pool."""

    keep: Path

    @property
    def disk(self) -> Path:
        """The volume (qcow2)."""
        return self.keep / "disk.qcow2"

    @property
    def base(self) -> Path:
        """What it stands on (JSON)."""
        return self.keep / "base.json"

    @property
    def next_disk(self) -> Path:
        """The file that is to take its place; of no use without `next_base`."""
        return self.keep / "next.qcow2"

    @property
    def next_base(self) -> Path:
        """What `next_disk` stands on (JSON), written when that is whole: it then becomes `base`."""
        return self.keep / "next.json"


class PoolFiles(NamedTuple):
    """The files of a pool that is a directory. `home` is where images are, and what is the daemon's own."""

    root: Path
    home: Paths

    @classmethod
    def below(cls, path: str, home: Paths) -> PoolFiles:
        """The files of a pool in the directory `path`; "" is the daemon's own."""
        return cls(Path(path) / "roost-pool" if path else home.pools / "default", home)

    @property
    def marker(self) -> Path:
        """Whose pool this is (JSON): no other daemon takes it for its own."""
        return self.root / "pool.json"

    @property
    def disks(self) -> Path:
        """All volumes, one directory each, named by their uid."""
        return self.root / "volumes"

    @property
    def layers(self) -> Path:
        """All layers, one directory each, named by their UUID: those of snapshots by the snapshot's uid."""
        return self.root / "layers"

    @property
    def snapshots(self) -> Path:
        """An empty file for each layer that is a snapshot, named by its uid; "UID.new" while the layer is being made."""
        return self.root / "snapshots"

    @property
    def removed(self) -> Path:
        """What is being removed."""
        return self.root / "removed"

    def disk(self, uid: str) -> VolumeFiles:
        """The files of the volume with this uid."""
        return VolumeFiles(self.disks / uid)

    def layer(self, uid: str) -> LayerFiles:
        """The files of the layer with this UUID."""
        return LayerFiles(self.layers / uid)

    def image(self, digest: str) -> ImageFiles:
        """The files of the image "sha256:..."."""
        return self.home.image(digest)
