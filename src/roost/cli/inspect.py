"""The verb inspect: what a program is, what would run it and under which policy; nothing of it is executed."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import Any

from roost.cli import programflags, render
from roost.cli.output import Output
from roost.cli.verbs import Command
from roost.errors import Invalid
from roost.runtimes.policy import Parsed

_SHOWN = 8
"""Parts of a value that a person is shown."""


def _inspect(context: Output, given: Namespace) -> int:
    """The exit code is 0 when it would run, 126 when something is missing, 127 when its kind is not known."""
    from roost.runtimes import inspection  # here: help must not load what makes sandboxes

    parsed: Parsed = given.program
    if parsed.arguments:
        raise Invalid(
            "roost inspect: wrong usage", f"{parsed.arguments[0]!r} stands after FILE", "say one file, behind all flags"
        )
    path = os.path.join(os.getcwd(), parsed.file)  # noqa: PTH109, PTH118 (the name stays as it was written)
    found = inspection.inspect(path, parsed.policy, parsed.options["vm"] or "")
    if context.output in ("json", "yaml", "name"):
        render.show({"name": found["file"], **found}, context.output, render.Table("programs", ()))
    else:
        _show(found)
    return int(found["code"])


def _show(found: dict[str, Any]) -> None:
    runs = f"{found['runtime']}" if found["runtime"] else "nothing here"
    others = f" (--vm {' or --vm '.join(found['others'])} too)" if found["others"] else ""
    _line("kind", " ".join(part for part in (found["kind"], found["arch"]) if part))
    for name, value in found["details"].items():
        if value not in ("", [], False):
            _line(f"  {name.replace('_', ' ')}", _words(value))
    _line("runs with", runs + others)
    for name, value in found["installed"].items():
        _line(f"  {name.replace('_', ' ')}", _words(value))
    if found["refusal"]:
        _line("refused", found["refusal"], 31)
    for need in found["missing"]:
        _line("missing", need["what"], 31)
    if found["fix"]:
        _line("fix", found["fix"])
    if found["runtime"]:
        _allowed(found)


def _allowed(found: dict[str, Any]) -> None:
    """The policy, as far as it says something, and the layers."""
    said = {name: value for name, value in found["policy"].items() if value not in (None, [], {}, False)}
    _line("policy", "; ".join(f"{name.replace('_', ' ')} {_words(value)}" for name, value in said.items()))
    _line("layers", ", ".join(found["layers"]))
    for layer in found["missing_layers"]:
        _line("not held", layer, 33)


def _words(value: Any) -> str:
    if isinstance(value, dict) and len(value) > _SHOWN:
        return f"{len(value)}, of them {', '.join([*value][:_SHOWN])}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "yes" if value is True else "no" if value is False else str(value)


def _line(name: str, text: str, colour: int = 0) -> None:
    label = f"{name:<18}"
    print(render.paint(label, colour, sys.stdout) if colour else label, render.clean(text).replace("\n", " "))


EXAMPLE = """\
roost inspect app.wasm
roost inspect --fs ./data:/data:ro --net example.org:443 tool.jar
roost inspect -o json tool.exe"""

COMMANDS = {"inspect": Command(programflags.arguments, _inspect, EXAMPLE, local=True, program=True)}
