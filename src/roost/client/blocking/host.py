# Derived from aio/host.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""The SDK's front: one object for a daemon, with its machines, programs, networks, snapshots, images, volumes, pools, projects, nodes and events."""

from __future__ import annotations

import os
from collections.abc import Iterator, Iterable
from contextlib import contextmanager
from typing import Any, Unpack

from roost.client.blocking.appliances import Appliances
from roost.client.blocking.machines import Machines, Snapshots
from roost.client.blocking.networks import Networks
from roost.client.blocking.objects import Objects
from roost.client.blocking.programs import Programs
from roost.client.blocking.session import Session
from roost.client.blocking.sources import Sources
from roost.client.blocking.volumes import Pools, Volumes
from roost.client.blocking.wait import apart
from roost.client.documents import Outcome, check, difference
from roost.client.endpoint import find
from roost.client.protocol import path
from roost.errors import NotFound
from roost.model.event import Event
from roost.model.forward import Forward
from roost.model.kinds import BY_NAME
from roost.model.node import Node
from roost.model.project import Project
from roost.model.ruleset import RuleSet
from roost.runtimes.sdk import CompletedProgram, PolicyFields
from roost.runtimes.sdk import run as run_program


class Running(PolicyFields, total=False):
    """How a program runs: as `roost.run` has it."""

    stdin: bytes | str | int | None
    capture: bool
    check: bool
    cwd: str | os.PathLike[str]
    vm: str


class Host:
    """A daemon. Everything is in one project: `host.machines` are those of the project that `connect` was given."""

    def __init__(self, session: Session, project: str) -> None:
        self.session = session
        self.project = project
        self.machines = Machines(session, project)
        self.appliances = Appliances(session, project)
        self.snapshots = Snapshots(session, project)
        self.programs = Programs(session, project)
        self.networks = Networks(session, project)
        self.rulesets: Objects[RuleSet] = Objects(session, BY_NAME["ruleset"], RuleSet, project)
        self.forwards: Objects[Forward] = Objects(session, BY_NAME["forward"], Forward, project)
        self.images = Sources(session, project)
        self.volumes = Volumes(session, project)
        self.pools = Pools(session)
        self.projects: Objects[Project] = Objects(session, BY_NAME["project"], Project, project)
        self.nodes: Objects[Node] = Objects(session, BY_NAME["node"], Node, "system")
        self.events: Objects[Event] = Objects(session, BY_NAME["event"], Event, project)

    def version(self) -> dict[str, Any]:
        """The daemon's version and build, and who it takes you for."""
        answer: dict[str, Any] = self.session.call("GET", path("version"))
        return answer

    def doctor(self, area: str) -> Any:
        """The daemon's own look at its host; `area` is "host", "jail" or "storage". Raises Forbidden for who is no admin."""
        return self.session.call("GET", path("doctor", area=area), timeout=600.0)

    def run(self, file: str | os.PathLike[str], *arguments: str, **how: Unpack[Running]) -> CompletedProgram:
        """Run a program of this computer to its end: `host.run("app.wasm", "arg", fs=["./data:ro"]).stdout`.

        It runs here, in a sandbox below the caller's own process and with no more than the caller's own rights, as `roost.run` does: the daemon
        is on this computer, and has no part in it. What is to go on without the caller is for `host.programs.run`.
        """
        return apart(lambda: run_program(file, *arguments, **how))

    def apply(self, documents: Iterable[Any]) -> list[Outcome]:
        """Make it so: create what is missing, change what differs. Raises Invalid with every problem of every document before
        anything is changed."""
        return [self._apply(document) for document in check(documents, self.project)]

    def diff(self, documents: Iterable[Any]) -> list[Outcome]:
        """What `apply` would do. Raises Invalid with every problem of every document."""
        return [self._compare(document) for document in check(documents, self.project)]

    def _compare(self, document: dict[str, Any]) -> Outcome:
        try:
            present = self.session.call("GET", _target(document))
        except NotFound:
            return Outcome(document, "create", (), None)
        lines = difference(present, document)
        return Outcome(document, "change" if lines else "same", lines, present)

    def _apply(self, document: dict[str, Any]) -> Outcome:
        outcome = self._compare(document)
        if outcome.action == "create":
            self.session.call("POST", path(BY_NAME[document["kind"]].plural), document)
        elif outcome.action == "change":
            self.session.call(
                "PATCH", _target(document), {name: document[name] for name in ("spec", "meta") if name in document}
            )
        return outcome


def _target(document: dict[str, Any]) -> str:
    kind = BY_NAME[document["kind"]]
    place = (document["project"], document["name"]) if kind.scoped else (document["name"],)
    return path(kind.plural, *place)


@contextmanager
def connect(
    host: str | None = None, *, project: str | None = None, autostart: bool = True
) -> Iterator[Host]:
    """The daemon at `host` ("unix:/path"; default: ROOST_HOST, the system's daemon, your own), started when none runs.

    `project` defaults to ROOST_PROJECT, else "default". Raises Unavailable when it can not be started, Forbidden.
    """
    session = Session(find(host), autostart=autostart)
    try:
        (session.connection()).close()
        yield Host(session, project or os.environ.get("ROOST_PROJECT") or "default")
    finally:
        session.close()
