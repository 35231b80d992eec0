"""The daemon as `roost serve` starts it, with a hypervisor whose guests are objects in memory and a pool with one image that is always there."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from roost.control.networks import Residents
from roost.control.preparation import Prepared
from roost.daemon import Engines, main
from roost.model.machine import Machine
from roost.model.node import Verdict
from roost.model.pool import Pool as StoragePool
from roost.storage.manifest import Manifest
from roost.testing.hypervisor import FakeHypervisor
from roost.testing.network import FakeFabrics
from roost.testing.pool import FakePool
from tests.control_plane import FakeKeys, FakeLayers

MANIFEST = Manifest(
    digest="sha256:" + "0" * 64,
    name="tiny",
    arch=None,
    format="none",
    kernel=True,
    firmwares=("direct",),
    agent="roost",
)


class Pool:
    """One image."""

    async def ensure(self, *_: object, **__: object) -> Manifest:
        return MANIFEST

    ensure_template = ensure_url = ensure_upload = ensure

    def find(self, digest: str) -> Manifest:
        return MANIFEST

    def is_current(self, *_: object) -> bool:
        return True

    async def nothing(self, *_: object) -> None:
        return None

    delete = collect = create_disk = nothing


async def engines(*_: object) -> Engines:
    """Fakes of everything that starts a process."""

    async def verdict() -> Verdict:
        return Verdict(accelerator="tcg", reason="a fake")

    async def prepare(machine: Machine, manifest: Manifest) -> Prepared:
        return Prepared()

    async def open_pool(wanted: StoragePool) -> FakePool:
        return FakePool(Path(tempfile.mkdtemp()))

    pool: Any = Pool()
    layers: Any = FakeLayers()
    return Engines(
        FakeHypervisor(),
        pool,
        layers,
        verdict,
        prepare,
        lambda name, arch: True,
        FakeFabrics(),
        FakeFabrics.door,
        Residents(),
        open_pool,
        FakeKeys(),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], engines=engines))
