# Derived from aio/programs.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Programs that the daemon keeps running: brought with their policy, looked after, stopped, removed."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Callable, Iterable
from pathlib import Path
from typing import Any, Literal, Unpack

from roost.client import names
from roost.client.blocking.objects import Objects
from roost.client.blocking.session import Session
from roost.client.blocking.wait import apart
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


class ProgramHandle:
    """One program of the daemon. Its fields are as they were when last seen: `refresh` looks again."""

    def __init__(self, session: Session, seen: Program) -> None:
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

    def refresh(self) -> Program:
        """Look again. Raises NotFound when it is gone."""
        self.object = self._objects().get(self.name)
        return self.object

    def start(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Let it run; False when it did already. With `wait` returns when it runs, or has already ended. Raises what kept it from starting."""
        return self._power({"power": "running"}, _runs if wait else None, report)

    def stop(
        self, *, force: bool = False, timeout: float | None = None, wait: bool = True, report: Report = silent
    ) -> bool:
        """Send it SIGTERM; after `timeout` seconds (default: its spec's stop_grace), or at once with `force`, it is killed.

        False when it did not run.
        """
        grace = 0.0 if force else timeout
        spec = {"power": "stopped"} if grace is None else {"power": "stopped", "stop_grace": grace}
        return self._power(spec, _rests if wait else None, report)

    def restart(self, *, wait: bool = True, report: Report = silent) -> None:
        """Stop it and start it again, as its spec is now."""
        seen = self.refresh()
        wish = {"power": "running", "restarts": seen.spec.restarts + (seen.spec.power == "running")}
        self._power(wish, _runs if wait else None, report)

    def wait(self, report: Report = silent) -> ProgramExit:
        """Return when it has come to rest: how its last run ended. Raises NotFound when it was deleted meanwhile."""
        self._follow(_rests, report)
        return self.status.exit or ProgramExit(code=0)

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        """What it printed, standard output and error in one; with `follow` also what it prints until it comes to rest."""
        target = path("programs", self.project, self.name, "logs", follow="true" if follow else None)
        answer = self._session.open(Request("GET", target))
        try:
            for piece in answer.pieces():
                yield piece
        finally:
            answer.close()

    def upload(self, file: str | Path, report: Report = silent) -> None:
        """Bring its file: the one whose sha256 the spec holds. Raises NotFound, Invalid."""
        target = path("programs", self.project, self.name, "content")
        self._session.upload(target, _content(Path(file), report), "application/octet-stream")

    def delete(self, *, wait: bool = True) -> None:
        """Kill it and remove all of it. With `wait` returns when nothing of it is left. Raises NotFound."""
        self._objects().delete(self.name, wait=wait)

    def _objects(self) -> Objects[Program]:
        return Objects(self._session, BY_NAME["program"], Program, self.project)

    def _power(self, spec: dict[str, Any], until: Callable[[Program], bool] | None, report: Report) -> bool:
        before = self.refresh()
        self.object = self._objects().change(self.name, spec)
        if until is not None:
            self._follow(until, report)
        return self.object.meta.generation != before.meta.generation

    def _follow(self, until: Callable[[Program], bool], report: Report) -> None:
        """Return when `until` says so of it. Raises what `until` raises, and NotFound."""
        if until(self.object):
            return
        present = False
        for change in self._objects().changes():
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


class Programs(Objects[Program]):
    """The programs of a project."""

    def __init__(self, session: Session, project: str) -> None:
        super().__init__(session, BY_NAME["program"], Program, project)

    def handle(self, name: str) -> ProgramHandle:
        """The program called `name`. Raises NotFound."""
        return ProgramHandle(self._session, self.get(name))

    def run(self, file: str | Path, *arguments: str, **how: Unpack[Keeping]) -> ProgramHandle:
        """Have the daemon run a file of this computer, and keep it running as `restart` says. The file's content is brought to the daemon.

        Raises Invalid, NotFound (no such file), Conflict (the name is taken), Forbidden (only an admin of the daemon lends the host's
        files and ports), what kept it from starting; a program that did not start stays, to be looked at.
        """
        report = how.get("report", silent)
        where = Path(file)
        digest = apart(lambda: _digest(where, report))
        fields = {name: value for name, value in how.items() if name in PolicyFields.__annotations__}
        policy = how["policy"] if "policy" in how else from_mapping(fields)
        spec: dict[str, Any] = {
            "file": where.name,
            "sha256": digest,
            "arguments": _words(arguments),
            "policy": as_document(policy),
        }
        spec |= {name: how[name] for name in ("vm", "restart", "stop_grace", "cwd") if name in how}
        program = self._create_named(how.get("name"), spec)
        self._bring(program, where, report)
        if how.get("wait", True):
            program._follow(_runs, report)
        return program

    def _bring(self, program: ProgramHandle, file: Path, report: Report) -> None:
        """Its content; a program without one is not left behind, where it is sure that it came to none."""
        try:
            program.upload(file, report)
        except OutcomeUnknown:
            raise
        except RoostError:
            program.delete(wait=False)
            raise
        program.refresh()

    def _create_named(self, name: str | None, spec: dict[str, Any]) -> ProgramHandle:
        if name is not None:
            return ProgramHandle(self._session, self.create(name, spec))
        for _ in range(ATTEMPTS):
            try:
                return ProgramHandle(self._session, self.create(names.pleasant(), spec))
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
