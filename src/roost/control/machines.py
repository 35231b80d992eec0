"""The reconciler of machines: observe, plan one step, act, look again."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Literal

import msgspec

from roost.control.attaching import Attaching
from roost.control.base import Retry
from roost.control.custody import Custody
from roost.control.endings import ended, failed, was_asked
from roost.control.events import Recorder
from roost.control.held import AgentKind, Held
from roost.control.networkplan import is_wired
from roost.control.plan import Seen, Step, is_born, is_copy, is_exact, is_restoring, is_twin, next_step
from roost.control.records import Records
from roost.control.starting import Starting
from roost.control.wiring import Wiring
from roost.control.world import World
from roost.errors import NotFound, RoostError
from roost.host import failpoints, files
from roost.hypervisor.base import Exit, Guest, RunState
from roost.log import bind
from roost.model.machine import Machine, Traits
from roost.model.meta import Trouble

ENOUGH_SPACE = 256 << 20
"""Free bytes on the host's disk at which a guest that had none goes on: the store and the other guests need some of it."""

LOOK_FOR_SPACE = 2.0
"""Seconds between two looks whether the host's disk has space again."""

LOOK_AT_DISK = 30.0
"""Seconds between two tries of a guest's write that met an error of the disk."""

ASK_AGAIN = 2.0
"""Seconds between two presses of the power button."""

ON_DISK: frozenset[Step] = frozenset({"create-disk", "make-disk", "fork", "start", "kill", "remove-files"})
"""Steps that need a disk for themselves."""

WAY_UP: frozenset[Step] = frozenset(
    {
        "find-image",
        "await-image",
        "create-disk",
        "find-origin",
        "await-origin",
        "fork",
        "make-disk",
        "start",
        "attach",
        "resume",
    }
)
"""Steps whose error ends the way up; every other step is tried again."""


WAITS: frozenset[Step] = frozenset(
    {"await-networks", "await-volumes", "await-image", "await-end", "await-space", "hold-back", "remove-object"}
)
"""Steps after which something else will wake the machine."""


