"""New machines from others: what a copy keeps of the machine or snapshot it is made from, and what it must not; pure."""

from __future__ import annotations

from typing import Any

import msgspec

from roost.errors import Conflict, Invalid, NotFound, Problem
from roost.model.machine import Machine, MachineSpec, MachineStatus, Restore, Source
from roost.model.meta import Meta
from roost.model.snapshot import Snapshot

HARDWARE = ("cpus", "memory", "firmware", "accelerator", "network", "ports", "tpm")
"""Fields of a spec that a saved memory fits: going back to it brings them back."""
KEPT_FIELDS = ("machine", "memory")
"""Fields of a snapshot that say what was taken, so that they can not change."""


_MEMORY = (
    "{} runs with volumes, and its memory can not be kept without them: what is in both would no longer fit together"
)


def child_of(
    parent: Machine, name: str, moment: str, *, keep_identity: bool = False, start: bool = False, memory: bool = True
) -> Machine:
    """A copy of `parent` as it is at `moment` (a UUID that all copies of one instant share). It runs, is paused or stopped as `parent` is;
    with `start` it runs; without `memory` it boots from a copy of the disk. Raises Conflict when `parent` is being deleted, or runs with
    volumes."""
    if parent.meta.deleting is not None:
        raise Conflict(
            f'machine "{name}" was not made', f'"{parent.name}", which it would be a copy of, is being deleted'
        )
    if memory and _runs_with_volumes(parent):
        fix = f"take the disk alone: roost clone {parent.name} {name} --no-memory; or first {_detaching(parent)}"
        raise Conflict(f'machine "{name}" was not made', _MEMORY.format(parent.name), fix)
    source = Source(machine=parent.name, moment=moment, keep_identity=keep_identity, memory=memory)
    return _child(parent.project, name, parent.spec, source, "running" if start else parent.spec.power)


def child_of_snapshot(
    snapshot: Snapshot, name: str, moment: str, *, keep_identity: bool = False, start: bool = False, memory: bool = True
) -> Machine:
    """A machine as `snapshot` kept it. It runs when that has the memory of one that ran, or with `start`; without `memory` it boots from
    the disk. Raises Conflict when the snapshot can not be used."""
    spec = _usable(snapshot, f'machine "{name}" was not made')
    source = Source(snapshot=snapshot.name, moment=moment, keep_identity=keep_identity, memory=memory)
    return _child(snapshot.project, name, spec, source, "running" if start or snapshot.status.memory else "stopped")


def restored(machine: Machine, snapshot: Snapshot, *, memory: bool = True) -> Machine:
    """`machine` with the wish to be as `snapshot` kept it. With memory it runs afterwards, on the hardware it had then; without (there is
    none, or it is not wanted) it is on or off as before. Raises Conflict when the snapshot is of another machine or can not be used."""
    what = f'machine "{machine.name}" was not restored'
    kept = _usable(snapshot, what)
    if snapshot.status.machine_uid != machine.meta.uid:
        why = f'snapshot "{snapshot.name}" is of another machine of that name'
        raise Conflict(what, why, f"make a new machine of it: roost restore {machine.name} {snapshot.name} --as NEW")
    if machine.meta.deleting is not None:
        raise Conflict(what, "it is being deleted", f"make a new machine of it: roost clone {snapshot.name} NEW")
    # Also where somebody took the last wish out of the spec, the next one must differ from all that were done.
    serial = max(machine.status.restored, machine.spec.restore.serial if machine.spec.restore is not None else 0)
    wish: dict[str, Any] = {"restore": Restore(snapshot=snapshot.name, serial=serial + 1, memory=memory)}
    if snapshot.status.memory and memory:
        wish |= {"power": "running", **{field: getattr(kept, field) for field in HARDWARE}}
        wish["publish"] = machine.spec.publish if kept.network != "none" or kept.ports else ()
    after: Machine = _with(machine, spec=_with(machine.spec, **wish))
    return after


def check_snapshot(new: Snapshot, old: Snapshot | None, machine: Machine | None) -> None:
    """Whether `new` may be kept (as a change of `old`); `machine` is the one it names, if there is one. Raises Invalid (all fields that are
    wrong), NotFound, Conflict (the machine is being deleted)."""
    if old is not None:
        problems = [
            Problem(f"spec.{field}", "can not change after creation")
            for field in KEPT_FIELDS
            if getattr(new.spec, field) != getattr(old.spec, field)
        ]
        if problems:
            raise Invalid(f'snapshot "{new.name}" was not changed', problems=problems, fix="take another one")
        return
    what = f'snapshot "{new.name}" was not taken'
    if new.name.partition(".")[0] != new.spec.machine:
        problem = Problem("name", f"does not begin with the machine's: {new.spec.machine}.NAME")
        raise Invalid(what, problems=[problem])
    if machine is None:
        raise NotFound(what, f'machine "{new.spec.machine}" does not exist in project "{new.project}"', "roost list")
    if machine.meta.deleting is not None:
        raise Conflict(what, f'machine "{machine.name}" is being deleted')
    if new.spec.memory is not False and _runs_with_volumes(machine):
        fix = f"take the disk alone: roost snapshot {machine.name} --no-memory; or first {_detaching(machine)}"
        raise Conflict(what, _MEMORY.format(machine.name), fix)


def _runs_with_volumes(machine: Machine) -> bool:
    """Whether its memory knows of volumes: going on from that memory later, it would write old thoughts onto what they hold by then."""
    running = machine.spec.power != "stopped" or machine.status.process is not None
    return running and bool(machine.spec.volumes or machine.status.volumes)


def _detaching(machine: Machine) -> str:
    named = [mount.volume for mount in machine.spec.volumes] + [mount.volume for mount in machine.status.volumes]
    return f"roost volume detach {named[0]} {machine.name}"


def _usable(snapshot: Snapshot, what: str) -> MachineSpec:
    """The spec that the snapshot kept. Raises Conflict while there is nothing to start from."""
    if snapshot.meta.deleting is not None:
        raise Conflict(what, f'snapshot "{snapshot.name}" is being deleted', f"roost snapshots {snapshot.spec.machine}")
    if snapshot.status.phase != "ready" or snapshot.status.machine_spec is None:
        why = f'snapshot "{snapshot.name}" is {snapshot.status.phase}, not ready'
        raise Conflict(what, why, f"see how far it is: roost snapshots {snapshot.spec.machine}")
    return snapshot.status.machine_spec


def _child(project: str, name: str, spec: MachineSpec, source: Source, power: str) -> Machine:
    """What belongs to one machine only is left behind: its volumes, its ports, its host name, its schedule, what was asked of it once."""
    own = _with(
        spec,
        power=power,
        restarts=0,
        publish=(),
        ports=tuple(_with(port, addresses=(), mac="") for port in spec.ports),
        volumes=(),
        hostname=None,
        ephemeral=False,
        cold=False,
        source=source,
        restore=None,
        schedule=None,
    )
    ports = ", ".join(f"{entry.host_ip}:{entry.host_port}" for entry in spec.publish)
    lost = f"{ports} of this host leads to the machine it is a copy of; nothing is published by a copy"
    volumes = ", ".join(mount.volume for mount in spec.volumes)
    stays = f"{volumes} of the machine that it is a copy of stays there: roost volume clone makes a copy of a volume"
    status = MachineStatus(warnings=((lost,) if ports else ()) + ((stays,) if volumes else ()))
    return Machine(project=project, name=name, meta=Meta(), spec=own, status=status)


def _with(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)
