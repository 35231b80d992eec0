"""What a name means where machines and programs stand beside each other."""

from __future__ import annotations

from typing import Any

from roost.cli.context import Context
from roost.client.blocking.machines import MachineHandle, Machines
from roost.client.blocking.programs import ProgramHandle, Programs
from roost.client.protocol import path
from roost.errors import Conflict, NotFound


def look_up(context: Context, name: str) -> dict[str, Any]:
    """The machine or program of that name, as the API shows it. Raises NotFound, and Conflict when it is both."""
    machine, program = (_get(context, plural, name) for plural in ("machines", "programs"))
    if machine is not None and program is not None:
        why = "a machine and a program have this name"
        fix = f"for the program: roost program stop|logs|delete {name}; give the machine another name: roost rename {name} NEW"
        raise Conflict(f"which {name!r} is not clear", why, fix)
    found = machine if machine is not None else program
    if found is None:
        what = f'machine "{name}" does not exist in project "{context.project}"'
        raise NotFound(what, "no program has that name either", "roost list")
    return found


def kind_of_name(context: Context, name: str) -> str:
    """The kind, "machine" or "program", that has this name; "machine" where none has. Raises Conflict when both do."""
    try:
        return str(look_up(context, name)["kind"])
    except NotFound:
        return "machine"


def handle(context: Context, name: str) -> MachineHandle | ProgramHandle:
    """The machine or program of that name. Raises NotFound, and Conflict when it is both."""
    if look_up(context, name)["kind"] == "program":
        return Programs(context.session, context.project).handle(name)
    return Machines(context.session, context.project).handle(name)


def _get(context: Context, plural: str, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = context.session.call("GET", path(plural, context.project, name))
    except NotFound:
        return None
    return found
