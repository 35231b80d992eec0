"""A saved guest on a disk that is really full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.errors import Unavailable
from roost.host import files as host_files
from roost.host.paths import CheckpointFiles
from roost.hypervisor import memfd, saved
from roost.hypervisor.base import Saved
from roost.hypervisor.memory import Memory
from tests.needs import needs_root

MiB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.fixture
def guest() -> Iterator[Saved]:
    """16 MiB that are not zero."""
    device, memory = memfd.create("device", 4096), memfd.create("memory", 64 * MiB)
    os.pwrite(memory, b"x" * 16 * MiB, 8 * MiB)
    memfd.seal(device)
    memfd.seal(memory)
    made = Saved(device, Memory(64 * MiB, [memory]))
    yield made
    saved.release(made)


@needs_root
async def test_a_disk_that_becomes_full_keeps_nothing_of_it(
    small_disk: Path, guest: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_files, "free_space", lambda path: 1 << 40)
    with pytest.raises(Unavailable) as refused:
        await saved.write(guest, CheckpointFiles(small_disk / "one"), b"", b"k" * 32)
    assert "is full" in refused.value.why
    assert list(small_disk.iterdir()) == []


@needs_root
async def test_a_disk_that_is_too_small_is_known_beforehand(small_disk: Path, guest: Saved) -> None:
    with pytest.raises(Unavailable) as refused:
        await saved.write(guest, CheckpointFiles(small_disk / "one"), b"", b"k" * 32)
    assert "as a reserve" in refused.value.why
    assert list(small_disk.iterdir()) == []
