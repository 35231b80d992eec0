"""Verbs that give machines from others: clone, and restore, which goes back to a snapshot or makes a new machine of it."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import Any

from roost.cli import render
from roost.cli.context import Context
from roost.cli.launch import MOST, names_of
from roost.cli.look import TABLES
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client import names
from roost.client.blocking.machines import Copying, MachineHandle, Machines, full_name
from roost.errors import Invalid, RoostError
from roost.model.codec import plain


def _clone_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="a machine, running or not; or a snapshot, as in web.ready")
    add("new", metavar="NEW", nargs="?", help="name of the copy (default: NAME and a pleasant word)")
    add("--count", type=int, metavar="N", default=1, help=f"make N copies: NEW-1, NEW-2, ... (at most {MOST})")
    add("--keep-identity", action="store_true", help="an exact copy: same identity inside, and no network")
    add("--start", action="store_true", help="let it run even if NAME does not")
    _memory(parser)
    add("--no-wait", action="store_true", help="return at once, not when each runs")


def _memory(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--no-memory", dest="memory", action="store_false", help="take the disk alone; the machine boots from it"
    )


def _clone(context: Context, given: Namespace) -> int:
    base = given.new or names.after(given.name)
    wanted = [name or base for name in names_of(base, given.count)]
    return _copy(context, given, "snapshots" if "." in given.name else "machines", given.name, wanted)


def _copy(context: Context, given: Namespace, plural: str, source: str, wanted: Sequence[str]) -> int:
    listed = " ".join(wanted)
    context.goes_on = f"{listed} goes on being made; `roost list` shows it, `roost delete {listed}` removes it"
    with Waiting(quiet=context.quiet) as waiting:
        how = Copying(memory=given.memory, wait=not given.no_wait, report=waiting.report)
        how["keep_identity"] = getattr(given, "keep_identity", False)
        how["start"] = getattr(given, "start", False)
        kids = Machines(context.session, context.project).copy(plural, source, wanted, how)
    _show(context, source, wanted, kids)
    failures = [kid for kid in kids if isinstance(kid, RoostError)]
    for failure in failures[:-1] if len(failures) == len(kids) else failures:
        render.print_error(failure)
    if len(failures) == len(kids):
        raise failures[-1]
    return 1 if failures else 0


def _show(context: Context, source: str, wanted: Sequence[str], kids: Sequence[MachineHandle | RoostError]) -> None:
    made = [kid for kid in kids if isinstance(kid, MachineHandle)]
    if context.output in ("json", "yaml"):
        found = [_object(name, kid) for name, kid in zip(wanted, kids, strict=True)]
        render.show(found, context.output, TABLES["machine"])
        return
    if context.output == "name" or context.quiet:
        print("\n".join(machine.name for machine in made)) if made else None
        return
    for warning in sorted({warning for machine in made for warning in machine.status.warnings}):
        context.warn(warning)
    for machine in made:
        context.say(told(machine))
    pause = max((machine.timing.pause for machine in made), default=0.0)
    if pause and "." not in source:
        context.say(f"{source} stood still for {pause * 1000:.0f} ms")


def _object(name: str, kid: MachineHandle | RoostError) -> Any:
    if isinstance(kid, MachineHandle):
        return plain(kid.object)
    problems = [problem._asdict() for problem in kid.problems] if isinstance(kid, Invalid) else []
    words = {"code": kid.code, "what": kid.what, "why": kid.why, "fix": kid.fix, "problems": problems}
    return {"name": name, "error": words}


def told(machine: MachineHandle) -> str:
    """One line on a machine that was just made or put back, with what can be done next."""
    phase, name = machine.status.phase, machine.name
    if phase == "running":
        after = f" after {machine.timing.total:.2f} s" if machine.timing.total else ""
        return f"{name} runs{after}; next: roost exec {name} -- uname -a"
    if phase == "paused":
        return f"{name} is paused; next: roost resume {name}"
    if phase == "stopped":
        return f"{name} is stopped; next: roost start {name}"
    return f"{name} is being made"


def _restore_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME")
    add("snapshot", metavar="SNAP", help="a snapshot of it, as `roost snapshots NAME` lists them")
    add("--as", dest="new", metavar="NEW", help="leave NAME as it is, and make a new machine NEW of the snapshot")
    _memory(parser)
    add("--no-wait", action="store_true", help="return at once")


def _restore(context: Context, given: Namespace) -> int:
    snapshot = full_name(given.name, given.snapshot)
    if given.new is not None:
        return _copy(context, given, "snapshots", snapshot, [given.new])
    machine = Machines(context.session, context.project).handle(given.name)
    if sys.stdin.isatty():
        context.confirm(f"put {given.name} back to {snapshot}? What it did since then is lost.")
    context.goes_on = f"{given.name} goes on being put back; `roost list` shows it"
    with Waiting(quiet=context.quiet) as waiting:
        machine.restore(snapshot, memory=given.memory, wait=not given.no_wait, report=waiting.report)
    if context.output in ("json", "yaml", "name"):
        render.show(plain(machine.object), context.output, TABLES["machine"])
    elif given.no_wait:
        context.say(f"{given.name} is being put back to {snapshot}")
    else:
        context.say(f"{given.name} is back at {snapshot}: {told(machine)}")
    return 0


COMMANDS = {
    "clone": Command(
        _clone_arguments, _clone, "roost clone web\nroost clone web kid --count 8\nroost clone web.ready fresh"
    ),
    "restore": Command(_restore_arguments, _restore, "roost restore web ready\nroost restore web ready --as web2"),
}
