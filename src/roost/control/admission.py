"""What is checked before an object enters the store, beyond its own shape: quotas, what may not change, defaults of this host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from roost.control.networkplan import names_it, uses
from roost.control.volumeadmission import VolumeAdmission
from roost.errors import Conflict, Invalid, NotFound, Problem, QuotaExceeded
from roost.model import codec, size
from roost.model.image import Image
from roost.model.kinds import BY_NAME, Object, key_of, prefix_of
from roost.model.machine import Machine
from roost.model.meta import Arch
from roost.model.network import Network
from roost.model.pool import Pool, PoolType
from roost.model.program import Program
from roost.model.project import Project, Quota
from roost.model.ruleset import RuleSet
from roost.model.volume import Volume, VolumeSnapshot
from roost.store.base import Store

T = TypeVar("T", Machine, Image)
S = TypeVar("S", Machine, Program, Network)

FIXED = {
    "machine": ("image", "arch", "disk", "user_data", "ephemeral", "users", "ssh_keys", "tpm", "source"),
    "image": ("template", "url", "sha256", "upload", "arch"),
    "network": ("mode", "subnets", "interface", "vlan"),
}
"""Fields of a spec that decide what was made at the beginning, so they can not change afterwards."""


_EDIT = "roost edit machine {}"


class Admission:
    """The gate of the store for what users write."""

    def __init__(self, store: Store, arch: Arch, pool_types: frozenset[PoolType] = frozenset({"directory"})) -> None:
        self._store = store
        self._arch = arch
        self._storage = VolumeAdmission(store, pool_types)

    async def admit(self, after: Object, before: Object | None, besides: Sequence[Object] = ()) -> Object:
        """`after` with this host's defaults filled in; `besides` are objects that the same write makes. Raises Invalid (all fixed fields
        that changed), NotFound (no such project), Conflict (the project is being deleted), QuotaExceeded."""
        if isinstance(after, Project):
            return after
        if isinstance(after, Pool):
            return self._storage.pool(after, before if isinstance(before, Pool) else None)
        project = await self._project(after.project)
        if isinstance(after, Machine):
            return await self._machine(after, before if isinstance(before, Machine) else None, project, besides)
        if isinstance(after, Program):
            await self._check_quota(after, project.spec.quota, besides)
            return after
        if isinstance(after, Network):
            return await self._network(after, before if isinstance(before, Network) else None, project, besides)
        if isinstance(after, Image):
            return _with_arch(after, before if isinstance(before, Image) else None, self._arch)
        if isinstance(after, Volume | VolumeSnapshot):
            return await self._storage.admit(after, before, project.spec.quota)
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
        await self._storage.mounts(new, old)
        await self._check_quota(new, project.spec.quota, besides)
        return new

    async def _network(self, new: Network, old: Network | None, project: Project, besides: Sequence[Object]) -> Network:
        if old is not None and (problems := list(_changed(new, old))):
            what = f'network "{new.name}" was not changed'
            raise Invalid(
                what, problems=problems, fix="make a network of another name, and attach the machines to that"
            )
        limit = project.spec.quota.networks
        if old is None and limit is not None:
            count = len(await self._others(new, Network, besides)) + 1
            if count > limit:
                why = f'project "{new.project}" may have {limit} networks, with this it would have {count}'
                fix = "delete a network, or ask an owner to raise the quota"
                raise QuotaExceeded(f'network "{new.name}" is over quota', why, fix)
        return new

    async def dismiss(self, thing: Object) -> None:
        """Whether the object may be deleted. Raises Conflict for a network or a rule set that machines name, and for a volume or a pool
        that something needs."""
        if isinstance(thing, Volume | VolumeSnapshot | Pool):
            await self._storage.dismiss(thing)
        if not isinstance(thing, Network | RuleSet):
            return
        machines: list[Machine] = await self._others(thing, Machine, ())
        users = [
            machine.name
            for machine in machines
            if machine.meta.deleting is None
            and (names_it(machine, thing.name) if isinstance(thing, Network) else uses(machine, thing.name))
        ]
        if users:
            named = ", ".join(users[:10]) + (f" and {len(users) - 10} more" if len(users) > 10 else "")
            what = f'{thing.kind} "{thing.name}" was not deleted'
            fix = (
                f"roost network detach {thing.name} {users[0]}"
                if isinstance(thing, Network)
                else _EDIT.format(users[0])
            )
            raise Conflict(what, f"ports of machines name it: {named}", fix)

    async def _check_quota(self, new: Machine | Program, quota: Quota, besides: Sequence[Object]) -> None:
        if quota == Quota():
            return
        machines = await self._others(new, Machine, besides)
        programs = await self._others(new, Program, besides)
        (machines if isinstance(new, Machine) else programs).append(new)
        if quota.memory is not None and any(program.spec.policy.memory is None for program in programs):
            why = f'project "{new.project}" may have {size.show(quota.memory)} of memory, so each of its programs needs a bound'
            raise QuotaExceeded(
                f'{new.kind} "{new.name}" is over quota', why, "say how much it may have: --memory 256MiB"
            )
        used = {
            "machines": len(machines),
            "programs": len(programs),
            "cpus": sum(machine.spec.cpus for machine in machines),
            "memory": sum(machine.spec.memory for machine in machines)
            + sum(program.spec.policy.memory or 0 for program in programs),
        }
        for what, amount in used.items():
            limit = getattr(quota, what)
            if limit is not None and amount > limit:
                why = f'project "{new.project}" may have {_written(what, limit)}, with this it would have {_written(what, amount)}'
                fix = "delete a machine or a program, or ask an owner to raise the quota"
                raise QuotaExceeded(f'{new.kind} "{new.name}" is over quota', why, fix)

    async def _others(self, new: Object, type_: type[S], besides: Sequence[Object]) -> list[Any]:
        """The machines or programs of the project but this one."""
        entries, _ = await self._store.list(prefix_of(BY_NAME[type_.__name__.lower()], new.project))
        stored: list[Any] = [codec.stored(entry.value, type_) for entry in entries if entry.value is not None]
        return [it for it in [*stored, *besides] if isinstance(it, type_) and it.meta.uid != new.meta.uid]


def _written(what: str, amount: int) -> str:
    return f"{size.show(amount)} of memory" if what == "memory" else f"{amount} {what}"


def _with_arch(new: T, old: T | None, host: Arch) -> T:
    if old is None:
        return msgspec.structs.replace(new, spec=msgspec.structs.replace(new.spec, arch=new.spec.arch or host))
    if problems := list(_changed(new, old)):
        what = f'{new.kind} "{new.name}" was not changed'
        raise Invalid(what, problems=problems, fix=f"delete it and make a new one: roost delete {new.name}")
    return new


def _changed(new: Machine | Image | Network, old: Machine | Image | Network) -> Iterator[Problem]:
    for field in FIXED[new.kind]:
        if getattr(new.spec, field) != getattr(old.spec, field):
            yield Problem(f"spec.{field}", "can not change after creation")
