"""Layers: a disk changes what it stands on wholly or not at all, whenever it is stopped, and nothing that others stand on goes or changes unseen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from roost.errors import Conflict, Invalid, Unavailable
from roost.host import files
from roost.storage import chains, layers
from roost.storage.layers import Base
from tests.layered import BEFORE, COVERED, DIGEST, SIZE, WRITTEN, Host, MiB
from tests.stops import counted, stopped_after


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return Host(tmp_path)


async def test_a_covered_disk_becomes_a_layer_that_nobody_can_write(host: Host) -> None:
    base = await host.cover(host.web)
    layer = host.paths.layer(base.layer)
    assert host.layers.below(base) == (layer.disk, host.paths.image(DIGEST).disk)
    assert (layer.disk.stat().st_mode & 0o777, layer.directory.stat().st_mode & 0o777) == (0o444, 0o700)
    assert host.web.disk.stat().st_mode & 0o777 == 0o600
    assert host.seen(host.web) == COVERED
    assert host.layers.base_of(host.web, DIGEST) == base
    assert host.layers.virtual_size(base) == SIZE


async def test_an_overlay_that_covered_nothing_goes_away(host: Host) -> None:
    await host.layers.prepare(host.web, DIGEST)
    assert await host.layers.settle(host.web, DIGEST, covered=False) == Base(image=DIGEST)
    assert host.seen(host.web) == BEFORE
    assert [path.name for path in host.web.keep.iterdir()] == ["root.qcow2"]


async def test_an_overlay_with_data_is_kept_whoever_says_that_it_covers_nothing(host: Host) -> None:
    following = await host.layers.prepare(host.web, DIGEST)
    host.write(following.file, b"new")
    await host.layers.settle(host.web, DIGEST, covered=False)
    assert host.seen(host.web) == WRITTEN


async def test_the_names_of_nodes_are_new_each_time_and_known_to_the_next_daemon(host: Host) -> None:
    first = await host.layers.prepare(host.web, DIGEST)
    assert host.restart().pending(host.web) == first
    await host.layers.settle(host.web, DIGEST, covered=True)
    assert host.layers.pending(host.web) is None
    second = await host.layers.prepare(host.web, DIGEST)
    assert first.node != second.node
    assert len(first.node) <= 31


async def test_a_disk_that_is_being_covered_is_not_covered_twice(host: Host) -> None:
    first = await host.layers.prepare(host.web, DIGEST)
    with pytest.raises(Conflict):
        await host.layers.prepare(host.web, DIGEST)
    with pytest.raises(Conflict):
        await host.layers.create_disk(Base(image=DIGEST), host.web)
    assert host.layers.pending(host.web) == first


async def test_a_disk_is_made_on_a_layer_in_the_size_asked_for(host: Host) -> None:
    base = await host.cover(host.web)
    kid = host.machine("kid")
    await host.layers.create_disk(base, kid, 2 * SIZE)
    assert host.seen(kid) == COVERED
    assert chains.virtual_size(kid.disk) == 2 * SIZE
    with pytest.raises(Invalid):
        await host.layers.create_disk(base, kid, SIZE // 2)


async def test_a_restored_disk_replaces_the_one_that_was_there(host: Host) -> None:
    base = await host.cover(host.web, b"new")
    await host.layers.create_disk(base, host.web)
    assert host.seen(host.web) == COVERED


# Every instant at which a daemon can die. The numbers are those of the changes that each step makes; see the test of the counts.

Step = Callable[[Host], Coroutine[Any, Any, Any]]


async def prepared(host: Host) -> None:
    await host.layers.prepare(host.web, DIGEST)


async def settled(host: Host) -> None:
    await host.layers.settle(host.web, DIGEST, covered=True)


async def given_up(host: Host) -> None:
    await host.layers.settle(host.web, DIGEST, covered=False)


async def replaced(host: Host) -> None:
    await host.layers.create_disk(host.layers.base_of(host.web, DIGEST), host.web)


PREPARE, SETTLE, GIVE_UP, REPLACE = 7, 11, 3, 10
"""Changes of files in each step."""


async def recovered(host: Host, covered: bool) -> list[bytes]:
    """What the guest sees after the next daemon has looked; nothing half-made may be left."""
    host.restart()
    await host.layers.sweep()
    if host.layers.pending(host.web) is not None:
        await host.layers.settle(host.web, DIGEST, covered=covered)
    kept = {path.name for path in host.web.keep.iterdir() if not path.name.startswith(".")}
    assert kept - {"base.json"} == {"root.qcow2"}
    assert host.web.disk.stat().st_mode & 0o777 == 0o600
    return host.seen(host.web)


@pytest.mark.parametrize(
    ("before", "step", "changes"),
    [
        ((), prepared, PREPARE),
        ((prepared,), settled, SETTLE),
        ((prepared,), given_up, GIVE_UP),
        ((), replaced, REPLACE),
    ],
)
async def test_the_steps_make_as_many_changes_as_they_are_stopped_after(
    host: Host, before: tuple[Step, ...], step: Step, changes: int
) -> None:
    for earlier in before:
        await earlier(host)
    with counted() as found:
        await step(host)
    assert found == [changes]


@pytest.mark.fault(8)
@pytest.mark.parametrize("covered", [True, False])
@pytest.mark.parametrize("changes", range(PREPARE))
async def test_a_daemon_killed_while_it_prepares_leaves_the_disk_as_it_was_or_covered(
    host: Host, changes: int, covered: bool
) -> None:
    with stopped_after(changes):
        await prepared(host)
    assert await recovered(host, covered) in (BEFORE, COVERED)


@pytest.mark.fault(8)
@pytest.mark.parametrize("covered", [True, False])
@pytest.mark.parametrize("changes", range(SETTLE))
async def test_a_daemon_killed_while_it_settles_loses_nothing_that_the_guest_wrote(
    host: Host, changes: int, covered: bool
) -> None:
    following = await host.layers.prepare(host.web, DIGEST)
    host.write(following.file, b"new")
    with stopped_after(changes):
        await settled(host)
    assert await recovered(host, covered) == WRITTEN


@pytest.mark.fault(8)
@pytest.mark.parametrize("covered", [True, False])
@pytest.mark.parametrize("changes", range(SETTLE))
async def test_a_daemon_killed_while_it_settles_an_unused_overlay_leaves_the_state_before_or_after(
    host: Host, changes: int, covered: bool
) -> None:
    await prepared(host)
    with stopped_after(changes):
        await settled(host)
    assert await recovered(host, covered) in (BEFORE, COVERED)


@pytest.mark.parametrize("covered", [True, False])
@pytest.mark.parametrize("changes", range(GIVE_UP))
async def test_a_daemon_killed_while_it_gives_up_leaves_the_state_before_or_after(
    host: Host, changes: int, covered: bool
) -> None:
    await prepared(host)
    with stopped_after(changes):
        await given_up(host)
    assert await recovered(host, covered) in (BEFORE, COVERED)


@pytest.mark.parametrize("changes", range(SETTLE))
async def test_giving_up_after_a_settling_that_was_killed_makes_the_disk_writable_again(
    host: Host, changes: int
) -> None:
    await prepared(host)
    with stopped_after(changes):
        await settled(host)
    host.restart()
    await given_up(host)  # without a sweep before it
    assert host.seen(host.web) in (BEFORE, COVERED)
    assert host.web.disk.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("changes", range(REPLACE))
async def test_a_daemon_killed_while_it_replaces_a_disk_leaves_the_old_one_or_the_new(host: Host, changes: int) -> None:
    await host.cover(host.web, b"new")
    with stopped_after(changes):
        await replaced(host)
    assert await recovered(host, True) in (WRITTEN, COVERED)
    await replaced(host)
    assert host.seen(host.web) == COVERED


async def test_both_overlays_are_on_disk_when_the_daemon_and_qemu_are_dead(host: Host) -> None:
    following = await host.layers.prepare(host.web, DIGEST)
    host.write(following.file, b"new")
    assert await recovered(host, True) == WRITTEN


async def test_settling_again_changes_nothing(host: Host) -> None:
    base = await host.cover(host.web, b"new")
    assert await host.layers.settle(host.web, DIGEST, covered=False) == base
    assert host.seen(host.web) == WRITTEN


# A disk that is full.


@pytest.mark.parametrize("failing", ["next.json", "root.next.qcow2"])
async def test_a_full_disk_leaves_nothing_of_what_was_prepared(
    host: Host, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, failing)
    with pytest.raises(Unavailable) as caught:
        await host.layers.prepare(host.web, DIGEST)
    assert "No space left" in caught.value.why
    assert caught.value.fix
    assert [path.name for path in host.web.keep.iterdir()] == ["root.qcow2"]
    assert host.layers.pending(host.web) is None
    assert host.seen(host.web) == BEFORE


@pytest.mark.parametrize("failing", ["next.json", "root.next.qcow2"])
async def test_a_full_disk_leaves_the_disk_that_was_to_be_replaced(
    host: Host, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(monkeypatch, failing)
    with pytest.raises(Unavailable):
        await replaced(host)
    assert host.seen(host.web) == BEFORE
    assert [path.name for path in host.web.keep.iterdir()] == ["root.qcow2"]


async def test_a_full_disk_while_settling_loses_nothing_and_it_can_be_done_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = await host.layers.prepare(host.web, DIGEST)
    host.write(following.file, b"new")
    with monkeypatch.context() as full:
        fill(full, "layer.json")
        with pytest.raises(Unavailable):
            await settled(host)
    await settled(host)
    assert host.seen(host.web) == WRITTEN


async def test_a_disk_with_hardly_any_room_is_not_begun_with(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_space", lambda path: MiB)
    with pytest.raises(Unavailable, match="can not be covered"):
        await host.layers.prepare(host.web, DIGEST)


def fill(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From now on there is no room for files of this name."""
    atomic, plain = files.atomic_write, layers.write_new

    def atomic_write(path: Path, *arguments: Any, **options: Any) -> None:
        refuse(path)
        atomic(path, *arguments, **options)

    def write(path: Path, data: bytes) -> None:
        plain(path, data[:100])
        refuse(path)
        plain(path, data)

    def refuse(path: Path) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "atomic_write", atomic_write)
    monkeypatch.setattr(layers, "write_new", write)


