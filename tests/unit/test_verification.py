"""Layers and images that were changed, cut off, made writable or lost are found, and what stands on them is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.errors import Unavailable
from roost.storage.layers import Base
from tests.layered import DIGEST, Host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Host(tmp_path)


def flip_a_byte(disk: Path) -> None:
    disk.chmod(0o644)
    data = bytearray(disk.read_bytes())
    data[-1] ^= 1
    disk.write_bytes(data)
    disk.chmod(0o444)


def cut_off(disk: Path) -> None:
    disk.chmod(0o644)
    os.truncate(disk, 1000)
    disk.chmod(0o444)


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip_a_byte, "content was changed"),
        (lambda disk: disk.chmod(0o644), "can be written"),
        (lambda disk: disk.unlink(), "is missing"),
        (cut_off, "bytes and should have"),
    ],
)
async def test_a_layer_that_was_changed_is_found_and_what_stands_on_it_named(
    host: Host, harm: Callable[[Path], None], problem: str
) -> None:
    base = await host.cover(host.web)
    await host.layers.create_disk(base, host.machine("kid"))
    await host.layers.hash(base.layer)
    assert await host.layers.verify(thorough=True) == []
    harm(host.paths.layer(base.layer).disk)
    (finding,) = await host.layers.verify(thorough=True, others=[(base, "snapshot one")])
    assert finding.file == str(host.paths.layer(base.layer).disk)
    assert problem in finding.problem
    assert finding.users == ("kid", "snapshot one", "web")
    assert finding.fix


@pytest.mark.fault(7)
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (flip_a_byte, "content was changed"),
        (lambda disk: disk.chmod(0o644), "can be written"),
        (lambda disk: disk.unlink(), "is missing"),
        (cut_off, "content was changed"),
    ],
)
async def test_an_image_that_was_changed_is_found_and_what_stands_on_it_named(
    host: Host, harm: Callable[[Path], None], problem: str
) -> None:
    await host.cover(host.web)
    harm(host.paths.image(DIGEST).disk)
    (finding,) = await host.layers.verify(thorough=True, others=[(Base(image=DIGEST), "plain")])
    assert problem in finding.problem
    assert finding.users == ("plain", "web")


@pytest.mark.fault(7)
@pytest.mark.parametrize("harm", [lambda disk: disk.chmod(0o644), lambda disk: disk.unlink(), cut_off])
async def test_no_disk_is_made_on_a_layer_that_was_changed(host: Host, harm: Callable[[Path], None]) -> None:
    base = await host.cover(host.web)
    harm(host.paths.layer(base.layer).disk)
    kid = host.machine("kid")
    with pytest.raises(Unavailable):
        await host.layers.create_disk(base, kid)
    assert list(kid.keep.iterdir()) == []


async def test_a_look_that_is_not_thorough_reads_no_disk(host: Host) -> None:
    base = await host.cover(host.web)
    await host.layers.hash(base.layer)
    flip_a_byte(host.paths.layer(base.layer).disk)
    assert await host.layers.verify(thorough=False) == []


async def test_a_thorough_look_notes_digests_that_are_not_there_yet(host: Host) -> None:
    base = await host.cover(host.web)
    assert await host.layers.verify(thorough=True) == []
    flip_a_byte(host.paths.layer(base.layer).disk)
    host.restart()
    assert len(await host.layers.verify(thorough=True)) == 1


async def test_a_file_that_can_not_be_read_is_a_finding_and_not_an_end(host: Host) -> None:
    base = await host.cover(host.web)
    broken = host.machine("broken")
    broken.base.write_text("{")
    host.paths.layer(base.layer).manifest.unlink()
    host.paths.layer(base.layer).manifest.write_text("{}")
    host.restart()
    found = await host.layers.verify(thorough=False)
    assert sorted(finding.users for finding in found) == [("broken",), ("web",)]
