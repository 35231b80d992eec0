"""The reconciler of programs: started with their content, started again with growing delays, stopped with grace, found again, removed."""

from __future__ import annotations

import signal

import msgspec
import pytest

from roost.control.records import Records, marked
from roost.errors import NotFound, Unavailable
from roost.model.program import GrantSpec, PolicySpec, Program
from tests.program_plane import API, KEY, SPEC, Bench, spec

ALWAYS = msgspec.structs.replace(SPEC, restart="always")
ON_FAILURE = msgspec.structs.replace(SPEC, restart="on-failure")


@pytest.fixture
async def bench() -> Bench:
    return Bench()


async def test_a_program_waits_for_its_content_and_starts_when_it_comes(bench: Bench) -> None:
    waiting = await bench.put(content=False)
    assert (waiting.status.phase, waiting.status.progress) == ("pending", "waiting for its content")
    bench.keepers.contents[API.meta.uid] = b"\0asm"
    bench.loop.wake(KEY)
    await bench.settle()
    running = await bench.get()
    assert running.status.phase == "running"
    assert running.status.process == bench.keeper.process
    assert running.status.layers == ("seccomp",)


async def test_a_program_that_ends_rests_and_wishes_so(bench: Bench) -> None:
    await bench.put()
    after = await bench.ends(0)
    assert (after.status.phase, after.spec.power, after.status.process) == ("exited", "stopped", None)
    assert after.status.exit is not None
    assert after.status.exit.code == 0


async def test_a_program_that_fails_says_with_what(bench: Bench) -> None:
    await bench.put()
    after = await bench.ends(3)
    assert after.status.phase == "failed"
    assert after.status.exit is not None
    assert after.status.exit.code == 3


async def test_a_program_at_rest_starts_again_when_somebody_wants_it(bench: Bench) -> None:
    await bench.put()
    await bench.ends(3)
    after = await bench.wish(spec(power="running"))
    assert after.status.phase == "running"
    assert bench.keepers.starts == 2


async def test_on_failure_leaves_a_good_end_alone(bench: Bench) -> None:
    await bench.put(ON_FAILURE)
    assert (await bench.ends(0)).status.phase == "exited"


async def test_on_failure_starts_a_bad_end_again(bench: Bench) -> None:
    await bench.put(ON_FAILURE)
    assert (await bench.ends(1)).status.phase == "backing-off"
    await bench.clock.advance(1.01)
    await bench.settle()
    assert (await bench.get()).status.phase == "running"


async def test_the_delay_doubles_up_to_a_minute(bench: Bench) -> None:
    await bench.put(ALWAYS)
    waited = []
    for _ in range(9):
        await bench.ends(1)
        began, starts = bench.clock.now(), bench.keepers.starts
        while bench.keepers.starts == starts:
            await bench.clock.advance(0.5)
            await bench.settle()
        waited.append(bench.clock.now() - began)
    assert waited == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_good_run_ends_the_growth_of_the_delay(bench: Bench) -> None:
    await bench.put(ALWAYS)
    for _ in range(3):
        await bench.ends(1)
        await bench.clock.advance(61)
        await bench.settle()
    after = await bench.ends(1, seconds=60.0)
    assert after.status.failures == 1
    assert after.status.restarted == 4


async def test_a_restart_does_not_wait_for_the_delay(bench: Bench) -> None:
    await bench.put(ALWAYS)
    await bench.ends(1)
    after = await bench.wish(spec(restarts=1))
    assert after.status.phase == "running"
    assert after.status.restarts == 1


async def test_a_delay_ends_with_a_stop(bench: Bench) -> None:
    await bench.put(ALWAYS)
    await bench.ends(1)
    assert (await bench.wish(spec(power="stopped"))).status.phase == "stopped"
    await bench.clock.advance(120)
    await bench.settle()
    assert bench.keepers.starts == 1


async def test_stop_asks_first_and_kills_after_the_grace(bench: Bench) -> None:
    await bench.put()
    bench.keepers.deaf = True
    assert (await bench.wish(spec(power="stopped", stop_grace=5.0))).status.phase == "stopping"
    assert bench.keeper.signals == [signal.SIGTERM]
    await bench.clock.advance(5.1)
    await bench.settle()
    assert bench.keeper.signals == [signal.SIGTERM, signal.SIGKILL]
    assert (await bench.get()).status.phase == "stopped"


async def test_a_forced_stop_kills_at_once(bench: Bench) -> None:
    await bench.put()
    bench.keepers.deaf = True
    assert (await bench.wish(spec(power="stopped", stop_grace=0.0))).status.phase == "stopped"
    assert bench.keeper.signals[-1] == signal.SIGKILL


async def test_a_restart_stops_and_starts_once(bench: Bench) -> None:
    await bench.put()
    after = await bench.wish(spec(restarts=1))
    assert (after.status.phase, after.status.restarts, bench.keepers.starts) == ("running", 1, 2)
    assert after.status.restarted == 0


