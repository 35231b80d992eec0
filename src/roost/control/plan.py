"""What to do next for a machine: a pure function from its wish and what was seen to one step."""

from __future__ import annotations

from typing import Literal, NamedTuple

from roost.hypervisor.base import Exit, RunState
from roost.model.machine import Machine

Step = Literal[
    "await-networks",
    "await-volumes",
    "find-image",
    "await-image",
    "create-disk",
    "find-origin",
    "await-origin",
    "fork",
    "make-disk",
    "start",
    "resume",
    "pause",
    "greet",
    "wire",
    "attach",
    "hold-back",
    "press-power",
    "await-end",
    "await-space",
    "kill",
    "settle-exit",
    "show-stopped",
    "show-running",
    "show-paused",
    "discard",
    "remove-files",
    "remove-object",
]
"""Each step either changes the world or writes the status; after it the machine is looked at again."""

ALIVE: frozenset[RunState] = frozenset({"prelaunch", "running", "paused"})
"""States in which a guest can still act on its power button."""


class Seen(NamedTuple):
    """A machine as it is. `guest` None: no process. `exit`: how the last process ended, not yet written down.

    `image` is the state of the image object. `origin` is what the machine is to go on from instead of booting afresh (a machine, a
    snapshot, a warm template), `memory` whether that has memory; "none" when it boots. `pressed` and `overdue` say whether the power
    button was pressed and its grace is over; `agent` who answers inside, if anybody does; `files` that something of it is on disk.
    `networks`: those that it is plugged into are ready; `wired`: the ports of the running machine are those of its spec. `volumes` and
    `attached` say the same of its volumes; `room` that the pools that it writes to have some.
    """

    guest: RunState | None = None
    exit: Exit | None = None
    image: Literal["unknown", "building", "ready"] = "unknown"
    disk: bool = False
    origin: Literal["none", "unknown", "making", "ready"] = "none"
    memory: bool = False
    pressed: bool = False
    overdue: bool = False
    agent: Literal["roost", "qemu-ga", "ssh", "absent"] | None = None
    files: bool = False
    networks: bool = True
    wired: bool = True
    volumes: bool = True
    attached: bool = True
    room: bool = True


def next_step(machine: Machine, seen: Seen) -> Step | None:
    """The one thing to do now, or None when the machine is as wanted (or waits for something that will wake it)."""
    if machine.meta.deleting is not None:
        return _towards_nothing(seen)
    if seen.exit is not None:
        return "settle-exit"
    if is_restoring(machine) and seen.guest is not None:
        # What runs is given up only when it is sure that there is something to put in its place.
        return "kill" if seen.origin == "ready" else "find-origin"
    if machine.spec.power == "stopped":
        return _towards_stopped(machine, seen)
    # A power button once pressed can not be taken back: a start that comes meanwhile waits for the end.
    ending = machine.spec.restarts != machine.status.restarts or machine.status.phase == "stopping"
    if seen.guest is not None and ending:
        return _end(seen)
    if seen.guest is None:
        return _towards_process(machine, seen)
    return _towards_power(machine, seen)


def _towards_nothing(seen: Seen) -> Step:
    if seen.guest is not None:
        return "kill"
    return "remove-files" if seen.files else "remove-object"


def _towards_stopped(machine: Machine, seen: Seen) -> Step | None:
    if seen.guest is not None:
        return _end(seen)
    if is_copy(machine) and machine.status.phase != "failed":
        return _towards_origin(machine, seen)
    if machine.spec.ephemeral and machine.status.phase != "pending":
        return "discard"
    settled = (
        machine.status.phase in ("stopped", "crashed", "failed")
        and machine.status.generation == machine.meta.generation
    )
    return None if settled else "show-stopped"


def _end(seen: Seen) -> Step | None:
    """Towards the end of the process: ask, wait for the grace, force. A guest that can not hear is forced at once."""
    if seen.guest not in ALIVE or seen.guest == "prelaunch" or seen.overdue:
        return "kill"
    if seen.pressed:
        return "await-end"
    return "resume" if seen.guest == "paused" else "press-power"


def is_restoring(machine: Machine) -> bool:
    """Whether a restore was asked for and not done yet."""
    return machine.spec.restore is not None and machine.spec.restore.serial != machine.status.restored


def is_copy(machine: Machine) -> bool:
    """Whether its disk is still to come from a machine or a snapshot."""
    return is_restoring(machine) or (machine.spec.source is not None and not is_born(machine))


def is_born(machine: Machine) -> bool:
    """Whether it has run: from then on it starts from its own disk."""
    return machine.status.born or machine.status.configured


def is_exact(machine: Machine) -> bool:
    """Whether it keeps the identity of what it is a copy of: its cards are plugged into nothing."""
    return machine.spec.source is not None and machine.spec.source.keep_identity


def is_twin(machine: Machine) -> bool:
    """Whether it has gone on from another's memory and nobody inside was told yet that it is somebody else: nothing may be plugged in."""
    return machine.status.timing.path in ("warm", "clone") and not machine.status.configured and not is_exact(machine)


def _towards_origin(machine: Machine, seen: Seen) -> Step:
    if seen.origin == "unknown":
        return "find-origin"
    if seen.origin == "making":
        return "await-origin"
    return "fork" if seen.memory and machine.spec.power != "stopped" else "make-disk"


def _towards_process(machine: Machine, seen: Seen) -> Step:
    if not seen.networks:
        return "await-networks"
    if not seen.volumes:
        return "await-volumes"
    if is_copy(machine):
        return _towards_origin(machine, seen)
    if seen.image == "unknown":
        return "find-image"
    if seen.image == "building":
        return "await-image"
    if seen.origin != "none":
        return _towards_origin(machine, seen)
    return "start" if seen.disk else "create-disk"


def _towards_power(machine: Machine, seen: Seen) -> Step | None:
    if machine.spec.power == "paused" and seen.guest in ("running", "prelaunch"):
        return "pause" if seen.guest == "running" else "show-paused" if machine.status.phase != "paused" else None
    may_run = machine.spec.power == "running" and seen.guest in ("paused", "prelaunch", "io-error", "running")
    if may_run and (step := _towards_running(seen)):
        return step
    if seen.guest in ("panicked", "internal-error", "shutdown"):
        return "kill"
    return _while_it_runs(machine, seen)


def _towards_running(seen: Seen) -> Step | None:
    """Its volumes are there before its first instruction, and nobody writes to a pool that is all but full."""
    if seen.guest == "prelaunch" and not seen.attached:
        return "attach"
    if not seen.room:
        return "hold-back"
    return "resume" if seen.guest in ("paused", "prelaunch") else None


def _while_it_runs(machine: Machine, seen: Seen) -> Step | None:
    if seen.guest == "io-error":
        return "await-space"
    if seen.agent is not None and seen.agent != machine.status.agent and machine.spec.power == "running":
        return "greet"
    if seen.guest == "running" and not seen.wired and seen.networks:
        return "wire"
    if step := _towards_shown(machine):
        return step
    return "attach" if seen.guest == "running" and not seen.attached else None


def _towards_shown(machine: Machine) -> Step | None:
    shown = machine.status.phase == machine.spec.power and machine.status.generation == machine.meta.generation
    if shown:
        return None
    return "show-running" if machine.spec.power == "running" else "show-paused"
