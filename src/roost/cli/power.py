"""Verbs that change the power or name of machines and programs; each takes several, and says when there is nothing to do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from roost.cli import render
from roost.cli.context import Context
from roost.cli.named import handle
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.machines import MachineHandle, Machines
from roost.client.blocking.programs import ProgramHandle
from roost.errors import Conflict, Invalid, RoostError


def _names(parser: ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="*")
    parser.add_argument("--all", action="store_true", help="all machines of the project")
    parser.add_argument("--no-wait", action="store_true", help="return at once")


def _stop_arguments(parser: ArgumentParser) -> None:
    _names(parser)
    parser.add_argument("-f", "--force", action="store_true", help="as if its plug were pulled")
    parser.add_argument(
        "-t", "--timeout", type=float, metavar="SECONDS", help="how long the guest may take (default 30)"
    )


def _rename_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("new", metavar="NEW")


def chosen(context: Context, given: Namespace) -> list[str]:
    """The machines that the names or --all mean. Raises Invalid for neither or both."""
    if bool(given.names) == given.all:
        raise Invalid("which machines is not clear", "name machines, or say --all, not both", "roost list")
    return (
        [str(item["name"]) for item in context.items("machines", project=context.project)]
        if given.all
        else list(given.names)
    )


def each(context: Context, names: list[str], act: Callable[[str], str]) -> int:
    """Do it to every name, whatever becomes of the others; prints what `act` says, raises the first error after the last name."""
    failures: list[RoostError] = []
    for name in names:
        try:
            text = act(name)
        except RoostError as error:
            failures.append(error)
        else:
            context.say(text)
    for failure in failures[:-1]:
        render.print_error(failure)
    if failures:
        raise failures[-1]
    return 0


Act = Callable[[MachineHandle | ProgramHandle, Namespace, Waiting], str]
OfMachine = Callable[[MachineHandle, Namespace, Waiting], str]


def _power(verb: str, act: Act) -> Callable[[Context, Namespace], int]:
    """What machines and programs have in common."""

    def run(context: Context, given: Namespace) -> int:
        return _each_chosen(context, given, verb, lambda name, waiting: act(handle(context, name), given, waiting))

    return run


def _of_machines(verb: str, act: OfMachine) -> Callable[[Context, Namespace], int]:
    def run(context: Context, given: Namespace) -> int:
        machines = Machines(context.session, context.project)
        return _each_chosen(context, given, verb, lambda name, waiting: act(machines.handle(name), given, waiting))

    return run


def _each_chosen(context: Context, given: Namespace, verb: str, act: Callable[[str, Waiting], str]) -> int:
    names = chosen(context, given)
    context.goes_on = f"what was begun goes on ({verb} {' '.join(names)}); `roost list` shows it"
    with Waiting(quiet=context.quiet) as waiting:
        return each(context, names, lambda name: act(name, waiting))


def _start(machine: MachineHandle | ProgramHandle, given: Namespace, waiting: Waiting) -> str:
    was = machine.status.phase == "running"
    machine.start(wait=not given.no_wait, report=waiting.report)
    return f"{machine.name} {'already runs' if was else 'is starting' if given.no_wait else 'runs'}"


def _stop(machine: MachineHandle | ProgramHandle, given: Namespace, waiting: Waiting) -> str:
    was = machine.status.phase in ("stopped", "crashed", "failed", "exited")
    machine.stop(force=given.force, timeout=given.timeout, wait=not given.no_wait, report=waiting.report)
    return f"{machine.name} {'is already stopped' if was else 'is stopping' if given.no_wait else 'is stopped'}"


def _restart(machine: MachineHandle | ProgramHandle, given: Namespace, waiting: Waiting) -> str:
    machine.restart(wait=not given.no_wait, report=waiting.report)
    return f"{machine.name} {'is restarting' if given.no_wait else 'runs again'}"


def _pause(machine: MachineHandle, given: Namespace, waiting: Waiting) -> str:
    if machine.status.phase not in ("running", "paused"):
        raise Conflict(
            f'machine "{machine.name}" can not be paused',
            f"it is {machine.status.phase}",
            f"roost start {machine.name}",
        )
    was = machine.status.phase == "paused"
    machine.pause(wait=not given.no_wait, report=waiting.report)
    return f"{machine.name} {'is already paused' if was else 'is paused'}"


def _resume(machine: MachineHandle, given: Namespace, waiting: Waiting) -> str:
    was = machine.status.phase == "running"
    machine.resume(wait=not given.no_wait, report=waiting.report)
    return f"{machine.name} {'already runs' if was else 'goes on'}"


def _rename(context: Context, given: Namespace) -> int:
    Machines(context.session, context.project).handle(given.name).rename(given.new)
    context.say(f"{given.name} is called {given.new} now")
    return 0


COMMANDS = {
    "start": Command(_names, _power("start", _start), "roost start web db"),
    "stop": Command(_stop_arguments, _power("stop", _stop), "roost stop web\nroost stop --all --force"),
    "restart": Command(_names, _power("restart", _restart), "roost restart web"),
    "pause": Command(_names, _of_machines("pause", _pause), "roost pause web"),
    "resume": Command(_names, _of_machines("resume", _resume), "roost resume web"),
    "rename": Command(_rename_arguments, _rename, "roost rename web www"),
}
