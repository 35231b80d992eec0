"""What a machine goes on from instead of booting afresh: an instant of another machine, a snapshot, or a warm template."""

from __future__ import annotations

import asyncio
from typing import Literal, NamedTuple, Protocol

from roost import log
from roost.control.base import Retry
from roost.control.checkpoints import Checkpoint, Checkpoints
from roost.control.plan import is_restoring
from roost.control.records import Records
from roost.errors import Conflict, RoostError, Unavailable
from roost.host.clock import Clock
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine, Source

MOMENT_SECONDS = 60.0
"""How long an instant that was taken for copies is held after its last copy was begun."""


_LOOK_SECONDS = 0.2
"""Between two looks whether a machine that is to be copied has come up."""


class Origin(NamedTuple):
    """What a machine goes on from; `text` tells people, `path` is for its timing."""

    checkpoint: Checkpoint
    path: Literal["warm", "clone", "restore"]
    text: str
    memory: bool


class Taker(Protocol):
    """Takes an instant of a machine."""

    async def take(self, machine: Machine, *, memory: bool, uid: str = "") -> Checkpoint:
        """`machine` now."""
        ...


class Origins:
    """Finds origins. Copies that name one moment get one instant, taken when the first of them asks."""

    def __init__(self, records: Records, checkpoints: Checkpoints, taker: Taker, clock: Clock) -> None:
        self._records = records
        self._checkpoints = checkpoints
        self._taker = taker
        self._clock = clock
        self._taking: dict[str, asyncio.Task[Checkpoint | RoostError]] = {}
        self._uses: dict[str, int] = {}

    async def find(self, machine: Machine) -> Origin:
        """What `machine` is a copy of, or is to be put back to. Raises NotFound, Conflict, Unavailable."""
        restore, source = machine.spec.restore, machine.spec.source
        if restore is not None and is_restoring(machine):
            return await self._snapshot(machine, restore.snapshot, "restore", memory=restore.memory)
        assert source is not None
        if source.snapshot is not None:
            return await self._snapshot(machine, source.snapshot, "clone", memory=source.memory)
        return await self._machine(machine, source)

    async def _snapshot(
        self, machine: Machine, name: str, path: Literal["clone", "restore"], *, memory: bool
    ) -> Origin:
        snapshot = await self._records.snapshot(key_of(BY_NAME["snapshot"], machine.project, name))
        if snapshot.status.phase != "ready" or snapshot.meta.deleting is not None:
            state = "being deleted" if snapshot.meta.deleting is not None else snapshot.status.phase
            raise Conflict(
                f'snapshot "{name}" can not be used', f"it is {state}", f"roost snapshots {snapshot.spec.machine}"
            )
        if path == "restore" and snapshot.status.machine_uid != machine.meta.uid:
            why = f'snapshot "{name}" is of another machine'
            fix = f"make a new machine of it: roost clone {name} NEW"
            raise Conflict(f'machine "{machine.name}" can not be put back', why, fix)
        checkpoint = await self._checkpoints.load(snapshot.meta.uid)
        return self._origin(checkpoint, path, f"snapshot {name}", memory=memory)

    async def _machine(self, machine: Machine, source: Source) -> Origin:
        # By the name that was asked for: an instant that was taken does not depend on what its machine is called by now, or whether it is.
        name = source.machine or ""
        key = f"{machine.project}/{name} {source.moment or machine.meta.uid}"
        if key not in self._taking:
            parent = await self._records.machine(key_of(BY_NAME["machine"], machine.project, name))
            if _is_coming_up(parent, source):
                raise Retry(f'machine "{name}" is still starting', _LOOK_SECONDS)
            if key not in self._taking:
                self._taking[key] = log.spawn_task(self._take(parent, source), f"instant of {name}")
        taking = self._taking[key]
        self._uses[key] = self._uses.get(key, 0) + 1
        checkpoint = await asyncio.shield(taking)
        if isinstance(checkpoint, RoostError):
            if self._taking.get(key) is taking:
                del self._taking[key], self._uses[key]
            raise checkpoint
        self._clock.call_later(MOMENT_SECONDS, lambda: self._release(key))
        return self._origin(checkpoint, "clone", f"machine {name}", memory=source.memory)

    async def _take(self, parent: Machine, source: Source) -> Checkpoint | RoostError:
        """The instant or why there is none: an error that is an answer is not one the log should hold."""
        try:
            checkpoint = await self._taken(parent, source)
        except RoostError as error:
            return error
        except Exception as error:  # nobody foresaw it, but who asks again must not get the same one for ever
            log.get(__name__).error("an instant was not taken", machine=parent.name, exc_info=error)
            return Unavailable(f'machine "{parent.name}" was not copied', str(error), "roost doctor")
        self._checkpoints.hold(checkpoint)
        return checkpoint

    async def _taken(self, parent: Machine, source: Source) -> Checkpoint:
        if parent.meta.deleting is not None:
            raise Conflict(f'machine "{parent.name}" can not be copied', "it is being deleted")
        running = parent.status.process is not None and parent.status.phase in ("running", "paused")
        memory = running and source.memory
        if memory and not source.keep_identity and parent.status.agent in ("none", "absent"):
            why = "no agent answers in it, so that its copies could not be told from it"
            fix = "make an exact copy, without network: --keep-identity; or copy its disk alone: --no-memory"
            raise Conflict(f'machine "{parent.name}" can not be copied as it runs', why, fix)
        return await self._taker.take(parent, memory=memory)

    def _release(self, key: str) -> None:
        """The instant goes when nobody began a copy of it for a while."""
        self._uses[key] = self._uses.get(key, 1) - 1
        if self._uses[key] > 0:
            return
        del self._uses[key]
        taken = self._taking.pop(key, None)
        checkpoint = taken.result() if taken is not None and taken.done() and not taken.cancelled() else None
        if isinstance(checkpoint, Checkpoint):
            log.spawn_task(self._checkpoints.forget(checkpoint.id), "forget an instant")

    @staticmethod
    def _origin(checkpoint: Checkpoint, path: Literal["clone", "restore"], text: str, *, memory: bool) -> Origin:
        return Origin(checkpoint, path, text, memory and checkpoint.saved is not None)


def _is_coming_up(parent: Machine, source: Source) -> bool:
    """Whether a moment later there is more to copy than now."""
    if parent.meta.deleting is not None or parent.spec.power != "running" or not source.memory:
        return False
    answers = source.keep_identity or parent.status.agent != "none"
    return parent.status.phase in ("pending", "preparing", "starting") or (
        parent.status.phase == "running" and not answers
    )
