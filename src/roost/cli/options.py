"""The options that every verb has, and a parser whose complaints have Roost's own shape."""

from __future__ import annotations

from argparse import SUPPRESS, ArgumentParser
from collections.abc import Callable
from typing import NoReturn

from roost.cli import render
from roost.errors import Invalid

GLOBALS = {"output": None, "project": None, "host": None, "quiet": False, "yes": False}
"""What the global options are when nobody says anything."""


class Parser(ArgumentParser):
    """argparse that says what is wrong in Roost's own shape."""

    def error(self, message: str) -> NoReturn:
        raise Invalid(f"{self.prog}: wrong usage", message, f"{self.prog} --help")


def global_options() -> ArgumentParser:
    """The options that every verb has; SUPPRESS keeps a verb's parser from forgetting what stood before the verb."""
    parser = ArgumentParser(add_help=False)
    add = parser.add_argument_group("everywhere").add_argument
    add("-o", "--output", choices=render.FORMATS, default=SUPPRESS, help="how to print objects")
    add("-p", "--project", metavar="P", default=SUPPRESS, help="project (default: ROOST_PROJECT, else default)")
    add("--host", metavar="URL", default=SUPPRESS, help="daemon, as unix:/path (default: ROOST_HOST)")
    add("-q", "--quiet", action="store_true", default=SUPPRESS, help="print only what was asked for")
    add("-y", "--yes", action="store_true", default=SUPPRESS, help="do not ask")
    return parser


def actions(parser: ArgumentParser) -> Callable[[str, str], ArgumentParser]:
    """Let a verb have actions (`roost image list`): what is returned makes the parser of one from its name and its line of help."""
    group = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    shared = global_options()
    return lambda name, text: group.add_parser(
        name, help=text, description=f"{text}.", parents=[shared], allow_abbrev=False
    )