class Machines:
    """Brings machines from what is to what is wanted. `wake_after` is the loop's."""

    def __init__(
        self,
        records: Records,
        recorder: Recorder,
        custody: Custody,
        world: World,
        wake_after: Callable[[str, float], None],
    ) -> None:
        self._records = records
        self._recorder = recorder
        self._world = world
        self._custody = custody
        self._wake_after = wake_after
        self._starting = Starting(world, recorder, custody, self._show)
        self._wiring = Wiring(world, recorder, self._show)
        self._attaching = Attaching(records, recorder, world.holds, self._show, wake_after)
        self._acts: dict[Step, Callable[[str, Machine, Held], Awaitable[None]]] = {
            "await-networks": self._starting.await_networks,
            "await-volumes": self._attaching.await_volumes,
            "wire": self._wiring.wire,
            "attach": self._attaching.attach,
            "hold-back": self._hold_back,
            "find-image": self._starting.find_image,
            "await-image": self._starting.await_image,
            "create-disk": self._starting.create_disk,
            "find-origin": self._starting.find_origin,
            "await-origin": self._starting.find_origin,
            "fork": self._starting.fork,
            "make-disk": self._starting.make_disk,
            "start": self._starting.start,
            "resume": self._resume,
            "pause": self._pause,
            "greet": self._starting.greet,
            "press-power": self._press_power,
            "await-end": self._await_end,
            "await-space": self._await_space,
            "kill": self._kill,
            "settle-exit": self._settle_exit,
            "show-stopped": self._show_stopped,
            "show-running": self._show_power,
            "show-paused": self._show_power,
            "discard": self._discard,
            "remove-files": self._remove_files,
            "remove-object": self._remove_object,
        }

    async def reconcile(self, key: str) -> None:
        """Observe, plan, act for the machine at `key`, until nothing differs. Raises Retry."""
        while True:
            try:
                machine = await self._records.machine(key)
            except NotFound:
                return
            with bind(machine=machine.name, project=machine.project):
                held = self._custody.of(machine)
                step = next_step(machine, await self._observe(machine, held))
                if step is None:
                    return
                if not await self._do(step, key, machine, held):
                    return

    async def _do(self, step: Step, key: str, machine: Machine, held: Held) -> bool:
        """Act; True to look again at once. A step that can not succeed as things are is written down as a failure."""
        await failpoints.reach(f"machine.{step}")
        try:
            async with self._undisturbed(step, machine), held.acting:
                await self._acts[step](key, machine, held)
        except Retry:
            raise
        except RoostError as error:
            twin = step == "greet" and is_twin(machine)
            if step not in WAY_UP and not twin:
                raise Retry(str(error)) from error
            await self._fail(key, machine, held, error, twin=twin)
        if step in ("find-origin", "await-origin"):
            return not held.making
        if step == "attach":
            return held.mounts is not None
        return step not in WAITS

    def _undisturbed(self, step: Step, machine: Machine) -> AbstractAsyncContextManager[None]:
        """Steps that put a disk to use, replace or remove it do not do so while housekeeping copies it."""
        return self._world.house.using(machine.meta.uid) if step in ON_DISK else nullcontext()

    # ------------------------------------------------------------------ observe

    async def _observe(self, machine: Machine, held: Held) -> Seen:
        where = self._world.paths.machine(machine.meta.uid)
        if await self._custody.take_back(machine, held) and machine.status.started_as is not None:
            self._hold_place(machine, machine.status.started_as, self._guest(held))
        await self._world.taker.recover(machine, held)
        image = await self._look_at_image(machine, held)
        state = await _state_of(held.guest)
        if state == "io-error" and machine.status.volumes:
            await self._world.watch.look()
        if state == "gone":
            # Its end is being awaited already; that wakes us with the reason.
            raise Retry("the process is ending", after=0.5)
        return Seen(
            guest=state,
            exit=held.exit,
            image=image,
            disk=held.diskless or where.disk.exists(),
            origin=_origin_of(machine, held, image),
            memory=held.origin is not None and held.origin.memory,
            pressed=held.pressed is not None,
            overdue=self._grace_left(machine, held) <= 0,
            agent=held.agent,
            files=where.keep.exists() or where.live.exists(),
            room=not self._world.watch.holds_back(machine),
            **await self._look_at_ports(machine, held),
            **await self._attaching.look(machine, held),
        )

    async def _look_at_ports(self, machine: Machine, held: Held) -> dict[str, bool]:
        """Networks matter to what is to have a process; the ports to one that runs and is itself."""
        if machine.meta.deleting is not None or machine.spec.power == "stopped":
            return {}
        wired = (
            (held.wired and is_wired(machine) and not self._world.ports.has_lost(machine))
            or is_exact(machine)
            or is_twin(machine)
        )
        if held.guest is not None and wired:
            return {}
        held.waits_for = await self._world.ports.missing(machine, held.key)
        return {"networks": not held.waits_for.text, "wired": wired}

    def _hold_place(self, machine: Machine, traits: Traits, guest: Guest) -> None:
        """An adopted guest keeps its place in the host's memory."""
        places = self._world.reservations
        way: Literal["cold", "fork"] = "fork" if machine.status.timing.path in ("warm", "clone", "restore") else "cold"
        places.hold(machine.meta.uid, places.forecast(way, traits.memory, traits.shape), traits.shape)
        places.started(machine.meta.uid, guest.private_memory)

    async def _look_at_image(self, machine: Machine, held: Held) -> Literal["unknown", "building", "ready"]:
        """A failed image counts as unknown at the beginning of a way up (it is tried again), and ends the way up later on."""
        if held.guest is not None or machine.meta.deleting is not None or machine.spec.power == "stopped":
            return "unknown"
        manifest = self._world.images.find(machine.status.image) if machine.status.image else None
        if manifest is not None and (
            manifest.format == "none" or self._world.paths.machine(machine.meta.uid).disk.exists()
        ):
            held.digest = manifest.digest
            return "ready"
        picture = await self._world.pictures.look(machine)
        held.digest, held.progress = picture.digest, picture.progress
        if picture.state == "failed":
            held.trouble = picture.trouble if held.under_way else None
            return "building" if held.under_way else "unknown"
        return picture.state

    # ------------------------------------------------------------------ act: towards running

    async def _resume(self, key: str, machine: Machine, held: Held) -> None:
        await self._starting.resume(key, machine, held)
        if machine.spec.power == "running":
            await self._show_power(key, machine, held)

    async def _pause(self, key: str, machine: Machine, held: Held) -> None:
        await self._guest(held).pause()
        await self._recorder.record(machine, "Paused", "the machine is paused")
        await self._show_power(key, machine, held)

    async def _show_power(self, key: str, machine: Machine, held: Held) -> None:
        phase = "paused" if machine.spec.power == "paused" else "running"
        await self._show(key, phase=phase, generation=machine.meta.generation, progress="", error=None, born=True)

    async def _await_space(self, key: str, machine: Machine, held: Held) -> None:
        """QEMU has stopped the guest at a write that failed; it goes on where it stood, and tries that again, when there is space."""
        guest, free = self._guest(held), files.free_space(self._world.paths.state)
        full = guest.trouble in ("", os.strerror(errno.ENOSPC))
        # A disk of another place than the state directory may still be full, or broken: then it stops again at once.
        patience = LOOK_FOR_SPACE if full else LOOK_AT_DISK
        wait = held.tried + patience - self._world.clock.now()
        if wait <= 0 and (free >= ENOUGH_SPACE or not full):
            held.tried = self._world.clock.now()
            self._world.reserve.hold()
            await guest.resume()
            await self._recorder.record(
                machine, "Resumed", "the machine goes on, and tries again what it could not write"
            )
            await self._show(key, phase="running", error=None)
            return
        if full and free < ENOUGH_SPACE:
            self._world.reserve.release()
        self._wake_after(key, max(wait, LOOK_FOR_SPACE))
        if machine.status.error is None:
            trouble = _full(machine, free) if full else _broken(machine, guest.trouble)
            await self._recorder.record(
                machine, "DiskFull" if full else "DiskError", f"{trouble.what}: {trouble.why}", level="error"
            )
            await self._show(key, phase="paused", error=trouble)

    async def _hold_back(self, key: str, machine: Machine, held: Held) -> None:
        """A pool that it writes to is all but full: it stands still where it is until there is room, and then goes on by itself."""
        guest, trouble = self._guest(held), await self._world.watch.why(machine)
        if await guest.state() == "running":
            await guest.pause()
        await failpoints.reach("mount.held-back")
        before = machine.status.error
        if before is None or before.what != trouble.what:
            await self._recorder.record(machine, "PoolFull", f"{trouble.what}: {trouble.why}", level="error")
            await self._show(key, phase="paused", error=trouble, progress="waiting for room in a pool")

    # ------------------------------------------------------------------ act: towards stopped and gone

    async def _press_power(self, key: str, machine: Machine, held: Held) -> None:
        held.pressed = held.asked = self._world.clock.now()
        await self._show(key, phase="stopping", progress="waiting for the guest to shut down")
        if machine.spec.stop_grace > 0:
            await self._guest(held).press_power()

    async def _await_end(self, key: str, machine: Machine, held: Held) -> None:
        """Ask again while the grace lasts: a guest that is still booting misses its button, and some boards have none."""
        now = self._world.clock.now()
        if now - held.asked >= ASK_AGAIN:
            held.asked = now
            await _ask_to_end(self._guest(held), held.agent)
        self._wake_after(key, min(ASK_AGAIN, self._grace_left(machine, held)))

    def _grace_left(self, machine: Machine, held: Held) -> float:
        """Seconds until the guest is forced; a shorter grace given meanwhile (`stop --force`) counts at once."""
        if held.pressed is None:
            return machine.spec.stop_grace
        return held.pressed + machine.spec.stop_grace - self._world.clock.now()

    async def _kill(self, key: str, machine: Machine, held: Held) -> None:
        guest = self._guest(held)
        state = await guest.state()
        if state == "panicked":
            held.reason = "the guest's kernel panicked (see `roost logs`)"
        elif state == "internal-error":
            held.reason = "the accelerator gave up on the guest (KVM internal error; try --accelerator tcg)"
        elif machine.spec.restore is not None and is_restoring(machine) and machine.meta.deleting is None:
            held.reason = f"it is put back to snapshot {machine.spec.restore.snapshot}"
        await guest.kill()
        if held.waiter is not None:
            await asyncio.wait([held.waiter])

    async def _settle_exit(self, key: str, machine: Machine, held: Held) -> None:
        exit = held.exit or Exit("unknown", clean=False)
        asked = was_asked(machine)
        self._world.reservations.release(machine.meta.uid)
        await self._attaching.release(key)
        after = await self._records.update(key, lambda now: ended(now, exit, asked=asked))
        held.forget_process()
        calm = after.status.phase == "stopped"
        await self._recorder.record(
            machine, "Stopped" if calm else "Crashed", exit.reason, level="info" if calm else "error"
        )

    async def _show_stopped(self, key: str, machine: Machine, held: Held) -> None:
        kept = machine.status.phase if machine.status.phase in ("crashed", "failed") else "stopped"
        await self._show(
            key, phase=kept, generation=machine.meta.generation, restarts=machine.spec.restarts, progress=""
        )

    async def _discard(self, key: str, machine: Machine, held: Held) -> None:
        """An ephemeral machine is deleted when it has stopped."""
        await self._records.delete(key)

    async def _remove_files(self, key: str, machine: Machine, held: Held) -> None:
        where = self._world.paths.machine(machine.meta.uid)
        for directory in (where.live, where.keep):
            await asyncio.to_thread(files.remove_tree, directory)

    async def _remove_object(self, key: str, machine: Machine, held: Held) -> None:
        await self._attaching.release(key)
        machine = await self._records.machine(key)
        self._custody.forget(machine)
        self._world.reservations.release(machine.meta.uid)
        await self._records.remove(key, machine.meta.revision)
        await self._recorder.record(machine, "Deleted", "the machine and all its files are gone")

    # ------------------------------------------------------------------ shared

    async def _fail(self, key: str, machine: Machine, held: Held, error: RoostError, *, twin: bool) -> None:
        """A start that can not succeed stops here, and nothing is left running."""
        if held.guest is not None:
            held.reason = error.why or error.what
            await held.guest.kill()
            if held.waiter is not None:
                await asyncio.wait([held.waiter])
        held.forget_process()
        held.origin = None
        self._world.reservations.release(machine.meta.uid)
        await self._attaching.release(key)
        if twin or (machine.spec.source is not None and not is_born(machine)):
            # A copy is whole or not at all.
            await self._remove_files(key, machine, held)
            await self._show(key, born=False)
        after = await self._records.update(key, lambda now: failed(now, error))
        trouble = after.status.error
        assert trouble is not None
        await self._recorder.record(machine, "Failed", f"{trouble.what}: {trouble.why}", level="error")

    async def _show(self, key: str, **changes: object) -> None:
        def change(machine: Machine) -> Machine:
            return msgspec.structs.replace(machine, status=msgspec.structs.replace(machine.status, **changes))

        await self._records.update(key, change)

    @staticmethod
    def _guest(held: Held) -> Guest:
        if held.guest is None:
            raise Retry("the process ended meanwhile", after=0)
        return held.guest


