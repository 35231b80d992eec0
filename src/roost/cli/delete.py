"""The verb delete: machines and programs by name, or objects of any kind."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from roost.cli.context import Context
from roost.cli.look import KINDS, kind_of
from roost.cli.named import kind_of_name
from roost.cli.power import each
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.objects import Objects
from roost.errors import Invalid, NotFound
from roost.model.kinds import BY_NAME, Object


def _arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="machines and programs; or a kind and names, as in: snapshot web.ready"
    )
    parser.add_argument("--all", action="store_true", help="all machines and programs of the project (asks first)")
    parser.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")
    parser.add_argument("--no-wait", action="store_true", help="return at once, not when nothing of it is left")


def _delete(context: Context, given: Namespace) -> int:
    kind, names = "", list(given.names)
    if len(names) > 1 and names[0] in {*KINDS, *KINDS.values()}:
        kind, names = kind_of(names[0]), names[1:]
    if bool(names) == given.all:
        raise Invalid("which machines is not clear", "name machines, or say --all, not both", "roost list")
    return _delete_all(context, given) if given.all else delete(context, kind, names, given)


def _delete_all(context: Context, given: Namespace) -> int:
    found = {
        kind: [str(item["name"]) for item in context.items(KINDS[kind], project=context.project)]
        for kind in ("machine", "program")
    }
    found = {kind: names for kind, names in found.items() if names}
    if found:
        told = [
            f"{len(names)} {kind if len(names) == 1 else KINDS[kind]} ({', '.join(names)})"
            for kind, names in found.items()
        ]
        context.confirm(f"delete {' and '.join(told)} of project {context.project}?")
    return max((delete(context, kind, names, given) for kind, names in found.items()), default=0)


def delete(context: Context, kind: str, names: list[str], given: Namespace) -> int:
    """Delete objects of a kind ("": machines and programs, whatever the names mean), and say so."""
    context.goes_on = f"deleting {' '.join(names)} goes on"

    def act(name: str) -> str:
        known = BY_NAME[kind or kind_of_name(context, name)]
        objects: Objects[Object] = Objects(context.session, known, known.type, context.project)
        try:
            objects.delete(name, wait=not given.no_wait)
        except NotFound:
            if not given.ignore_missing:
                raise
            return f"{name} does not exist"
        return f"{name} is {'being deleted' if given.no_wait else 'deleted'}"

    with Waiting(quiet=context.quiet):
        return each(context, names, act)


COMMANDS = {
    "delete": Command(
        _arguments,
        _delete,
        "roost delete web db\nroost delete --all --yes\nroost delete image debian:12\nroost delete snapshot web.ready",
    )
}
