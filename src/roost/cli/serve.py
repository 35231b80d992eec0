"""Verbs about the daemon: serve and version."""

from __future__ import annotations

import os
import select
import signal
from argparse import ArgumentParser, Namespace
from importlib import import_module
from typing import Any

import roost
from roost.build import build_id
from roost.cli import render
from roost.cli.context import Context
from roost.cli.verbs import Command
from roost.client.endpoint import UNIT, connect, find, peer
from roost.client.protocol import path
from roost.errors import Conflict, NotStarted, OutcomeUnknown

PATIENCE = 30.0
"""Seconds a daemon may take to end; machines go on running."""


def _serve_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--stop", action="store_true", help="stop the daemon; machines and programs go on running")
    parser.add_argument(
        "--idle-exit", type=float, metavar="SECONDS", help="end when nothing runs and nobody calls for so long"
    )
    parser.add_argument("--ready-fd", type=int, metavar="N", help="descriptor to write a line to when it listens")


def _serve(context: Context, given: Namespace) -> int:
    if given.stop:
        return _stop(context, given)
    arguments: list[str] = []
    if given.idle_exit is not None:
        arguments += ["--idle-exit", str(given.idle_exit)]
    if given.ready_fd is not None:
        arguments += ["--ready-fd", str(given.ready_fd)]
    # By name: what a daemon needs must not be what every command imports.
    return int(import_module("roost.daemon").main(arguments))


def _stop(context: Context, given: Namespace) -> int:
    endpoint = find(context.host)
    if os.path.lexists(UNIT) and not endpoint.config:
        raise Conflict(
            "the daemon was not stopped", "it belongs to the unit roost.service", "sudo systemctl stop roost"
        )
    try:
        with connect(endpoint) as connection:
            pid = peer(connection).pid
        pidfd = os.pidfd_open(pid)
        with connect(endpoint) as connection:
            if peer(connection).pid != pid:  # it still listens, so the pid was its own when the pidfd was opened
                raise Conflict(
                    "the daemon was not stopped", "another one took its place meanwhile", "roost serve --stop"
                )
    except (NotStarted, ProcessLookupError):
        context.say("no daemon is running")
        return 0
    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    if not poller.poll(PATIENCE * 1000):
        raise OutcomeUnknown(
            f"the daemon (pid {pid}) did not end yet", f"it takes longer than {PATIENCE:g} s", "roost serve --stop"
        )
    os.close(pidfd)
    context.say("the daemon has ended; machines and programs go on running, and the next command starts it again")
    return 0


def _version_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--client", action="store_true", help="only this command's")


def _version(context: Context, given: Namespace) -> int:
    if context.quiet:
        print(f"roost {roost.__version__}")
        return 0
    found: dict[str, Any] = {"command": {"version": roost.__version__, "build": build_id()}, "daemon": None}
    if not given.client:
        context.autostart = False
        try:
            found["daemon"] = context.session.call("GET", path("version"))
        except NotStarted:
            found["daemon"] = None
    if context.output in ("json", "yaml"):
        render.show(found, context.output, render.Table("versions", ()))
        return 0
    print(f"command  roost {roost.__version__} ({build_id()})")
    daemon = found["daemon"]
    print(
        f"daemon   roost {daemon['version']} ({daemon['build']}), pid {daemon['pid']}"
        if daemon
        else "daemon   not running"
    )
    return 0


COMMANDS = {
    "serve": Command(_serve_arguments, _serve, "roost serve\nroost serve --stop"),
    "version": Command(_version_arguments, _version, "roost version"),
}
