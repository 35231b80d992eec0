"""Machines: launch them, run commands in them, copy files, change their power, remove them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import msgspec

from roost.client.aio.execution import AsyncConsole, AsyncExecution, Input
from roost.client.aio.objects import AsyncObjects, Change, decode
from roost.client.aio.session import AsyncSession
from roost.client.aio.sources import AsyncSources
from roost.client.aio.transfer import copy_in, copy_out
from roost.client.names import pleasant
from roost.client.progress import Sign, Until, paused, progress, running, stopped
from roost.client.protocol import Request, path
from roost.client.results import Completed, Progress
from roost.client.websocket import Start
from roost.errors import Conflict, Invalid
from roost.model.kinds import BY_NAME
from roost.model.machine import Machine, MachineSpec, MachineStatus, Timing

Report = Callable[[str, Progress], None]
"""Told the machine's name and how far it is."""

ATTEMPTS = 5
"""Names tried for a machine that the caller gave none."""


def silent(name: str, now: Progress) -> None:
    """Tell nobody."""


class How(TypedDict, total=False):
    """How a command runs: environment added to the guest's own, working directory, user, seconds until it is killed."""

    env: Mapping[str, str]
    cwd: str
    user: str
    timeout: float | None


class AsyncMachineHandle:
    """One machine. Its fields are as they were when last seen: `refresh` looks again."""

    def __init__(self, session: AsyncSession, seen: Machine) -> None:
        self._session = session
        self.object = seen

    def __repr__(self) -> str:
        return f"<machine {self.object.project}/{self.object.name} {self.object.status.phase}>"

    @property
    def name(self) -> str:
        """Its name."""
        return self.object.name

    @property
    def project(self) -> str:
        """The project that owns it."""
        return self.object.project

    @property
    def spec(self) -> MachineSpec:
        """What is wanted, as last seen."""
        return self.object.spec

    @property
    def status(self) -> MachineStatus:
        """What is, as last seen."""
        return self.object.status

    @property
    def timing(self) -> Timing:
        """How long each step of the last start took, in seconds, and by which path the machine came up."""
        return self.object.status.timing

    async def refresh(self) -> Machine:
        """Look again. Raises NotFound when it is gone."""
        self.object = decode(await self._session.call("GET", path("machines", *self._place)), Machine)
        return self.object

    async def run(self, *argv: str, input: Input = None, **how: Unpack[How]) -> Completed:
        """Run a command (no shell) to its end. Raises NotStarted when nothing happened, OutcomeUnknown when it may have; see `check()`."""
        async with self.stream(*argv, input=input, **how) as execution:
            return await execution.completed()

    def stream(self, *argv: str, input: Input = None, **how: Unpack[How]) -> AsyncExecution:
        """A command to iterate over: it starts with the first step, gives `Output` as it comes, and leaving the loop kills it."""
        return AsyncExecution(self._session, self._place, _start(argv, how, stdin=input is not None), input)

    async def execute(
        self, *argv: str, stdin: bool = False, terminal: tuple[int, int] | None = None, **how: Unpack[How]
    ) -> AsyncExecution:
        """Start a command, to talk to it: with `stdin` write to it, with `terminal` (rows, columns) it gets one."""
        start = _start(argv, how, stdin=stdin)._replace(terminal=terminal)
        return await AsyncExecution(self._session, self._place, start).open()

    async def console(self) -> AsyncConsole:
        """The serial console."""
        return await AsyncConsole.open(self._session, self._place)

    async def logs(self, *, follow: bool = False) -> AsyncIterator[bytes]:
        """What the serial console printed; with `follow` also what it prints from now on."""
        target = path("machines", *self._place, "logs", follow="true" if follow else None)
        answer = await self._session.open(Request("GET", target))
        try:
            async for piece in answer.pieces():
                yield piece
        finally:
            answer.close()

    async def copy_in(self, source: str | Path, target: str) -> None:
        """Copy a file or directory of this computer into the machine, with modes. Into `target` when that is a directory or ends
        with "/", else under that name. Raises NotFound, Conflict (it does not run)."""
        await copy_in(self._session, self._place, Path(source), target)

    async def copy_out(self, source: str, target: str | Path) -> list[str]:
        """Copy a file or directory out of the machine. Returns what was left out (devices, links that point elsewhere), and why."""
        return await copy_out(self._session, self._place, source, Path(target))

    async def start(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Let it run; False when it did already. With `wait` returns when a command can run inside.

        Raises what kept it from starting: Unavailable, Conflict, ...
        """
        return await self._power({"power": "running"}, running if wait else None, report)

    async def stop(
        self, *, force: bool = False, timeout: float | None = None, wait: bool = True, report: Report = silent
    ) -> bool:
        """Ask the guest to shut down; after `timeout` seconds (default: its spec's stop_grace), or at once with `force`, it is ended.

        False when it was stopped already.
        """
        grace = 0.0 if force else timeout
        spec = {"power": "stopped"} if grace is None else {"power": "stopped", "stop_grace": grace}
        return await self._power(spec, stopped if wait else None, report)

    async def pause(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Stop its virtual CPUs; False when they are stopped already."""
        return await self._power({"power": "paused"}, paused if wait else None, report)

    async def resume(self, *, wait: bool = True, report: Report = silent) -> bool:
        """Let a paused machine go on; False when it runs. Raises Conflict when it is not paused: `start` boots a stopped one."""
        if self.object.spec.power == "stopped":
            what = f'machine "{self.name}" can not be resumed'
            raise Conflict(what, f"it is {self.status.phase}, not paused", f"roost start {self.name}")
        return await self.start(wait=wait, report=report)

    async def restart(self, *, wait: bool = True, report: Report = silent) -> None:
        """Shut it down and start it again."""
        seen = await self.refresh()
        wish = {"power": "running", "restarts": seen.spec.restarts + (seen.spec.power != "stopped")}
        await self._power(wish, running if wait else None, report)

    async def rename(self, name: str) -> None:
        """Give it another name; a running machine goes on, its hostname inside stays. Raises Conflict when the name is taken."""
        self.object = decode(
            await self._session.call("POST", path("machines", *self._place, "rename"), {"name": name}), Machine
        )

    async def delete(self, *, wait: bool = True) -> None:
        """Remove it and its disk, running or not. With `wait` returns when nothing of it is left. Raises NotFound."""
        await AsyncMachines(self._session, self.project).delete(self.name, wait=wait)

    async def wait_for(self, sign: Sign, report: Report = silent) -> None:
        """Return when `sign` says so of its status. Raises what the sign raises, and NotFound when the machine is deleted meanwhile."""
        await AsyncMachines(self._session, self.project).wait_for([self], sign, report)

    @property
    def _place(self) -> tuple[str, str]:
        return self.project, self.name

    async def _power(self, spec: dict[str, Any], sign: Sign | None, report: Report) -> bool:
        before = self.object.meta.generation, self.object.status.phase
        self.object = decode(await self._session.call("PATCH", path("machines", *self._place), {"spec": spec}), Machine)
        changed = (self.object.meta.generation, self.object.status.phase) != before or (
            sign is not None and not sign.holds(self.object)
        )
        if sign is not None:
            await self.wait_for(sign, report)
        return changed


class AsyncMachines(AsyncObjects[Machine]):
    """The machines of a project."""

    def __init__(self, session: AsyncSession, project: str) -> None:
        super().__init__(session, BY_NAME["machine"], Machine, project)

    async def handle(self, name: str) -> AsyncMachineHandle:
        """The machine called `name`. Raises NotFound."""
        return AsyncMachineHandle(self._session, await self.get(name))

    async def launch(
        self, template: str, name: str | None = None, *, wait: bool = True, report: Report = silent, **spec: Any
    ) -> AsyncMachineHandle:
        """Make a machine from a template ("tiny", "debian:12"), an image, a disk file, or a URL (with `sha256`), and start it.

        `spec` holds fields of MachineSpec; sizes may be written "1GiB". Without a name it gets a pleasant one. With `wait`
        returns when a command can run inside. Raises Invalid, Conflict (name taken), what kept it from starting; a machine
        that did not start stays, to be looked at.
        """
        sha256 = spec.pop("sha256", None)
        image = await AsyncSources(self._session, self._project).image_of(template, sha256, report)
        machine = await self._create_named(name, {"image": image, **_plain(spec)})
        if wait:
            await machine.wait_for(running, report)
        return machine

    async def wait_for(self, machines: Sequence[AsyncMachineHandle], sign: Sign, report: Report = silent) -> None:
        """Return when `sign` says so of every one of the machines; one watch for all."""
        waiting = {machine.object.meta.uid: machine for machine in machines}
        until = Until(sign, {machine.object.meta.uid: machine.object for machine in machines})
        if until.done():
            return
        async for change in self.changes():
            machine = waiting.get(change.value.meta.uid) if change.value is not None else None
            if machine is not None and change.value is not None:
                machine.object = change.value
                report(machine.name, progress(machine.object))
            _judge(until, change)
            if until.done():
                return

    async def _create_named(self, name: str | None, spec: dict[str, Any]) -> AsyncMachineHandle:
        if name is not None:
            return AsyncMachineHandle(self._session, await self.create(name, spec))
        for _ in range(ATTEMPTS):
            try:
                return AsyncMachineHandle(self._session, await self.create(pleasant(), spec))
            except Conflict as error:
                taken = error
        raise taken


def _judge(until: Until, change: Change[Machine]) -> None:
    if change.value is not None:
        until.see(change.value)
    elif change.name is not None:
        until.gone(change.project, change.name)
    elif change.synced:
        until.all_seen()


def _start(argv: tuple[str, ...], how: How, *, stdin: bool) -> Start:
    if not argv:
        raise Invalid("no command was given", "argv is empty", 'name a program: run("uname", "-a")')
    return Start(
        argv, dict(how.get("env", {})), how.get("cwd", ""), how.get("user", ""), stdin, None, how.get("timeout")
    )


def _plain(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as JSON; None means "as the default is"."""
    return {name: msgspec.to_builtins(value) for name, value in spec.items() if value is not None}
