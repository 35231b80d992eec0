"""Control groups over a copy of the kernel's file tree, in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import Conflict
from roost.host import cgroups
from roost.host.cgroups import Bounds

BOUNDS = Bounds(memory=1 << 26, processes=9, cpus=0.5)


@pytest.fixture
def unified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Version 2; directories get their files when they are made, as in the kernel."""
    fill(tmp_path, "cgroup.procs", "memory.max", "pids.max", "cpu.max", "memory.oom.group")
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    return kernel(tmp_path, monkeypatch)


@pytest.fixture
def legacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Version 1 with memory and pids, without cpu."""
    for controller, files in (("memory", ("memory.limit_in_bytes",)), ("pids", ("pids.max",))):
        (tmp_path / controller).mkdir()
        fill(tmp_path / controller, "cgroup.procs", *files)
    return kernel(tmp_path, monkeypatch)


def fill(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_text("")


def kernel(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make, remove = Path.mkdir, Path.rmdir

    def mkdir(self: Path, *words: int, **options: bool) -> None:
        made = not self.exists()
        make(self, *words, **options)
        for file in self.parent.iterdir() if made else ():
            if file.is_file():
                (self / file.name).write_text(file.read_text() if file.name == "cgroup.controllers" else "")

    def rmdir(self: Path) -> None:
        if any(path.is_dir() for path in self.iterdir()) or (self / "cgroup.procs").read_text():
            raise OSError(16, "busy", str(self))
        for file in self.iterdir():
            file.unlink()
        remove(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)
    monkeypatch.setattr(cgroups, "_MOUNT", root)
    monkeypatch.setattr(cgroups.os, "geteuid", lambda: 0)
    return root


def test_version_2_bounds_memory_processes_and_cpu(unified: Path) -> None:
    group, why = cgroups.create("web", BOUNDS)
    assert (group, why) == (cgroups.CGroup((unified / "roost/web",)), "")
    values = {name: (unified / "roost/web" / name).read_text() for name in ("memory.max", "pids.max", "cpu.max")}
    assert values == {"memory.max": str(1 << 26), "pids.max": "9", "cpu.max": "50000 100000"}


def test_version_2_hands_the_controllers_down(unified: Path) -> None:
    cgroups.create("web", BOUNDS)
    assert (unified / "cgroup.subtree_control").read_text() == "+pids +cpu"
    assert (unified / "roost/cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_version_1_uses_the_controllers_that_there_are(legacy: Path) -> None:
    group, _ = cgroups.create("web", BOUNDS)
    assert group == cgroups.CGroup((legacy / "memory/roost/web", legacy / "pids/roost/web"))
    assert (legacy / "memory/roost/web/memory.limit_in_bytes").read_text() == str(1 << 26)


def test_no_bound_is_written_as_none(unified: Path) -> None:
    cgroups.create("web", Bounds(None, 9, None))
    assert (unified / "roost/web/memory.max").read_text() == (unified / "roost/web/cpu.max").read_text() == "max"


async def test_the_last_group_takes_the_parent_with_it(legacy: Path) -> None:
    group, _ = cgroups.create("web", BOUNDS)
    assert group is not None
    assert await group.remove()
    assert [path.name for path in (legacy / "memory").iterdir() if path.is_dir()] == []


def test_a_group_in_use_is_not_taken(legacy: Path) -> None:
    cgroups.create("web", BOUNDS)
    (legacy / "memory/roost/web/cgroup.procs").write_text("1\n")
    with pytest.raises(Conflict):
        cgroups.create("web", BOUNDS)


def test_groups_are_found_again_by_their_machine(legacy: Path) -> None:
    made = {cgroups.create(name, BOUNDS)[0] for name in ("web", "web-passt", "webber")}
    found = cgroups.find("web")
    assert {group.directories[0].name for group in found} == {"web", "web-passt"}
    assert set(found) < made
    assert cgroups.find("other") == ()


def test_stale_groups_are_removed_and_young_ones_are_not(legacy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups.create("web", BOUNDS)
    assert cgroups.remove_stale() == ()
    monkeypatch.setattr(cgroups, "_YOUNG", -1.0)
    assert cgroups.remove_stale() == ("web",)


def test_a_host_without_controllers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_MOUNT", tmp_path)
    assert cgroups.create("web", BOUNDS) == (None, "no controller is mounted, or none is delegated to us")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 200])
def test_a_name_that_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        cgroups.create(name, BOUNDS)
    assert cgroups.find(name) == ()
