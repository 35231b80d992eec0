"""What to do next for a program, and what becomes of it when a run ends: pure functions from its wish and what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from msgspec.structs import replace

from roost.model.machine import Process
from roost.model.meta import Trouble
from roost.model.program import Program, ProgramExit, ProgramStatus

Step = Literal[
    "await-content",
    "back-off",
    "start",
    "show-starting",
    "await-start",
    "show-running",
    "terminate",
    "await-end",
    "kill",
    "settle",
    "show-stopped",
    "remove-files",
    "remove-object",
]
"""Each step either changes the world or writes the status; after it the program is looked at again."""

FIRST_DELAY = 1.0
"""Seconds before the first start after a bad end."""

LONGEST_DELAY = 60.0
"""Seconds that the doubling delay grows to."""

GOOD_RUN = 60.0
"""Seconds of a run after which earlier bad ends are forgotten."""


WAITING = "waiting for its content"
"""What the status says until the file is uploaded."""


class Seen(NamedTuple):
    """A program as it is. `keeper`: whether a keeper lives, and how far its start is; `run` what that start is called.

    `unsettled`: a run has ended, and that is not written down yet. `asked`: a live one was told to end; `overdue`: its grace is over.
    `waiting`: it is not time for the next start. `content`: its file was uploaded; `files`: something of it is on disk.
    """

    keeper: Literal["none", "starting", "running"] = "none"
    run: str = ""
    unsettled: bool = False
    asked: bool = False
    overdue: bool = False
    waiting: bool = False
    content: bool = False
    files: bool = False


class Outcome(NamedTuple):
    """How a run ended. `seconds` it lasted; `rebooted`: the host itself went down. The rest is as in ProgramStatus."""

    run: str
    exit: ProgramExit
    seconds: float = 0.0
    rebooted: bool = False
    trouble: Trouble | None = None
    facts: Mapping[str, Any] = MappingProxyType({})


def next_step(program: Program, seen: Seen) -> Step | None:
    """The one thing to do now, or None when all is as it is wanted."""
    if seen.unsettled:
        return "settle"
    if seen.keeper != "none":
        return _living(program, seen)
    if program.meta.deleting is not None:
        return "remove-files" if seen.files else "remove-object"
    if program.spec.power == "stopped":
        return None if _shows_rest(program) else "show-stopped"
    if not seen.content:
        awaited = program.status.phase == "pending" and program.status.progress == WAITING
        return None if awaited and _current(program) else "await-content"
    return "back-off" if seen.waiting else "start"


def _living(program: Program, seen: Seen) -> Step | None:
    status = program.status
    if status.run != seen.run or status.process is None:
        return "show-starting"
    if program.meta.deleting is not None:
        return "kill"
    # A signal can not be taken back: a start that comes meanwhile waits for the end.
    if program.spec.power == "stopped" or is_restarting(program) or status.phase == "stopping":
        return "kill" if seen.overdue else "await-end" if seen.asked else "terminate"
    if seen.keeper == "starting":
        return "await-start"
    return None if status.phase == "running" and _current(program) else "show-running"


def _current(program: Program) -> bool:
    return program.status.generation == program.meta.generation


def _shows_rest(program: Program) -> bool:
    settled = program.status.phase in ("stopped", "exited", "failed")
    return settled and _current(program) and not is_restarting(program)


def is_restarting(program: Program) -> bool:
    """Whether somebody wants a restart that was not carried out yet."""
    return program.spec.restarts != program.status.restarts


def delay(failures: int) -> float:
    """Seconds before the next start after so many bad ends in a row."""
    return 0.0 if failures <= 0 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(failures - 1, 16))


def ended(program: Program, outcome: Outcome) -> Program:
    """The program after a run ended: at rest, about to be started again, or waiting for that.

    Whatever ends by itself and is not to be started again wishes to be stopped, as machines do: a later `start` is then a change.
    """
    status = without_process(program.status, outcome)
    if _was_asked(program):
        rests = program.spec.power == "stopped" or program.meta.deleting is not None
        kept = replace(status, phase="stopped" if rests else "pending", failures=0, error=None)
        return replace(program, status=kept)
    if _comes_again(program, outcome):
        failures = 0 if outcome.rebooted else 1 if outcome.seconds >= GOOD_RUN else program.status.failures + 1
        again = replace(status, phase="backing-off", failures=failures, restarted=program.status.restarted + 1)
        return replace(program, status=again)
    calm = outcome.exit.code == 0
    generation = program.meta.generation + 1
    return replace(
        program,
        spec=replace(program.spec, power="stopped"),
        meta=replace(program.meta, generation=generation),
        status=replace(status, phase="exited" if calm else "failed", generation=generation, failures=0),
    )


def without_process(status: ProgramStatus, outcome: Outcome) -> ProgramStatus:
    """The status with the end of a run written down."""
    return replace(
        status,
        process=None,
        run=outcome.run,
        ended=outcome.run,
        exit=outcome.exit,
        progress="",
        error=outcome.trouble if outcome.exit.code else None,
        **outcome.facts,
    )


def _was_asked(program: Program) -> bool:
    wanted = program.spec.power == "stopped" or program.meta.deleting is not None or is_restarting(program)
    return wanted or program.status.phase == "stopping"


def _comes_again(program: Program, outcome: Outcome) -> bool:
    return program.spec.restart == "always" or (program.spec.restart == "on-failure" and outcome.exit.code != 0)


def lost(program: Program, run: str, boot: str, process: Process | None, reason: str = "") -> Outcome:
    """The outcome of a run that left none: its keeper was killed, for a `reason` that we know or not, or went down with the host."""
    rebooted = process is not None and process.boot != boot
    why = (
        "the host was started anew while it ran"
        if rebooted
        else reason
        or "its keeper was killed, and the program ended with it (see `journalctl -k` for the kernel's out-of-memory killer)"
    )
    trouble = Trouble(what=f'program "{program.name}" ended', why=why, fix=f"roost start {program.name}")
    return Outcome(run, ProgramExit(code=137, reason="lost", signal=9, message=why), rebooted=rebooted, trouble=trouble)
