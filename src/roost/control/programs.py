"""The reconciler of programs: observe, plan one step, act, look again."""

from __future__ import annotations

import asyncio
import signal
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.keepers import Keeper, Keepers, shape_of, watch
from roost.control.programplan import WAITING, Outcome, Seen, Step, delay, ended, is_restarting, lost, next_step
from roost.control.records import Records
from roost.control.reservations import Reservations
from roost.errors import NotFound, RoostError, Unavailable
from roost.host import failpoints
from roost.host.clock import Clock
from roost.log import bind, get
from roost.model.meta import Trouble
from roost.model.program import UNBOUNDED_MEMORY, Program, ProgramExit, privileges

FIRST_LOOK, LONGEST_LOOK = 0.02, 1.0
"""Seconds between two looks at a keeper that starts its program; the first, and what they grow to."""

CHANGED = "what it runs was changed since it was started; a restart makes it so: roost program restart {}"

LAST: frozenset[Step] = frozenset({"await-content", "back-off", "await-start", "await-end", "remove-object"})
"""Steps after which nothing is to be looked at before something happens."""


class Means(NamedTuple):
    """What the reconciler acts with. `boot` is the host's boot id, `wall` the time of day."""

    keepers: Keepers
    reservations: Reservations
    clock: Clock
    wall: Callable[[], datetime]
    boot: str
    node: str = ""


class _Held:
    """What is held of one program in memory; all of it can be found again from the world."""

    def __init__(self) -> None:
        self.key = ""
        self.looked = False
        self.keeper: Keeper | None = None
        self.waiter: asyncio.Task[Any] | None = None
        self.asked: float | None = None
        self.killed = False
        self.due: float | None = None
        self.looks = 0

    def let_go(self) -> None:
        """Without touching the keeper."""
        if self.waiter is not None:
            self.waiter.cancel()
        if self.keeper is not None:
            self.keeper.close()
        self.keeper = self.waiter = self.asked = None
        self.looks = 0


