"""Machines that go on from another machine, a snapshot or a template, over a fake hypervisor and a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from roost.control.origins import MOMENT_SECONDS
from roost.control.records import Records
from roost.control.warmth import Cold
from roost.errors import CommandFailed, Conflict, Unavailable
from roost.hypervisor.base import Launch, Setup
from roost.model import codec
from roost.model.machine import Machine, MachineSpec, Restore, Source
from roost.model.meta import GiB, Meta, MiB
from roost.model.snapshot import Snapshot, SnapshotSpec, SnapshotStatus
from roost.testing.hypervisor import FakeAgent, FakeGuest
from tests.control_plane import READY, WEB, Bench, spec


def copy(name: str, **source: object) -> Machine:
    """A copy of `web`, as the clone verb makes it."""
    wish = Source(**{"machine": "web", "moment": "m", **source})  # type: ignore[arg-type]
    meta = Meta(uid=name * 4)
    return Machine(name=name, meta=meta, spec=MachineSpec(image="disk", memory=256 * MiB, source=wish))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        made = Bench(tmp_path)
        stack.push_async_callback(made.end)
        await made.image(READY)
        await made.put(WEB)
        yield made


def guest(bench: Bench, machine: Machine = WEB) -> FakeGuest:
    return bench.hypervisor.guests[machine.meta.uid]


async def test_a_copy_of_a_running_machine_goes_on_from_its_memory(bench: Bench) -> None:
    kid = await bench.put(copy("kid"))
    launch = bench.hypervisor.launches[-1]
    assert (kid.status.phase, kid.status.timing.path, kid.status.origin) == ("running", "clone", "machine web")
    assert launch.saved is not None
    assert launch.disks[0].below == (Path("layer-1"),)


async def test_a_copy_becomes_another_machine_before_it_is_plugged_in(bench: Bench) -> None:
    kid = await bench.put(copy("kid"))
    setup = guest(bench, kid).answering.setups[-1]
    assert (setup.hostname, len(setup.entropy), len(setup.host_keys)) == ("kid", 64, 2)
    assert guest(bench, kid).link_up


async def test_a_copy_whose_agent_does_not_answer_ends_and_is_never_plugged_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.control.custody.TWIN_SECONDS", 0.01)
    bench.hypervisor.silent = True
    await bench.put(copy("kid"))
    silent = guest(bench, await bench.get("kid"))
    await asyncio.wait_for(silent.wait(), 5)
    await bench.settle()
    kid = await bench.get("kid")
    assert (kid.status.phase, kid.status.born, silent.link_up, await silent.state()) == ("failed", False, False, "gone")
    assert kid.status.error is not None
    assert "does not answer" in kid.status.error.why
    assert not bench.paths.machine(kid.meta.uid).keep.exists()
    assert await guest(bench).state() == "running"


async def test_a_copy_that_could_not_be_set_up_is_never_plugged_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(agent: FakeAgent, setup: Setup) -> None:
        raise CommandFailed("the guest was not set up", "it has no random numbers to spare")

    monkeypatch.setattr(FakeAgent, "setup", refuse)
    kid = await bench.put(copy("kid"))
    assert kid.status.phase == "failed"
    assert not guest(bench, kid).link_up
    assert kid.status.error is not None
    assert "random numbers" in kid.status.error.why


async def test_an_agent_that_falls_silent_does_not_hold_up_a_deletion_for_ever(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.control.starting.SETUP_SECONDS", 0.01)
    answered: list[str] = []

    async def once(guest: FakeGuest) -> FakeAgent:
        if guest.launch.uid in answered:
            await asyncio.Event().wait()
        answered.append(guest.launch.uid)
        return guest.answering

    monkeypatch.setattr(FakeGuest, "agent", once)
    kid = await bench.put(copy("kid"))
    assert kid.status.phase == "failed"


async def test_a_copy_of_a_machine_that_comes_up_waits_for_it(bench: Bench) -> None:
    bench.hypervisor.silent = True
    await bench.put(copy("kid-1"))
    await bench.put(copy("kid-2", machine="kid-1", moment="n"))
    waiting = await bench.get("kid-2")
    guest(bench, await bench.get("kid-1")).speak()
    bench.hypervisor.silent = False
    await bench.settle()
    await bench.clock.advance(1)
    await bench.settle()
    after = await bench.get("kid-2")
    assert (waiting.status.phase, after.status.phase, after.status.origin) == ("pending", "running", "machine kid-1")


async def test_a_copy_asked_of_a_daemon_that_ended_is_made_by_the_next(bench: Bench) -> None:
    await bench.end()
    await bench.store.put("machines/default/a-kid", codec.encode(copy("a-kid")), expect=0)
    bench.begin()
    await bench.settle()
    assert (await bench.get("a-kid")).status.phase == "running"


async def test_an_instant_outlives_the_name_of_what_it_is_of(bench: Bench) -> None:
    await bench.put(copy("kid-1"))
    web = await bench.get()
    await Records(bench.store).remove("machines/default/web", web.meta.revision)
    kid = await bench.put(copy("kid-2"))
    assert (kid.status.phase, guest(bench).checkpoints) == ("running", 1)


async def test_an_exact_copy_stays_what_it_was_and_unplugged(bench: Bench) -> None:
    kid = await bench.put(copy("kid", keep_identity=True))
    assert bench.hypervisor.launches[-1].network == "unplugged"
    assert guest(bench, kid).answering.setups == []
    assert not guest(bench, kid).link_up


async def test_copies_of_one_moment_stop_their_source_once(bench: Bench) -> None:
    kids = [copy(name) for name in ("kid-1", "kid-2", "kid-3")]
    await asyncio.gather(*(bench.put(kid) for kid in kids))
    await bench.settle()
    assert guest(bench).checkpoints == 1
    assert [(await bench.get(kid.name)).status.phase for kid in kids] == ["running"] * 3


async def test_another_moment_is_another_stop(bench: Bench) -> None:
    await bench.put(copy("kid-1"))
    await bench.put(copy("kid-2", moment="later"))
    assert guest(bench).checkpoints == 2


async def test_the_moment_is_let_go(bench: Bench) -> None:
    await bench.put(copy("kid"))
    assert list(bench.checkpoints.roots())
    await bench.clock.advance(MOMENT_SECONDS + 1)
    assert not list(bench.checkpoints.roots())


async def test_the_source_goes_on_over_a_new_disk(bench: Bench) -> None:
    await bench.put(copy("kid"))
    web = await bench.get()
    assert (web.status.phase, guest(bench).nodes) == ("running", ["node-1"])
    assert bench.layers.pending(bench.paths.machine(WEB.meta.uid)) is None


async def test_a_copy_that_can_not_be_made_leaves_nothing(bench: Bench) -> None:
    guest(bench).refuse_checkpoint = Conflict("it can not be saved", "a share is mounted", "unmount it")
    kid = await bench.put(copy("kid"))
    assert kid.status.phase == "failed"
    assert kid.status.error is not None
    assert "a share is mounted" in kid.status.error.why
    assert not bench.paths.machine(kid.meta.uid).keep.exists()
    assert bench.layers.pending(bench.paths.machine(WEB.meta.uid)) is None


async def test_a_copy_of_a_silent_machine_is_refused_unless_exact(bench: Bench) -> None:
    machine = await bench.get()
    bench.custody.of(machine).agent = "absent"
    silent = msgspec.structs.replace(machine, status=msgspec.structs.replace(machine.status, agent="absent"))
    await bench.store.put("machines/default/web", codec.encode(silent), expect=machine.meta.revision)
    kid = await bench.put(copy("kid"))
    exact = await bench.put(copy("twin", keep_identity=True, moment="n"))
    assert kid.status.error is not None
    assert "--keep-identity" in kid.status.error.fix
    assert exact.status.phase == "running"


async def test_a_copy_of_a_stopped_machine_boots_from_its_disk(bench: Bench) -> None:
    await bench.wish(spec(power="stopped"))
    kid = await bench.put(copy("kid"))
    launch = bench.hypervisor.launches[-1]
    assert (kid.status.phase, launch.saved, launch.disks[0].below) == ("running", None, (Path("layer-1"),))
    assert guest(bench, kid).answering.setups[-1].hostname == "kid"


async def test_a_copy_that_is_to_stay_stopped_has_its_disk(bench: Bench) -> None:
    await bench.wish(spec(power="stopped"))
    wish = copy("kid")
    kid = await bench.put(msgspec.structs.replace(wish, spec=msgspec.structs.replace(wish.spec, power="stopped")))
    assert (kid.status.phase, kid.status.born) == ("stopped", True)
    assert bench.paths.machine(kid.meta.uid).disk.exists()


async def test_a_copy_that_lost_its_power_is_told_again_who_it_is_before_it_is_plugged_in(bench: Bench) -> None:
    kid = await bench.put(copy("kid"))
    guest(bench, kid).end("killed", clean=False)
    await bench.settle()
    assert not (await bench.get("kid")).status.configured
    again = await bench.wish(spec(power="running"), "kid")
    assert guest(bench, kid).answering.setups[-1].hostname == "kid"
    assert (again.status.configured, guest(bench, kid).link_up) == (True, True)


async def test_a_copy_that_was_shut_down_knows_who_it_is(bench: Bench) -> None:
    kid = await bench.put(copy("kid"))
    guest(bench, kid).end("the guest shut down", clean=True)
    await bench.settle()
    await bench.wish(spec(power="running"), "kid")
    assert guest(bench, kid).answering.setups == []


async def test_a_copy_that_was_stopped_starts_from_its_own_disk(bench: Bench) -> None:
    await bench.put(copy("kid"))
    await bench.wish(spec(power="stopped"), "kid")
    await bench.wish(spec(power="running"), "kid")
    assert bench.hypervisor.launches[-1].saved is None
    assert guest(bench).checkpoints == 1


async def test_a_half_taken_instant_is_settled_by_the_next_daemon(bench: Bench) -> None:
    files = bench.paths.machine(WEB.meta.uid)
    cover = await bench.layers.prepare(files, "sha256:aa")
    guest(bench).nodes = [cover.node]
    await bench.end()
    bench.begin()
    await bench.settle()
    assert bench.layers.base_of(files, "").layer == "layer-1"


async def snapshot(bench: Bench, *, memory: bool, of: str = WEB.meta.uid) -> None:
    """A snapshot `web.ready`, as the reconciler of snapshots leaves it."""
    uid = "5" * 8
    checkpoint = await bench.taker.take(await bench.get(), memory=memory, uid=uid)
    bench.checkpoints.hold(checkpoint)
    status = SnapshotStatus(phase="ready", machine_uid=of, memory=memory)
    made = Snapshot(name="web.ready", meta=Meta(uid=uid), spec=SnapshotSpec(machine="web"), status=status)
    await bench.store.put("snapshots/default/web.ready", codec.encode(made))


async def test_a_restore_goes_back_to_memory_and_disk(bench: Bench) -> None:
    await snapshot(bench, memory=True)
    before = guest(bench)
    web = await bench.wish(spec(restore=Restore(snapshot="web.ready", serial=1)))
    assert await before.state() == "gone"
    assert bench.hypervisor.launches[-1].saved is not None
    assert (web.status.phase, web.status.restored, web.status.timing.path) == ("running", 1, "restore")


async def test_a_restore_keeps_who_the_machine_is_but_not_its_random_numbers(bench: Bench) -> None:
    await snapshot(bench, memory=True)
    await bench.wish(spec(restore=Restore(snapshot="web.ready", serial=1)))
    setup = guest(bench).answering.setups[-1]
    assert (setup.machine_id, setup.host_keys, len(setup.entropy)) == (WEB.meta.uid, (), 64)
    assert guest(bench).link_up


async def test_a_restore_without_memory_boots(bench: Bench) -> None:
    await snapshot(bench, memory=True)
    web = await bench.wish(spec(restore=Restore(snapshot="web.ready", serial=1, memory=False)))
    assert (web.status.phase, bench.hypervisor.launches[-1].saved) == ("running", None)


async def test_a_restore_of_what_is_not_there_leaves_the_machine_running(bench: Bench) -> None:
    web = await bench.wish(spec(restore=Restore(snapshot="web.lost", serial=1)))
    assert (web.status.phase, web.status.restored, await guest(bench).state()) == ("running", 1, "running")
    assert web.status.error is not None


async def test_a_machine_is_never_put_back_to_what_was_another(bench: Bench) -> None:
    await snapshot(bench, memory=True, of="another")
    web = await bench.wish(spec(restore=Restore(snapshot="web.ready", serial=1)))
    assert (web.status.phase, await guest(bench).state()) == ("running", "running")
    assert web.status.error is not None
    assert "is of another machine" in web.status.error.why


@pytest.mark.fault(40)
async def test_a_machine_is_not_given_up_for_a_memory_that_this_qemu_does_not_take(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshot(bench, memory=True)
    monkeypatch.setattr(bench.hypervisor, "shape", lambda launch: "another")
    web = await bench.wish(spec(restore=Restore(snapshot="web.ready", serial=1)))
    assert (web.status.phase, web.status.restored, await guest(bench).state()) == ("running", 1, "running")
    assert web.status.error is not None
    assert "saved by another QEMU" in web.status.error.why


@pytest.mark.fault(40)
async def test_memory_of_another_qemu_is_refused_before_anything_starts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await snapshot(bench, memory=True)
    started = len(bench.hypervisor.launches)
    monkeypatch.setattr(bench.hypervisor, "shape", lambda launch: "another")
    kid = await bench.put(copy("kid", machine=None, snapshot="web.ready"))
    assert len(bench.hypervisor.launches) == started
    assert kid.status.error is not None
    assert "--no-memory" in kid.status.error.fix


async def test_a_machine_of_another_project_is_no_source(bench: Bench) -> None:
    kid = msgspec.structs.replace(copy("kid"), project="other")
    await bench.store.put("machines/other/kid", codec.encode(kid), expect=0)
    await bench.settle()
    seen = codec.stored((await bench.store.get("machines/other/kid")).value or b"", Machine)
    assert seen.status.phase == "failed"
    assert guest(bench).checkpoints == 0


async def template(bench: Bench) -> None:
    """A template that `web` was, for machines of its shape."""
    checkpoint = await bench.taker.take(await bench.get(), memory=True)
    bench.checkpoints.hold(checkpoint)
    bench.templates.answer = checkpoint


NEXT = Machine(name="next", meta=Meta(uid="7" * 8), spec=MachineSpec(image="disk", memory=256 * MiB))


async def test_a_launch_goes_on_from_its_template(bench: Bench) -> None:
    await template(bench)
    fresh = await bench.put(NEXT)
    launch: Launch = bench.hypervisor.launches[-1]
    assert (fresh.status.timing.path, fresh.status.origin) == ("warm", "template disk")
    assert fresh.status.warnings == ("emulated, so slow: no KVM here",)
    assert launch.saved is not None
    assert launch.spare


async def test_a_larger_disk_grows_after_the_fork(bench: Bench) -> None:
    await template(bench)
    fresh = await bench.put(msgspec.structs.replace(NEXT, spec=msgspec.structs.replace(NEXT.spec, disk=4 * GiB)))
    assert guest(bench, fresh).size == 4 * GiB
    assert guest(bench, fresh).answering.setups[-1].grow_root


async def test_a_launch_waits_for_its_template(bench: Bench) -> None:
    await template(bench)
    ready, bench.templates.answer = bench.templates.answer, "making"
    waiting = await bench.put(NEXT)
    bench.templates.answer = ready
    bench.loop.wake("machines/default/next")
    await bench.settle()
    assert waiting.status.phase == "preparing"
    assert (await bench.get("next")).status.phase == "running"


async def test_a_launch_without_template_boots_and_says_why(bench: Bench) -> None:
    bench.templates.answer = Cold("its user data needs cloud-init")
    fresh = await bench.put(NEXT)
    assert (fresh.status.phase, fresh.status.timing.path) == ("running", "cold")
    assert any("cloud-init" in warning for warning in fresh.status.warnings)


async def test_a_cold_launch_asks_for_no_template(bench: Bench) -> None:
    bench.templates.asked.clear()
    await bench.put(msgspec.structs.replace(NEXT, spec=msgspec.structs.replace(NEXT.spec, cold=True)))
    assert bench.templates.asked == []


async def test_a_machine_whose_template_fails_boots(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await template(bench)
    start = bench.hypervisor.start

    async def refuse_saved(launch: Launch) -> object:
        if launch.saved is not None:
            raise Unavailable("QEMU did not start", "it refused the state", "roost doctor")
        return await start(launch)

    monkeypatch.setattr(bench.hypervisor, "start", refuse_saved)
    fresh = await bench.put(NEXT)
    launch = bench.hypervisor.launches[-1]
    assert (fresh.status.phase, fresh.status.timing.path) == ("running", "cold")
    assert launch.disks[0].below == (Path("sha256:aa"),)
    assert any("refused the state" in warning for warning in fresh.status.warnings)


async def test_a_fork_that_fails_can_be_tried_again(bench: Bench) -> None:
    await template(bench)
    bench.hypervisor.refuse = Unavailable("QEMU did not start", "no memory", "stop another machine")
    failed = await bench.put(NEXT)
    bench.hypervisor.refuse = None
    again = await bench.wish(spec(power="running"), "next")
    assert (failed.status.phase, again.status.phase) == ("failed", "running")


async def test_a_machine_whose_disk_found_no_space_goes_on_when_there_is_some(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.host.files.free_space", lambda path: MiB)
    guest(bench).become("io-error")
    await bench.settle()
    stuck = await bench.get()
    monkeypatch.setattr("roost.host.files.free_space", lambda path: GiB)
    await bench.clock.advance(3)
    await bench.settle()
    after = await bench.get()
    assert (stuck.status.phase, after.status.phase) == ("paused", "running")
    assert stuck.status.error is not None
    assert after.status.error is None


@pytest.mark.fault(13)
async def test_a_machine_whose_disk_gives_errors_stands_still_says_so_and_tries_again_now_and_then(
    bench: Bench,
) -> None:
    async def fail() -> Machine:
        guest(bench).trouble = "Input/output error"
        guest(bench).become("io-error")
        await bench.settle()
        return await bench.get()

    first, stuck = await fail(), await fail()
    await bench.clock.advance(3)
    await bench.settle()
    still = await bench.get()
    await bench.clock.advance(30)
    await bench.settle()
    after = await bench.get()
    assert [one.status.phase for one in (first, stuck, still, after)] == ["running", "paused", "paused", "running"]
    assert stuck.status.error is not None
    assert "Input/output error" in stuck.status.error.why
    assert after.status.error is None