@pytest.mark.fault(94)
async def test_a_start_that_comes_while_it_stops_waits_for_the_end(bench: Bench) -> None:
    await bench.put()
    bench.keepers.deaf = True
    await bench.wish(spec(power="stopped", stop_grace=5.0))
    await bench.wish(spec(power="running"))
    await bench.clock.advance(5.1)
    await bench.settle()
    assert (await bench.get()).status.phase == "running"
    assert bench.keepers.starts == 2
    assert bench.keepers.doubles == 0


@pytest.mark.fault(32)
async def test_a_new_daemon_holds_what_runs(bench: Bench) -> None:
    await bench.put()
    process = bench.keeper.process
    await bench.restart()
    after = await bench.get()
    assert (after.status.phase, after.status.process, bench.keepers.starts) == ("running", process, 1)
    assert bench.keeper.signals == []
    assert bench.programs.running() == 1


async def test_a_new_daemon_learns_of_an_end_that_nobody_saw(bench: Bench) -> None:
    await bench.put()
    await bench.end()
    bench.keeper.end(7)
    bench.begin()
    await bench.settle()
    after = await bench.get()
    assert after.status.phase == "failed"
    assert after.status.exit is not None
    assert after.status.exit.code == 7


async def test_a_new_daemon_writes_down_a_start_that_the_old_one_did_not(bench: Bench) -> None:
    bench.keepers.contents[API.meta.uid] = b""
    await bench.keepers.start(API, "begun-before")
    after = await bench.put()
    assert (after.status.phase, after.status.run, bench.keepers.starts) == ("running", "begun-before", 1)


@pytest.mark.fault(94)
async def test_an_end_is_written_down_once(bench: Bench) -> None:
    await bench.put()
    await bench.ends(7)
    await bench.restart()
    assert (await bench.reasons()).count("Failed") == 1


async def test_a_keeper_that_was_killed_is_told_and_its_program_comes_again(bench: Bench) -> None:
    await bench.put(ALWAYS)
    bench.keeper.signal(signal.SIGKILL)
    await bench.settle()
    after = await bench.get()
    assert after.status.phase == "backing-off"
    assert after.status.exit is not None
    assert after.status.exit.reason == "lost"
    assert "keeper was killed" in after.status.exit.message
    await bench.clock.advance(1.1)
    await bench.settle()
    assert (await bench.get()).status.phase == "running"


async def test_after_a_restart_of_the_host_programs_come_up_at_once(bench: Bench) -> None:
    await bench.put(ALWAYS)
    await bench.end()
    bench.keepers.reboot()
    bench.begin()
    await bench.settle()
    after = await bench.get()
    assert (after.status.phase, bench.keepers.starts, after.status.restarted) == ("running", 2, 1)


async def test_after_a_restart_of_the_host_what_is_not_to_come_again_says_why_it_ended(bench: Bench) -> None:
    await bench.put()
    await bench.end()
    bench.keepers.reboot()
    bench.begin()
    await bench.settle()
    after = await bench.get()
    assert after.status.phase == "failed"
    assert after.status.exit is not None
    assert "the host was started anew" in after.status.exit.message


async def test_a_start_that_can_not_be_is_told_and_tried_again_when_that_is_wished(bench: Bench) -> None:
    bench.keepers.refusal = Unavailable("no", "the runtime is missing", "install it")
    after = await bench.put(ALWAYS)
    assert after.status.phase == "backing-off"
    assert after.status.error is not None
    assert "the runtime is missing" in after.status.error.why
    bench.keepers.refusal = None
    await bench.clock.advance(1.1)
    await bench.settle()
    assert (await bench.get()).status.phase == "running"


@pytest.mark.fault(48)
async def test_no_memory_on_the_host_keeps_a_program_from_starting(bench: Bench) -> None:
    bench.memory_free = 0
    after = await bench.put()
    assert after.status.phase == "failed"
    assert after.status.error is not None
    assert after.status.error.code == "unavailable"


async def test_the_memory_of_a_program_is_given_back(bench: Bench) -> None:
    before = bench.places.room()
    await bench.put()
    assert bench.places.room() < before
    await bench.ends(0)
    assert bench.places.room() == before


async def test_a_slow_start_is_looked_at_until_it_runs(bench: Bench) -> None:
    bench.keepers.slow = True
    assert (await bench.put()).status.phase == "starting"
    bench.keeper.run()
    await bench.clock.advance(2)
    await bench.settle()
    assert (await bench.get()).status.phase == "running"


async def test_delete_kills_and_removes_everything(bench: Bench) -> None:
    await bench.put(ALWAYS)
    bench.keepers.deaf = True
    await Records(bench.store).change(KEY, Program, marked)
    await bench.settle()
    with pytest.raises(NotFound):
        await bench.get()
    assert not bench.keeper.alive()
    assert not bench.keepers.has_files(API.meta.uid)


async def test_what_no_admin_wrote_is_lent_nothing_of_the_host(bench: Bench) -> None:
    policy = PolicySpec(fs=(GrantSpec(source="/etc"),))
    after = await bench.put(msgspec.structs.replace(SPEC, policy=policy))
    assert after.status.phase == "failed"
    assert bench.keepers.starts == 0
