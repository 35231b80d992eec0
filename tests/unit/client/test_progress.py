"""When a machine is where it was wanted: over statuses as they come."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from roost.client.progress import Until, as_wished, paused, progress, restored, running, stopped
from roost.errors import Conflict, NotFound, NotStarted, RoostError
from roost.model.machine import Machine, MachineSpec, MachineStatus, Process, Restore
from roost.model.meta import Meta, Trouble

PROCESS = Process(pid=1, start=1, uid=1, boot="b")


def machine(phase: Any, *, power: Any = "running", generation: int = 1, revision: int = 1, **status: Any) -> Machine:
    return Machine(
        name="web",
        meta=Meta(uid="u", generation=1, revision=revision),
        spec=MachineSpec(image="tiny", power=power),
        status=MachineStatus(phase=phase, generation=generation, **status),
    )


def test_running_means_that_a_command_can_run_inside() -> None:
    assert not running.holds(machine("running", agent="none"))
    assert running.holds(machine("running", agent="roost"))


def test_a_status_of_an_older_wish_says_nothing() -> None:
    assert not running.holds(machine("running", agent="roost", generation=0))
    assert not running.holds(machine("crashed", generation=0, error=Trouble(what="an earlier end")))


def test_a_failure_raises_the_error_that_was_kept() -> None:
    trouble = Trouble(what="no room", why="the disk is full", fix="make room", code="conflict")
    with pytest.raises(Conflict, match="no room") as caught:
        running.holds(machine("failed", power="stopped", error=trouble))
    assert caught.value.fix == "make room"


def test_what_waits_for_something_that_failed_is_waited_for_no_longer() -> None:
    trouble = Trouble(what="web did not start", why="its network failed", code="unavailable")
    with pytest.raises(RoostError, match="its network failed"):
        running.holds(machine("pending", error=trouble))
    assert not running.holds(machine("pending", error=trouble, generation=0))
    assert not running.holds(machine("pending"))


@pytest.mark.parametrize("power", ["running", "paused", "stopped"])
def test_a_copy_is_as_wished_when_it_is_on_or_off_as_its_spec_says(power: Any) -> None:
    assert as_wished.holds(machine(power, power=power, agent="roost"))
    assert not as_wished.holds(machine("preparing", power=power, agent="roost"))
    assert not as_wished.holds(machine(power, power=power, agent="roost", generation=0))


@pytest.mark.parametrize("phase", ["failed", "crashed"])
def test_a_copy_that_could_not_be_made_raises_why(phase: Any) -> None:
    with pytest.raises(Conflict):
        as_wished.holds(machine(phase, power="stopped", error=Trouble(what="no room", code="conflict")))


def restoring(phase: Any, restored: int, **more: Any) -> Machine:
    found = machine(phase, restored=restored, agent="roost", **more)
    return replace(found, spec=replace(found.spec, restore=Restore(snapshot="web.a", serial=2)))


def test_a_restore_is_done_when_its_serial_is() -> None:
    assert not restored.holds(restoring("running", 1))
    assert not restored.holds(restoring("running", 2, generation=0))
    assert restored.holds(restoring("running", 2))
    assert restored.holds(restoring("stopped", 2, power="stopped"))


def test_an_earlier_failure_says_nothing_about_a_restore() -> None:
    assert not restored.holds(restoring("failed", 1, power="stopped", generation=0, error=Trouble(what="earlier")))


def test_a_restore_that_was_refused_raises_why_though_the_machine_runs() -> None:
    with pytest.raises(Conflict, match="not restored"):
        restored.holds(restoring("running", 2, error=Trouble(what="web was not restored", code="conflict")))


def test_each_of_several_has_its_own_outcome() -> None:
    trouble = Trouble(what="no room", code="conflict")
    until = Until(running, {"u": machine("pending"), "v": machine("failed", error=trouble)}, each=True)
    assert (list(until.failures), until.done()) == (["v"], False)
    until.gone("default", "web")
    assert (list(until.failures), until.done()) == (["v", "u"], True)


def test_a_machine_that_was_stopped_meanwhile_does_not_run() -> None:
    with pytest.raises(NotStarted):
        running.holds(machine("stopped", power="stopped"))


def test_stopped_means_that_no_process_is_left() -> None:
    assert not stopped.holds(machine("stopping", process=PROCESS))
    assert stopped.holds(machine("stopped", power="stopped"))
    assert stopped.holds(machine("crashed", power="stopped"))


def test_a_machine_that_failed_is_never_paused() -> None:
    with pytest.raises(RoostError):
        paused.holds(machine("crashed", power="stopped"))


def test_waiting_ends_with_the_sign() -> None:
    until = Until(running, {"u": machine("starting")})
    until.see(machine("running", agent="roost", revision=2))
    assert until.done()


def test_an_older_state_that_comes_late_is_not_believed() -> None:
    until = Until(running, {"u": machine("starting", revision=5)})
    until.see(machine("running", agent="roost", revision=4))
    assert not until.done()


def test_a_machine_that_was_deleted_is_not_waited_for() -> None:
    until = Until(running, {"u": machine("starting")})
    with pytest.raises(NotFound):
        until.gone("default", "web")


def test_a_machine_that_is_missing_from_the_present_ones_is_gone() -> None:
    with pytest.raises(NotFound):
        Until(running, {"u": machine("starting")}).all_seen()


def test_a_deleted_machine_is_as_stopped_as_can_be() -> None:
    until = Until(stopped, {"u": machine("stopping", process=PROCESS)})
    until.gone("default", "web")
    assert until.done()


def test_progress_says_what_is_done() -> None:
    assert progress(machine("preparing", progress="fetching debian:12")).text == "fetching debian:12"
    assert progress(machine("running", agent="none")).text == "booting"
    assert progress(machine("running", agent="roost")).text == "running"
