"""What users may wish of volumes, their snapshots, pools and mounts, given what there is; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from roost.errors import Conflict, Invalid, NotFound, Problem, Unavailable
from roost.model import size
from roost.model.machine import Machine
from roost.model.pool import Pool
from roost.model.volume import TRASH_NAME, Mount, Volume, VolumeSnapshot

DEFAULT_POOL = "default"
"""The pool that every daemon has."""


def added(new: Machine, old: Machine | None) -> list[Mount]:
    """The mounts of `new` that `old` has not, or not so."""
    present = old.spec.volumes if old is not None else ()
    return [mount for mount in new.spec.volumes if mount not in present]


def users_of(volume: Volume, machines: Iterable[Machine]) -> list[str]:
    """The machines that name the volume, or have it still."""
    name, uid = volume.name, volume.meta.uid
    return [
        machine.name
        for machine in machines
        if any(mount.volume == name for mount in machine.spec.volumes)
        or any(mount.volume_uid == uid for mount in machine.status.volumes)
    ]


def check_mount(machine: str, mount: Mount, volume: Volume | None, others: Iterable[Machine]) -> None:
    """Whether `machine` may have this volume beside `others`. Raises NotFound, Conflict: a volume has one writer, or readers only."""
    what = f'volume "{mount.volume}" can not be attached to {machine}'
    if volume is None:
        fix = f"roost volume list, or make it: roost volume create {mount.volume} --size 10GiB"
        raise NotFound(f'volume "{mount.volume}" does not exist', "it is not in the machine's project", fix)
    check_usable(volume, what)
    if volume.spec.sharing == "read-only":
        if not mount.read_only:
            fix = f"roost volume attach {volume.name} {machine} --read-only"
            raise Conflict(what, "it is shared, so that every machine may only read it", fix)
        return
    if users := users_of(volume, others):
        fix = f"roost volume detach {volume.name} {users[0]}; or, for reading only, share it: roost volume share {volume.name}"
        raise Conflict(what, f"{users[0]} has it, and two writers would destroy it", fix)


def check_usable(volume: Volume, what: str) -> None:
    """Raises Conflict for a volume that goes, is in the trash or did not come to be."""
    if volume.status.phase == "trash":
        raise Conflict(what, "it is in the trash", f"roost volume restore {volume.name}")
    if volume.meta.deleting is not None:
        raise Conflict(what, f'volume "{volume.name}" is being deleted', "roost volume list")
    if volume.status.phase == "failed":
        why = volume.status.error.what if volume.status.error is not None else "it failed"
        raise Conflict(what, why, f"roost volume show {volume.name}")


def check_name(name: str, what: str) -> None:
    """Raises Invalid for a name that only the trash gives."""
    if TRASH_NAME.fullmatch(name):
        raise Invalid(what, problems=[Problem("name", "ends as the names of what is in the trash do")])


def check_change(new: Volume, old: Volume, machines: Sequence[Machine]) -> None:
    """Whether `old` may become `new`. Raises Invalid (all that is wrong), Conflict."""
    what = f'volume "{new.name}" was not changed'
    check_usable_for_change(old, what)
    problems = []
    least = max(old.status.size, old.spec.size or 0)
    if (new.spec.size or least) < least:
        text = f"can not shrink from {size.show(least)}: make a smaller one, attach both, and copy what is in it"
        problems.append(Problem("spec.size", text))
    problems += [
        Problem(f"spec.{field}", "can not change after creation")
        for field in ("source", "encrypted", "rekeys")
        if getattr(new.spec, field) != getattr(old.spec, field)
    ]
    if problems:
        raise Invalid(what, problems=problems, fix=f"make a copy that is so: roost volume clone {new.name} NEW")
    if new.spec.sharing != old.spec.sharing:
        _check_sharing(new, machines, what)


def check_usable_for_change(volume: Volume, what: str) -> None:
    """Raises Conflict for a volume that goes or is in the trash: one that failed may be mended."""
    if volume.status.phase != "failed":
        check_usable(volume, what)
    elif volume.meta.deleting is not None:
        raise Conflict(what, "it is being deleted", "roost volume list")


def _check_sharing(new: Volume, machines: Sequence[Machine], what: str) -> None:
    users = users_of(new, machines)
    if new.spec.sharing == "none" and len(users) > 1:
        raise Conflict(what, f"{len(users)} machines have it", f"roost volume detach {new.name} {users[0]}")
    writers = [
        machine.name
        for machine in machines
        if any(mount.volume == new.name and not mount.read_only for mount in machine.spec.volumes)
        or any(mount.volume_uid == new.meta.uid and not mount.read_only for mount in machine.status.volumes)
    ]
    if new.spec.sharing == "read-only" and writers:
        why = f"{writers[0]} may write to it"
        raise Conflict(what, why, f"roost volume detach {new.name} {writers[0]}")


def check_rename(new: Volume, old: Volume, machines: Iterable[Machine], volumes: Iterable[Volume]) -> None:
    """Whether a volume may be called so; what is in the trash comes back by that. Raises Invalid, Conflict."""
    what = f'volume "{old.name}" was not renamed'
    check_name(new.name, what)
    if users := users_of(old, machines):
        why = f"{users[0]} has it, and knows it by this name"
        raise Conflict(what, why, f"roost volume detach {old.name} {users[0]}")
    _check_unused(old, volumes, what)


def check_deletion(volume: Volume, machines: Iterable[Machine], volumes: Iterable[Volume]) -> None:
    """Whether a volume may go. Raises Conflict."""
    what = f'volume "{volume.name}" was not deleted'
    if volume.spec.protected:
        raise Conflict(what, "it is protected", f"roost volume protect {volume.name} --off")
    if users := users_of(volume, machines):
        named = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
        raise Conflict(what, f"it is attached to {named}", f"roost volume detach {volume.name} {users[0]}")
    _check_unused(volume, volumes, what)


def check_snapshot_deletion(snapshot: VolumeSnapshot, volumes: Iterable[Volume]) -> None:
    """Whether a snapshot may go. Raises Conflict while something is made of it."""
    _check_unused(snapshot, volumes, f'snapshot "{snapshot.name}" was not deleted')


def _check_unused(thing: Volume | VolumeSnapshot, volumes: Iterable[Volume], what: str) -> None:
    """Raises Conflict while a volume is made of it; afterwards that stands by itself."""
    field = "volume" if isinstance(thing, Volume) else "snapshot"
    for it in volumes:
        named = it.spec.source is not None and getattr(it.spec.source, field) == thing.name
        if named and it.meta.deleting is None and it.status.phase in ("pending", "creating"):
            raise Conflict(what, f'volume "{it.name}" is being made of it', f"roost volume show {it.name}")


def check_room(pool: Pool, what: str) -> None:
    """Raises Unavailable when nothing new may begin in the pool."""
    if pool.meta.deleting is not None:
        raise Conflict(what, f'pool "{pool.name}" is being deleted', "choose another: roost pool list")
    if pool.status.level in ("closed", "paused"):
        taken, whole = size.show(pool.status.used), size.show(pool.status.size)
        why = f'pool "{pool.name}" is closed: {taken} of {whole} are taken, and from {pool.spec.close}% on nothing begins in it'
        fix = "make room: roost volume list --trash, then roost volume delete --now NAME; or use another pool: roost pool list"
        raise Unavailable(what, why, fix)


def check_pool(new: Pool, old: Pool | None, types: frozenset[str]) -> None:
    """Whether a pool may be so. Raises Invalid with all that is wrong."""
    if old is None:
        if new.spec.type not in types:
            text = f"{new.spec.type} is not there in this version; there is {', '.join(sorted(types))}"
            raise Invalid(f'pool "{new.name}" was not created', problems=[Problem("spec.type", text)])
        if new.spec.type == "directory" and not new.spec.path:
            problem = Problem("spec.path", "must be said: the daemon's own directory is that of the pool default")
            raise Invalid(f'pool "{new.name}" was not created', problems=[problem], fix="say --path DIRECTORY")
        return
    fixed = ("type", "path", "thin_pool", "servers", "export", "user")
    problems = [
        Problem(f"spec.{field}", "can not change after creation")
        for field in fixed
        if getattr(new.spec, field) != getattr(old.spec, field)
    ]
    if problems:
        fix = "make a new pool, and move the volumes there: roost volume move NAME POOL"
        raise Invalid(f'pool "{new.name}" was not changed', problems=problems, fix=fix)


def check_pool_deletion(pool: Pool, volumes: Iterable[Volume], snapshots: Iterable[VolumeSnapshot]) -> None:
    """Whether a pool may go. Raises Conflict."""
    what = f'pool "{pool.name}" was not deleted'
    if pool.name == DEFAULT_POOL:
        raise Conflict(what, "every daemon has it", "delete what is in it: roost volume list")
    inside = [f"volume {it.project}/{it.name}" for it in volumes if pool.name in (it.spec.pool, it.status.pool)]
    inside += [f"snapshot {it.project}/{it.name}" for it in snapshots if it.status.pool == pool.name]
    if inside:
        listed = ", ".join(inside[:10]) + (f" and {len(inside) - 10} more" if len(inside) > 10 else "")
        word, place = inside[0].split()
        project, _, name = place.partition("/")
        verb = f"roost volume delete {name} --now" if word == "volume" else f"roost volume delete {name}"
        raise Conflict(what, f"it holds {listed}", f"{verb} --project {project}")


def sized(new: Volume, known: int) -> Volume:
    """A new volume with its size filled in: `known` bytes are its source's (0: nobody knows yet). Raises Invalid for fewer."""
    wanted = new.spec.size
    if wanted is None:
        return msgspec.structs.replace(new, spec=msgspec.structs.replace(new.spec, size=known)) if known else new
    if wanted < known:
        text = f"{size.exact(wanted)} is less than what it is a copy of has: {size.exact(known)}"
        raise Invalid(f'volume "{new.name}" was not created', problems=[Problem("spec.size", text)])
    return new


def check_snapshot(new: VolumeSnapshot, volume: Volume | None) -> Volume:
    """The volume that a snapshot may be taken of. Raises Invalid, NotFound, Conflict."""
    what = f'snapshot "{new.name}" was not taken'
    if new.name.partition(".")[0] != new.spec.volume:
        raise Invalid(what, problems=[Problem("name", f"does not begin with the volume's: {new.spec.volume}.NAME")])
    if volume is None:
        raise NotFound(
            what, f'volume "{new.spec.volume}" does not exist in project "{new.project}"', "roost volume list"
        )
    check_usable(volume, what)
    return volume
