"""The reconciler of snapshots: takes each at one instant of its machine, keeps it, and removes it when asked or when its time is over."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Literal, NamedTuple, NoReturn, Protocol

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.checkpoints import Checkpoint, Checkpoints
from roost.control.events import Recorder
from roost.control.housekeeping import Housekeeping
from roost.control.plan import is_copy, is_restoring
from roost.control.records import Records, marked
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host import failpoints
from roost.host.clock import Clock
from roost.hypervisor.base import Guest
from roost.log import bind
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Trouble
from roost.model.snapshot import Snapshot

Step = Literal["remove", "expire", "take", "recover", "show"]
"""Each step either changes the world or writes the status; after it the snapshot is looked at again."""

RESTING = ("stopped", "crashed", "failed")
"""Phases of a machine without a process."""

PATIENCE = 120.0
"""Longest a snapshot waits for a machine that is just starting or stopping, in seconds."""

_LOOK_AGAIN = 0.25
"""Seconds until such a machine is looked at again."""

_IN_USE_DELAY = 2.0
"""Seconds until a deletion that waits for machines looks again."""


class Taking(Protocol):
    """What the reconciler needs of control.taking.Taker."""

    async def take(self, machine: Machine, *, memory: bool, uid: str = "") -> Checkpoint:
        """`machine` now, as the checkpoint `uid`. The caller owns it. Raises Conflict, Unavailable, OutcomeUnknown."""
        ...


class Means(NamedTuple):
    """What the reconciler acts with. `guest` is Custody's; `wall` the time of day, with its zone."""

    guest: Callable[[Machine], Awaitable[Guest]]
    taking: Taking
    checkpoints: Checkpoints
    housekeeping: Housekeeping
    clock: Clock
    wall: Callable[[], datetime]


def next_step(snapshot: Snapshot, now: datetime) -> Step | None:
    """The one thing to do now, or None when nothing is to be done before it expires."""
    if snapshot.meta.deleting is not None:
        return "remove"
    if snapshot.status.phase == "saving":
        return "recover"
    left = seconds_left(snapshot, now)
    if left is not None and left <= 0:
        return "expire"
    if snapshot.status.phase == "pending":
        return "take"
    return "show" if snapshot.status.generation != snapshot.meta.generation else None


def seconds_left(snapshot: Snapshot, now: datetime) -> float | None:
    """Seconds until it expires (less than 0: it has), None when it never does."""
    if snapshot.spec.expires is None:
        return None
    return (datetime.fromisoformat(snapshot.spec.expires) - now).total_seconds()


def users_of(snapshot: Snapshot, machines: Iterable[Machine]) -> tuple[str, ...]:
    """The names of those of its project's machines that are just being made from the snapshot or put back to it."""
    return tuple(
        machine.name
        for machine in machines
        if is_copy(machine)
        and machine.meta.deleting is None
        and machine.status.phase != "failed"
        and _origin(machine) == snapshot.name
    )


def _origin(machine: Machine) -> str | None:
    """The snapshot that the machine's disk is still to come from."""
    if machine.spec.restore is not None and is_restoring(machine):
        return machine.spec.restore.snapshot
    return machine.spec.source.snapshot if machine.spec.source is not None else None


