"""What a machine becomes when its process ends or its start fails: pure functions from the object to the object.

Whoever ends unasked wishes to be stopped: a guest is master of its own power switch, so `spec.power` becomes "stopped" and a
later `start` is a change that anyone can make.
"""

from __future__ import annotations

import msgspec

from roost.control.plan import is_restoring
from roost.errors import RoostError
from roost.hypervisor.base import Exit
from roost.model.machine import Isolation, Machine, MachineStatus
from roost.model.meta import Trouble


def was_asked(machine: Machine) -> bool:
    """Whether we wanted the process to end (a stop or a restart), as far as the object tells."""
    wanted = machine.spec.power == "stopped" or machine.spec.restarts != machine.status.restarts
    wanted = wanted or is_restoring(machine)
    return wanted or machine.status.phase == "stopping"


def ended(machine: Machine, exit: Exit, *, asked: bool) -> Machine:
    """The machine after its process ended as `exit` says."""
    calm = asked or exit.clean
    trouble = Trouble(what=f'machine "{machine.name}" ended', why=exit.reason, fix=f"roost start {machine.name}")
    status = _without_process(machine)
    status = msgspec.structs.replace(
        status,
        phase="stopped" if calm else "crashed",
        exit=exit.reason,
        error=None if calm else trouble,
        configured=is_set_up(machine, clean=exit.clean),
    )
    return _resting(machine, status, asked=asked)


def is_set_up(machine: Machine, *, clean: bool) -> bool:
    """Whether the machine is still who it was made after its process ended.

    The agent answers a set-up before its files are safe on the disk, and leaves its mark there after them: a guest that lost its power
    in between is whom it was copied from again. So it is told once more, which one that has the mark passes over.
    """
    return machine.status.configured and (clean or machine.status.agent != "roost")


def failed(machine: Machine, error: RoostError) -> Machine:
    """The machine after a start that could not succeed: the reason is kept, nothing is tried again until somebody asks."""
    told = f'machine "{machine.name}"' in error.what
    what = error.what if told else f'machine "{machine.name}" did not start'
    why = error.why if told and error.why else f"{error.what}: {error.why}" if error.why else error.what
    trouble = Trouble(what=what, why=why, fix=error.fix, code=error.code)
    status = msgspec.structs.replace(_without_process(machine), phase="failed", error=trouble)
    if machine.spec.restore is not None:
        # The wish is used up: the next start is of the machine as it was.
        status = msgspec.structs.replace(status, restored=machine.spec.restore.serial)
    return _resting(machine, status, asked=False)


def _without_process(machine: Machine) -> MachineStatus:
    return msgspec.structs.replace(
        machine.status,
        process=None,
        pid=None,
        agent="none",
        addresses=(),
        ports=(),
        isolation=Isolation(),
        restarts=machine.spec.restarts,
        progress="",
    )


def _resting(machine: Machine, status: MachineStatus, *, asked: bool) -> Machine:
    if not asked and machine.spec.power != "stopped":
        spec = msgspec.structs.replace(machine.spec, power="stopped")
        meta = msgspec.structs.replace(machine.meta, generation=machine.meta.generation + 1)
        machine = msgspec.structs.replace(machine, spec=spec, meta=meta)
    generation = machine.meta.generation if machine.spec.power == "stopped" else machine.status.generation
    return msgspec.structs.replace(machine, status=msgspec.structs.replace(status, generation=generation))
