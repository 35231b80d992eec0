"""What to do next for a volume, and what a machine's mounts become: pure functions from wishes and what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from msgspec.structs import replace

from roost.model.machine import Machine
from roost.model.meta import Meta
from roost.model.volume import MOST_VOLUMES, TRASH_NAME, Mount, MountStatus, Volume

Step = Literal[
    "create",
    "settle-move",
    "let-go",
    "rekey",
    "limit",
    "grow",
    "move",
    "trash",
    "restore",
    "expire",
    "remove",
    "show",
]
"""Each step either changes the world or writes the status; after it the volume is looked at again."""


class Seen(NamedTuple):
    """A volume as it is. `stale`: machines that claim it and have it no more. `grace`: seconds that its pool keeps what is deleted; `left`: those
    that are left of it to a volume in the trash."""

    stale: tuple[str, ...] = ()
    grace: float = 0.0
    left: float = 0.0


def next_step(volume: Volume, seen: Seen) -> Step | None:
    """The one thing to do now, or None when the volume is as wanted."""
    phase = volume.status.phase
    if seen.stale:
        return "let-go"
    if phase == "moving":
        return "settle-move"
    if volume.meta.deleting is not None:
        return "trash" if phase == "ready" and seen.grace > 0 else "remove"
    if phase == "trash":
        return _in_trash(volume, seen)
    if phase == "ready":
        return _towards_wish(volume)
    untried = volume.status.generation != volume.meta.generation
    return "create" if phase != "failed" or untried else None


def _in_trash(volume: Volume, seen: Seen) -> Step | None:
    if TRASH_NAME.fullmatch(volume.name) is None:
        return "restore"
    return "expire" if seen.left <= 0 else None


def _towards_wish(volume: Volume) -> Step | None:
    spec, status = volume.spec, volume.status
    if status.rekeying or spec.rekeys != status.rekeys:
        return "rekey"  # before anybody opens it
    if spec.size is not None and spec.size > status.size:
        return "grow"
    if spec.limits != status.limits:
        return "limit"
    if spec.pool != status.pool:
        return "move"
    return "show" if status.generation != volume.meta.generation else None


def trashed(volume: Volume, ending: str, now: str) -> Volume:
    """The volume as it lies in the trash, out of the way of another of its name; `ending` is six hexadecimal digits."""
    meta = replace(volume.meta, deleting=None)
    status = replace(volume.status, phase="trash", trashed=now, progress="", error=None, generation=meta.generation)
    return replace(volume, name=f"{volume.name}--trash-{ending}", meta=meta, status=status)


def given_up(volume: Volume) -> Volume:
    """The volume whose owner wishes no more than there is: what could not be done is done again only when somebody asks again."""
    status = volume.status
    size = status.size if volume.spec.size is not None and volume.spec.size > status.size else volume.spec.size
    spec = replace(volume.spec, pool=status.pool, size=size, limits=status.limits, rekeys=status.rekeys)
    if spec == volume.spec:
        return volume
    return replace(volume, spec=spec, meta=_next(volume.meta))


def _next(meta: Meta) -> Meta:
    return replace(meta, generation=meta.generation + 1)


class Mounts(NamedTuple):
    """What the mounts of a machine with a guest are to be: those that `stay`, those to be attached (`new`), and those to be detached (`gone`)."""

    stay: tuple[MountStatus, ...]
    new: tuple[MountStatus, ...]
    gone: tuple[MountStatus, ...]


def mounts_of(machine: Machine, volumes: Mapping[str, Volume], present: Mapping[int, str]) -> Mounts:
    """What is to be done, with the volumes of the machine's project by name, and what its guest has by LUN. A volume that is not there is neither
    new nor gone: it is waited for."""
    wanted = {volumes[mount.volume].meta.uid: mount for mount in machine.spec.volumes if mount.volume in volumes}
    known = {mount.volume_uid: mount for mount in machine.status.volumes}
    lun_of = {uid: lun for lun, uid in present.items()}
    stay = tuple(
        MountStatus(volume=wanted[uid].volume, volume_uid=uid, lun=lun, read_only=mode, phase="attached")
        for uid, lun in sorted(lun_of.items(), key=lambda pair: pair[1])
        if uid in wanted and (mode := _mode(known.get(uid), wanted[uid])) == wanted[uid].read_only
    )
    staying = {mount.volume_uid for mount in stay}
    gone = tuple(_going(uid, lun, known.get(uid)) for lun, uid in sorted(present.items()) if uid not in staying)
    free = iter([lun for lun in range(MOST_VOLUMES) if lun not in present])
    new = tuple(
        MountStatus(
            volume=mount.volume,
            volume_uid=uid,
            lun=next(free),
            read_only=mount.read_only,
            error=known[uid].error if uid in known else None,  # until it is tried again that is so: no write in between
        )
        for uid, mount in wanted.items()
        if uid not in lun_of
    )
    return Mounts(stay, new, gone)


def _mode(known: MountStatus | None, wanted: Mount) -> bool:
    return known.read_only if known is not None else wanted.read_only


def _going(uid: str, lun: int, known: MountStatus | None) -> MountStatus:
    if known is None:
        return MountStatus(volume="", volume_uid=uid, lun=lun, phase="detaching")
    return replace(known, lun=lun, phase="detaching")


def refusal(volume: Volume, machine: Machine, *, read_only: bool) -> str:
    """Why the machine may not have the volume now, "" when it may. It waits until that is over."""
    others = [holder for holder in volume.status.holders if holder != machine.meta.uid]
    if volume.meta.deleting is not None or volume.status.phase == "trash":
        return "it is being deleted"
    if volume.status.phase == "failed":
        return volume.status.error.what if volume.status.error is not None else "it was not made"
    if volume.status.phase != "ready":
        return f"it is {volume.status.phase}"
    if volume.status.rekeying:
        return "its key is being changed"
    if volume.spec.sharing == "read-only" and not read_only:
        return "it is shared, so it can be attached read-only alone"
    if others and volume.spec.sharing != "read-only":
        return f"it is attached to {', '.join(volume.status.machines)}"
    return ""


def claimed(volume: Volume, machine: Machine) -> Volume:
    """The volume when the machine has it."""
    if machine.meta.uid in volume.status.holders:
        return volume
    holders, machines = (*volume.status.holders, machine.meta.uid), (*volume.status.machines, machine.name)
    return replace(volume, status=replace(volume.status, holders=holders, machines=machines))


def let_go(volume: Volume, uids: Iterable[str]) -> Volume:
    """The volume when the machines with these uids have it no more."""
    gone = set(uids)
    pairs = zip(volume.status.holders, volume.status.machines, strict=True)
    kept = [(uid, name) for uid, name in pairs if uid not in gone]
    holders, machines = tuple(uid for uid, _ in kept), tuple(name for _, name in kept)
    return replace(volume, status=replace(volume.status, holders=holders, machines=machines))
