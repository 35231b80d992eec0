"""Programs that the daemon keeps running: brought with their policy, looked after, stopped, removed."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Unpack

from roost.client import names
from roost.client.aio.objects import AsyncObjects
from roost.client.aio.session import AsyncSession
from roost.client.aio.wait import apart
from roost.client.policies import as_document
from roost.client.progress import failed
from roost.client.protocol import Request, path
from roost.client.results import Progress
from roost.errors import Conflict, Forbidden, Invalid, NotFound, OutcomeUnknown, RoostError
from roost.model.kinds import BY_NAME
from roost.model.program import RESTING, Program, ProgramExit, ProgramSpec, ProgramStatus
from roost.runtimes.base import Policy
from roost.runtimes.policy import from_mapping
from roost.runtimes.sdk import PolicyFields

Report = Callable[[str, Progress], None]
"""Told the program's name and how far it is."""

ATTEMPTS = 5
"""Names tried for a program that the caller gave none."""

PIECE = 1 << 20


def silent(name: str, now: Progress) -> None:
    """Tell nobody."""


class Keeping(PolicyFields, total=False):
    """How the daemon keeps a program: its `name` (default: a pleasant one), the runtime `vm` (default: the best), what follows its end
    (`restart`), seconds from SIGTERM to SIGKILL (`stop_grace`), the directory it starts in (`cwd`). Without `wait` the call returns at once,
    not when the program runs. `policy` takes the place of all that says what it may do."""

    name: str | None
    vm: str
    restart: Literal["never", "on-failure", "always"]
    stop_grace: float
    cwd: str
    wait: bool
    report: Report
    policy: Policy


