"""Copies of machines: clones of one that runs or is stopped, or of a snapshot, many in one commit; and the way back to a snapshot."""

from __future__ import annotations

import uuid
from typing import cast

import msgspec

from roost.api.access import Gate
from roost.api.children import Child, Children, CloneRequest, RestoreRequest
from roost.api.commits import Change, Commits
from roost.api.resources import Resources, taken
from roost.api.services import Services
from roost.api.view import View
from roost.api.wire import Answer, Call, document, refusal
from roost.control.clones import child_of, child_of_snapshot, restored
from roost.errors import NotFound, RoostError
from roost.model import codec
from roost.model.kinds import BY_NAME, Kind, key_of
from roost.model.machine import Machine
from roost.model.meta import Meta
from roost.model.snapshot import Snapshot
from roost.store.base import Write

_MACHINE = BY_NAME["machine"]
_SNAPSHOT = BY_NAME["snapshot"]


class Clones:
    """The verbs that make machines from others. Whoever may not see what is copied is told that it does not exist."""

    def __init__(self, services: Services, view: View, gate: Gate, resources: Resources, commits: Commits) -> None:
        self._services = services
        self._view = view
        self._gate = gate
        self._resources = resources
        self._commits = commits

    async def clone_machine(self, call: Call) -> Answer:
        """Make machines that are copies of this one, all of the same instant; one outcome for each name."""
        return await self._clone(call, _MACHINE)

    async def clone_snapshot(self, call: Call) -> Answer:
        """Make machines as this snapshot kept one; one outcome for each name."""
        return await self._clone(call, _SNAPSHOT)

    async def restore_machine(self, call: Call) -> Answer:
        """Put the machine back to a snapshot of it; what it did since is lost."""
        body = await call.body()
        data = document(body)
        if (replayed := await self._commits.replay(call, body)) is not None:
            return replayed
        await self._resources.read(call, _MACHINE, "update")
        request = codec.decode(data, RestoreRequest, f'machine "{call.name}" was not restored')

        async def decide() -> Change:
            machine = cast("Machine", await self._resources.read(call, _MACHINE, "update"))
            snapshot = await self._snapshot(call, request.snapshot)
            wanted = restored(machine, snapshot, memory=request.memory)
            after = await self._resources.admit(wanted, machine)
            return self._resources.changed(_MACHINE, machine, after)

        return await self._commits.carry_out(call, body, decide, call.project)

    async def _snapshot(self, call: Call, name: str) -> Snapshot:
        try:
            return cast("Snapshot", await self._resources.find(call, _SNAPSHOT, "get", call.project, name))
        except NotFound as error:
            raise NotFound(error.what, error.why, f"see which there are: roost snapshots {call.name}") from None

    async def _clone(self, call: Call, kind: Kind) -> Answer:
        body = await call.body()
        data = document(body)
        if (replayed := await self._commits.replay(call, body)) is not None:
            return replayed
        await self._resources.read(call, kind, "get")
        self._gate.check(call.principal, "create", _MACHINE, call.project)
        request = codec.decode(data, CloneRequest, f'{kind.name} "{call.name}" was not cloned')
        moment = str(uuid.uuid4())

        async def decide() -> Change:
            source = cast("Machine | Snapshot", await self._resources.read(call, kind, "get"))
            made: list[Machine] = []
            children = [_child(source, name, moment, request) for name in request.names]
            items = [await self._outcome(call, child, made) for child in children]
            writes = (Write(key_of(_MACHINE, it.project, it.name), codec.encode(it), expect=0) for it in made)
            return Change(200, Children(items=tuple(items)), tuple(writes))

        with self._commits.entering(call.project):
            return await self._commits.carry_out(call, body, decide, call.project)

    async def _outcome(self, call: Call, child: Machine, made: list[Machine]) -> Child:
        """What becomes of one child besides those that are `made` already; it joins them, or there is an error."""
        meta = Meta(uid=str(uuid.uuid4()), created=self._services.now(), creator=call.principal.name)
        try:
            if self._view.get(key_of(_MACHINE, child.project, child.name)) is not None:
                raise taken(_MACHINE, child.project, child.name)
            new = await self._resources.admit(msgspec.structs.replace(child, meta=meta), None, made)
        except RoostError as error:
            return Child(name=child.name, error=refusal(error)[1]["error"])
        made.append(cast("Machine", new))
        return Child(name=child.name, machine=made[-1])


def _child(source: Machine | Snapshot, name: str, moment: str, request: CloneRequest) -> Machine:
    how = {"keep_identity": request.keep_identity, "start": request.start, "memory": request.memory}
    if isinstance(source, Machine):
        return child_of(source, name, moment, **how)
    return child_of_snapshot(source, name, moment, **how)
