"""Verbs that work inside a machine: exec, shell, console."""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace

from roost.cli import terminal
from roost.cli.context import Context
from roost.cli.verbs import Command
from roost.client.blocking.execution import Console, Execution
from roost.client.websocket import Start
from roost.errors import Invalid, RoostError

LOGIN = ("/bin/sh", "-c", "for shell in bash sh; do command -v $shell >/dev/null && exec $shell -l; done")
"""The best shell that the guest has, as a login shell."""


def _how(parser: ArgumentParser) -> None:
    parser.add_argument("-u", "--user", metavar="NAME", default="", help="run as this user of the guest (default root)")
    parser.add_argument("-w", "--cwd", metavar="DIR", default="", help="working directory")
    parser.add_argument(
        "-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable (without =V: as it is here)"
    )


def _exec_arguments(parser: ArgumentParser) -> None:
    _how(parser)
    parser.add_argument(
        "-t", "--terminal", action="store_true", default=None, help="with a terminal (default: when you have one)"
    )
    parser.add_argument("-T", "--no-terminal", dest="terminal", action="store_false", help="without a terminal")
    parser.add_argument(
        "-i",
        "--interactive",
        dest="no_stdin",
        action="store_false",
        default=False,
        help="hand on standard input (the default)",
    )
    parser.add_argument("-n", "--no-stdin", action="store_true", help="do not hand on standard input")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="kill it after this time (exit code 124)")
    parser.add_argument("name", metavar="NAME")
    parser.add_argument("command", metavar="-- CMD", nargs=REMAINDER)


def _shell_arguments(parser: ArgumentParser) -> None:
    _how(parser)
    parser.add_argument("name", metavar="NAME")


def _console_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")


def environment(words: list[str]) -> dict[str, str]:
    """The variables that `--env` words name."""
    pairs = [word.partition("=") for word in words]
    return {name: value if equals else os.environ.get(name, "") for name, equals, value in pairs}


def _exec(context: Context, given: Namespace) -> int:
    if not given.command:
        raise Invalid("roost exec: wrong usage", "no command was given", f"roost exec {given.name} -- uname -a")
    both = sys.stdin.isatty() and sys.stdout.isatty()
    wants = both if given.terminal is None else bool(given.terminal)
    if wants and not sys.stdin.isatty():
        raise Invalid("roost exec: wrong usage", "--terminal needs a terminal to hand on", "leave -t away")
    start = Start(
        tuple(given.command),
        _with_terminal(environment(given.env), wants),
        given.cwd,
        given.user,
        not given.no_stdin,
        terminal.size() if wants else None,
        given.timeout,
    )
    return _converse(context, given.name, start)


def _shell(context: Context, given: Namespace) -> int:
    if not sys.stdin.isatty():
        start = Start(("/bin/sh",), environment(given.env), given.cwd, given.user, True)
    else:
        start = Start(LOGIN, _with_terminal(environment(given.env), True), given.cwd, given.user, True, terminal.size())
    return _converse(context, given.name, start)


def _converse(context: Context, name: str, start: Start) -> int:
    with Execution(context.session, (context.project, name), start) as execution:
        return terminal.run(execution, stdin=start.stdin, terminal=start.terminal is not None)


def _with_terminal(env: dict[str, str], wanted: bool) -> dict[str, str]:
    return {"TERM": os.environ.get("TERM", "xterm"), **env} if wanted else env


def _console(context: Context, given: Namespace) -> int:
    with Console.open(context.session, (context.project, given.name)) as console:
        if sys.stdin.isatty() and not context.quiet:
            print(f"connected to the console of {given.name}; Ctrl-] leaves", file=sys.stderr)
        left = terminal.attach(console)
    if left:
        print(f"\nleft the console; {given.name} goes on", file=sys.stderr)
        return 0
    raise RoostError(f"the console of {given.name} ended", "the machine has ended", f"roost show {given.name}")


COMMANDS = {
    "exec": Command(
        _exec_arguments,
        _exec,
        "roost exec web -- uname -a\necho hello | roost exec web -- tr a-z A-Z\nroost exec -u www -w /srv web -- ls",
        words=True,
    ),
    "shell": Command(_shell_arguments, _shell, "roost shell web"),
    "console": Command(_console_arguments, _console, "roost console web        (Ctrl-] leaves)"),
}