class AsyncProgramHandle:
    """One program of the daemon. Its fields are as they were when last seen: `refresh` looks again."""

    def __init__(self, session: AsyncSession, seen: Program) -> None:
        self._session = session
        self.object = seen

    def __repr__(self) -> str:
        return f"<program {self.object.project}/{self.object.name} {self.object.status.phase}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.object.name

    @property
    def project(self) -> str:
        """The project that owns it."""
        return self.object.project

    @property
    def spec(self) -> ProgramSpec:
        """What is wanted, as last seen."""
        return self.object.spec

    @property
    def status(self) -> ProgramStatus:
        """What is, as last seen."""
        return self.object.status

    async def refresh(self) -> Program:
        """Look again. Raises NotFound when it is gone."""
        self.object = await self._objects().get(self.name)
        return self.object

    async def start(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Let it run; False when it did already. With `wait` returns when it runs, or has already ended. Raises what kept it from starting."""
        return await self._power({"power": "running"}, _runs if wait else None, report)

    async def stop(
        self, *, force: bool = False, timeout: float | None = None, wait: bool = True, report: Report = silent
    ) -> bool:
        """Send it SIGTERM; after `timeout` seconds (default: its spec's stop_grace), or at once with `force`, it is killed.

        False when it did not run.
        """
        grace = 0.0 if force else timeout
        spec = {"power": "stopped"} if grace is None else {"power": "stopped", "stop_grace": grace}
        return await self._power(spec, _rests if wait else None, report)

    async def restart(self, *, wait: bool = True, report: Report = silent) -> None:
        """Stop it and start it again, as its spec is now."""
        seen = await self.refresh()
        wish = {"power": "running", "restarts": seen.spec.restarts + (seen.spec.power == "running")}
        await self._power(wish, _runs if wait else None, report)

    async def wait(self, report: Report = silent) -> ProgramExit:
        """Return when it has come to rest: how its last run ended. Raises NotFound when it was deleted meanwhile."""
        await self._follow(_rests, report)
        return self.status.exit or ProgramExit(code=0)

    async def logs(self, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What it printed, standard output and error in one; with `follow` also what it prints until it comes to rest."""
        target = path("programs", self.project, self.name, "logs", follow="true" if follow else None)
        answer = await self._session.open(Request("GET", target))
        try:
            async for piece in answer.pieces():
                yield piece
        finally:
            answer.close()

    async def upload(self, file: str | Path, report: Report = silent) -> None:
        """Bring its file: the one whose sha256 the spec holds. Raises NotFound, Invalid."""
        target = path("programs", self.project, self.name, "content")
        await self._session.upload(target, _content(Path(file), report), "application/octet-stream")

    async def delete(self, *, wait: bool = True) -> None:
        """Kill it and remove all of it. With `wait` returns when nothing of it is left. Raises NotFound."""
        await self._objects().delete(self.name, wait=wait)

    def _objects(self) -> AsyncObjects[Program]:
        return AsyncObjects(self._session, BY_NAME["program"], Program, self.project)

    async def _power(self, spec: dict[str, Any], until: Callable[[Program], bool] | None, report: Report) -> bool:
        before = await self.refresh()
        self.object = await self._objects().change(self.name, spec)
        if until is not None:
            await self._follow(until, report)
        return self.object.meta.generation != before.meta.generation

    async def _follow(self, until: Callable[[Program], bool], report: Report) -> None:
        """Return when `until` says so of it. Raises what `until` raises, and NotFound."""
        if until(self.object):
            return
        present = False
        async for change in self._objects().changes():
            seen = change.value
            if seen is not None and seen.meta.uid == self.object.meta.uid:
                present = True
                self.object = seen if seen.meta.revision >= self.object.meta.revision else self.object
                report(seen.name, Progress(seen.status.progress or seen.status.phase))
                if until(self.object):
                    return
            elif (change.synced and not present) or (change.value is None and change.name == self.name):
                raise NotFound(f'program "{self.name}" is gone', "it was deleted meanwhile", "roost events")


def _runs(program: Program) -> bool:
    """Whether it runs as it was last wished, or did. Raises what kept it from that."""
    status = program.status
    if status.generation < program.meta.generation:
        return False
    if status.phase in ("failed", "backing-off") and status.exit is not None and status.exit.reason == "failed":
        raise failed(program)
    return status.phase in _BEGUN and status.restarts == program.spec.restarts


_BEGUN = RESTING | {"running", "backing-off"}


def _rests(program: Program) -> bool:
    settled = program.status.generation >= program.meta.generation and program.status.process is None
    return settled and program.status.phase in RESTING and program.spec.power == "stopped"


class AsyncPrograms(AsyncObjects[Program]):
    """The programs of a project."""

    def __init__(self, session: AsyncSession, project: str) -> None:
        super().__init__(session, BY_NAME["program"], Program, project)

    async def handle(self, name: str) -> AsyncProgramHandle:
        """The program called `name`. Raises NotFound."""
        return AsyncProgramHandle(self._session, await self.get(name))

    async def run(self, file: str | Path, *arguments: str, **how: Unpack[Keeping]) -> AsyncProgramHandle:
        """Have the daemon run a file of this computer, and keep it running as `restart` says. The file's content is brought to the daemon.

        Raises Invalid, NotFound (no such file), Conflict (the name is taken), Forbidden (only an admin of the daemon lends the host's
        files and ports), what kept it from starting; a program that did not start stays, to be looked at.
        """
        report = how.get("report", silent)
        where = Path(file)
        digest = await apart(lambda: _digest(where, report))
        fields = {name: value for name, value in how.items() if name in PolicyFields.__annotations__}
        policy = how["policy"] if "policy" in how else from_mapping(fields)
        spec: dict[str, Any] = {
            "file": where.name,
            "sha256": digest,
            "arguments": _words(arguments),
            "policy": as_document(policy),
        }
        spec |= {name: how[name] for name in ("vm", "restart", "stop_grace", "cwd") if name in how}
        program = await self._create_named(how.get("name"), spec)
        await self._bring(program, where, report)
        if how.get("wait", True):
            await program._follow(_runs, report)
        return program

    async def _bring(self, program: AsyncProgramHandle, file: Path, report: Report) -> None:
        """Its content; a program without one is not left behind, where it is sure that it came to none."""
        try:
            await program.upload(file, report)
        except OutcomeUnknown:
            raise
        except RoostError:
            await program.delete(wait=False)
            raise
        await program.refresh()

    async def _create_named(self, name: str | None, spec: dict[str, Any]) -> AsyncProgramHandle:
        if name is not None:
            return AsyncProgramHandle(self._session, await self.create(name, spec))
        for _ in range(ATTEMPTS):
            try:
                return AsyncProgramHandle(self._session, await self.create(names.pleasant(), spec))
            except Conflict as error:
                taken = error
        raise taken


def _words(arguments: tuple[str, ...]) -> list[str]:
    """Arguments as JSON can carry them. Raises Invalid for bytes that are no text."""
    for word in arguments:
        if not word.isprintable() and any("\udc80" <= char <= "\udcff" for char in word):
            why = "an argument holds bytes that are no UTF-8, which the daemon's documents can not hold"
            raise Invalid("the program was not started", why, "run it without --detach")
    return list(arguments)


def _digest(file: Path, report: Report) -> str:
    digest = hashlib.sha256()
    for piece in _read(file, "checking", report):
        digest.update(piece)
    return digest.hexdigest()


def _content(file: Path, report: Report) -> Iterable[bytes]:
    return _read(file, "uploading", report)


def _read(file: Path, what: str, report: Report) -> Iterable[bytes]:
    if not file.is_file():
        raise NotFound(f"{file} does not exist", "it is no file on this computer", "check the path")
    if not os.access(file, os.R_OK):
        raise Forbidden(f"{file} can not be read", "its permissions do not let you", f"ls -lL {shlex.quote(str(file))}")
    size, done = file.stat().st_size, 0
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            done += len(piece)
            report(file.name, Progress(f"{what} {file.name}", done / max(size, done)))
            yield piece