def _full(machine: Machine, free: int) -> Trouble:
    why = f"the disk of the host is full: {free >> 20} MiB are free, and it goes on at {ENOUGH_SPACE >> 20} MiB"
    if free >= ENOUGH_SPACE:
        why = "a pool that it writes to is full, and it goes on when there is space"
    return Trouble(
        what=f'machine "{machine.name}" stands still', why=why, fix="free space on the host: roost pool list"
    )


def _broken(machine: Machine, said: str) -> Trouble:
    why = f"a disk of the host gave an error: {said[:200]}; nothing is lost, and it tries again every {LOOK_AT_DISK:.0f} s"
    return Trouble(
        what=f'machine "{machine.name}" stands still',
        why=why,
        fix="see what is wrong with the disk: roost doctor storage",
    )


async def _state_of(guest: Guest | None) -> RunState | None:
    try:
        return await guest.state() if guest is not None else None
    except RoostError as error:
        # It does not answer while it ends; its end wakes us.
        raise Retry(str(error), after=0.5) from error


async def _ask_to_end(guest: Guest, agent: AgentKind | None) -> None:
    await guest.press_power()
    if agent not in (None, "absent"):
        with suppress(RoostError, TimeoutError):
            async with asyncio.timeout(ASK_AGAIN):
                await (await guest.agent()).power("off")


def _origin_of(machine: Machine, held: Held, image: str) -> Literal["none", "unknown", "making", "ready"]:
    """What is known of what the machine goes on from. One that was found for an earlier wish does not count."""
    wanted = machine.spec.restore.snapshot if machine.spec.restore is not None and is_restoring(machine) else None
    if held.origin is not None and wanted is not None and held.origin.text != f"snapshot {wanted}":
        held.origin = None
    if held.origin is not None:
        return "ready"
    warm = machine.spec.source is None and not is_born(machine) and not machine.spec.cold and image == "ready"
    if not is_copy(machine) and (not warm or held.cold is not None or held.guest is not None):
        return "none"
    return "making" if held.making else "unknown"
