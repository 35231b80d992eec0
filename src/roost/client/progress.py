"""When a machine is where it was wanted, how far it is on the way, and which error stopped it: pure functions of its status."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from roost.client.results import Progress
from roost.errors import BY_CODE, Invalid, NotFound, NotStarted, RoostError
from roost.model import size
from roost.model.image import Image
from roost.model.machine import Machine
from roost.model.meta import Trouble
from roost.model.pool import Pool
from roost.model.program import Program
from roost.model.snapshot import Snapshot
from roost.model.volume import MountStatus, Volume, VolumeSnapshot


class Sign(NamedTuple):
    """What is waited for. `holds` may raise what makes waiting pointless."""

    name: str
    holds: Callable[[Machine], bool]


def _is_running(machine: Machine) -> bool:
    status = machine.status
    settled = status.generation >= machine.meta.generation and status.restarts == machine.spec.restarts
    if status.phase in ("failed", "crashed") and (machine.spec.power == "stopped" or settled):
        raise failed(machine)
    if status.phase == "stopped" and machine.spec.power == "stopped":
        raise NotStarted(
            f'machine "{machine.name}" does not run',
            status.exit or "it was stopped meanwhile",
            f"roost start {machine.name}",
        )
    if status.phase == "pending" and status.error is not None and status.generation >= machine.meta.generation:
        raise failed(machine)
    return settled and status.phase == "running" and status.agent != "none"


def _is_stopped(machine: Machine) -> bool:
    return machine.status.process is None and machine.status.phase in ("stopped", "crashed", "failed")


def _is_paused(machine: Machine) -> bool:
    if machine.status.phase in ("failed", "crashed") and machine.spec.power == "stopped":
        raise failed(machine)
    return machine.status.phase == "paused"


def _is_as_wished(machine: Machine) -> bool:
    """As its spec says: a copy runs, is paused or is stopped as what it was made from."""
    if machine.spec.power == "running":
        return _is_running(machine)
    if machine.status.phase in ("failed", "crashed"):
        raise failed(machine)
    return machine.status.generation >= machine.meta.generation and machine.status.phase == machine.spec.power


def _is_restored(machine: Machine) -> bool:
    """A restore that was refused is done too, with an error: the machine goes on as it was."""
    wanted = machine.spec.restore.serial if machine.spec.restore is not None else 0
    if machine.status.restored < wanted or machine.status.generation < machine.meta.generation:
        return False
    if machine.status.error is not None:
        raise failed(machine)
    return _is_as_wished(machine)


running = Sign("running", _is_running)
stopped = Sign("stopped", _is_stopped)
paused = Sign("paused", _is_paused)
as_wished = Sign("as wished", _is_as_wished)
restored = Sign("restored", _is_restored)


class Until:
    """Waits for a sign of several machines, told of each change; a machine deleted meanwhile counts as stopped, else raises NotFound.

    With `each`, what would be raised for one machine goes into `failures` (by uid), and the others are waited for.
    """

    def __init__(self, sign: Sign, machines: dict[str, Machine], *, each: bool = False) -> None:
        self._sign = sign
        self._each = each
        self._waiting = dict(machines)
        self._seen: set[str] = set()
        self.failures: dict[str, RoostError] = {}
        for uid, machine in machines.items():
            self._judge(uid, machine)

    def done(self) -> bool:
        """Whether nothing is waited for any more."""
        return not self._waiting

    def see(self, machine: Machine) -> None:
        """A machine as it is now. Raises what the sign raises."""
        uid = machine.meta.uid
        self._seen.add(uid)
        known = self._waiting.get(uid)
        if known is None or machine.meta.revision < known.meta.revision:
            return
        self._waiting[uid] = machine
        self._judge(uid, machine)

    def gone(self, project: str, name: str) -> None:
        """A machine was deleted. Raises NotFound."""
        for uid, machine in list(self._waiting.items()):
            if (machine.project, machine.name) == (project, name):
                self._lost(uid)

    def all_seen(self) -> None:
        """All present machines were told: who was not among them is gone. Raises NotFound."""
        for uid in [uid for uid in self._waiting if uid not in self._seen]:
            self._lost(uid)

    def _judge(self, uid: str, machine: Machine) -> None:
        try:
            if not self._sign.holds(machine):
                return
        except RoostError as error:
            self._failed(uid, error)
        del self._waiting[uid]

    def _lost(self, uid: str) -> None:
        machine = self._waiting.pop(uid)
        if self._sign is not stopped:
            self._failed(uid, NotFound(f'machine "{machine.name}" is gone', "it was deleted meanwhile", "roost events"))

    def _failed(self, uid: str, error: RoostError) -> None:
        if not self._each:
            raise error
        self.failures[uid] = error


def failed(thing: Machine | Program | Image | Snapshot | Pool | Volume | VolumeSnapshot) -> RoostError:
    """The error that a status keeps, as it was raised."""
    ends = {
        "machine": "did not start", "program": "did not run", "image": "is not ready", "snapshot": "was not taken",
        "volumesnapshot": "was not taken", "volume": "is not as it was wanted", "pool": "can not be used",
    }  # fmt: skip
    fix = f"roost events, roost get {thing.kind} {thing.name}"
    trouble = thing.status.error or Trouble(what=f'{thing.kind} "{thing.name}" {ends[thing.kind]}', fix=fix)
    return _raised(trouble)


def _raised(trouble: Trouble) -> RoostError:
    return BY_CODE.get(trouble.code, RoostError)(trouble.what, trouble.why, trouble.fix)


def settled(volume: Volume, generation: int) -> bool:
    """Whether a volume is as its spec of `generation` says. Raises the error that stopped it."""
    status = volume.status
    done = status.generation >= generation
    if status.phase == "failed" or (done and status.error is not None):
        raise failed(volume)
    return done and status.phase in ("ready", "trash")


def wished_size(volume: Volume, addition: str) -> int:
    """Bytes of a volume that grows by `addition` ("+10GiB"). Raises Invalid."""
    try:
        more = size.parse(addition.removeprefix("+"))
    except ValueError as error:
        raise Invalid(f'volume "{volume.name}" was not grown', str(error), "say +10GiB, or the new size") from None
    return max(volume.spec.size or 0, volume.status.size) + more


def mounted(machine: Machine, volume: str) -> bool:
    """Whether the guest has the volume; one that does not run gets it when it starts. Raises what keeps it from getting it, NotFound when it
    was detached meanwhile."""
    if volume not in [mount.volume for mount in machine.spec.volumes]:
        raise NotFound(
            f'volume "{volume}" is not attached to {machine.name}', "somebody detached it meanwhile", "roost events"
        )
    return _is_at_rest(machine) or _phase(machine, volume) == "attached"


def unmounted(machine: Machine, volume: str) -> bool:
    """Whether the guest has the volume no more. Raises what keeps the guest from letting go."""
    return _phase(machine, volume) == ""


def _phase(machine: Machine, volume: str) -> str:
    mount: MountStatus | None = next((it for it in machine.status.volumes if it.volume == volume), None)
    if mount is not None and mount.error is not None:
        raise _raised(mount.error)
    return mount.phase if mount is not None else ""


def _is_at_rest(machine: Machine) -> bool:
    phase = machine.status.phase
    return machine.status.process is None and (
        phase in ("failed", "crashed") or (phase == "stopped" and machine.spec.power == "stopped")
    )


def progress(machine: Machine) -> Progress:
    """How far a machine is, in words."""
    status = machine.status
    if status.progress:
        return Progress(status.progress)
    if status.phase == "running" and status.agent == "none":
        return Progress("booting")
    return Progress(status.phase)
