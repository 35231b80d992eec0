"""Snapshots on disk, with the real layers and the real register of checkpoints: what they stand on stays, everything else goes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from roost.control.checkpoints import Checkpoints
from roost.control.custody import Custody
from roost.control.examination import examine
from roost.control.housekeeping import SETTLE
from roost.control.taking import Parts, Taker
from roost.errors import Unavailable
from roost.host import files
from roost.model.machine import Machine
from roost.model.meta import GiB, MiB
from roost.storage import overlays
from roost.storage.layers import Layers
from roost.storage.manifest import Manifest
from roost.testing.hypervisor import FakeHypervisor
from tests.control_plane import MANIFEST
from tests.keeping import IMAGE, STOPPED, TRAITS, Keeping

replace = msgspec.structs.replace
DISK = overlays.empty(64 * MiB, "nothing")
WEB = replace(STOPPED, status=replace(STOPPED.status, started_as=TRAITS))


class FakeImages:
    """A pool with one image."""

    def find(self, digest: str) -> Manifest | None:
        return MANIFEST if digest == MANIFEST.digest else None


class Disk(Keeping):
    """Keeping, over real files; the machine `web` is stopped."""

    def begin(self) -> None:
        image = self.paths.image(IMAGE).disk
        self.layers = Layers(self.paths, lambda digest: image if digest == IMAGE else None)
        self.checkpoints = Checkpoints(self.paths, GiB)
        super().begin()

    def taker(self) -> Taker:
        custody = Custody(FakeHypervisor(), self.paths, self.clock, "this-boot", lambda key: None)
        return Taker(
            Parts(custody=custody, layers=self.layers, images=FakeImages(), house=self.housekeeping, paths=self.paths)
        )

    async def prepare(self) -> None:
        image = self.paths.image(IMAGE)
        image.directory.mkdir(parents=True)
        image.disk.write_bytes(DISK)
        image.disk.chmod(0o444)
        await self.checkpoints.begin()
        await self.machine(WEB)
        self.paths.machine(WEB.meta.uid).disk.write_bytes(overlays.empty(64 * MiB, "hint"))

    def below(self, uid: str) -> list[str]:
        checkpoint = self.checkpoints.kept("snapshot")[uid]
        assert checkpoint.base is not None
        return [path.parent.name for path in self.layers.below(checkpoint.base)]

    async def tidy(self) -> list[str]:
        """The layers that are left when all is quiet."""
        self.housekeeping.changed()
        await self.clock.advance(2 * SETTLE)
        return sorted(path.name for path in self.paths.layers.iterdir())

    def left(self) -> list[str]:
        return sorted(path.name for path in self.paths.checkpoints.iterdir())


@pytest.fixture
async def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Disk]:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = Disk(tmp_path)
    await made.prepare()
    yield made
    await made.end()
    made.checkpoints.close()


async def take(disk: Disk, *names: str) -> None:
    for name in names:
        snapshot = await disk.ask(f"web.{name}", name)
        assert snapshot.status.phase == "ready", snapshot.status.error


def gone(machine: Machine, disk: Disk) -> None:
    files.remove_tree(disk.paths.machine(machine.meta.uid).keep)


@pytest.mark.fault(9)
async def test_the_middle_of_a_chain_goes_as_a_name_and_stays_as_a_layer(disk: Disk) -> None:
    await take(disk, "one", "two", "three")
    before = disk.below("three")
    await disk.delete("web.two")
    assert len(await disk.tidy()) == 3
    assert disk.below("three") == before
    assert disk.left() == ["one", "three"]


async def test_layers_go_from_the_top_down_to_what_is_still_kept(disk: Disk) -> None:
    await take(disk, "one", "two", "three")
    gone(WEB, disk)
    await disk.delete("web.three")
    assert len(await disk.tidy()) == 2
    assert len(disk.below("two")) == 3


async def test_when_all_is_deleted_nothing_is_left(disk: Disk) -> None:
    await take(disk, "one", "two")
    gone(WEB, disk)
    await disk.delete("web.one")
    await disk.delete("web.two")
    assert (await disk.tidy(), disk.left()) == ([], [])


async def test_what_is_kept_is_found_by_the_next_daemon(disk: Disk) -> None:
    await take(disk, "one")
    below = disk.below("one")
    await disk.kill()
    disk.begin()
    await disk.checkpoints.begin()
    await disk.loop.settle()
    assert (disk.below("one"), (await disk.get("web.one")).status.phase) == (below, "ready")
    assert len(await disk.tidy()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 300])
async def test_a_snapshot_whose_description_is_damaged_stays_and_says_so(disk: Disk, content: bytes) -> None:
    await take(disk, "one")
    layers = await disk.tidy()
    manifest = disk.paths.checkpoint("one").manifest
    whole = manifest.read_bytes()
    manifest.unlink()
    manifest.write_bytes(content)
    await disk.kill()
    disk.begin()
    await disk.checkpoints.begin({"one"})
    await disk.loop.settle()
    with pytest.raises(Unavailable, match="damaged"):
        await disk.checkpoints.load("one")
    found = await examine(disk.records, disk.layers, disk.checkpoints, disk.paths)
    assert [finding.name for finding in found if "damaged" in finding.detail] == ["snapshot default/web.one"]
    gone(WEB, disk)
    assert await disk.tidy() == layers, "nothing that it may stand on is removed"
    manifest.write_bytes(whole)
    await disk.kill()
    disk.begin()
    await disk.checkpoints.begin({"one"})
    assert len(disk.below("one")) == 2
    await disk.delete("web.one")


async def test_a_damaged_snapshot_can_be_deleted(disk: Disk) -> None:
    await take(disk, "one")
    disk.paths.checkpoint("one").manifest.unlink()
    disk.paths.checkpoint("one").manifest.write_bytes(b"")
    await disk.kill()
    disk.begin()
    await disk.checkpoints.begin({"one"})
    gone(WEB, disk)
    await disk.delete("web.one")
    assert (await disk.tidy(), disk.left()) == ([], [])


async def test_what_a_snapshot_takes_becomes_its_own_when_its_machine_is_gone(disk: Disk) -> None:
    await take(disk, "one")
    before = (await disk.get("web.one")).status
    gone(WEB, disk)
    await disk.tidy()
    after = (await disk.get("web.one")).status
    assert before.shared > 0
    assert (after.own, after.shared) == (before.own + before.shared, 0)


async def test_kept_layers_are_digested(disk: Disk) -> None:
    await take(disk, "one")
    (layer,) = await disk.tidy()
    assert b"sha256:" in disk.paths.layer(layer).manifest.read_bytes().partition(b'"digest"')[2]
