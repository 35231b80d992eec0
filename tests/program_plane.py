"""The reconciler of programs over a memory store, fake keepers and a virtual clock; `begin` after `end` is a restart of the daemon."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import msgspec

from roost.control.events import Recorder
from roost.control.loop import Loop
from roost.control.programs import Means, Programs
from roost.control.records import Records
from roost.control.reservations import Reservations
from roost.log import spawn_task
from roost.model import codec
from roost.model.event import Event
from roost.model.meta import GiB, Meta
from roost.model.program import Program, ProgramSpec
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock
from tests.fake_keepers import FakeKeeper, FakeKeepers

SPEC = ProgramSpec(file="api.wasm", sha256="0" * 64)
API = Program(name="api", meta=Meta(uid="1" * 8), spec=SPEC)
KEY = "programs/default/api"


class Bench:
    """A control plane of programs."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(self.clock)
        self.keepers = FakeKeepers()
        self.memory_free = 4 * GiB
        self.begin()

    def begin(self) -> None:
        """A daemon starts."""
        self.loop = Loop(self.store, self.clock)
        self.places = Reservations(self.clock, lambda: self.memory_free, kept_back=0)
        means = Means(self.keepers, self.places, self.clock, self.wall, self.keepers.boot)
        records, recorder = Records(self.store), Recorder(self.store)
        self.programs = Programs(records, recorder, means, self.loop.wake, self.loop.wake_after)
        self.loop.add("programs/", self.programs)
        self.task = spawn_task(self.loop.run(), "loop")

    async def end(self) -> None:
        """The daemon ends; what runs goes on."""
        await self.loop.stop()
        self.programs.detach()
        self.task.cancel()

    async def restart(self) -> None:
        await self.end()
        self.begin()
        await self.settle()

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.clock.now())

    async def put(self, spec: ProgramSpec = SPEC, *, content: bool = True) -> Program:
        """A new program, with its content."""
        if content:
            self.keepers.contents[API.meta.uid] = b"\0asm"
        await self.store.put(KEY, codec.encode(msgspec.structs.replace(API, spec=spec)), expect=0)
        await self.settle()
        return await self.get()

    async def get(self) -> Program:
        return await Records(self.store).program(KEY)

    async def wish(self, change: Callable[[ProgramSpec], ProgramSpec]) -> Program:
        def changed(program: Program) -> Program:
            meta = msgspec.structs.replace(program.meta, generation=program.meta.generation + 1)
            return msgspec.structs.replace(program, spec=change(program.spec), meta=meta)

        await Records(self.store).change(KEY, Program, changed)
        await self.settle()
        return await self.get()

    async def settle(self) -> None:
        await self.loop.settle()

    @property
    def keeper(self) -> FakeKeeper:
        return self.keepers.live[API.meta.uid]

    async def ends(self, code: int = 0, reason: str = "exit", *, seconds: float = 0.0) -> Program:
        """The program ends by itself."""
        self.keeper.end(code, reason, seconds=seconds)
        await self.settle()
        return await self.get()

    async def reasons(self) -> list[str]:
        entries, _ = await self.store.list("events/")
        events = [codec.stored(entry.value, Event) for entry in entries if entry.value is not None]
        return [event.spec.reason for event in sorted(events, key=lambda event: event.spec.time)]


def spec(**changes: object) -> Callable[[ProgramSpec], ProgramSpec]:
    return lambda before: msgspec.structs.replace(before, **changes)
