"""Warm templates are a cache: bounded, evicted by use, gone with their image; the hot ones have spares."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.control.warmth import HOT_SECONDS
from roost.hypervisor.base import Launch
from roost.model.meta import MiB
from tests.control_plane import MANIFEST
from tests.warm_host import TINY, Host, running


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async for made in running(tmp_path):
        yield made


async def test_of_many_templates_those_unused_for_longest_go(host: Host) -> None:
    made = [await host.template(cpus=count) for count in range(1, 10)]
    assert [kept.id for kept in made[1:]] == list(host.register.written)


async def test_a_use_makes_a_template_stay(host: Host) -> None:
    made = [await host.template(cpus=count) for count in range(1, 9)]
    for number, kept in enumerate(made):
        os.utime(host.paths.checkpoint(kept.id).manifest, (number, number))
    await host.use(made[0])
    last = await host.template(cpus=9)
    assert set(host.register.written) == {made[0].id, *(kept.id for kept in made[2:]), last.id}


async def test_one_that_a_launch_uses_is_not_evicted(host: Host) -> None:
    made = [await host.template(cpus=count) for count in range(1, 9)]
    with host.register.pinned(made[0].id):
        await host.template(cpus=9)
    assert made[0].id in host.register.written
    assert made[1].id not in host.register.written


async def test_a_launch_that_uses_a_template_goes_on_while_that_is_forgotten(host: Host) -> None:
    found = await host.template()
    assert found.saved is not None
    with host.register.pinned(found.id):
        await host.warm.forget_image(MANIFEST.digest)
        assert os.pread(found.saved.device, 6, 0) == b"device"
    assert host.hypervisor.open_devices() == []


async def test_an_image_that_goes_takes_its_templates_with_it(host: Host) -> None:
    mine = await host.template()
    other = await host.template(manifest=TINY)
    await host.use(mine)
    await host.warm.forget_image(MANIFEST.digest)
    assert list(host.register.written) == [other.id]
    assert host.hypervisor.spares[mine.id] == 0
    assert host.changes == 1


async def test_an_image_that_goes_ends_the_making_of_its_template(host: Host) -> None:
    await host.look()
    await host.passes(0.3)
    await host.warm.forget_image(MANIFEST.digest)
    assert (host.left(), host.woken) == ([], ["default/web"])
    assert await host.look() == "making"


async def test_after_a_restart_the_templates_are_there(host: Host) -> None:
    before = await host.template()
    host.restart()
    await host.warm.begin()
    assert await host.look() == before


async def test_at_start_a_template_whose_image_is_gone_is_forgotten(host: Host) -> None:
    await host.template()
    host.images.clear()
    host.restart()
    await host.warm.begin()
    assert host.register.written == {}


async def test_at_start_only_the_newest_of_two_for_the_same_place_stays(host: Host) -> None:
    found = await host.template()
    older = replace(found, id="older", taken="2000-01-01T00:00:00Z", saved=None)
    await host.register.keep(older, "warm")
    host.restart()
    await host.warm.begin()
    assert list(host.register.written) == [found.id]


async def test_what_an_earlier_daemon_left_of_a_hidden_machine_is_removed(host: Host) -> None:
    files = host.paths.spare("left")
    files.keep.mkdir(parents=True)
    files.disk.write_bytes(b"half a boot")
    await host.warm.begin()
    assert host.left() == []


# ---------------------------------------------------------------------- spares


async def test_a_used_template_gets_spares_and_loses_them_when_it_cools(host: Host) -> None:
    found = await host.template()
    await host.use(found)
    assert host.hypervisor.spares == {found.id: 2}
    await host.passes(HOT_SECONDS)
    assert host.hypervisor.spares == {found.id: 0}
    assert not host.register.in_use(found.id)


async def test_two_templates_share_the_spares_and_a_third_takes_the_oldest_ones(host: Host) -> None:
    made = [await host.template(cpus=count) for count in (1, 2, 3)]
    for kept in made:
        await host.passes(1)
        await host.use(kept)
    assert host.hypervisor.spares == {made[0].id: 0, made[1].id: 1, made[2].id: 2}


async def test_spares_are_kept_of_what_is_saved_under_the_name_of_the_template(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Launch] = []

    async def keep_spares(launch: Launch, count: int) -> None:
        asked.append(launch)

    monkeypatch.setattr(host.hypervisor, "keep_spares", keep_spares)
    found = await host.template()
    await host.use(found)
    assert [(launch.spare, launch.saved) for launch in asked] == [(found.id, found.saved)]


async def test_without_memory_there_are_no_spares(host: Host) -> None:
    found = await host.template()
    host.memory = 32 * MiB
    await host.use(found)
    assert host.hypervisor.spares == {}


async def test_a_template_that_was_forgotten_gets_no_spares(host: Host) -> None:
    found = await host.template()
    await host.warm.forget_image(MANIFEST.digest)
    await host.use(found)
    assert host.hypervisor.spares == {}
