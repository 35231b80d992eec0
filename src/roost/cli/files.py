"""Verbs that carry bytes: copy and logs."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from roost.cli.context import Context
from roost.cli.look import KINDS
from roost.cli.named import kind_of_name
from roost.cli.streams import print_log
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.transfer import copy_in, copy_out
from roost.client.protocol import path
from roost.client.results import Progress
from roost.errors import Invalid

_REMOTE = re.compile(r"([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?):(.*)", re.DOTALL)


def remote(word: str) -> tuple[str, str] | None:
    """(machine, path) of NAME:PATH; None for a path of this computer (write ./a:b for one with a colon)."""
    match = _REMOTE.fullmatch(word)
    return (match[1], match[2]) if match else None


def _copy_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="a path here, or NAME:PATH")
    parser.add_argument("target", metavar="DST", help="a path here, or NAME:PATH; the other side than SRC")
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="directories are always copied whole; for those used to it"
    )


def _copy(context: Context, given: Namespace) -> int:
    source, target = remote(given.source), remote(given.target)
    if (source is None) == (target is None):
        why = "both are here" if source is None else "both are in a machine"
        raise Invalid(
            "nothing was copied", f"one of SRC and DST is NAME:PATH; {why}", "roost copy notes.txt web:/root/"
        )
    skipped: list[str] = []
    with Waiting(quiet=context.quiet) as waiting:
        waiting.report("copy", Progress(f"copying {given.source}"))
        if target is not None:
            copy_in(context.session, (context.project, target[0]), Path(given.source), target[1])
        elif source is not None:
            skipped = copy_out(context.session, (context.project, source[0]), source[1], Path(given.target))
    for line in skipped[:20]:
        context.warn(f"left out {line}")
    if len(skipped) > 20:
        context.warn(f"left out {len(skipped) - 20} more")
    return 0


def _logs_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("-f", "--follow", action="store_true", help="go on and print what comes")


def _logs(context: Context, given: Namespace) -> int:
    plural = KINDS[kind_of_name(context, given.name)]
    return print_log(
        context, path(plural, context.project, given.name, "logs", follow="true" if given.follow else None)
    )


COMMANDS = {
    "copy": Command(_copy_arguments, _copy, "roost copy site/ web:/srv/\nroost copy web:/var/log ./log"),
    "logs": Command(_logs_arguments, _logs, "roost logs web --follow"),
}
