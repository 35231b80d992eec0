"""The reconciler of forwards: networks publish them; here is written down what became of each."""

from __future__ import annotations

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.networkplan import forward_key, port_of, rival, target_of
from roost.control.networks import Networks
from roost.control.records import Records, read
from roost.errors import NotFound, RoostError
from roost.model.forward import Forward, ForwardStatus
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Trouble


class Forwards:
    """Says of forwards what is, and removes those that are to go when nothing listens for them any more."""

    def __init__(self, records: Records, networks: Networks) -> None:
        self._records = records
        self._networks = networks

    async def reconcile(self, key: str) -> None:
        """Bring the forward at `key` to what is wanted. Raises Retry."""
        try:
            forward = read(await self._records.store.get(key), Forward)
        except NotFound:
            return
        if forward.meta.deleting is not None:
            await self._remove(key, forward)
            return
        status = await self._status(forward)

        def change(now: Forward) -> Forward:
            return replace(now, status=replace(status, generation=forward.meta.generation))

        await self._records.change(key, Forward, change)

    async def _remove(self, key: str, forward: Forward) -> None:
        machine = await self._machine(forward)
        port = port_of(machine, forward.spec.port) if machine is not None else None
        if port is not None:
            try:
                await self._networks.ensure(key_of(BY_NAME["network"], forward.project, port.network))
            except NotFound:
                pass
            except RoostError as error:
                raise Retry(str(error)) from error
        self._networks.unpublished.pop(forward_key(forward), None)
        await self._records.remove(key, forward.meta.revision)

    async def _status(self, forward: Forward) -> ForwardStatus:
        other = rival(forward, await self._records.all(Forward))
        if other is not None:
            place = f"{forward.spec.address}:{forward.spec.host_port}/{forward.spec.protocol}"
            whose = f', "{other.name}"' if other.project == forward.project else ""
            return _failed(forward, f"{place} belongs to an older one{whose}")
        machine = await self._machine(forward)
        port = port_of(machine, forward.spec.port) if machine is not None else None
        if port is None or not port.addresses:
            return ForwardStatus(phase="waiting")
        unpublished, own = self._networks.unpublished, forward_key(forward)
        trouble = unpublished.get(own)
        if trouble is not None:
            return _failed(forward, f"{trouble.what}: {trouble.why}", trouble.fix)
        target = f"{target_of(port, forward.spec.address)}:{forward.spec.guest_port}"
        return ForwardStatus(phase="active" if own in unpublished else "pending", target=target)

    async def _machine(self, forward: Forward) -> Machine | None:
        try:
            return await self._records.machine(key_of(BY_NAME["machine"], forward.project, forward.spec.machine))
        except NotFound:
            return None


def _failed(forward: Forward, why: str, fix: str = "choose another port of the host") -> ForwardStatus:
    what = f'forward "{forward.name}" leads nowhere'
    return ForwardStatus(phase="failed", error=Trouble(what=what, why=why, fix=fix, code="conflict"))
