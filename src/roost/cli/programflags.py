"""The verb `run` as the parsers know it, for help, the reference and completion; its words are read by `runtimes.policy`."""

from __future__ import annotations

from argparse import REMAINDER, ArgumentParser, Namespace
from typing import Any

from roost.cli.output import Output
from roost.cli.verbs import Command
from roost.runtimes.policy import FLAGS, Flag

_GROUPS = {"policy": "what it may do (nothing, unless it is said)", "run": "how it runs", "everywhere": "everywhere"}
_GLOBAL = {"format": "output", "help": "help"}
"""Where a flag that every verb has is called otherwise among the global options."""


def arguments(parser: ArgumentParser) -> None:
    """Everything that may stand before FILE, FILE, and what follows it."""
    groups = {name: parser.add_argument_group(title) for name, title in _GROUPS.items()}
    for flag in FLAGS:
        if flag.field != "help":  # argparse has its own
            names = [name for name in (flag.short, flag.name) if name]
            groups[flag.group].add_argument(*names, **_how(flag))
    parser.add_argument("file", metavar="FILE", help="the program: what it is is told from its content")
    parser.add_argument("command", metavar="ARG", nargs=REMAINDER, help="its arguments")


def _how(flag: Flag) -> dict[str, Any]:
    dest = _GLOBAL.get(flag.field, flag.field) if flag.group == "everywhere" else f"program_{flag.field}"
    how: dict[str, Any] = {"dest": dest, "help": flag.help}
    if not flag.metavar:
        return how | {"action": "store_true"}
    how |= {"metavar": flag.metavar}
    if flag.choices:
        how |= {"choices": flag.choices}
    if flag.many:
        how |= {"action": "append"}
    return how | {"nargs": "?"} if flag.bare else how


def _run(_: Output, given: Namespace) -> int:
    from roost.cli.run import perform  # here: help must not load what runs programs

    return perform(given.program)


EXAMPLE = """\
roost run app.wasm --what "the program gets"
roost run --fs ./data:/data:ro --fs ./out tool.jar /data/in.txt
roost run --net example.org:443 --memory 256MiB --wall 10s tool.exe
roost run --detach --name api --restart always --publish 8080:80 server.wasm"""

COMMANDS = {"run": Command(arguments, _run, EXAMPLE, local=True, program=True)}
