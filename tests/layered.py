"""What tests of layers share: a state directory with an image, and a machine whose guest writes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from roost.host.paths import MachineFiles, Paths
from roost.storage import formats, overlays
from roost.storage.layers import Base, Layers

MiB = 1 << 20
SIZE = 64 * MiB
IMAGE = overlays.empty(SIZE, "nothing")
DIGEST = f"sha256:{hashlib.sha256(IMAGE).hexdigest()}"


class Host:
    """A state directory with one image and a machine `web` on it that has written "old"."""

    def __init__(self, directory: Path) -> None:
        self.paths = Paths(directory / "state", directory / "run")
        image = self.paths.image(DIGEST)
        image.directory.mkdir(parents=True)
        image.disk.write_bytes(IMAGE)
        image.disk.chmod(0o444)
        self.layers = self.restart()
        self.web = self.machine("web")
        self.web.disk.write_bytes(overlays.empty(SIZE, "hint"))
        self.web.disk.chmod(0o600)
        self.write(self.web.disk, b"old")

    def restart(self) -> Layers:
        """Another daemon, which remembers nothing."""

        def image_disk(digest: str) -> Path | None:
            disk = self.paths.image(digest).disk
            return disk if disk.exists() else None

        self.layers = Layers(self.paths, image_disk)
        return self.layers

    def machine(self, uid: str) -> MachineFiles:
        made = self.paths.machine(uid)
        made.keep.mkdir(parents=True)
        return made

    def write(self, disk: Path, data: bytes) -> None:
        """As QEMU does it: data at the end, and an entry in the level 1 table that leads there."""
        with disk.open("r+b") as file:
            file.seek(formats.level_1(file.read(48))[0])
            file.write(b"\1")
            file.seek(0, os.SEEK_END)
            file.write(data)

    def seen(self, machine: MachineFiles) -> list[bytes]:
        """What the machine's guest sees: what was written to each file from its disk down to its image."""
        base = self.layers.base_of(machine, DIGEST)
        return [path.read_bytes()[4 * 65536 :] for path in (machine.disk, *self.layers.below(base))]

    async def cover(self, machine: MachineFiles, data: bytes = b"") -> Base:
        """A checkpoint, after which the guest writes `data`."""
        following = await self.layers.prepare(machine, DIGEST)
        if data:
            self.write(following.file, data)
        return await self.layers.settle(machine, DIGEST, covered=True)


BEFORE = [b"old", b""]
COVERED = [b"", b"old", b""]
WRITTEN = [b"new", b"old", b""]
