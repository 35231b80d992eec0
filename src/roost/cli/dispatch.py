"""Every verb but `run`: finds it, runs it, and turns errors into words and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 conflict, 5 forbidden or over quota, 6 the host lacks something,
130 interrupted. `exec` and `shell` give the guest's own code and use 124 (time is up), 125 (Roost's own error), 126 (nothing in the
guest can run commands) and 127 (not found) for themselves.
"""

from __future__ import annotations

import os
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from importlib import import_module

from roost.cli import VALUED, render
from roost.cli.options import GLOBALS, Parser, global_options
from roost.cli.output import Output
from roost.cli.verbs import BY_NAME, VERBS, Command, Verb
from roost.errors import Conflict, Forbidden, Invalid, NotFound, NotStarted, QuotaExceeded, RoostError, Unavailable

CODES: tuple[tuple[type[RoostError], int], ...] = (
    (Invalid, 2),
    (NotFound, 3),
    (Conflict, 4),
    (Forbidden, 5),
    (QuotaExceeded, 5),
    (Unavailable, 6),
)
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def dispatch(words: list[str]) -> int:
    """Run a command line; the exit code."""
    context: Output | None = None
    verb = ""
    try:
        options, verb, rest = _split(words)
        parsed, command = _parse(verb, rest, options)
        context = _surroundings(parsed, local=command.local)
        code = command.run(context, parsed)
        sys.stdout.flush()
        return code
    except RoostError as error:
        return _failed(error, verb)
    except KeyboardInterrupt:
        return _interrupted(context)
    except BrokenPipeError:
        _mute()
        return 128 + 13  # as a program that SIGPIPE ended
    except Exception as error:
        return _failed(explained(error, verb), verb)
    finally:
        if context is not None:
            context.close()


def explained(error: Exception, verb: str) -> RoostError:
    """What nobody expected, in words; the traceback stays with it for ROOST_DEBUG."""
    found = RoostError(
        "a fault in Roost itself", f"{type(error).__name__}: {error}", "set ROOST_DEBUG=1 to see where, and report it"
    )
    if isinstance(error, RecursionError):
        found = Invalid("the input was not read", "it is nested too deeply", "flatten it")
    elif isinstance(error, ModuleNotFoundError):
        why = f"the Python package {error.name} is not installed"
        found = Unavailable(f"roost {verb} can not run", why, "roost doctor")
    elif isinstance(error, OSError):
        fix = f"check {error.filename}" if error.filename else "roost doctor"
        found = RoostError(f"roost {verb} failed", error.strerror or str(error), fix)
    found.__cause__ = error
    return found


def _surroundings(options: Namespace, *, local: bool) -> Output:
    if local:
        return Output(options)
    from roost.cli.context import Context

    return Context(options)


def parser_of(verb: Verb, command: Command) -> ArgumentParser:
    """The parser of one verb."""
    parser = Parser(
        prog=f"roost {verb.name}",
        description=verb.summary[:1].upper() + verb.summary[1:] + ".",
        epilog="example:\n" + "\n".join(f"  {line}" for line in command.example.splitlines()),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[] if command.program else [global_options()],
    )
    command.arguments(parser)
    return parser


def command_of(verb: Verb) -> Command:
    """What the verb's module says about it; imports the module."""
    commands: dict[str, Command] = import_module(f"roost.cli.{verb.module}").COMMANDS
    return commands[verb.name]


def root_parser() -> ArgumentParser:
    """The parser of what stands before the verb, and of `roost --help`."""
    parser = Parser(
        prog="roost",
        usage="roost [options] VERB ...",
        epilog=_overview(),
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[global_options()],
    )
    parser.add_argument("--version", action="store_true", default=SUPPRESS, help="print the version")
    return parser


def print_help(name: str) -> None:
    """The help of one verb."""
    parser_of(BY_NAME[name], command_of(BY_NAME[name])).print_help()


