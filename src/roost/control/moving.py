"""Moves volumes between pools, while a guest writes to them or not: at every instant exactly one place counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeAlias

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.holds import Holder, Holds
from roost.control.records import Records
from roost.errors import Conflict, RoostError
from roost.host import failpoints
from roost.hypervisor.base import Medium
from roost.model.volume import Volume
from roost.storage.pool import Pool as Place

Show: TypeAlias = Callable[..., Awaitable[Volume]]
"""Writes fields of a volume's status."""

BUSY_DELAY = 1.0
"""Seconds until a move is tried again that something in the QEMU or the pool was in the way of."""


class Moving:
    """Status tells the place that counts (`pool`) and the other one (`target`). While a guest writes, QEMU alone knows which it is: it is asked.
    From `switching` on every write that was acknowledged is in the target, whether QEMU had gone over to it before it ended or not."""

    def __init__(self, records: Records, recorder: Recorder, holds: Holds, show: Show) -> None:
        self._records = records
        self._recorder = recorder
        self._holds = holds
        self._show = show

    async def move(self, key: str, volume: Volume, progress: Callable[[float], None]) -> None:
        """To the pool of its spec. Raises Conflict, Unavailable, ...: then it is where it was; Retry while what an earlier move left is in the way.
        The caller has its lock."""
        held, wanted = await self._holds.holder(volume), volume.spec.pool
        moving = await self._show(key, phase="moving", target=wanted, switching=False, progress="moving", error=None)
        await failpoints.reach("volume.moving")
        try:
            await self._copy(key, moving, held, progress)
        except (RoostError, OSError) as error:
            await self._settle_soon(key)
            if (await self._records.volume(key)).status.pool == wanted:
                return
            if isinstance(error, Conflict):  # a QEMU that an earlier daemon left holds what is to be written
                await self._show(key, progress=f"waiting: {error.why}")
                await asyncio.sleep(BUSY_DELAY)  # what was written just now wakes it at once
                raise Retry(str(error), after=0.0) from error
            raise
        await failpoints.reach("volume.moved")
        await self.settle(key, await self._records.volume(key))

    async def _settle_soon(self, key: str) -> None:
        """Raises Retry: as long as nobody has found out where it is, the wish stands."""
        try:
            await self.settle(key, await self._records.volume(key))
        except RoostError as error:
            raise Retry(str(error), after=BUSY_DELAY) from error

    async def _copy(self, key: str, volume: Volume, held: Holder | None, progress: Callable[[float], None]) -> None:
        uid, phrase = volume.meta.uid, await self._holds.key(volume)
        source, target = self._holds.place(volume), self._holds.pools.place(volume.status.target)
        await target.remove(uid)  # an earlier try may have left its half
        if held is None:
            async with source.opened(uid, phrase) as opened:
                await target.fill(uid, opened, volume.status.size, phrase, progress)
            await self._switch(key)
            return
        await target.create(uid, volume.status.size, None, phrase)
        medium = Medium(*await target.hold(uid, phrase))
        await failpoints.reach("volume.mirroring")
        await held.guest.volumes.move(held.lun, medium, progress, partial(self._switch, key))

    async def _switch(self, key: str) -> None:
        await self._show(key, switching=True)
        await failpoints.reach("volume.switching")

    async def settle(self, key: str, volume: Volume) -> None:
        """Find out which of the two places counts, write that down, and clear the other one. Raises Retry."""
        held, uid = await self._holds.holder(volume), volume.meta.uid
        here, there = volume.status.pool, volume.status.target
        moved = volume.status.switching if held is None else await self._has_gone(volume, held)
        winner, loser = (there, here) if moved else (here, there)
        await self._show(key, pool=winner, target=loser, switching=False)
        await failpoints.reach("volume.settled")
        other: Place = self._holds.pools.place(loser)
        await other.release(uid)
        await other.remove(uid)
        if held is None:
            await self._holds.pools.place(winner).release(uid)
        await failpoints.reach("volume.cleared")
        after = await self._show(key, phase="ready", target="", progress="", fraction=None)
        if moved:
            await self._recorder.record(after, "Moved", f"the volume is in pool {winner} now")

    async def _has_gone(self, volume: Volume, held: Holder) -> bool:
        """Whether the guest writes to the target. Raises Retry when that can not be told: then nothing is removed."""
        backing, phrase = await held.guest.volumes.backing(held.lun), await self._holds.key(volume)
        for name, answer in ((volume.status.pool, False), (volume.status.target, True)):
            opened = await self._holds.pools.place(name).hold(volume.meta.uid, phrase)
            if backing is not None and _place(backing) == _place(Medium(*opened)):
                return answer
        raise Retry("nobody can tell where it is written to", after=1.0)


def _place(medium: Medium) -> tuple[object, ...]:
    return medium.file, medium.socket, medium.export
