"""The verb program: what the daemon keeps running; and `roost run --detach`, which gives it something to keep."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from roost.cli.context import Context
from roost.cli.delete import delete
from roost.cli.dispatch import CODES, FAILED, INTERRUPTED, explained
from roost.cli.look import TABLES, in_project
from roost.cli.options import GLOBALS, actions
from roost.cli.power import each
from roost.cli.render import print_error, show
from roost.cli.streams import print_log
from roost.cli.verbs import Command
from roost.cli.waiting import Waiting
from roost.client.blocking.programs import ProgramHandle, Programs
from roost.client.protocol import path
from roost.errors import RoostError
from roost.model.codec import plain
from roost.runtimes.policy import Parsed

RESTARTS = {"no": "never"}
"""Words of the command line that the model has another for."""


def detach(parsed: Parsed) -> int:
    """`roost run --detach`: hand the program to the daemon; the exit code, as of every verb that talks to it."""
    options = parsed.options
    given = {name: options[name] for name in ("project", "host", "quiet", "yes")}
    context = Context(Namespace(**{**GLOBALS, **given, "output": options["format"]}))
    try:
        return _begin(context, parsed)
    except Exception as error:
        known = error if isinstance(error, RoostError) else explained(error, "run")
        print_error(known)
        return next((code for kind, code in CODES if isinstance(known, kind)), FAILED)
    except KeyboardInterrupt:
        context.warn(context.goes_on or "interrupted")
        return INTERRUPTED
    finally:
        context.close()


def _begin(context: Context, parsed: Parsed) -> int:
    options: dict[str, Any] = parsed.options
    restart: Any = RESTARTS.get(options["restart"] or "no", options["restart"])
    cwd = str(Path.cwd()) if any(_covers(grant.target) for grant in parsed.policy.fs) else ""
    context.goes_on = f"what was begun goes on; `roost program list{_in(context)}` shows it"
    with Waiting(quiet=context.quiet) as waiting:
        program = Programs(context.session, context.project).run(
            parsed.file, *parsed.arguments, name=options["name"], vm=options["vm"] or "", restart=restart, cwd=cwd,
            policy=parsed.policy, report=waiting.report,
        )  # fmt: skip
    if context.output in ("json", "yaml", "name"):
        show(plain(program.object), context.output, TABLES["program"])
        return 0
    context.say(f"{program.name} {_now(program)}; next: roost logs{_in(context)} {program.name}")
    return 0


def _in(context: Context) -> str:
    """The flag for the next command, where it needs one."""
    return "" if context.project == "default" else f" --project {context.project}"


def _covers(target: str) -> bool:
    """Whether what is lent makes the current directory mean something inside."""
    here = os.getcwd()  # noqa: PTH109 (a path as text)
    return here == target or here.startswith(target.rstrip("/") + "/") or target.startswith(here + "/")


def _arguments(parser: ArgumentParser) -> None:
    add = actions(parser)
    listed = add("list", "list programs")
    listed.add_argument("-a", "--all-projects", action="store_true", help="in all projects that you may see")
    add("show", "show all about programs").add_argument("names", metavar="NAME", nargs="+")
    logs = add("logs", "show what a program printed")
    logs.add_argument("name", metavar="NAME")
    logs.add_argument("-f", "--follow", action="store_true", help="go on and print what comes")
    _several(add("start", "let programs run"))
    stopped = _several(add("stop", "send SIGTERM to programs, and SIGKILL after their grace"))
    stopped.add_argument("-f", "--force", action="store_true", help="kill them at once")
    stopped.add_argument("-t", "--timeout", type=float, metavar="SECONDS", help="how long they may take (default 10)")
    _several(add("restart", "stop programs and start them again"))
    uploaded = add("upload", "bring the file of a program that was made from a document")
    uploaded.add_argument("name", metavar="NAME")
    uploaded.add_argument("file", metavar="FILE")
    deleted = _several(add("delete", "kill programs and remove all of them"))
    deleted.add_argument("--ignore-missing", action="store_true", help="it is fine when it does not exist")


def _several(parser: ArgumentParser) -> ArgumentParser:
    parser.add_argument("names", metavar="NAME", nargs="+")
    parser.add_argument("--no-wait", action="store_true", help="return at once")
    return parser


def _program(context: Context, given: Namespace) -> int:
    acts = {"list": _list, "show": _show, "logs": _logs, "upload": _upload, "delete": _delete}
    return acts.get(given.action, _power)(context, given)


def _list(context: Context, given: Namespace) -> int:
    project = "all" if given.all_projects else context.project
    table = in_project(TABLES["program"]) if given.all_projects else TABLES["program"]
    context.show(context.items("programs", project=project), table)
    return 0


def _show(context: Context, given: Namespace) -> int:
    found: list[Any] = [context.session.call("GET", path("programs", context.project, name)) for name in given.names]
    show(found if len(found) > 1 else found[0], context.output or "yaml", TABLES["program"])
    return 0


def _logs(context: Context, given: Namespace) -> int:
    return print_log(context, path("programs", context.project, given.name, "logs", follow=_flag(given.follow)))


def _flag(value: bool) -> str | None:
    return "true" if value else None


def _upload(context: Context, given: Namespace) -> int:
    with Waiting(quiet=context.quiet) as waiting:
        Programs(context.session, context.project).handle(given.name).upload(given.file, waiting.report)
    context.say(f"{given.name} has its file")
    return 0


def _delete(context: Context, given: Namespace) -> int:
    return delete(context, "program", list(given.names), given)


def _power(context: Context, given: Namespace) -> int:
    programs = Programs(context.session, context.project)
    context.goes_on = (
        f"what was begun goes on ({given.action} {' '.join(given.names)}); `roost program list{_in(context)}` shows it"
    )
    with Waiting(quiet=context.quiet) as waiting:
        return each(context, given.names, lambda name: _ACTS[given.action](programs.handle(name), given, waiting))


def _start(program: ProgramHandle, given: Namespace, waiting: Waiting) -> str:
    changed = program.start(wait=not given.no_wait, report=waiting.report)
    return f"{program.name} {_now(program) if changed else 'already runs'}"


def _stop(program: ProgramHandle, given: Namespace, waiting: Waiting) -> str:
    was = program.status.phase in ("stopped", "exited", "failed")
    program.stop(force=given.force, timeout=given.timeout, wait=not given.no_wait, report=waiting.report)
    return f"{program.name} {'is already stopped' if was else 'is stopping' if given.no_wait else 'is stopped'}"


def _restart(program: ProgramHandle, given: Namespace, waiting: Waiting) -> str:
    program.restart(wait=not given.no_wait, report=waiting.report)
    return f"{program.name} {_now(program)}"


def _now(program: ProgramHandle) -> str:
    return "runs" if program.status.phase == "running" else f"is {program.status.phase}"


_ACTS = {"start": _start, "stop": _stop, "restart": _restart}

COMMANDS = {
    "program": Command(
        _arguments,
        _program,
        "roost run --detach --name api --restart always server.wasm\nroost program list\nroost program logs api --follow",
    )
}