# Who stands on what.


@pytest.mark.fault(9)
async def test_a_layer_goes_when_the_last_machine_on_it_has_gone(host: Host) -> None:
    base = await host.cover(host.web)
    kid = host.machine("kid")
    await host.layers.create_disk(base, kid)
    shutil.rmtree(host.web.keep)
    assert await host.layers.collect([]) == []
    assert host.seen(kid) == COVERED
    shutil.rmtree(kid.keep)
    assert await host.layers.collect([]) == [base.layer]
    assert list(host.paths.layers.iterdir()) == []


@pytest.mark.fault(9)
async def test_a_middle_layer_stays_while_a_later_one_stands_on_it(host: Host) -> None:
    bases = [await host.cover(host.web, name) for name in (b"one", b"two", b"three")]
    shutil.rmtree(host.web.keep)
    assert await host.layers.collect([bases[1]]) == [bases[2].layer]
    assert len(host.layers.below(bases[1])) == 3
    assert sorted(await host.layers.collect([])) == sorted([bases[0].layer, bases[1].layer])


async def test_what_is_being_covered_is_not_collected_at_any_instant(host: Host) -> None:
    await host.cover(host.web)
    await host.layers.prepare(host.web, DIGEST)
    assert await host.layers.collect([]) == []
    await settled(host)
    assert await host.layers.collect([]) == []
    assert len(host.seen(host.web)) == 4


