"""What changes of a machine's volumes: they are waited for before it starts, attached and detached while it runs, and let go of at its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

from msgspec.structs import replace

from roost.control.base import Retry
from roost.control.events import Recorder
from roost.control.held import Held
from roost.control.holds import Holds
from roost.control.records import Records
from roost.control.volumeplan import mounts_of, refusal
from roost.errors import BY_CODE, NotFound, RoostError, Unavailable
from roost.host import failpoints
from roost.hypervisor.base import Attachment, Guest
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine
from roost.model.meta import Trouble
from roost.model.volume import MountStatus, Volume

Show: TypeAlias = Callable[..., Awaitable[None]]
"""Writes fields of a machine's status: `show(key, phase="running")`."""

LOOK_AGAIN = 2.0
"""Seconds until a volume that could not be attached or detached is tried again, unless something of it changes before."""


class Attaching:
    """The steps that make the volumes of a machine those of its spec."""

    def __init__(
        self, records: Records, recorder: Recorder, holds: Holds, show: Show, wake_after: Callable[[str, float], None]
    ) -> None:
        self._records = records
        self._recorder = recorder
        self._holds = holds
        self._show = show
        self._wake_after = wake_after

    async def look(self, machine: Machine, held: Held) -> dict[str, bool]:
        """Whether its volumes are ready for a start, or those of the running machine are as wished."""
        concerned = bool(machine.spec.volumes or machine.status.volumes)
        if not concerned or machine.meta.deleting is not None or machine.spec.power == "stopped":
            return {}
        if held.guest is not None:
            return {"attached": held.mounts == machine.spec.volumes}
        held.lacks = await self._missing(machine, held.key)
        return {"volumes": held.lacks is None}

    async def _missing(self, machine: Machine, key: str) -> Trouble | None:
        """Why the machine can not have one of its volumes yet; it is woken when something of that changes."""
        for mount in machine.spec.volumes:
            where = key_of(BY_NAME["volume"], machine.project, mount.volume)
            self._holds.expect(where, key)  # before it is looked at: else its change may come in between
            what = f'machine "{machine.name}" did not start'
            try:
                volume = await self._records.volume(where)
            except NotFound:
                why, fix = f'volume "{mount.volume}" does not exist', f"roost volume create {mount.volume} --size 10GiB"
                return Trouble(what=what, why=why, fix=fix, code=NotFound.code)
            if why := refusal(volume, machine, read_only=mount.read_only):
                fix = f"roost volume show {mount.volume}"
                return Trouble(what=what, why=f"volume {mount.volume}: {why}", fix=fix, code="conflict")
        return None

    async def await_volumes(self, key: str, machine: Machine, held: Held) -> None:
        """Show what it waits for: it starts as soon as it can."""
        assert held.lacks is not None
        text = f"waiting for {held.lacks.why}"
        generation = machine.meta.generation
        await self._show(key, phase="pending", progress=text, error=held.lacks, exit="", generation=generation)
        self._wake_after(key, LOOK_AGAIN)

    # ------------------------------------------------------------------ while there is a guest

    async def attach(self, key: str, machine: Machine, held: Held) -> None:
        """Detach what is to go, attach what is new. What is to be is written down before it is done. Before the first instruction an error ends the
        way up; later it is shown, and tried again."""
        if held.guest is None:
            raise Retry("the process ended meanwhile", after=0)
        starting = await held.guest.state() == "prelaunch"
        try:
            trouble = await self._bring(key, machine, held.guest)
        except RoostError as error:
            if starting:
                raise
            raise Retry(str(error)) from error
        held.mounts = machine.spec.volumes if trouble is None else None
        if trouble is not None and starting:
            kind = BY_CODE.get(trouble.code, Unavailable)
            raise kind(f'machine "{machine.name}" did not start', f"{trouble.what}: {trouble.why}", trouble.fix)
        if trouble is not None:
            self._wake_after(key, LOOK_AGAIN)

    async def _bring(self, key: str, machine: Machine, guest: Guest) -> Trouble | None:
        volumes = await self._named(machine)
        present = await guest.volumes.attached()
        plan = mounts_of(machine, volumes, present)
        await self._show(key, volumes=(*plan.stay, *plan.gone, *plan.new))
        await failpoints.reach("mount.attaching")
        for mount in plan.stay:
            await self._adopt(machine, mount, guest)
        gone = [await self._detach(machine, mount, guest) for mount in plan.gone]
        new = [await self._attach(key, machine, mount, guest) for mount in plan.new]
        left = [mount for mount in gone if mount.error is not None]
        await self._show(key, volumes=(*plan.stay, *left, *new))
        await self._tell(machine, gone, new)
        lost = [mount.volume for mount in machine.spec.volumes if mount.volume not in volumes]
        if lost:
            return Trouble(what=f'volume "{lost[0]}" is not attached', why="it does not exist", fix="roost volume list")
        return next((mount.error for mount in (*left, *new) if mount.error is not None), None)

    async def _named(self, machine: Machine) -> Mapping[str, Volume]:
        found: dict[str, Volume] = {}
        for mount in machine.spec.volumes:
            with suppress(NotFound):
                where = key_of(BY_NAME["volume"], machine.project, mount.volume)
                found[mount.volume] = await self._records.volume(where)
        return found

    async def _adopt(self, machine: Machine, mount: MountStatus, guest: Guest) -> None:
        where = key_of(BY_NAME["volume"], machine.project, mount.volume)
        if self._holds.is_busy(mount.volume_uid):
            return  # whoever works with it holds it
        async with self._holds.lock(mount.volume_uid):
            volume = await self._holds.claim(where, machine)
            await self._holds.adopt(volume, guest, mount.lun)

    async def _attach(self, key: str, machine: Machine, mount: MountStatus, guest: Guest) -> MountStatus:
        where, what = (
            key_of(BY_NAME["volume"], machine.project, mount.volume),
            f'volume "{mount.volume}" is not attached',
        )
        self._holds.expect(where, key)
        if self._holds.is_busy(mount.volume_uid):
            return replace(mount, error=Trouble(what=what, why="it is being changed", fix="wait", code="conflict"))
        async with self._holds.lock(mount.volume_uid):
            volume = await self._records.volume(where)
            why = refusal(volume, machine, read_only=mount.read_only)
            if why or volume.meta.uid != mount.volume_uid:
                fix = f"roost volume show {mount.volume}"
                return replace(mount, error=Trouble(what=what, why=why or "it is another", fix=fix, code="conflict"))
            return await self._plug(machine, mount, guest, await self._holds.claim(where, machine))

    async def _plug(self, machine: Machine, mount: MountStatus, guest: Guest, volume: Volume) -> MountStatus:
        """The claim is written down: what can not be attached after all is let go of."""
        await failpoints.reach("mount.claimed")
        try:
            medium = await self._holds.medium(volume)
            await failpoints.reach("mount.held")
            await guest.volumes.attach(
                Attachment(
                    mount.volume_uid, mount.lun, volume.name, medium, volume.spec.limits, read_only=mount.read_only
                )
            )
        except RoostError as error:
            with suppress(RoostError):
                if mount.volume_uid not in (await guest.volumes.attached()).values():
                    await self._holds.drop(volume, (machine.meta.uid,))
            return replace(mount, error=_trouble(f'volume "{mount.volume}" is not attached', error))
        await failpoints.reach("mount.attached")
        return replace(mount, phase="attached", error=None)

    async def _detach(self, machine: Machine, mount: MountStatus, guest: Guest) -> MountStatus:
        """As long as the guest does not let go it is attached, and said to be."""
        what = f'volume "{mount.volume}" is not detached'
        if self._holds.is_busy(mount.volume_uid):
            return replace(mount, error=Trouble(what=what, why="it is being changed", fix="wait", code="conflict"))
        async with self._holds.lock(mount.volume_uid):
            try:
                await guest.volumes.detach(mount.lun)
            except RoostError as error:
                return replace(mount, error=_trouble(what, error))
        await failpoints.reach("mount.detached")
        await self._holds.release(machine, mount)
        return replace(mount, error=None)

    async def _tell(self, machine: Machine, gone: Sequence[MountStatus], new: Sequence[MountStatus]) -> None:
        done = [f"attached {mount.volume} as LUN {mount.lun}" for mount in new if mount.error is None]
        done += [f"detached {mount.volume}" for mount in gone if mount.error is None]
        if done:
            await self._recorder.record(machine, "Volumes", "; ".join(done))
        for mount in (*gone, *new):
            old = next((it.error for it in machine.status.volumes if it.volume_uid == mount.volume_uid), None)
            if mount.error is not None and mount.error != old:
                text = f"{mount.error.what}: {mount.error.why}"
                await self._recorder.record(machine, "VolumeNotReady", text, level="warning")

    # ------------------------------------------------------------------ when there is none any more

    async def release(self, key: str) -> None:
        """The machine at `key` has no process: others may have its volumes. Repeatable."""
        try:
            machine = await self._records.machine(key)
        except NotFound:
            return
        for mount in machine.status.volumes:
            await self._holds.release(machine, mount)
        if machine.status.volumes:
            await self._show(key, volumes=())


def _trouble(what: str, error: RoostError) -> Trouble:
    why = f"{error.what}: {error.why}" if error.why else error.what
    return Trouble(what=what, why=why, fix=error.fix, code=error.code)
