"""Changes the keys of encrypted volumes: at every instant one of two keys that are written down opens the volume."""

from __future__ import annotations

from contextlib import suppress

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.holds import Holds
from roost.control.moving import Show
from roost.errors import Conflict, Invalid, RoostError
from roost.host import failpoints
from roost.model.volume import Volume


class Rekeying:
    """Status tells the key that counts (`keyed`) and, while that is changed, the new one (`rekeying`): nobody opens the volume meanwhile."""

    def __init__(self, recorder: Recorder, holds: Holds, show: Show) -> None:
        self._recorder = recorder
        self._holds = holds
        self._show = show

    async def rekey(self, key: str, volume: Volume) -> None:
        """A new key of its project. Raises Invalid, Conflict (it is attached), Unavailable, ...: then its key is the one that it was; Retry as
        long as nobody can tell which it is. The caller has its lock."""
        self._check(volume)
        new = volume.status.rekeying or await self._holds.another_key(volume.project)
        begun = await self._show(key, rekeying=new, progress="changing its key", error=None)
        await failpoints.reach("volume.rekeying")
        try:
            await self._change(begun)
        except (RoostError, OSError):
            await self._show(key, keyed=await self._present(begun), rekeying="")
            raise
        await failpoints.reach("volume.rekeyed")
        after = await self._show(key, keyed=new, rekeying="", rekeys=volume.spec.rekeys, progress="")
        await self._recorder.record(after, "Rekeyed", f"the key of the volume is {new} now")

    def _check(self, volume: Volume) -> None:
        what = f'the key of volume "{volume.name}" can not be changed'
        if not volume.status.keyed:
            raise Invalid(
                what, "it is not encrypted", "make one that is: roost volume create NEW --encrypted --size SIZE"
            )
        if volume.status.holders:
            fix = f"roost volume detach {volume.name} {volume.status.machines[0]}, or stop the machine"
            raise Conflict(what, f"{', '.join(volume.status.machines)} has it", fix)

    async def _change(self, volume: Volume) -> None:
        old, new = [await self._holds.named_key(volume, name) for name in (volume.status.keyed, volume.status.rekeying)]
        await self._holds.place(volume).rekey(volume.meta.uid, old, new)

    async def _present(self, volume: Volume) -> str:
        """The name of the key that opens it. Raises Retry when neither does now."""
        for name in (volume.status.keyed, volume.status.rekeying):
            with suppress(RoostError, OSError):
                phrase = await self._holds.named_key(volume, name)
                async with self._holds.place(volume).opened(volume.meta.uid, phrase):
                    return name
        raise Retry("nobody can tell which key opens it")