def globals_of(words: list[str]) -> Namespace:
    """The global options of what stands before the verb. May print help, or the version, and exit."""
    options = root_parser().parse_args(words, Namespace(**GLOBALS))
    if getattr(options, "version", False):
        raise SystemExit(dispatch(["version", "-q"]))
    return options


def _overview() -> str:
    groups: dict[str, list[Verb]] = {}
    for verb in VERBS:
        groups.setdefault(verb.group, []).append(verb)
    lines: list[str] = []
    for group, verbs in groups.items():
        if group:
            lines += [f"{group}:", *(f"  {verb.name:<12}{verb.summary}" for verb in verbs), ""]
    return "\n".join(
        [
            *lines,
            "`roost VERB --help` shows an example.",
            "example:\n  roost launch debian:12 web && roost exec web -- uname -a",
        ]
    )


def _split(words: list[str]) -> tuple[Namespace, str, list[str]]:
    """Global options, the verb, and what follows it."""
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] in VALUED else 1
    options = root_parser().parse_args(words[:index], Namespace(**GLOBALS)) if index else Namespace(**GLOBALS)
    if getattr(options, "version", False):
        return options, "version", ["-q"]
    if index >= len(words):
        root_parser().print_help()
        raise SystemExit(0 if not words else USAGE)
    return options, words[index], words[index + 1 :]


def _parse(name: str, rest: list[str], options: Namespace) -> tuple[Namespace, Command]:
    verb = BY_NAME.get(name)
    if verb is None:
        raise Invalid(f"roost: there is no verb {name!r}", _near(name), "roost --help")
    command = command_of(verb)
    if command.program:
        return _program(verb, command, rest, options), command
    own: list[str] | None = None
    if command.words and "--" in rest:
        cut = rest.index("--")
        rest, own = rest[:cut], rest[cut + 1 :]
    parsed = parser_of(verb, command).parse_args(rest, options)
    if own is not None:
        parsed.command = [*parsed.command, *own]
    return parsed, command


def _program(verb: Verb, command: Command, rest: list[str], options: Namespace) -> Namespace:
    """Read a program and its policy from the words; what is said of the global options there wins."""
    from roost.runtimes import policy

    options.program = policy.parse(rest)
    found = options.program.options
    if found["help"]:
        print_help(verb.name)
        raise SystemExit(0)
    said = {"output": found["format"], **{name: found[name] for name in ("project", "host", "quiet", "yes")}}
    vars(options).update({name: value for name, value in said.items() if value})
    return options


def _near(name: str) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, [verb.name for verb in VERBS if verb.group])
    return f"did you mean {' or '.join(found)}?" if found else ""


def _failed(error: RoostError, verb: str) -> int:
    if os.environ.get("ROOST_DEBUG", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    render.print_error(error)
    if verb == "run":
        from roost.runtimes import execution

        return execution.exit_code(error)
    if verb in ("exec", "shell"):
        return _inside(error)
    return next((code for kind, code in CODES if isinstance(error, kind)), FAILED)


REFUSALS = {"no such file": 127, "not found": 127, "permission denied": 126, "exec format": 126}
"""How guests say that a command can not be run (strerror), and the shells' codes for it."""


def _inside(error: RoostError) -> int:
    """Roost's own codes where all others are the guest's."""
    if error.code == "timeout":
        return 124
    if isinstance(error, NotStarted):
        return next((code for words, code in REFUSALS.items() if words in error.why.lower()), 125)
    return 127 if isinstance(error, NotFound) else 126 if isinstance(error, Unavailable) else 125


def _interrupted(context: Output | None) -> int:
    goes_on = context.goes_on if context is not None else ""
    print("\ninterrupted" + (f": {render.clean(goes_on)}" if goes_on else ""), file=sys.stderr)
    return INTERRUPTED


def _mute() -> None:
    """Nobody reads standard output any more: what is left in its buffer must not raise at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