@pytest.mark.parametrize("changes", range(SETTLE))
async def test_a_collection_after_a_settling_that_was_killed_takes_nothing_of_the_chain(
    host: Host, changes: int
) -> None:
    following = await host.layers.prepare(host.web, DIGEST)
    host.write(following.file, b"new")
    with stopped_after(changes):
        await settled(host)
    host.restart()
    assert await host.layers.collect([]) == []
    await settled(host)
    assert host.seen(host.web) == WRITTEN


@pytest.mark.fault(9)
async def test_nothing_is_collected_while_a_chain_is_broken(host: Host) -> None:
    lower, upper = await host.cover(host.web), await host.cover(host.web)
    shutil.move(host.paths.layer(upper.layer).directory, host.paths.state / "away")
    host.restart()
    with pytest.raises(Unavailable, match="no layer is removed"):
        await host.layers.collect([])
    assert host.layers.below(lower)


async def test_images_that_anything_stands_on_are_named(host: Host) -> None:
    assert host.layers.images() == set()
    base = await host.cover(host.web)
    assert host.layers.images() == {DIGEST}
    shutil.rmtree(host.web.keep)
    assert host.layers.images() == {DIGEST}
    await host.layers.collect([])
    assert host.layers.images() == set()
    assert base.layer


async def test_space_is_shared_when_another_stands_on_it_too(host: Host) -> None:
    first = await host.cover(host.web)
    taken = host.paths.layer(first.layer).disk.stat().st_blocks * 512
    assert host.layers.space(first, []) == (0, taken)
    assert host.layers.space(first, [], owner="web") == (taken, 0)
    assert host.layers.space(first, [first], owner="web") == (0, taken)
    second = await host.cover(host.web)
    other = host.paths.layer(second.layer).disk.stat().st_blocks * 512
    assert host.layers.space(second, [first], owner="web") == (other, taken)


async def test_a_chain_in_a_circle_has_an_end(host: Host) -> None:
    one, two = await host.cover(host.web), await host.cover(host.web)
    manifest = host.paths.layer(one.layer).manifest
    text = manifest.read_text().replace(f'"image": "{DIGEST}"', '"image": ""')
    manifest.unlink()
    manifest.write_text(text.replace('"layer": ""', f'"layer": "{two.layer}"'))
    host.restart()
    with pytest.raises(Unavailable, match="circle"):
        host.layers.below(two)
    assert await host.layers.collect([]) == []


async def test_the_state_directory_is_swept_of_what_was_not_whole(host: Host) -> None:
    base = await host.cover(host.web)
    host.paths.layer("half").directory.mkdir()
    host.paths.layer("half").disk.write_bytes(b"half")
    host.web.next_disk.write_bytes(b"half")
    await host.restart().sweep()
    assert [path.name for path in host.paths.layers.iterdir()] == [base.layer]
    assert not host.web.next_disk.exists()


async def test_what_runs_below_a_chain_is_looked_at_quickly(host: Host) -> None:
    base = await host.cover(host.web)
    host.layers.below(base)
    with counted() as changes:
        host.layers.below(base)
    assert changes == [0]
