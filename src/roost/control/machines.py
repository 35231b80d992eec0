"""The reconciler of machines: observe, plan one step, act, look again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import msgspec

from roost.control.base import Retry
from roost.control.custody import AGENT_SECONDS, Custody
from roost.control.endings import ended, failed, was_asked
from roost.control.events import Recorder
from roost.control.held import AgentKind, Held
from roost.control.launches import Choice, arch_of, firmware_of, launch_of, setup_of
from roost.control.pictures import Pictures
from roost.control.plan import Seen, Step, next_step
from roost.control.preparation import Prepared
from roost.control.records import Records
from roost.errors import BY_CODE, Invalid, NotFound, RoostError, Unavailable
from roost.host import failpoints, files
from roost.host.clock import Clock
from roost.host.paths import Paths
from roost.hypervisor.base import Agent, Exit, Guest, Hypervisor, RunState
from roost.log import bind
from roost.model.facts import HostFacts
from roost.model.machine import Machine, Timing
from roost.model.node import Verdict
from roost.storage.manifest import Manifest

ASK_AGAIN = 2.0
"""Seconds between two presses of the power button."""

SETUP_SECONDS = 60.0
"""Longest the first-boot set-up may take."""


WAY_UP: frozenset[Step] = frozenset({"find-image", "await-image", "create-disk", "start", "resume"})
"""Steps whose error ends the way up; every other step is tried again."""


class Pool(Protocol):
    """What the reconciler needs of the image pool."""

    def find(self, digest: str) -> Manifest | None:
        """The manifest of an image that is there."""
        ...

    async def create_disk(self, manifest: Manifest, target: Path, size: int | None) -> None:
        """A new overlay `target` over the image."""
        ...


class World(NamedTuple):
    """Everything the reconciler acts upon."""

    hypervisor: Hypervisor
    images: Pool
    pictures: Pictures
    paths: Paths
    facts: HostFacts
    clock: Clock
    verdict: Callable[[], Awaitable[Verdict]]
    memory_free: Callable[[], int]
    prepare: Callable[[Machine, Manifest], Awaitable[Prepared]]
    node: str = ""


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
        self._acts: dict[Step, Callable[[str, Machine, Held], Awaitable[None]]] = {
            "find-image": self._find_image,
            "await-image": self._await_image,
            "create-disk": self._create_disk,
            "start": self._start,
            "resume": self._resume,
            "pause": self._pause,
            "greet": self._greet,
            "press-power": self._press_power,
            "await-end": self._await_end,
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
            await self._acts[step](key, machine, held)
        except Retry:
            raise
        except RoostError as error:
            if step not in WAY_UP:
                raise Retry(str(error)) from error
            await self._fail(key, machine, held, error)
        return step not in ("await-image", "await-end", "remove-object")

    # ------------------------------------------------------------------ observe

    async def _observe(self, machine: Machine, held: Held) -> Seen:
        where = self._world.paths.machine(machine.meta.uid)
        await self._custody.take_back(machine, held)
        image = await self._look_at_image(machine, held)
        state = await _state_of(held.guest)
        if state == "gone":
            # Its end is being awaited already; that wakes us with the reason.
            raise Retry("the process is ending", after=0.5)
        return Seen(
            guest=state,
            exit=held.exit,
            image=image,
            disk=held.diskless or where.disk.exists(),
            pressed=held.pressed is not None,
            overdue=self._grace_left(machine, held) <= 0,
            agent=held.agent,
            files=where.keep.exists() or where.live.exists(),
        )

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

    async def _find_image(self, key: str, machine: Machine, held: Held) -> None:
        await self._world.pictures.request(machine, key)
        held.begin(self._world.clock.now())
        await self._show(key, phase="preparing", progress="preparing the image", error=None, exit="", timing=Timing())

    async def _await_image(self, key: str, machine: Machine, held: Held) -> None:
        held.begin(self._world.clock.now())
        if held.trouble is not None:
            trouble, held.trouble = held.trouble, None
            kind = BY_CODE.get(trouble.code, Unavailable)
            raise kind(f'machine "{machine.name}" did not start', trouble.why or trouble.what, trouble.fix)
        self._world.pictures.expect(machine, key)
        await self._show(key, phase="preparing", progress=held.progress or "preparing the image", error=None, exit="")

    async def _create_disk(self, key: str, machine: Machine, held: Held) -> None:
        held.begin(self._world.clock.now())
        held.mark("image", self._world.clock.now())
        manifest = self._manifest(machine, held)
        where = self._world.paths.machine(machine.meta.uid)
        where.keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        if manifest.format == "none":
            held.diskless = True
        else:
            await self._world.images.create_disk(manifest, where.disk, machine.spec.disk)
        if machine.status.image != manifest.digest:
            await self._show(key, phase="preparing", image=manifest.digest, error=None)
        held.mark("disk", self._world.clock.now())

    async def _start(self, key: str, machine: Machine, held: Held) -> None:
        held.begin(self._world.clock.now())
        manifest = self._manifest(machine, held)
        choice = await self._choose(machine, manifest)
        where = self._world.paths.machine(machine.meta.uid)
        self._check_host(machine)
        prepared = await self._world.prepare(machine, manifest)
        launch = launch_of(machine, manifest, self._world.paths, choice, prepared)
        where.live.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._show(
            key,
            phase="starting",
            progress="starting",
            error=None,
            exit="",
            restarts=machine.spec.restarts,
            node=self._world.node,
        )
        guest = await self._world.hypervisor.start(launch)
        held.mark("process", self._world.clock.now())
        await failpoints.reach("machine.started")
        self._custody.hold(held, guest)
        held.agent = None
        await self._show(
            key,
            process=guest.process,
            pid=guest.process.pid,
            accelerator=launch.accelerator,
            firmware=launch.firmware,
            isolation=guest.isolation,
            addresses=guest.addresses,
            image=manifest.digest,
            agent="none",
            progress="",
            warnings=choice.warnings,
        )

    async def _choose(self, machine: Machine, manifest: Manifest) -> Choice:
        """The accelerator and the firmware for this start, with a warning for what the user would not expect."""
        firmware = firmware_of(machine, manifest)
        wanted = machine.spec.accelerator
        if arch_of(manifest, self._world.facts.arch) != self._world.facts.arch:
            if wanted == "kvm":
                what = f'machine "{machine.name}" did not start'
                why = f"KVM runs only {self._world.facts.arch} guests here, not {manifest.arch}"
                raise Invalid(what, why, "leave --accelerator out: it will be emulated")
            return Choice("tcg", firmware, ())
        if wanted == "tcg":
            return Choice("tcg", firmware, ())
        verdict = await self._world.verdict()
        if verdict.accelerator == "kvm":
            return Choice("kvm", firmware, ())
        if wanted == "kvm":
            raise Unavailable(
                f'machine "{machine.name}" did not start',
                f"KVM does not work on this host: {verdict.reason}",
                "roost doctor",
            )
        return Choice("tcg", firmware, (f"emulated, so slow: {verdict.reason}",))

    def _check_host(self, machine: Machine) -> None:
        """Refuse what the host can not carry, before anything starts. Raises Unavailable."""
        facts, what = self._world.facts, f'machine "{machine.name}" did not start'
        if machine.spec.cpus > facts.cpus * 8:
            raise Unavailable(
                what,
                f"it wants {machine.spec.cpus} cpus and the host has {facts.cpus} (at most 8 times that)",
                "give it fewer: --cpus",
            )
        free = self._world.memory_free()
        if machine.spec.memory > free:
            mebi = 1 << 20
            why = f"it wants {machine.spec.memory // mebi} MiB of memory and the host has {free // mebi} MiB free"
            raise Unavailable(what, why, "stop another machine, or give it less: --memory")

    def _manifest(self, machine: Machine, held: Held) -> Manifest:
        digest = machine.status.image if self._world.paths.machine(machine.meta.uid).disk.exists() else held.digest
        manifest = self._world.images.find(digest or held.digest)
        if manifest is None:
            what = f'machine "{machine.name}" did not start'
            raise Unavailable(
                what, f"the image {digest or machine.spec.image} it stands on is gone", "roost image list"
            )
        return manifest

    async def _resume(self, key: str, machine: Machine, held: Held) -> None:
        guest = self._guest(held)
        await guest.resume()
        await failpoints.reach("machine.resumed")
        self._custody.listen(held, guest)
        if machine.status.phase == "paused":
            await self._recorder.record(machine, "Resumed", "the machine goes on")
        elif machine.status.phase != "stopping":
            await self._recorder.record(
                machine, "Started", f"the machine runs as pid {guest.process.pid} ({machine.status.accelerator})"
            )
        if machine.spec.power == "running":
            await self._show_power(key, machine, held)

    async def _pause(self, key: str, machine: Machine, held: Held) -> None:
        await self._guest(held).pause()
        await self._recorder.record(machine, "Paused", "the machine is paused")
        await self._show_power(key, machine, held)

    async def _greet(self, key: str, machine: Machine, held: Held) -> None:
        """The guest answers: set it up at its first boot, and write down who answered and how long it took."""
        guest, kind, warnings = self._guest(held), held.agent, machine.status.warnings
        if kind == "absent":
            warnings = (
                *warnings,
                f'image "{machine.spec.image}" gave no answer within {AGENT_SECONDS:.0f} s: see roost console',
            )
        elif not machine.status.configured or self._forgets(machine):
            warnings = (*warnings, *await _set_up(await guest.agent(), machine))
        held.mark("total", self._world.clock.now())
        configured = machine.status.configured or kind != "absent"
        await self._show(key, configured=configured, agent=kind, timing=held.timing(), progress="", warnings=warnings)
        await self._recorder.record(machine, "Ready", f"the machine answered after {held.seconds('agent'):.1f} s")

    def _forgets(self, machine: Machine) -> bool:
        """Whether the machine has no disk to remember its set-up on."""
        manifest = self._world.images.find(machine.status.image)
        return manifest is not None and manifest.format == "none"

    async def _show_power(self, key: str, machine: Machine, held: Held) -> None:
        phase = "paused" if machine.spec.power == "paused" else "running"
        await self._show(key, phase=phase, generation=machine.meta.generation, progress="", error=None)

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
        await guest.kill()
        if held.waiter is not None:
            await asyncio.wait([held.waiter])

    async def _settle_exit(self, key: str, machine: Machine, held: Held) -> None:
        exit = held.exit or Exit("unknown", clean=False)
        asked = was_asked(machine)
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
        self._custody.forget(machine)
        await self._records.remove(key, machine.meta.revision)
        await self._recorder.record(machine, "Deleted", "the machine and all its files are gone")

    # ------------------------------------------------------------------ shared

    async def _fail(self, key: str, machine: Machine, held: Held, error: RoostError) -> None:
        """A start that can not succeed stops here, and nothing is left running."""
        if held.guest is not None:
            held.reason = error.why or error.what
            await held.guest.kill()
            if held.waiter is not None:
                await asyncio.wait([held.waiter])
        held.forget_process()
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


async def _set_up(agent: Agent, machine: Machine) -> tuple[str, ...]:
    """First-boot set-up; returns what went wrong. The machine runs and answers: that its name could not be set is no reason to end it."""
    try:
        async with asyncio.timeout(SETUP_SECONDS):
            await agent.setup(setup_of(machine))
    except (RoostError, TimeoutError) as error:
        return (f"first-boot set-up failed: {error}",)
    return ()
