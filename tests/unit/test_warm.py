"""Warm templates over fakes and a virtual clock: made once, never another project's, and nothing left when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from roost.control.checkpoints import Checkpoint
from roost.control.warm import AGAIN_SECONDS, LATER_SECONDS
from roost.control.warmth import SETTLE_SECONDS, Cold
from roost.errors import CommandFailed, Conflict, Unavailable
from roost.model.machine import MachineStatus
from roost.model.meta import GiB, MiB
from roost.model.network import PortSpec
from roost.storage.layers import Base
from roost.testing.hypervisor import FakeAgent
from tests.control_plane import MANIFEST, WEB
from tests.warm_host import TINY, Host, running


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async for made in running(tmp_path):
        yield made


async def test_the_first_to_ask_has_the_template_made_and_is_woken(host: Host) -> None:
    assert await host.look() == "making"
    assert host.warm.busy
    await host.passes(1)
    assert host.woken == ["default/web"]
    assert isinstance(await host.look(), Checkpoint)
    assert not host.warm.busy


async def test_a_second_launch_meanwhile_waits_for_the_same(host: Host) -> None:
    assert [await host.look("a"), await host.look("b")] == ["making", "making"]
    await host.passes(1)
    assert sorted(host.woken) == ["default/a", "default/b"]
    assert len(host.hypervisor.launches) == 1


async def test_the_hidden_machine_is_gone_with_all_it_had(host: Host) -> None:
    await host.template()
    assert host.left() == []


async def test_the_hidden_machine_is_nobody(host: Host) -> None:
    await host.template()
    (launch,) = host.hypervisor.launches
    assert launch.uid != "uid-default-web"
    assert (launch.hostname, launch.publish, launch.spare, launch.saved) == ("template", (), "", None)
    assert launch.disks[0].file == host.paths.spare(launch.uid).disk
    assert host.hypervisor.guests[launch.uid].answering.setups == []


async def test_it_is_sealed_before_it_is_kept(host: Host) -> None:
    await host.template()
    (guest,) = host.hypervisor.guests.values()
    assert (guest.answering.done, guest.checkpoints) == (["seal"], 1)


async def test_it_is_given_time_to_settle_but_not_for_ever(host: Host) -> None:
    host.busy = 0.2
    await host.look()
    await host.passes(SETTLE_SECONDS - 0.5)
    assert host.woken == []
    await host.passes(0.5)
    assert host.woken == ["default/web"]


async def test_the_template_stands_on_the_layer_that_its_disk_became(host: Host) -> None:
    found = await host.template()
    assert (found.base, found.virtual_size) == (Base(layer="layer-1"), GiB)
    assert found.traits.image == MANIFEST.digest


async def test_an_image_without_a_disk_has_a_template_without_one(host: Host) -> None:
    assert (await host.template(manifest=TINY)).base is None


async def test_the_variables_of_the_firmware_belong_to_the_template(host: Host) -> None:
    await host.look()
    await host.passes(0)
    (launch,) = host.hypervisor.launches
    launch.files.variables.write_bytes(b"boot order")
    assert (await host.template()).variables == b"boot order"


async def test_a_machine_can_start_while_its_template_is_still_being_written(host: Host) -> None:
    host.register.may_keep.clear()
    found = await host.template()
    assert host.register.written == {}
    host.register.may_keep.set()
    await host.passes(0)
    assert list(host.register.written) == [found.id]


async def test_a_cold_start_that_was_asked_for_is_no_news(host: Host) -> None:
    assert await host.look(cold=True) == Cold("a cold start was asked for", expected=True)


async def test_a_machine_that_boots_for_another_reason_says_so(host: Host) -> None:
    manifest = msgspec.structs.replace(MANIFEST, agent="ssh")
    found = await host.look(manifest=manifest)
    assert isinstance(found, Cold)
    assert not found.expected


async def test_another_image_has_another_template(host: Host) -> None:
    await host.template()
    assert await host.look(manifest=msgspec.structs.replace(MANIFEST, digest="sha256:cc")) == "making"


@pytest.mark.parametrize("changes", [{"cpus": 2}, {"memory": GiB}])
async def test_another_shape_boots_and_gets_a_template_of_its_own(host: Host, changes: dict[str, object]) -> None:
    await host.template()
    found = await host.look(**changes)
    assert isinstance(found, Cold)
    assert found.expected
    await host.passes(LATER_SECONDS)
    await host.passes(SETTLE_SECONDS)
    assert isinstance(await host.look(**changes), Checkpoint)


@pytest.mark.parametrize("network", ["none", "user"])
async def test_machines_with_ports_and_others_have_templates_beside_each_other(host: Host, network: str) -> None:
    found = await host.template()
    ports = {"network": network, "ports": (PortSpec(network="lan"),)}
    other = await host.template(**ports)
    assert await host.look() == found != other == await host.look(**ports)


async def test_a_template_that_waits_its_turn_is_not_made_after_the_end(host: Host) -> None:
    await host.template()
    await host.look(cpus=2)
    await host.warm.close()
    await host.passes(LATER_SECONDS)
    assert not host.warm.busy


async def test_a_machine_that_was_born_boots(host: Host) -> None:
    await host.template()
    born = msgspec.structs.replace(WEB, status=MachineStatus(born=True))
    found = await host.warm.look(born, "k", host.launch(born), MANIFEST)
    assert isinstance(found, Cold)
    assert found.expected


# ---------------------------------------------------------------------- isolation


@pytest.mark.fault(47)
async def test_the_template_of_another_project_is_never_used(host: Host) -> None:
    theirs = await host.template(project="theirs")
    assert await host.look(project="ours") == "making"
    ours = await host.template(project="ours")
    assert (ours.id != theirs.id, ours.project, theirs.project) == (True, "ours", "theirs")


@pytest.mark.fault(47)
async def test_the_template_of_another_project_is_not_used_after_a_restart_either(host: Host) -> None:
    await host.template(project="theirs")
    host.restart()
    await host.warm.begin()
    assert await host.look(project="ours") == "making"
    assert isinstance(await host.look(project="theirs"), Checkpoint)


@pytest.mark.fault(47)
async def test_spares_wait_for_one_template_alone(host: Host) -> None:
    theirs, ours = await host.template(project="theirs"), await host.template(project="ours")
    await host.use(theirs)
    await host.passes(1)
    await host.use(ours)
    assert host.hypervisor.spares == {theirs.id: 1, ours.id: 2}


@pytest.mark.fault(47)
async def test_a_project_of_the_same_name_does_not_find_the_templates_of_one_that_is_gone(host: Host) -> None:
    await host.template(project="theirs")
    await host.warm.forget_project("theirs")
    assert await host.look(project="theirs") == "making"


@pytest.mark.fault(46)
async def test_a_template_that_does_not_match_its_seal_is_made_anew(host: Host) -> None:
    before = await host.template()
    host.register.tampered.add(before.id)
    assert await host.look() == "making"
    assert host.register.written == {}
    assert (await host.template()).id != before.id


@pytest.mark.fault(40)
async def test_after_a_change_of_the_emulator_the_template_is_made_anew(host: Host) -> None:
    before = await host.template()
    host.hypervisor.build = "10.0"
    assert await host.look() == "making"
    after = await host.template()
    assert list(host.register.written) == [after.id] != [before.id]


async def test_a_template_whose_layer_is_gone_is_made_anew(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = await host.template()

    def below(base: Base) -> tuple[Path, ...]:
        raise Unavailable("the disk can not be opened", "layer-1 is missing")

    monkeypatch.setattr(host.layers, "below", below)
    assert await host.look() == "making"
    assert before.id not in host.register.written


# ---------------------------------------------------------------------- failures


async def test_a_template_that_can_not_be_saved_lets_the_machine_boot_and_says_why(host: Host) -> None:
    host.hypervisor.refuse_checkpoint = Conflict("the guest can not be saved", "a share is mounted")
    await host.look()
    await host.passes(1)
    assert host.woken == ["default/web"]
    assert await host.look() == Cold(
        "its template can not be used: the guest can not be saved: a share is mounted", expected=False
    )
    assert host.left() == []


async def test_what_failed_is_tried_again_after_some_minutes_only(host: Host) -> None:
    host.hypervisor.refuse = Unavailable("no")
    await host.look()
    await host.passes(AGAIN_SECONDS - 1)
    assert isinstance(await host.look(), Cold)
    host.hypervisor.refuse = None
    await host.passes(2)
    assert isinstance(await host.template(), Checkpoint)


async def test_a_template_that_no_machine_can_go_on_from_is_forgotten(host: Host) -> None:
    found = await host.template()
    told = await host.warm.failed(found, Unavailable("the machine did not start", "its devices do not load"))
    assert told == Cold("its template can not be used: the machine did not start: its devices do not load")
    assert (await host.look(), host.register.written) == (told, {})


async def test_without_memory_for_the_template_the_machine_is_told(host: Host) -> None:
    host.memory = 128 * MiB
    await host.look()
    await host.passes(0)
    found = await host.look()
    assert isinstance(found, Cold)
    assert "memory" in found.reason
    assert host.left() == []


async def test_what_failed_with_an_image_that_went_is_tried_again_with_the_next(host: Host) -> None:
    host.memory = 128 * MiB
    await host.look()
    await host.passes(0)
    host.memory = 64 * GiB
    failed = await host.look()
    await host.warm.forget_image(MANIFEST.digest)
    assert isinstance(failed, Cold)
    assert await host.look() == "making"


async def test_a_template_that_panics_is_not_waited_for(host: Host) -> None:
    host.hypervisor.silent = True
    await host.look()
    await host.passes(1)
    (guest,) = host.hypervisor.guests.values()
    guest.become("panicked")
    await host.passes(0)
    found = await host.look()
    assert isinstance(found, Cold)
    assert "panicked" in found.reason
    assert host.left() == []


async def test_a_template_whose_process_ends_is_not_waited_for(host: Host) -> None:
    host.hypervisor.silent = True
    await host.look()
    await host.passes(1)
    (guest,) = host.hypervisor.guests.values()
    guest.end("out of memory", clean=False)
    await host.passes(0)
    found = await host.look()
    assert isinstance(found, Cold)
    assert "out of memory" in found.reason


class Stubborn(FakeAgent):
    """Does not seal."""

    async def seal(self) -> None:
        raise CommandFailed("the guest was not sealed", "no space left on device")


class Foreign(FakeAgent):
    """Is not ours."""

    kind: Literal["roost", "qemu-ga", "ssh"] = "ssh"


class Broken(FakeAgent):
    """Fails as nobody foresaw."""

    async def seal(self) -> None:
        raise KeyError("surprise")


@pytest.mark.parametrize("agent", [Stubborn, Foreign, Broken])
async def test_what_can_not_be_sealed_is_never_used(host: Host, agent: type[FakeAgent]) -> None:
    host.hypervisor.agent = agent
    await host.look()
    await host.passes(1)
    assert isinstance(await host.look(), Cold)
    assert (host.left(), host.register.held) == ([], {})


async def test_a_full_disk_leaves_no_template_and_no_descriptor(host: Host) -> None:
    host.register.full = Unavailable("the checkpoint was not written", "the disk is full")
    await host.look()
    await host.passes(1)
    found = await host.look()
    assert isinstance(found, Cold)
    assert "the disk is full" in found.reason
    assert (host.register.held, host.hypervisor.open_devices()) == ({}, [])


async def test_a_disk_that_can_not_become_a_layer_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def settle(*_: object, covered: bool) -> Base:
        raise Unavailable("the layer was not made", "the disk is full")

    monkeypatch.setattr(host.layers, "settle", settle)
    await host.look()
    await host.passes(1)
    assert isinstance(await host.look(), Cold)
    assert (host.left(), host.hypervisor.open_devices(), host.warm.roots()) == ([], [], [])


@pytest.mark.parametrize("seconds", [0.0, 0.3, 0.5])
async def test_a_daemon_that_ends_takes_the_hidden_machine_with_it(host: Host, seconds: float) -> None:
    await host.look()
    await host.passes(seconds)
    await host.warm.close()
    assert host.left() == []


async def test_the_layer_is_a_root_until_the_template_names_it(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()
    settle = host.layers.settle
    manifest = host.paths.layer("layer-1").manifest

    async def slowly(*args: object, covered: bool) -> Base:
        manifest.parent.mkdir(parents=True)
        manifest.write_bytes(b"{}")
        await held.wait()
        return await settle(*args, covered=covered)

    monkeypatch.setattr(host.layers, "settle", slowly)
    await host.look()
    await host.passes(1)
    assert host.warm.roots() == [Base(layer="layer-1")]
    held.set()
    await host.passes(1)
    assert host.warm.roots() == []
    assert [kept.base for kept in host.register.held.values()] == [Base(layer="layer-1")]
