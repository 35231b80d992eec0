"""Verbs for documents: apply, diff, edit."""

from __future__ import annotations

import os
import shlex
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from roost.cli import render
from roost.cli.context import Context
from roost.cli.documents import load
from roost.cli.launch import read
from roost.cli.look import kind_of, place_of
from roost.cli.verbs import Command
from roost.client.blocking.host import Host
from roost.client.documents import Outcome
from roost.client.protocol import path
from roost.errors import Invalid, RoostError
from roost.host import system

_DONE = {"create": "created", "change": "changed", "same": "unchanged"}


def _file(parser: ArgumentParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        action="append",
        required=True,
        help="YAML or JSON, one kind a document (- for stdin)",
    )


def _outcomes(context: Context, given: Namespace, verb: str) -> list[Outcome]:
    documents = [document for name in given.file for document in load(read(name), name)]
    host = Host(context.session, context.project)
    return host.apply(documents) if verb == "apply" else host.diff(documents)


def _apply(context: Context, given: Namespace) -> int:
    outcomes = _outcomes(context, given, "apply")
    if context.output in ("json", "yaml", "name"):
        kinds = [(outcome.document["kind"], outcome.document["name"]) for outcome in outcomes]
        objects = [context.session.call("GET", path(*place_of(context, kind, name))) for kind, name in kinds]
        render.show(objects, context.output, render.Table("objects", ()))
    for outcome in outcomes:
        context.say(f"{title(outcome)} {_DONE[outcome.action]}")
    return 0


def _diff(context: Context, given: Namespace) -> int:
    outcomes = _outcomes(context, given, "diff")
    if context.output in ("json", "yaml"):
        found = [
            {"object": title(outcome), "action": outcome.action, "fields": _fields(outcome)} for outcome in outcomes
        ]
        render.show(found, context.output, render.Table("differences", ()))
    else:
        for outcome in outcomes:
            _print(outcome)
    return int(any(outcome.action != "same" for outcome in outcomes))


def title(outcome: Outcome) -> str:
    """The object that a document names, as kind/name."""
    return f"{outcome.document['kind']}/{outcome.document['name']}"


def _fields(outcome: Outcome) -> list[dict[str, Any]]:
    return [{"path": where, "now": now, "wanted": wanted} for where, now, wanted in outcome.lines]


def _print(outcome: Outcome) -> None:
    import sys

    if outcome.action == "create":
        print(render.paint(f"+ {title(outcome)} would be created", 32, sys.stdout))
    for where, now, wanted in outcome.lines:
        print(render.paint(render.clean(f"~ {title(outcome)} {where}: {now!r} -> {wanted!r}"), 33, sys.stdout))


def _edit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("kind", metavar="KIND", help="machine, image, snapshot or project")
    parser.add_argument("name", metavar="NAME")


def _edit(context: Context, given: Namespace) -> int:
    kind = kind_of(given.kind)
    present = context.session.call("GET", path(*place_of(context, kind, given.name)))
    slim = {name: present[name] for name in ("kind", "project", "name", "spec") if present.get(name)}
    before = text = render.yaml_text({**slim, "meta": {"labels": present["meta"]["labels"]}})
    host = Host(context.session, context.project)
    while True:
        text = _edited(text)
        if _body(text) == _body(before):
            context.say("nothing was changed")
            return 0
        try:
            documents = load(text, "what you wrote")
            if [(it.get("kind"), it.get("name")) for it in documents if isinstance(it, dict)] != [(kind, given.name)]:
                raise Invalid(
                    "what you wrote is another object",
                    f"it must stay {kind} {given.name}",
                    "roost rename gives another name",
                )
            (outcome,) = host.apply(documents)
        except RoostError as error:
            text = before if not _body(text).strip() else _commented(error) + _body(text)
            context.confirm(f"{error.what}: {error.why}. Edit again?") if context.yes is False else _give_up(error)
        else:
            context.say(f"{title(outcome)} {_DONE[outcome.action]}")
            return 0


def _give_up(error: RoostError) -> None:
    raise error


def _commented(error: RoostError) -> str:
    return "".join(f"# {line}\n" for line in str(error).splitlines())


def _body(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def _edited(text: str) -> str:
    """The text as the user's editor leaves it. Raises RoostError when the editor fails."""
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory(prefix="roost-edit-") as directory:
        file = Path(directory) / "object.yaml"
        file.write_text(text)
        code = system.foreground([*editor, str(file)])
        if code:
            raise RoostError("nothing was changed", f"the editor {editor[0]} ended with code {code}", "set EDITOR")
        return read(str(file))


COMMANDS = {
    "apply": Command(_file, _apply, "roost apply -f machines.yaml\nroost get machine web | roost apply -f -"),
    "diff": Command(_file, _diff, "roost diff -f machines.yaml       (exit code 1 when something differs)"),
    "edit": Command(_edit_arguments, _edit, "EDITOR=nano roost edit machine web"),
}