class Snapshots:
    """Brings snapshots from pending to ready or failed, and deleted ones to nothing. `wake_after` is the loop's.

    What is kept on disk decides: a snapshot is ready when its checkpoint is kept. One that a daemon before this one began to save and did
    not keep has failed: it is never taken at a later instant than the one it was asked for.
    """

    def __init__(
        self, records: Records, recorder: Recorder, means: Means, wake_after: Callable[[str, float], None]
    ) -> None:
        self._records = records
        self._recorder = recorder
        self._means = means
        self._wake_after = wake_after
        self._waiting: dict[str, float] = {}
        self._acts: dict[Step, Callable[[str, Snapshot], Awaitable[None]]] = {
            "remove": self._remove,
            "expire": self._expire,
            "take": self._take,
            "recover": self._recover,
            "show": self._show_generation,
        }

    async def reconcile(self, key: str) -> None:
        """Take, keep or remove the snapshot at `key`. Raises Retry."""
        while True:
            try:
                snapshot = await self._records.snapshot(key)
            except NotFound:
                return
            with bind(snapshot=snapshot.name, project=snapshot.project):
                step = next_step(snapshot, self._means.wall())
                if step is None:
                    break
                await self._acts[step](key, snapshot)
        left = seconds_left(snapshot, self._means.wall())
        if left is not None:
            self._wake_after(key, max(0.0, left))

    # ------------------------------------------------------------------ towards ready

    async def _take(self, key: str, snapshot: Snapshot) -> None:
        try:
            machine = await self._machine(snapshot)
            memory = await self._with_memory(key, snapshot, machine)
            await self._show(
                key, phase="saving", machine_uid=machine.meta.uid, machine_spec=machine.spec, memory=memory,
                progress="saving", error=None,
            )  # fmt: skip
            await self._save(key, snapshot, machine, memory=memory)
        except RoostError as error:
            await self._fail(key, snapshot, error)
        except OSError as error:
            await self._fail(key, snapshot, Unavailable("the host refused", str(error), "roost doctor"))

    async def _machine(self, snapshot: Snapshot) -> Machine:
        try:
            machine = await self._records.machine(key_of(BY_NAME["machine"], snapshot.project, snapshot.spec.machine))
        except NotFound:
            raise NotFound(f'machine "{snapshot.spec.machine}" does not exist', fix="roost list") from None
        if machine.meta.deleting is not None:
            raise Conflict(f'machine "{machine.name}" is being deleted')
        return machine

    async def _with_memory(self, key: str, snapshot: Snapshot, machine: Machine) -> bool:
        """Whether memory is to be kept; waits for a machine that is on its way up or down. Raises Conflict, Retry."""
        runs = await self._runs(machine)
        if runs is None:
            await self._wait(key, snapshot, machine)
        self._waiting.pop(snapshot.meta.uid, None)
        if snapshot.spec.memory and not runs:
            fix = f"roost start {machine.name}; or keep its disk alone: --no-memory"
            raise Conflict(f'the memory of machine "{machine.name}" can not be kept', "it is not running", fix)
        return bool(runs) and snapshot.spec.memory is not False

    async def _runs(self, machine: Machine) -> bool | None:
        """Whether the machine has a process; None while that is about to change."""
        status, wanted = machine.status, machine.spec.power
        if is_copy(machine) and status.phase != "failed":
            return None
        if status.phase in RESTING:
            return False if wanted == "stopped" else None
        if status.phase not in ("running", "paused") or machine.spec.restarts != status.restarts:
            return None
        try:
            await self._means.guest(machine)
        except (Conflict, TimeoutError):
            return None
        return True

    async def _wait(self, key: str, snapshot: Snapshot, machine: Machine) -> NoReturn:
        now = self._means.clock.now()
        if now - self._waiting.setdefault(snapshot.meta.uid, now) >= PATIENCE:
            why = f"it was still {machine.status.phase} after {PATIENCE:.0f} s"
            raise Conflict(f'machine "{machine.name}" can not be saved', why, f"roost show {machine.name}")
        reason = f"waiting for {machine.name}, which is {machine.status.phase}"
        await self._show(key, progress=reason)
        raise Retry(reason, after=_LOOK_AGAIN)

    async def _save(self, key: str, snapshot: Snapshot, machine: Machine, *, memory: bool) -> None:
        """The instant, and all of it on disk. Nothing that it stands on is collected between the two."""
        means, began = self._means, self._means.clock.now()
        async with means.housekeeping.holding():
            checkpoint = await means.taking.take(machine, memory=memory, uid=snapshot.meta.uid)
            await means.checkpoints.keep(checkpoint, "snapshot")
            await failpoints.reach("snapshot.kept")
        await self._ready(key, checkpoint, seconds=means.clock.now() - began)

    async def _recover(self, key: str, snapshot: Snapshot) -> None:
        """A daemon before this one, or a failure nobody foresaw, ended while it was saved."""
        kept = self._means.checkpoints.kept("snapshot").get(snapshot.meta.uid)
        if kept is not None:
            await self._ready(key, kept)
            return
        why = "Roost was interrupted while it was saved, and that instant is past"
        fix = f"take another one: roost snapshot {snapshot.spec.machine}"
        await self._fail(key, snapshot, Unavailable(_not_taken(snapshot), why, fix))

    async def _ready(self, key: str, checkpoint: Checkpoint, seconds: float = 0.0) -> None:
        space = await self._means.housekeeping.space_of(checkpoint)
        shown = await self._show(
            key, phase="ready", taken=checkpoint.taken, pause=round(checkpoint.pause, 4), seconds=round(seconds, 3),
            own=space.own, shared=space.shared, progress="", error=None,
        )  # fmt: skip
        if shown is not None:
            what = "its memory and disk" if shown.status.memory else "its disk"
            await self._recorder.record(shown, "SnapshotTaken", f"{shown.spec.machine} is kept: {what}")

    async def _fail(self, key: str, snapshot: Snapshot, error: RoostError) -> None:
        """Nothing of it stays, and it is not tried again."""
        self._waiting.pop(snapshot.meta.uid, None)
        await self._means.checkpoints.forget(snapshot.meta.uid)
        self._means.housekeeping.changed()
        what = _not_taken(snapshot)
        why = error.why if error.what == what else f"{error.what}: {error.why}" if error.why else error.what
        trouble = Trouble(what=what, why=why, fix=error.fix, code=error.code)
        shown = await self._show(key, phase="failed", progress="", error=trouble)
        if shown is not None:
            await self._recorder.record(shown, "SnapshotFailed", f"{what}: {why}", level="error")

    async def _show_generation(self, key: str, snapshot: Snapshot) -> None:
        await self._show(key)

    # ------------------------------------------------------------------ towards nothing

    async def _expire(self, key: str, snapshot: Snapshot) -> None:
        await self._records.change(key, Snapshot, marked)
        await self._recorder.record(snapshot, "Expired", f"its time was over at {snapshot.spec.expires}")

    async def _remove(self, key: str, snapshot: Snapshot) -> None:
        """What it kept goes, then the object. Layers that others stand on stay."""
        checkpoints = self._means.checkpoints
        users = users_of(snapshot, await self._records.all(Machine, snapshot.project))
        if users or checkpoints.in_use(snapshot.meta.uid):
            await self._defer(key, snapshot, users)
        self._waiting.pop(snapshot.meta.uid, None)
        await checkpoints.forget(snapshot.meta.uid)
        await failpoints.reach("snapshot.forgotten")
        self._means.housekeeping.changed()
        try:
            await self._records.remove(key, snapshot.meta.revision)
        except Conflict as conflict:
            raise Retry("it was changed meanwhile", after=0.0) from conflict
        await self._recorder.record(snapshot, "SnapshotDeleted", "the snapshot and all it kept alone are gone")

    async def _defer(self, key: str, snapshot: Snapshot, users: tuple[str, ...]) -> NoReturn:
        names = ", ".join(users[:5])
        trouble = Trouble(
            what=f'snapshot "{snapshot.name}" is not deleted yet',
            why=f"machines are being made from it: {names}" if users else "a machine is being made from it",
            fix="wait: it goes by itself when they are made" + (f"; or roost delete {users[0]}" if users else ""),
            code=Conflict.code,
        )
        await self._show(key, users=users, error=trouble)
        raise Retry(trouble.why, after=_IN_USE_DELAY)

    # ------------------------------------------------------------------ shared

    async def _show(self, key: str, **changes: object) -> Snapshot | None:
        """Write a changed status, for the present generation; None when the snapshot is gone."""

        def change(snapshot: Snapshot) -> Snapshot:
            changed = {"generation": snapshot.meta.generation, **changes}
            return replace(snapshot, status=replace(snapshot.status, **changed))

        try:
            return await self._records.change(key, Snapshot, change)
        except NotFound:
            return None


def _not_taken(snapshot: Snapshot) -> str:
    return f'snapshot "{snapshot.name}" was not taken'
