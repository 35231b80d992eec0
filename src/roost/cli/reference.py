"""Prints the reference of the command line as Markdown, from the parsers themselves: `python -m roost.cli.reference`."""

from __future__ import annotations

import sys
from argparse import REMAINDER, SUPPRESS, Action, ArgumentParser, _HelpAction, _SubParsersAction
from collections.abc import Iterator

from roost.cli.dispatch import command_of, parser_of
from roost.cli.options import global_options
from roost.cli.verbs import VERBS, Verb

INTRODUCTION = """\
# Command line

Made from the parsers by `python -m roost.cli.reference`.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict, 5 forbidden or over quota, 6 the host lacks something
(`roost doctor`), 130 interrupted. `exec` and `shell` give the guest's own code and use 124 (time is up), 125 (Roost's own error),
126 (can not be run) and 127 (not found) for themselves. `run` gives the program's own code and uses 124 (a limit was hit), 125 (Roost's own
error), 126 (its runtime is missing), 127 (not found, or of no known kind), 134 (a WebAssembly trap) and 128 + N (killed by signal N);
`--status-json` tells them apart. `diff` ends with 1 when something differs.

Sizes are written 256MiB, 2GiB; K, M and G alone mean the same powers of two. `ROOST_HOST`, `ROOST_PROJECT`, `ROOST_STATE`, `ROOST_RUN`,
`ROOST_CACHE`, `ROOST_ZYGOTE`, `ROOST_DEBUG` and `NO_COLOR` are read from the environment. `ROOST_ZYGOTE=0` runs every WebAssembly program in the
command's own process, and starts none in the background that would make the next run sooner.
"""


SHARED = frozenset(action.dest for action in global_options()._actions)
"""What every verb has, and the page tells once."""


def reference() -> str:
    """The whole page; the same on every version of Python (argparse's own help is not)."""
    lines = [INTRODUCTION, "## Everywhere", "", *_table(global_options(), frozenset())]
    for verb in VERBS:
        if verb.group:
            lines += _section(verb)
    return "\n".join(lines) + "\n"


def _section(verb: Verb) -> Iterator[str]:
    command = command_of(verb)
    parser = parser_of(verb, command)
    yield from ("", f"## roost {verb.name}", "", _sentence(f"{verb.summary}."), "")
    nested = next((action for action in parser._actions if isinstance(action, _SubParsersAction)), None)
    if nested is None:
        yield from _usage(f"roost {verb.name}", parser)
        yield from _table(parser)
    else:
        for name, inner in nested.choices.items():
            yield from (f"### roost {verb.name} {name}", "", _sentence(inner.description or ""), "")
            yield from _usage(f"roost {verb.name} {name}", inner)
            yield from _table(inner)
            yield ""
    yield from ("", "```", *command.example.splitlines(), "```")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _usage(name: str, parser: ArgumentParser) -> Iterator[str]:
    own = _own(parser, SHARED)
    words = ["[options]"] if any(action.option_strings for action in own) else []
    words += [_place(action) for action in own if not action.option_strings]
    yield from ("`" + " ".join([name, *words]) + "`", "")


def _table(parser: ArgumentParser, hidden: frozenset[str] = SHARED) -> Iterator[str]:
    own = _own(parser, hidden)
    if own:
        yield from ("| argument | meaning |", "| --- | --- |")
    for action in own:
        yield f"| {_name(action)} | {_meaning(action)} |".replace("|KEY", "\\|KEY").replace("|URL", "\\|URL")


def _own(parser: ArgumentParser, hidden: frozenset[str]) -> list[Action]:
    """What the verb itself has: no help, and nothing that is hidden."""
    return [action for action in parser._actions if not isinstance(action, _HelpAction) and action.dest not in hidden]


def _place(action: Action) -> str:
    word = _value(action)
    if action.nargs == "?":
        return f"[{word}]"
    return f"{word}..." if action.nargs == "+" else f"[{word}...]" if action.nargs == "*" else word


def _name(action: Action) -> str:
    if not action.option_strings:
        return f"`{_value(action)}`"
    value = "" if action.nargs == 0 else " " + _value(action)
    return f"`{', '.join(action.option_strings)}{value}`"


def _value(action: Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    return "/".join(str(choice) for choice in action.choices) if action.choices else action.dest.upper()


def _meaning(action: Action) -> str:
    text = action.help if action.help and action.help != SUPPRESS else ""
    if action.nargs == REMAINDER:
        return "the command and its arguments"
    return text or {"names": "one or several", "name": "its name", "new": "its new name", "shell": "which shell"}.get(
        action.dest, ""
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
