"""What can still be given: by the host, and by control groups of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.host import memory
from roost.model.meta import GiB, MiB

UNLIMITED = "9223372036854771712"


class Host:
    """The files that the kernel would show."""

    def __init__(self, top: Path) -> None:
        self.proc, self.mount = top / "proc", top / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(f"MemTotal: {8 << 20} kB\nMemFree: 1 kB\nMemAvailable: {4 << 20} kB\n")
        self.groups("0::/\n")

    def groups(self, text: str) -> None:
        (self.proc / "self/cgroup").write_text(text)

    def unified(self, name: str, limit: str, used: int, inactive: int = 0) -> None:
        self._group(self.mount / name, ("memory.max", limit), ("memory.current", used), ("inactive_file", inactive))

    def legacy(self, name: str, limit: str, used: int, inactive: int = 0) -> None:
        group = self.mount / "memory" / name
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        self._group(group, *zip(names, (limit, used, inactive), strict=True))

    def available(self) -> int:
        return memory.available(self.proc, self.mount)

    def _group(
        self, group: Path, limit: tuple[str, object], used: tuple[str, object], stat: tuple[str, object]
    ) -> None:
        group.mkdir(parents=True, exist_ok=True)
        (group / limit[0]).write_text(f"{limit[1]}\n")
        (group / used[0]).write_text(f"{used[1]}\n")
        (group / "memory.stat").write_text(f"anon 5\n{stat[0]} {stat[1]}\nshmem 7\n")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_without_groups_it_is_what_the_kernel_estimates(host: Host) -> None:
    assert (host.available(), memory.total(host.proc, host.mount)) == (4 * GiB, 8 * GiB)


def test_a_nearer_limit_of_our_group_counts(host: Host) -> None:
    host.groups("0::/user/roost\n")
    host.unified("user/roost", str(GiB), 300 * MiB)
    assert host.available() == GiB - 300 * MiB
    assert memory.total(host.proc, host.mount) == GiB


def test_files_read_long_ago_make_room(host: Host) -> None:
    host.groups("0::/roost\n")
    host.unified("roost", str(GiB), 900 * MiB, inactive=500 * MiB)
    assert host.available() == GiB - 400 * MiB


def test_a_limit_of_any_group_above_counts_too(host: Host) -> None:
    host.groups("0::/slice/roost\n")
    host.unified("slice/roost", "max", 10 * MiB)
    host.unified("slice", str(512 * MiB), 12 * MiB)
    assert host.available() == 500 * MiB


def test_version_one_says_the_same_in_other_files(host: Host) -> None:
    host.groups("9:cpu,cpuacct:/x\n4:memory:/jobs/a\n0::/\n")
    host.legacy("jobs/a", UNLIMITED, MiB)
    host.legacy("jobs", str(2 * GiB), 2 * GiB - 64 * MiB, inactive=32 * MiB)
    assert host.available() == 96 * MiB


@pytest.mark.parametrize("name", ["/docker/3f2a", "/../outside"])
def test_in_a_container_the_top_is_our_group(host: Host, name: str) -> None:
    host.groups(f"4:memory:{name}\n")
    host.legacy("", str(GiB), 100 * MiB)
    assert host.available() == GiB - 100 * MiB


def test_a_group_over_its_limit_gives_nothing(host: Host) -> None:
    host.groups("0::/roost\n")
    host.unified("roost", str(GiB), GiB + MiB)
    assert host.available() == 0


def test_this_host_has_some_memory() -> None:
    assert 0 < memory.available() <= memory.total()
