"""The verb project: tenants, their members and their quotas."""

from __future__ import annotations

import pwd
from argparse import ArgumentParser, Namespace
from typing import Any

from roost.cli.context import Context
from roost.cli.delete import delete
from roost.cli.look import TABLES
from roost.cli.options import actions
from roost.cli.render import show
from roost.cli.verbs import Command
from roost.client.protocol import path
from roost.errors import NotFound

ROLES = ("owner", "operator", "viewer")


def _arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    add("list", "list projects")
    created = add("create", "create a project; you own it")
    created.add_argument("name", metavar="NAME")
    created.add_argument("--machines", type=int, metavar="N", help="machines it may have")
    created.add_argument("--programs", type=int, metavar="N", help="programs it may have")
    created.add_argument("--networks", type=int, metavar="N", help="networks it may have")
    created.add_argument("--cpus", type=int, metavar="N", help="virtual CPUs it may have")
    created.add_argument("--memory", metavar="SIZE", help="memory it may have")
    created.add_argument("--volumes", type=int, metavar="N", help="volumes it may have")
    created.add_argument("--storage", metavar="SIZE", help="what its volumes may take together")
    deleted = add("delete", "delete projects (they must be empty)")
    deleted.add_argument("names", metavar="NAME", nargs="+")
    deleted.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")
    granted = add("grant", "let somebody use a project")
    granted.add_argument("name", metavar="NAME")
    granted.add_argument("who", metavar="USER", help="a user of this host, or uid:1000")
    granted.add_argument(
        "role", metavar="ROLE", nargs="?", choices=ROLES, default="operator", help="owner, operator (default) or viewer"
    )
    revoked = add("revoke", "take that back")
    revoked.add_argument("name", metavar="NAME")
    revoked.add_argument("who", metavar="USER")


def _project(context: Context, given: Namespace) -> int:
    acts = {"list": _list, "create": _create, "delete": _delete, "grant": _grant, "revoke": _revoke}
    return acts[given.action](context, given)


def _list(context: Context, given: Namespace) -> int:
    context.show(context.items("projects"), TABLES["project"])
    return 0


def _create(context: Context, given: Namespace) -> int:
    bounds = {
        name: getattr(given, name)
        for name in ("machines", "programs", "networks", "cpus", "memory", "volumes", "storage")
        if getattr(given, name) is not None
    }
    made = context.session.call("POST", path("projects"), {"name": given.name, "spec": {"quota": bounds}})
    _tell(context, made, f"project {given.name} is made; next: roost --project {given.name} launch tiny")
    return 0


def _delete(context: Context, given: Namespace) -> int:
    given.no_wait = False
    return delete(context, "project", list(given.names), given)


def _grant(context: Context, given: Namespace) -> int:
    return _members(context, given.name, principal(given.who), given.role)


def _revoke(context: Context, given: Namespace) -> int:
    return _members(context, given.name, principal(given.who), None)


def _members(context: Context, name: str, who: str, role: str | None) -> int:
    present = context.session.call("GET", path("projects", name))
    if role is None and who not in present["spec"]["members"]:
        raise NotFound(f"{who} is no member of project {name}", fix="roost project list")
    body = {"spec": {"members": {who: role}}, "meta": {"revision": present["meta"]["revision"]}}
    changed = context.session.call("PATCH", path("projects", name), body)
    said = f"{who} is {role} of project {name}" if role else f"{who} is no longer a member of project {name}"
    _tell(context, changed, said)
    return 0


def _tell(context: Context, thing: Any, text: str) -> None:
    if context.output in ("json", "yaml", "name"):
        show(thing, context.output, TABLES["project"])
    else:
        context.say(text)


def principal(word: str) -> str:
    """The principal that a word names: uid:1000 as it stands, else a user of this host. Raises NotFound."""
    if word.startswith("uid:"):
        return word
    try:
        return f"uid:{pwd.getpwnam(word).pw_uid}"
    except KeyError:
        raise NotFound(f"user {word!r} does not exist on this host", fix="write uid:1000") from None


COMMANDS = {
    "project": Command(
        _arguments,
        _project,
        "roost project create lab --machines 10 --memory 8GiB\nroost project grant lab alice operator",
    )
}
