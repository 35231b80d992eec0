"""The SDK's front: one object for a daemon, with its machines, programs, networks, snapshots, images, volumes, pools, projects, nodes and events."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Unpack

from roost.client.aio.appliances import AsyncAppliances
from roost.client.aio.machines import AsyncMachines, AsyncSnapshots
from roost.client.aio.networks import AsyncNetworks
from roost.client.aio.objects import AsyncObjects
from roost.client.aio.programs import AsyncPrograms
from roost.client.aio.session import AsyncSession
from roost.client.aio.sources import AsyncSources
from roost.client.aio.volumes import AsyncPools, AsyncVolumes
from roost.client.aio.wait import apart
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


class AsyncHost:
    """A daemon. Everything is in one project: `host.machines` are those of the project that `connect` was given."""

    def __init__(self, session: AsyncSession, project: str) -> None:
        self.session = session
        self.project = project
        self.machines = AsyncMachines(session, project)
        self.appliances = AsyncAppliances(session, project)
        self.snapshots = AsyncSnapshots(session, project)
        self.programs = AsyncPrograms(session, project)
        self.networks = AsyncNetworks(session, project)
        self.rulesets: AsyncObjects[RuleSet] = AsyncObjects(session, BY_NAME["ruleset"], RuleSet, project)
        self.forwards: AsyncObjects[Forward] = AsyncObjects(session, BY_NAME["forward"], Forward, project)
        self.images = AsyncSources(session, project)
        self.volumes = AsyncVolumes(session, project)
        self.pools = AsyncPools(session)
        self.projects: AsyncObjects[Project] = AsyncObjects(session, BY_NAME["project"], Project, project)
        self.nodes: AsyncObjects[Node] = AsyncObjects(session, BY_NAME["node"], Node, "system")
        self.events: AsyncObjects[Event] = AsyncObjects(session, BY_NAME["event"], Event, project)

    async def version(self) -> dict[str, Any]:
        """The daemon's version and build, and who it takes you for."""
        answer: dict[str, Any] = await self.session.call("GET", path("version"))
        return answer

    async def doctor(self, area: str) -> Any:
        """The daemon's own look at its host; `area` is "host", "jail" or "storage". Raises Forbidden for who is no admin."""
        return await self.session.call("GET", path("doctor", area=area), timeout=600.0)

    async def run(self, file: str | os.PathLike[str], *arguments: str, **how: Unpack[Running]) -> CompletedProgram:
        """Run a program of this computer to its end: `host.run("app.wasm", "arg", fs=["./data:ro"]).stdout`.

        It runs here, in a sandbox below the caller's own process and with no more than the caller's own rights, as `roost.run` does: the daemon
        is on this computer, and has no part in it. What is to go on without the caller is for `host.programs.run`.
        """
        return await apart(lambda: run_program(file, *arguments, **how))

    async def apply(self, documents: Iterable[Any]) -> list[Outcome]:
        """Make it so: create what is missing, change what differs. Raises Invalid with every problem of every document before
        anything is changed."""
        return [await self._apply(document) for document in check(documents, self.project)]

    async def diff(self, documents: Iterable[Any]) -> list[Outcome]:
        """What `apply` would do. Raises Invalid with every problem of every document."""
        return [await self._compare(document) for document in check(documents, self.project)]

    async def _compare(self, document: dict[str, Any]) -> Outcome:
        try:
            present = await self.session.call("GET", _target(document))
        except NotFound:
            return Outcome(document, "create", (), None)
        lines = difference(present, document)
        return Outcome(document, "change" if lines else "same", lines, present)

    async def _apply(self, document: dict[str, Any]) -> Outcome:
        outcome = await self._compare(document)
        if outcome.action == "create":
            await self.session.call("POST", path(BY_NAME[document["kind"]].plural), document)
        elif outcome.action == "change":
            await self.session.call(
                "PATCH", _target(document), {name: document[name] for name in ("spec", "meta") if name in document}
            )
        return outcome


def _target(document: dict[str, Any]) -> str:
    kind = BY_NAME[document["kind"]]
    place = (document["project"], document["name"]) if kind.scoped else (document["name"],)
    return path(kind.plural, *place)


@asynccontextmanager
async def connect_async(
    host: str | None = None, *, project: str | None = None, autostart: bool = True
) -> AsyncIterator[AsyncHost]:
    """The daemon at `host` ("unix:/path"; default: ROOST_HOST, the system's daemon, your own), started when none runs.

    `project` defaults to ROOST_PROJECT, else "default". Raises Unavailable when it can not be started, Forbidden.
    """
    session = AsyncSession(find(host), autostart=autostart)
    try:
        (await session.connection()).close()
        yield AsyncHost(session, project or os.environ.get("ROOST_PROJECT") or "default")
    finally:
        session.close()
