"""The machine reconciler over a memory store, a fake hypervisor and a virtual clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from roost.control.records import Records
from roost.errors import Conflict, NotFound
from roost.model import codec
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.machine import Machine, MachineSpec
from roost.model.meta import Meta, MiB, Trouble
from tests.control_plane import READY, WEB, Bench, spec


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        made = Bench(tmp_path)
        stack.push_async_callback(made.end)
        await made.image(READY)
        yield made


@pytest.fixture
async def running(bench: Bench) -> Bench:
    await bench.put(WEB)
    return bench


async def test_a_new_machine_comes_up_and_answers(running: Bench) -> None:
    web = await running.get()
    assert (web.status.phase, web.status.agent, web.status.configured) == ("running", "roost", True)


async def test_the_first_boot_setup_names_the_machine(running: Bench) -> None:
    setups = running.hypervisor.guests[WEB.meta.uid].answering.setups
    assert [setup.hostname for setup in setups] == ["web"]


async def test_a_machine_waits_for_its_image(bench: Bench) -> None:
    await bench.image(ImageStatus(phase="building", progress="downloading"))
    web = await bench.put(WEB)
    assert (web.status.phase, web.status.progress) == ("preparing", "downloading")
    await bench.image(READY)
    assert (await bench.get()).status.phase == "running"


async def test_a_template_is_requested_at_need(bench: Bench) -> None:
    await bench.put(msgspec.structs.replace(WEB, spec=MachineSpec(image="tiny")))
    image = await Records(bench.store).image("images/default/tiny")
    assert image.spec.template == "tiny"


async def test_the_template_of_another_processor_is_another_image(bench: Bench) -> None:
    here = Image(name="tiny", meta=Meta(uid="t"), spec=ImageSpec(template="tiny", arch="x86_64"), status=READY)
    await bench.store.put("images/default/tiny", codec.encode(here))
    await bench.put(msgspec.structs.replace(WEB, spec=MachineSpec(image="tiny", arch="aarch64")))
    image = await Records(bench.store).image("images/default/tiny-aarch64")
    assert image.spec.arch == "aarch64"


async def test_an_unknown_image_fails_with_the_way_out(bench: Bench) -> None:
    web = await bench.put(msgspec.structs.replace(WEB, spec=MachineSpec(image="nonsense")))
    assert web.status.phase == "failed"
    assert web.status.error is not None
    assert "nonsense" in web.status.error.why
    assert "roost" in web.status.error.fix


async def test_a_failed_image_fails_the_machine(bench: Bench) -> None:
    await bench.image(ImageStatus(phase="building"))
    await bench.put(WEB)
    await bench.image(ImageStatus(phase="failed", error=Trouble(what="image failed", why="the checksum is wrong")))
    web = await bench.get()
    assert web.status.phase == "failed"
    assert web.status.error is not None
    assert web.status.error.why == "the checksum is wrong"


async def test_too_little_memory_is_refused_before_anything_starts(bench: Bench) -> None:
    bench.memory_free = 100 * MiB
    web = await bench.put(WEB)
    assert web.status.phase == "failed"
    assert bench.hypervisor.launches == []


async def test_a_refused_start_is_told_and_can_be_tried_again(bench: Bench) -> None:
    bench.hypervisor.refuse = Conflict("port 8080 is taken", "another program listens there", "publish another port")
    web = await bench.put(WEB)
    assert (web.status.phase, web.spec.power) == ("failed", "stopped")
    bench.hypervisor.refuse = None
    assert (await bench.wish(spec(power="running"))).status.phase == "running"


async def test_stop_and_start(running: Bench) -> None:
    assert (await running.wish(spec(power="stopped"))).status.phase == "stopped"
    assert (await running.wish(spec(power="running"))).status.phase == "running"
    assert len(running.layers.disks) == 1


async def test_a_deaf_guest_is_forced_when_its_grace_is_over(running: Bench) -> None:
    running.hypervisor.guests[WEB.meta.uid].hears_power = False
    assert (await running.wish(spec(power="stopped"))).status.phase == "stopping"
    await running.clock.advance(31)
    await running.settle()
    assert (await running.get()).status.phase == "stopped"


async def test_a_guest_that_missed_its_button_is_asked_again_by_its_agent_too(running: Bench) -> None:
    guest = running.hypervisor.guests[WEB.meta.uid]
    guest.hears_power = False
    await running.wish(spec(power="stopped"))
    await running.clock.advance(2.1)
    await running.settle()
    assert (guest.presses, guest.answering.powers) == (2, ["off"])


async def test_a_forced_stop_cuts_a_grace_short(running: Bench) -> None:
    running.hypervisor.guests[WEB.meta.uid].hears_power = False
    await running.wish(spec(power="stopped"))
    assert (await running.wish(spec(stop_grace=0.0))).status.phase == "stopped"


async def test_a_start_during_a_stop_is_not_lost(running: Bench) -> None:
    guest = running.hypervisor.guests[WEB.meta.uid]
    guest.hears_power = False
    await running.wish(spec(power="stopped"))
    await running.wish(spec(power="running"))
    guest.end("the guest shut down", clean=True)
    await running.settle()
    assert (await running.get()).status.phase == "running"
    assert len(running.hypervisor.launches) == 2


async def test_pause_and_resume(running: Bench) -> None:
    assert (await running.wish(spec(power="paused"))).status.phase == "paused"
    assert (await running.wish(spec(power="running"))).status.phase == "running"


async def test_a_restart_is_a_new_process(running: Bench) -> None:
    before = (await running.get()).status.pid
    after = (await running.wish(spec(restarts=1))).status
    assert (after.phase, after.restarts) == ("running", 1)
    assert after.pid != before


async def test_a_guest_that_shuts_down_stays_down(running: Bench) -> None:
    running.hypervisor.guests[WEB.meta.uid].end("the guest shut down", clean=True)
    await running.settle()
    web = await running.get()
    assert (web.status.phase, web.spec.power, web.status.exit) == ("stopped", "stopped", "the guest shut down")


async def test_a_panic_is_seen_and_reported(running: Bench) -> None:
    running.hypervisor.guests[WEB.meta.uid].become("panicked")
    await running.settle()
    web = await running.get()
    assert web.status.phase == "crashed"
    assert "panicked" in web.status.exit


async def test_a_killed_process_is_a_crash(running: Bench) -> None:
    running.hypervisor.guests[WEB.meta.uid].end("killed by signal 9", clean=False)
    await running.settle()
    web = await running.get()
    assert web.status.phase == "crashed"
    assert web.status.error is not None


async def test_an_ephemeral_machine_goes_when_it_stops(bench: Bench) -> None:
    await bench.put(msgspec.structs.replace(WEB, spec=msgspec.structs.replace(WEB.spec, ephemeral=True)))
    bench.hypervisor.guests[WEB.meta.uid].end("the guest shut down", clean=True)
    await bench.settle()
    with pytest.raises(NotFound):
        await bench.get()


async def test_a_deleted_machine_leaves_nothing(running: Bench) -> None:
    await Records(running.store).delete("machines/default/web")
    await running.settle()
    assert not running.paths.machine(WEB.meta.uid).keep.exists()
    assert await running.hypervisor.guests[WEB.meta.uid].state() == "gone"
    with pytest.raises(NotFound):
        await running.get()


@pytest.mark.fault(32)
async def test_a_new_control_plane_takes_back_what_runs(running: Bench) -> None:
    await running.end()
    running.begin()
    await running.settle()
    assert len(running.hypervisor.launches) == 1
    assert await (await running.custody.guest(await running.get())).state() == "running"


async def test_what_ended_unseen_is_reported(running: Bench) -> None:
    await running.end()
    await Records(running.store).update("machines/default/web", _with_boot("this-boot"))
    running.hypervisor.guests.clear()
    running.begin()
    await running.settle()
    assert (await running.get()).status.phase == "crashed"


async def test_machines_come_back_after_a_reboot_of_the_host(running: Bench) -> None:
    await running.end()
    await Records(running.store).update("machines/default/web", _with_boot("an-earlier-boot"))
    running.hypervisor.guests.clear()
    running.begin()
    await running.settle()
    assert (await running.get()).status.phase == "running"
    assert len(running.hypervisor.launches) == 2


def _with_boot(boot: str) -> Callable[[Machine], Machine]:
    def change(machine: Machine) -> Machine:
        assert machine.status.process is not None
        process = msgspec.structs.replace(machine.status.process, boot=boot)
        return msgspec.structs.replace(machine, status=msgspec.structs.replace(machine.status, process=process))

    return change


async def test_a_firmware_that_the_image_lacks_is_refused(bench: Bench) -> None:
    web = await bench.put(msgspec.structs.replace(WEB, spec=msgspec.structs.replace(WEB.spec, firmware="uefi")))
    assert web.status.error is not None
    assert "uefi" in web.status.error.why


async def test_kvm_that_does_not_work_is_refused_when_asked_for(bench: Bench) -> None:
    web = await bench.put(msgspec.structs.replace(WEB, spec=msgspec.structs.replace(WEB.spec, accelerator="kvm")))
    assert web.status.error is not None
    assert "no KVM here" in web.status.error.why


async def test_emulation_is_said_once(running: Bench) -> None:
    assert (await running.get()).status.warnings == ("emulated, so slow: no KVM here",)
