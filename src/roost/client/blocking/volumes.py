# Derived from aio/volumes.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Volumes: make, attach while machines run, grow, move, limit, keep instants, copy, delete and bring back; and the pools they live in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from roost.client.blocking.objects import Objects, decode
from roost.client.blocking.session import Session
from roost.client.durations import stamp
from roost.client.progress import failed, mounted, settled, unmounted, wished_size
from roost.client.protocol import path
from roost.client.results import Progress
from roost.errors import Conflict, NotFound, RoostError
from roost.model.kinds import BY_NAME
from roost.model.machine import Machine
from roost.model.pool import Pool
from roost.model.volume import TRASH_NAME, Limits, Mount, Volume, VolumeSnapshot

Report = Callable[[str, Progress], None]
"""Told the volume's name and how far it is."""

ATTEMPTS = 5
"""How often a list of mounts is read and written again because somebody else changed the machine."""


def silent(name: str, now: Progress) -> None:
    """Tell nobody."""


class Pools(Objects[Pool]):
    """The pools of the host: everybody sees them, admins change them."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, BY_NAME["pool"], Pool, "")

    def wait_until_ready(self, name: str) -> Pool:
        """The pool as soon as it can be used. Raises what keeps it from that, NotFound when it is deleted meanwhile."""
        for change in self.changes():
            seen = change.value
            if seen is not None and seen.name == name and seen.status.phase == "failed":
                raise failed(seen)
            if seen is not None and seen.name == name and seen.status.phase == "ready":
                return seen
            if seen is None and change.name == name:
                break
        raise NotFound(f'pool "{name}" is gone', "it was deleted meanwhile", "roost pool list")


class Volumes(Objects[Volume]):
    """The volumes of a project. What takes a while returns when it is done, or at once without `wait`."""

    def __init__(self, session: Session, project: str) -> None:
        super().__init__(session, BY_NAME["volume"], Volume, project)
        self._machines: Objects[Machine] = Objects(session, BY_NAME["machine"], Machine, project)
        self._snapshots: Objects[VolumeSnapshot] = Objects(
            session, BY_NAME["volumesnapshot"], VolumeSnapshot, project
        )

    def make(
        self, name: str, size: int | str | None = None, *, wait: bool = True, report: Report = silent, **spec: Any
    ) -> Volume:
        """A new volume of `size` ("10GiB", bytes). `spec` holds further fields of VolumeSpec: `pool`, `source`, `encrypted`, `limits`, ... Raises
        Invalid, Conflict (the name is taken), QuotaExceeded, Unavailable (the pool is full)."""
        wish = {"size": size, **spec}
        made = self.create(name, {field: value for field, value in wish.items() if value is not None})
        return self.settled(made, report) if wait else made

    def clone(
        self, source: str, name: str, *, pool: str | None = None, wait: bool = True, report: Report = silent
    ) -> Volume:
        """A copy of a volume, or of a snapshot of one ("data.monday"); it shares what is the same. Raises NotFound, Conflict, Invalid."""
        word = "snapshot" if "." in source else "volume"
        if pool is None and word == "snapshot":
            pool = (self._snapshots.get(source)).status.pool or None
        elif pool is None:
            seen = self.get(source)
            pool = seen.status.pool or seen.spec.pool
        return self.make(name, pool=pool, source={word: source}, wait=wait, report=report)

    def attach(self, name: str, machine: str, *, read_only: bool = False, wait: bool = True) -> Machine:
        """Give a machine a volume, running or not; nothing when it has it so. Inside it is the disk /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_NAME.
        Raises NotFound, Conflict (another machine has it, or this one has it otherwise)."""
        wish = Mount(volume=name, read_only=read_only)

        def change(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
            present = next((mount for mount in mounts if mount.volume == name), None)
            if present is not None and present != wish:
                how = "for reading only" if present.read_only else "for reading and writing"
                what = f'volume "{name}" can not be attached to {machine}'
                raise Conflict(what, f"it is already, {how}", f"roost volume detach {name} {machine}")
            return mounts if present is not None else (*mounts, wish)

        seen = self._change_mounts(machine, change)
        return self._until(seen, lambda now: mounted(now, name)) if wait else seen

    def detach(self, name: str, machine: str | None = None, *, wait: bool = True) -> Machine:
        """Take a volume from a machine (from the one that has it), running or not. With `wait` returns when the guest let go of it.
        Raises NotFound (it is not attached), and what keeps the guest from letting go: Conflict, Unavailable; then it stays attached."""
        user = machine or self._user_of(name)

        def change(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
            return tuple(mount for mount in mounts if mount.volume != name)

        before = self._machines.get(user)
        mounts = {it.volume: Mount(volume=it.volume, read_only=it.read_only) for it in before.status.volumes}
        mounts |= {it.volume: it for it in before.spec.volumes}
        if name not in mounts:
            what = f'volume "{name}" is not attached to {user}'
            raise NotFound(what, fix=f"roost volume show {name}")
        seen = self._change_mounts(user, change)
        if not wait:
            return seen
        try:
            return self._until(seen, lambda now: unmounted(now, name))
        except RoostError:
            self._put_back(user, mounts[name])
            raise

    def _put_back(self, machine: str, mount: Mount) -> None:
        """Wish again for what the guest did not let go of, so that it is not taken away later, when nobody waits for it."""

        def change(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
            return (*[it for it in mounts if it.volume != mount.volume], mount)

        with suppress(RoostError):
            self._change_mounts(machine, change)

    def grow(self, name: str, size: int | str, *, wait: bool = True, report: Report = silent) -> Volume:
        """Make it larger, also while a machine has it: `size` is the new one ("20GiB"), or what is added ("+10GiB"). Raises Invalid (smaller)."""
        if isinstance(size, str) and size.startswith("+"):
            seen = self.get(name)
            size = wished_size(seen, size)
        return self.changed(name, {"size": size}, wait=wait, report=report)

    def move(self, name: str, pool: str, *, wait: bool = True, report: Report = silent) -> Volume:
        """Bring it to another pool, also while a machine has it. Raises NotFound, Unavailable."""
        return self.changed(name, {"pool": pool}, wait=wait, report=report)

    def limit(self, name: str, limits: Limits | dict[str, Any]) -> Volume:
        """Say how fast it may be; fields that are not named stay. 0 is no limit."""
        wish = (
            limits
            if isinstance(limits, dict)
            else {field: getattr(limits, field) for field in limits.__struct_fields__}
        )
        return self.changed(name, {"limits": wish})

    def changed(self, name: str, spec: dict[str, Any], *, wait: bool = True, report: Report = silent) -> Volume:
        """Change fields of its spec; with `wait` returns when it is so. Raises Invalid, NotFound, Conflict, and what kept it from being done."""
        made = self.change(name, spec)
        return self.settled(made, report) if wait else made

    def rename(self, name: str, new: str) -> Volume:
        """Give it another name. Raises Conflict when the name is taken, or a machine has the volume."""
        answer = self._session.call("POST", path("volumes", self._project, name, "rename"), {"name": new})
        return decode(answer, Volume)

    def snapshot(self, name: str, snapshot: str | None = None, *, wait: bool = True) -> VolumeSnapshot:
        """Keep it as it is now, also while a machine has it, as NAME.SNAPSHOT (without one: the time). Raises Conflict, Unavailable."""
        whole = f"{name}.{snapshot or stamp()}" if snapshot is None or "." not in snapshot else snapshot
        taken = self._snapshots.create(whole, {"volume": name})
        return self._taken(taken) if wait else taken

    def snapshots(self, name: str | None = None) -> list[VolumeSnapshot]:
        """What was kept of a volume, also under an earlier name of it (of all volumes), the oldest first."""
        found = self._snapshots.list()
        if name is not None:
            uids = [it.meta.uid for it in self.list() if it.name == name]
            found = [
                it
                for it in found
                if it.status.volume_uid in uids or (not it.status.volume_uid and it.spec.volume == name)
            ] or [it for it in found if it.spec.volume == name and not uids]
        return sorted(found, key=lambda it: (it.status.taken or it.meta.created, it.name))

    def delete_snapshot(self, name: str, *, wait: bool = True) -> None:
        """Remove a snapshot ("data.monday"); what was made of it stays. Raises NotFound, Conflict."""
        self._snapshots.delete(name, wait=wait)

    def delete(self, name: str, *, wait: bool = True, now: bool = False) -> None:
        """Put it into the trash of its pool, from which `restore` brings it back for a while; with `now`, or when it is there already, it is gone.
        Raises NotFound, Conflict (attached, or protected)."""
        target = path("volumes", self._project, name, now="true" if now else None)
        uid = (self._session.call("DELETE", target))["meta"]["uid"]
        if wait:
            self._gone(name, uid)

    def _gone(self, name: str, uid: str) -> None:
        """Returns when the volume is not there any more, or is in the trash."""
        present = False
        for change in self.changes():
            seen = change.value
            if seen is not None and seen.meta.uid == uid:
                if seen.name != name:
                    return  # it is in the trash
                present = True
            elif (change.synced and not present) or (seen is None and change.name == name):
                return

    def trash(self) -> list[Volume]:
        """What is in the trash, the newest first."""
        found = [it for it in self.list() if it.status.phase == "trash"]
        return sorted(found, key=lambda it: (it.status.trashed, it.name), reverse=True)

    def restore(self, name: str, new: str | None = None) -> Volume:
        """Bring back the volume that was called `name` (the one deleted last; or a name in the trash itself), as `new` or as it was called.
        Raises NotFound, Conflict (another has the name)."""
        for it in self.trash():
            former = TRASH_NAME.fullmatch(it.name)
            called = former.group(1) if former else it.name
            if name in (it.name, called):
                return self.settled(self.rename(it.name, new or called), silent)
        raise NotFound(f'no volume "{name}" is in the trash', fix="roost volume list --trash")

    def settled(self, wanted: Volume, report: Report) -> Volume:
        """The volume as soon as it is as `wanted` says. Raises what kept it from that, NotFound when it is deleted meanwhile."""
        for change in self.changes():
            seen = change.value
            if seen is not None and seen.meta.uid == wanted.meta.uid:
                report(seen.name, Progress(seen.status.progress or seen.status.phase, seen.status.fraction))
                if settled(seen, wanted.meta.generation):
                    return seen
            elif seen is None and change.name == wanted.name:
                break
        raise NotFound(f'volume "{wanted.name}" is gone', "it was deleted meanwhile", "roost volume list --trash")

    def _taken(self, snapshot: VolumeSnapshot) -> VolumeSnapshot:
        for change in self._snapshots.changes():
            seen = change.value
            if seen is not None and seen.meta.uid == snapshot.meta.uid:
                if seen.status.phase == "failed":
                    raise failed(seen)
                if seen.status.phase == "ready":
                    return seen
            elif seen is None and change.name == snapshot.name:
                break
        raise NotFound(f'snapshot "{snapshot.name}" is gone', "it was deleted meanwhile", "roost volume snapshots")

    def _until(self, machine: Machine, holds: Callable[[Machine], bool]) -> Machine:
        """The machine as soon as it `holds`. Raises what that raises, NotFound when the machine is deleted meanwhile."""
        for change in self._machines.changes():
            seen = change.value
            if seen is not None and seen.meta.uid == machine.meta.uid:
                if seen.meta.revision >= machine.meta.revision and holds(seen):
                    return seen
            elif seen is None and change.name == machine.name:
                break
        raise NotFound(f'machine "{machine.name}" is gone', "it was deleted meanwhile", "roost list")

    def _user_of(self, name: str) -> str:
        """The machine that has the volume. Raises NotFound, Conflict when there are several."""
        volume = self.get(name)
        users = [
            it.name
            for it in self._machines.list()
            if name in [mount.volume for mount in it.spec.volumes]
            or volume.meta.uid in [mount.volume_uid for mount in it.status.volumes]
        ]
        if len(users) > 1:
            fix = f"roost volume detach {name} {users[0]}"
            raise Conflict(f'from which machine "{name}" is to be detached is not clear', ", ".join(users), fix)
        if not users:
            raise NotFound(f'volume "{name}" is attached to no machine', fix=f"roost volume attach {name} MACHINE")
        return users[0]

    def _change_mounts(self, machine: str, change: Callable[[tuple[Mount, ...]], tuple[Mount, ...]]) -> Machine:
        for _ in range(ATTEMPTS):
            seen = self._machines.get(machine)
            mounts = change(seen.spec.volumes)
            if mounts == seen.spec.volumes:
                return seen
            wish = [{"volume": mount.volume, "read_only": mount.read_only} for mount in mounts]
            body = {"spec": {"volumes": wish}, "meta": {"revision": seen.meta.revision}}
            try:
                answer = self._session.call("PATCH", path("machines", self._project, machine), body)
            except Conflict as error:
                taken = error
                if (self._machines.get(machine)).meta.revision == seen.meta.revision:
                    raise
                continue
            return decode(answer, Machine)
        raise taken