class Programs:
    """Brings programs from what is to what is wanted. `wake` and `wake_after` are the loop's."""

    def __init__(
        self,
        records: Records,
        recorder: Recorder,
        means: Means,
        wake: Callable[[str], None],
        wake_after: Callable[[str, float], None],
    ) -> None:
        self._records = records
        self._recorder = recorder
        self._means = means
        self._wake = wake
        self._wake_after = wake_after
        self._held: dict[str, _Held] = {}
        self._acts: dict[Step, Callable[[str, Program, _Held], Awaitable[None]]] = {
            "await-content": self._await_content,
            "back-off": self._back_off,
            "start": self._start,
            "show-starting": self._show_starting,
            "await-start": self._await_start,
            "show-running": self._show_running,
            "terminate": self._terminate,
            "await-end": self._await_end,
            "kill": self._kill,
            "settle": self._settle,
            "show-stopped": self._show_stopped,
            "remove-files": self._remove_files,
            "remove-object": self._remove_object,
        }

    def running(self) -> int:
        """How many keepers are held."""
        return sum(held.keeper is not None for held in self._held.values())

    def detach(self) -> None:
        """Let go of all keepers without touching them."""
        for held in self._held.values():
            held.let_go()

    async def reconcile(self, key: str) -> None:
        """Observe, plan, act for the program at `key`, until nothing differs. Raises Retry."""
        while True:
            try:
                program = await self._records.program(key)
            except NotFound:
                return
            with bind(program=program.name, project=program.project):
                held = self._held.setdefault(program.meta.uid, _Held())
                held.key = key
                step = next_step(program, await self._observe(program, held))
                if step is None:
                    return
                await failpoints.reach(f"program.{step}")
                await self._act(step, key, program, held)
                if step in LAST:
                    return

    async def _act(self, step: Step, key: str, program: Program, held: _Held) -> None:
        try:
            await self._acts[step](key, program, held)
        except RoostError as error:
            raise Retry(str(error)) from error

    # ------------------------------------------------------------------ observe

    async def _observe(self, program: Program, held: _Held) -> Seen:
        keepers, uid = self._means.keepers, program.meta.uid
        if not held.looked:
            keeper = await keepers.find(uid)
            held.looked = True
            if keeper is not None:
                get(__name__).info("program adopted", pid=keeper.process.pid)
                self._hold(held, keeper)
                self._means.reservations.hold(uid, self._forecast(program))
        if held.keeper is not None and not held.keeper.alive():
            await asyncio.wait([held.waiter]) if held.waiter is not None else None
            held.let_go()
        begun, state = keepers.begun(uid), keepers.state(uid)
        run = begun.run if begun is not None else ""
        alive = held.keeper is not None
        started = state is not None and state.run == run and state.phase == "running"
        unsaid = run != program.status.ended if run else program.status.process is not None
        return Seen(
            keeper=("running" if started else "starting") if alive else "none",
            run=run,
            unsettled=not alive and unsaid,
            asked=held.asked is not None,
            overdue=self._grace_left(program, held) <= 0,
            waiting=not alive and self._waits(program, held),
            content=keepers.has_content(program),
            files=keepers.has_files(uid),
        )

    def _hold(self, held: _Held, keeper: Keeper) -> None:
        held.let_go()
        held.keeper, held.due = keeper, None
        held.waiter = watch(keeper, lambda: self._wake(held.key), f"end of {held.key}")

    def _grace_left(self, program: Program, held: _Held) -> float:
        """Seconds until it is killed; a shorter grace given meanwhile (`stop --force`) counts at once."""
        asked = held.asked if held.asked is not None else self._means.clock.now()
        return asked + program.spec.stop_grace - self._means.clock.now()

    def _waits(self, program: Program, held: _Held) -> bool:
        """Whether the next start is to come later. A daemon that was started anew waits the whole time again."""
        if program.status.phase != "backing-off" or is_restarting(program):
            return False
        if held.due is None:
            held.due = self._means.clock.now() + delay(program.status.failures)
        return held.due > self._means.clock.now()

    # ------------------------------------------------------------------ act: towards running

    async def _await_content(self, key: str, program: Program, held: _Held) -> None:
        await self._show(key, phase="pending", progress=WAITING, generation=program.meta.generation)

    async def _back_off(self, key: str, program: Program, held: _Held) -> None:
        assert held.due is not None
        self._wake_after(key, held.due - self._means.clock.now())
        await self._show(key, generation=program.meta.generation)

    async def _start(self, key: str, program: Program, held: _Held) -> None:
        run = uuid.uuid4().hex
        uid = program.meta.uid
        held.due = None
        try:
            _check_trust(program)
            await self._means.reservations.take(uid, self._forecast(program))
            keeper = await self._means.keepers.start(program, run)
        except RoostError as error:
            await self._not_started(key, program, held, error)
            return
        except OSError as error:
            refused = Unavailable("the host refused", str(error), "roost doctor")
            await self._not_started(key, program, held, refused)
            return
        self._hold(held, keeper)
        await failpoints.reach("program.started")

    async def _show_starting(self, key: str, program: Program, held: _Held) -> None:
        """A keeper begins; or one is found that a daemon before this one began, and did not write down."""
        begun = self._means.keepers.begun(program.meta.uid)
        if held.keeper is None or begun is None:
            raise Retry("the keeper ended meanwhile", after=0)
        await self._show(
            key, phase="starting", process=held.keeper.process, run=begun.run, warnings=(), restarts=begun.restarts, node=self._means.node,
            started=self._stamp(), finished="", exit=None, progress="", runtime="", layers=(), missing=(), refusals=(), usage={},
        )  # fmt: skip

    async def _await_start(self, key: str, program: Program, held: _Held) -> None:
        self._wake_after(key, min(LONGEST_LOOK, FIRST_LOOK * 2.0 ** min(held.looks, 16)))
        held.looks += 1

    async def _show_running(self, key: str, program: Program, held: _Held) -> None:
        state, begun = self._means.keepers.state(program.meta.uid), self._means.keepers.begun(program.meta.uid)
        if state is None or begun is None:
            raise Retry("the keeper ended meanwhile", after=0)
        was = program.status.phase
        after = await self._show(
            key, phase="running", layers=state.layers, missing=state.missing, error=None, progress="",
            generation=program.meta.generation, runtime=state.runtime,
            warnings=() if begun.shape == shape_of(program.spec) else (CHANGED.format(program.name),),
        )  # fmt: skip
        if was == "starting":
            await self._recorder.record(after, "Started", f"the program runs as process {state.process.pid}")

    def _forecast(self, program: Program) -> int:
        memory = program.spec.policy.memory or UNBOUNDED_MEMORY
        return min(memory, self._means.reservations.forecast("fork", memory))

    async def _not_started(self, key: str, program: Program, held: _Held, error: RoostError) -> None:
        self._means.reservations.release(program.meta.uid)
        trouble = Trouble(
            what=f'program "{program.name}" did not start', why=_told(error), fix=error.fix, code=error.code
        )
        exit = ProgramExit(code=125, reason="failed", message=f"{trouble.what}: {trouble.why}")
        begun = self._means.keepers.begun(program.meta.uid)
        done = Outcome(begun.run if begun is not None else program.status.ended, exit, trouble=trouble)
        await self._write_end(key, held, done, restarts=program.spec.restarts)

    # ------------------------------------------------------------------ act: towards stopped and gone

    async def _terminate(self, key: str, program: Program, held: _Held) -> None:
        """Written down first: whoever sees its end knows then that it was wanted."""
        await self._show(key, phase="stopping", generation=program.meta.generation)
        held.asked = self._means.clock.now()
        if program.spec.stop_grace > 0:
            _keeper(held).signal(signal.SIGTERM)

    async def _await_end(self, key: str, program: Program, held: _Held) -> None:
        self._wake_after(key, max(0.0, self._grace_left(program, held)))

    async def _kill(self, key: str, program: Program, held: _Held) -> None:
        keeper = _keeper(held)
        held.killed = True
        keeper.signal(signal.SIGKILL)
        await keeper.wait()

    async def _settle(self, key: str, program: Program, held: _Held) -> None:
        """What its keeper wrote down of the end, or that nobody did."""
        keepers, uid = self._means.keepers, program.meta.uid
        begun = keepers.begun(uid)
        outcome = keepers.outcome(uid, program.name)
        if outcome is None:
            run = begun.run if begun is not None else program.status.run
            state = keepers.state(uid)
            process = program.status.process or (state.process if state is not None else None)
            reason = "Roost killed it" if held.killed else ""
            outcome = lost(program, run, self._means.boot, process, reason)._replace(seconds=self._seconds(program))
        held.killed = False
        self._means.reservations.release(uid)
        await self._write_end(
            key, held, outcome, restarts=begun.restarts if begun is not None else program.status.restarts
        )

    def _seconds(self, program: Program) -> float:
        """How long a run of which nobody wrote down the end may have lasted."""
        if not program.status.started:
            return 0.0
        return (self._means.wall() - datetime.fromisoformat(program.status.started)).total_seconds()

    async def _write_end(self, key: str, held: _Held, outcome: Outcome, restarts: int) -> None:
        def change(program: Program) -> Program:
            # A restart that this run was the answer to is carried out; one that was asked for since is not.
            carried = replace(program, status=replace(program.status, restarts=max(restarts, program.status.restarts)))
            after = ended(carried, outcome)
            return replace(after, status=replace(after.status, finished=self._stamp()))

        after = await self._records.change(key, Program, change)
        held.due = None
        reason, level = _REASONS.get(after.status.phase, ("Ended", "info"))
        text = outcome.exit.message or f"it ended with exit code {outcome.exit.code}"
        if after.status.phase == "backing-off":
            text += f"; the next start comes in {delay(after.status.failures):.0f} s"
        await self._recorder.record(after, reason, text, level=level)

    async def _show_stopped(self, key: str, program: Program, held: _Held) -> None:
        held.due = None
        kept = program.status.phase if program.status.phase in ("exited", "failed") else "stopped"
        await self._show(
            key, phase=kept, generation=program.meta.generation, restarts=program.spec.restarts, failures=0, progress=""
        )

    async def _remove_files(self, key: str, program: Program, held: _Held) -> None:
        self._means.reservations.release(program.meta.uid)
        await self._means.keepers.remove(program.meta.uid)

    async def _remove_object(self, key: str, program: Program, held: _Held) -> None:
        held.let_go()
        await self._records.remove(key, program.meta.revision)
        self._held.pop(program.meta.uid, None)
        await self._recorder.record(program, "Deleted", "the program and all its files are gone")

    # ------------------------------------------------------------------ shared

    async def _show(self, key: str, **changes: object) -> Program:
        def change(program: Program) -> Program:
            return replace(program, status=replace(program.status, **changes))

        return await self._records.change(key, Program, change)

    def _stamp(self) -> str:
        return self._means.wall().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_REASONS: dict[str, tuple[str, Any]] = {
    "stopped": ("Stopped", "info"),
    "pending": ("Stopped", "info"),
    "exited": ("Exited", "info"),
    "failed": ("Failed", "error"),
    "backing-off": ("BackOff", "warning"),
}
"""What an event calls the end of a run, by what became of the program."""


def _keeper(held: _Held) -> Keeper:
    if held.keeper is None:
        raise Retry("the keeper ended meanwhile", after=0)
    return held.keeper


def _told(error: RoostError) -> str:
    return f"{error.what}: {error.why}" if error.why else error.what


def _check_trust(program: Program) -> None:
    """Admission let nobody but an admin write it; a store that was changed by hand must not lend the host's files either."""
    given = privileges(program.spec.policy)
    if given and not program.status.trusted:
        raise Unavailable(
            "its policy was not written by an admin", ", ".join(given[:5]), "leave them out, or ask root on this host"
        )
