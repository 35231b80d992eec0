"""What is made before a machine's first start."""

from __future__ import annotations

from pathlib import Path

from roost.control.preparation import prepare
from roost.host.paths import Paths
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import Meta
from tests.control_plane import MANIFEST

UID = "11111111-2222-4333-8444-555555555555"


async def test_the_cloud_init_disk_is_made_before_anything_else_of_the_machine_is_there(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "state", tmp_path / "run")
    spec = MachineSpec(image="tiny", user_data="#cloud-config\nbootcmd: [[true]]\n")
    prepared = await prepare(paths, Machine(name="web", meta=Meta(uid=UID), spec=spec), MANIFEST)
    assert prepared.seed == paths.machine(UID).seed
    assert prepared.seed.stat().st_mode & 0o777 == 0o600
