"""A snapshot: one instant of a machine, kept: its disks, its firmware's variables, and its memory when it ran."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal

from roost.errors import Problem
from roost.model.machine import MachineSpec
from roost.model.meta import NAME, Meta, Struct, Trouble


class SnapshotSpec(Struct, frozen=True, kw_only=True):
    """What the user wants. `memory` None: with memory when the machine runs. `expires`: when it may go (RFC 3339, UTC), None: never."""

    machine: str
    memory: bool | None = None
    expires: str | None = None

    def problems(self) -> Iterator[Problem]:
        """Everything wrong with the values, beyond their types."""
        if not NAME.fullmatch(self.machine):
            yield Problem("machine", f"{self.machine!r} is not the name of a machine")
        if self.expires is not None:
            try:
                zone = datetime.fromisoformat(self.expires).tzinfo
            except ValueError:
                yield Problem("expires", f"{self.expires!r} is not a time such as 2026-01-31T12:00:00Z")
            else:
                if zone is None:
                    yield Problem("expires", f"{self.expires!r} does not say its time zone: add Z for UTC")


class SnapshotStatus(Struct, frozen=True, kw_only=True):
    """What is. `own` are bytes on the host that go with the snapshot, `shared` bytes that others stand on too. `users` are the
    machines that are being made from it now. `machine_spec` is the machine's at that instant. Times in seconds."""

    phase: Literal["pending", "saving", "ready", "failed"] = "pending"
    generation: int = 0
    machine_uid: str = ""
    machine_spec: MachineSpec | None = None
    taken: str = ""
    memory: bool = False
    pause: float = 0.0
    seconds: float = 0.0
    own: int = 0
    shared: int = 0
    users: tuple[str, ...] = ()
    progress: str = ""
    warnings: tuple[str, ...] = ()
    error: Trouble | None = None


class Snapshot(Struct, frozen=True, kw_only=True):
    """One instant of a machine."""

    kind: Literal["snapshot"] = "snapshot"
    project: str = "default"
    name: str
    meta: Meta = Meta()
    spec: SnapshotSpec
    status: SnapshotStatus = SnapshotStatus()
