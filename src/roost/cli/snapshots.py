"""Verbs for snapshots: snapshot takes one, or has them taken every so often; snapshots lists them."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace

from roost.cli import render
from roost.cli.context import Context
from roost.cli.look import TABLES
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.machines import MachineHandle, Machines, SnapshotHandle
from roost.client.protocol import path
from roost.errors import Invalid, NotFound
from roost.model.codec import plain

DURATION = "30s, 10m, 1h or 7d"


def _snapshot_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME")
    add("snapshot", metavar="SNAP", nargs="?", help="its name (default: the time, as in 20261123-091500)")
    add("--memory", action=BooleanOptionalAction, help="keep the memory too (default: when NAME runs)")
    add("--expire", metavar="TIME", help=f"when it may go: {DURATION} after it was taken")
    add("--every", metavar="TIME", help=f"take one every so often while NAME runs: {DURATION}; off: no more")
    add("--keep", metavar="N", type=int, help="how many of those taken by --every stay")
    add("--no-wait", action="store_true", help="return at once, not when it is ready")


def _snapshot(context: Context, given: Namespace) -> int:
    machine = Machines(context.session, context.project).handle(given.name)
    if given.every is not None:
        return _schedule(context, machine, given)
    if given.keep is not None:
        raise _usage("--keep belongs to --every", "say --every 1h too, or leave --keep away")
    context.goes_on = f"the snapshot goes on being taken; `roost snapshots {given.name}` shows it"
    with Waiting(quiet=context.quiet) as waiting:
        how = {"memory": given.memory, "expires": given.expire, "wait": not given.no_wait, "report": waiting.report}
        taken = machine.snapshot(given.snapshot, **how)
    if context.output in ("json", "yaml", "name"):
        render.show(plain(taken.object), context.output, TABLES["snapshot"])
    elif context.quiet:
        print(taken.name)
    else:
        _tell(context, given.name, taken)
    return 0


def _tell(context: Context, name: str, taken: SnapshotHandle) -> None:
    for warning in taken.status.warnings:
        context.warn(warning)
    status, own = taken.status, taken.name.partition(".")[2]
    if status.phase != "ready":
        context.say(f"{taken.name} is being taken; next: roost snapshots {name}")
        return
    kept = "memory and disk" if status.memory else "disk"
    pause = f"; {name} stood still for {status.pause * 1000:.0f} ms" if status.pause else ""
    context.say(f"{taken.name} is ready ({kept}, {render.size(status.own)}){pause}; next: roost restore {name} {own}")


def _schedule(context: Context, machine: MachineHandle, given: Namespace) -> int:
    if given.snapshot is not None:
        raise _usage("snapshots that are taken by --every get the time as a name", "leave SNAP away")
    if given.every == "off":
        if (given.keep, given.expire) != (None, None):
            raise _usage("--every off takes no --keep and no --expire", "leave them away")
        machine.schedule(None)
    else:
        memory = given.memory is not False
        machine.schedule(given.every, keep=given.keep, expire=given.expire, memory=memory)
    if context.output in ("json", "yaml", "name"):
        render.show(plain(machine.object), context.output, TABLES["machine"])
    elif machine.spec.schedule is None:
        context.say(f"no more snapshots of {given.name} are taken by themselves; those there are stay")
    else:
        kept = f", the last {given.keep} stay" if given.keep else ""
        gone = f", each goes after {given.expire}" if given.expire else ""
        context.say(f"a snapshot of {given.name} is taken every {given.every} while it runs{kept}{gone}")
    return 0


def _usage(why: str, fix: str) -> Invalid:
    return Invalid("roost snapshot: wrong usage", why, fix)


def _snapshots_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="a machine (default: all snapshots of the project)")


def _snapshots(context: Context, given: Namespace) -> int:
    found = context.items("snapshots", project=context.project)
    if given.name is not None:
        uid = _uid(context, given.name)
        found = [it for it in found if uid == it["status"]["machine_uid"] or it["spec"]["machine"] == given.name]
        if not found and uid is None:
            raise NotFound(f'machine "{given.name}" does not exist, and no snapshot of it', fix="roost list")
    found.sort(key=lambda it: (it["status"]["taken"] or it["meta"]["created"], it["name"]))
    context.show(found, TABLES["snapshot"])
    return 0


def _uid(context: Context, name: str) -> str | None:
    try:
        return str(context.session.call("GET", path("machines", context.project, name))["meta"]["uid"])
    except NotFound:
        return None


COMMANDS = {
    "snapshot": Command(
        _snapshot_arguments,
        _snapshot,
        "roost snapshot web ready\nroost snapshot web --expire 7d\nroost snapshot web --every 1h --keep 24",
    ),
    "snapshots": Command(_snapshots_arguments, _snapshots, "roost snapshots web\nroost snapshots web -o json"),
}
