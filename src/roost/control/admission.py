"""What is checked before an object enters the store, beyond its own shape: quotas, what may not change, defaults of this host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from roost.errors import Conflict, Invalid, NotFound, Problem, QuotaExceeded
from roost.model import codec, size
from roost.model.image import Image
from roost.model.kinds import BY_NAME, Object, key_of, prefix_of
from roost.model.machine import Machine
from roost.model.meta import Arch
from roost.model.project import Project, Quota
from roost.store.base import Store

T = TypeVar("T", Machine, Image)

FIXED = {
    "machine": ("image", "arch", "disk", "user_data", "ephemeral", "users", "ssh_keys", "tpm", "source"),
    "image": ("template", "url", "sha256", "upload", "arch"),
}
"""Fields of a spec that decide what was made at the beginning, so they can not change afterwards."""


class Admission:
    """The gate of the store for what users write."""

    def __init__(self, store: Store, arch: Arch) -> None:
        self._store = store
        self._arch = arch

    async def admit(self, after: Object, before: Object | None, besides: Sequence[Object] = ()) -> Object:
        """`after` with this host's defaults filled in; `besides` are objects that the same write makes. Raises Invalid (all fixed fields
        that changed), NotFound (no such project), Conflict (the project is being deleted), QuotaExceeded."""
        if isinstance(after, Project):
            return after
        project = await self._project(after.project)
        if isinstance(after, Machine):
            return await self._machine(after, before if isinstance(before, Machine) else None, project, besides)
        if isinstance(after, Image):
            return _with_arch(after, before if isinstance(before, Image) else None, self._arch)
        return after

    async def _project(self, name: str) -> Project:
        try:
            entry = await self._store.get(key_of(BY_NAME["project"], "", name))
        except NotFound:
            raise NotFound(f'project "{name}" does not exist', fix=f"roost project create {name}") from None
        assert entry.value is not None
        project = codec.stored(entry.value, Project)
        if project.meta.deleting is not None:
            raise Conflict(f'project "{name}" is being deleted', fix="choose another project: --project")
        return project

    async def _machine(self, new: Machine, old: Machine | None, project: Project, besides: Sequence[Object]) -> Machine:
        new = _with_arch(new, old, self._arch)
        quota = project.spec.quota
        if quota != Quota():
            await self._check_quota(new, quota, besides)
        return new

    async def _check_quota(self, new: Machine, quota: Quota, besides: Sequence[Object]) -> None:
        entries, _ = await self._store.list(prefix_of(BY_NAME["machine"], new.project))
        machines = [codec.stored(entry.value, Machine) for entry in entries if entry.value is not None]
        machines += [thing for thing in besides if isinstance(thing, Machine)]
        specs = [machine.spec for machine in machines if machine.meta.uid != new.meta.uid] + [new.spec]
        used = {
            "machines": len(specs),
            "cpus": sum(spec.cpus for spec in specs),
            "memory": sum(spec.memory for spec in specs),
        }
        for what, limit in (("machines", quota.machines), ("cpus", quota.cpus), ("memory", quota.memory)):
            if limit is not None and used[what] > limit:
                why = f'project "{new.project}" may have {_written(what, limit)}, with this it would have {_written(what, used[what])}'
                raise QuotaExceeded(
                    f'machine "{new.name}" is over quota', why, "delete a machine, or ask an owner to raise the quota"
                )


def _written(what: str, amount: int) -> str:
    return f"{size.show(amount)} of memory" if what == "memory" else f"{amount} {what}"


def _with_arch(new: T, old: T | None, host: Arch) -> T:
    if old is None:
        return msgspec.structs.replace(new, spec=msgspec.structs.replace(new.spec, arch=new.spec.arch or host))
    if problems := list(_changed(new, old)):
        what = f'{new.kind} "{new.name}" was not changed'
        raise Invalid(what, problems=problems, fix=f"delete it and make a new one: roost delete {new.name}")
    return new


def _changed(new: T, old: T) -> Iterator[Problem]:
    for field in FIXED[new.kind]:
        if getattr(new.spec, field) != getattr(old.spec, field):
            yield Problem(f"spec.{field}", "can not change after creation")
