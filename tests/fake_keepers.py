"""Keepers without processes: programs that run, print and end as told, for tests of everything above them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable

from roost.control.base import Retry
from roost.control.keepers import Begun, State, shape_of
from roost.control.programplan import Outcome
from roost.errors import RoostError
from roost.model.machine import Process
from roost.model.program import Program, ProgramExit

BOOT = "this-boot"
"""The host's boot id."""


class FakeKeeper:
    """A keeper that lives until a test, or a signal, ends it."""

    def __init__(self, world: FakeKeepers, uid: str, run: str, pid: int) -> None:
        self.process = Process(pid=pid, start=pid, uid=0, boot=world.boot)
        self.signals: list[signal.Signals] = []
        self._world = world
        self._uid = uid
        self._run = run
        self._ended = asyncio.Event()

    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._ended.is_set()

    def signal(self, number: signal.Signals) -> None:
        """SIGKILL ends it without a word; SIGTERM its program, unless that is deaf."""
        self.signals.append(number)
        if number == signal.SIGKILL:
            self._ended.set()
        elif not self._world.deaf:
            self.end(143, "signal")

    def end(self, code: int = 0, reason: str = "exit", *, seconds: float = 0.0) -> None:
        """The program ends, and its keeper writes that down."""
        if self.alive():
            exit = ProgramExit(code=code, reason=reason)
            self._world.outcomes[self._uid] = Outcome(self._run, exit, seconds, facts={"runtime": "native"})
            self._ended.set()

    def run(self) -> None:
        """The program has been started."""
        self._world.states[self._uid] = State(self._run, self.process, "running", "native", ("seccomp",))

    async def wait(self) -> None:
        """Return when it has ended."""
        await self._ended.wait()

    def close(self) -> None:
        """Nothing is held."""


class FakeKeepers:
    """What is on the host: it stays when the daemon is restarted. `doubles` counts starts beside a keeper that lives."""

    def __init__(self) -> None:
        self.boot = BOOT
        self.live: dict[str, FakeKeeper] = {}
        self.begins: dict[str, Begun] = {}
        self.states: dict[str, State] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.contents: dict[str, bytes] = {}
        self.starts = 0
        self.doubles = 0
        self.deaf = False
        self.slow = False
        self.refusal: RoostError | None = None
        self.uploaded: Callable[[Program], object] = lambda program: None
        """Told of each upload: a daemon lets the program start."""

    async def start(self, program: Program, run: str) -> FakeKeeper:
        """Begin the start; the program runs at once, unless the keepers are slow. Raises the refusal."""
        uid = program.meta.uid
        earlier = self.live.get(uid)
        if earlier is not None and earlier.alive():
            self.doubles += 1
        if self.refusal is not None:
            raise self.refusal
        self.starts += 1
        self.begins[uid] = Begun(run, program.spec.restarts, shape_of(program.spec))
        keeper = self.live[uid] = FakeKeeper(self, uid, run, 1000 + self.starts)
        self.states[uid] = State(run, keeper.process)
        if not self.slow:
            keeper.run()
        return keeper

    async def find(self, uid: str) -> FakeKeeper | None:
        """The keeper, if it lives."""
        keeper = self.live.get(uid)
        return keeper if keeper is not None and keeper.alive() else None

    def begun(self, uid: str) -> Begun | None:
        """The last start that was begun."""
        return self.begins.get(uid)

    def state(self, uid: str) -> State | None:
        """What the keeper says."""
        return self.states.get(uid)

    def outcome(self, uid: str, name: str) -> Outcome | None:
        """How the last run ended."""
        outcome, begun = self.outcomes.get(uid), self.begins.get(uid)
        return outcome if outcome is not None and begun is not None and outcome.run == begun.run else None

    def has_content(self, program: Program) -> bool:
        """Whether it was uploaded."""
        return program.meta.uid in self.contents

    def has_files(self, uid: str) -> bool:
        """Whether anything is kept."""
        return any(uid in kept for kept in (self.begins, self.states, self.outcomes, self.contents))

    async def remove(self, uid: str) -> None:
        """Remove all that is kept. Raises Retry while it lives."""
        if await self.find(uid) is not None:
            raise Retry("it lives", after=0.1)
        for kept in (self.begins, self.states, self.outcomes, self.contents):
            kept.pop(uid, None)

    def reboot(self) -> None:
        """The host goes down: nothing lives, nothing was written down."""
        self.boot += "-next"
        for keeper in self.live.values():
            keeper._ended.set()
        self.live.clear()

    # ------------------------------------------------------------------ as the API sees them

    async def upload(self, program: Program, content: AsyncIterator[bytes]) -> None:
        """Take the content."""
        self.contents[program.meta.uid] = b"".join([piece async for piece in content])
        self.uploaded(program)

    def record(self, program: Program) -> bytes:
        """Its content is what it printed."""
        return self.contents.get(program.meta.uid, b"")

    async def follow(self, program: Program) -> AsyncIterator[bytes]:
        """The same."""
        yield self.record(program)
