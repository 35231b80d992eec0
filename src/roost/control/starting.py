"""The way up of a machine: its image, its disk or its origin, its process, its first answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import msgspec

from roost.control.base import Retry
from roost.control.custody import AGENT_SECONDS, Custody
from roost.control.endings import is_set_up
from roost.control.events import Recorder
from roost.control.held import Held
from roost.control.launches import Choice, arch_of, firmware_of, launch_of, setup_of, traits_of
from roost.control.origins import Origin
from roost.control.plan import is_born, is_restoring, is_twin
from roost.control.ports import linked_slots, shown, with_macs
from roost.control.preparation import Prepared
from roost.control.warmth import PROGRESS, Cold
from roost.control.world import World
from roost.errors import BY_CODE, Invalid, RoostError, Unavailable
from roost.host import failpoints, files
from roost.host.paths import MachineFiles
from roost.hypervisor import hostkeys
from roost.hypervisor.base import Guest, Launch
from roost.model import size
from roost.model.machine import Machine, Timing
from roost.model.meta import Trouble
from roost.storage.layers import Base
from roost.storage.manifest import Manifest

SETUP_SECONDS = 60.0
"""Longest the first-boot set-up may take."""

_ENTROPY = 64

Show: TypeAlias = Callable[..., Awaitable[None]]
"""Writes fields of a machine's status: `show(key, phase="running")`."""


class _NotTakenOver(Exception):
    """The hypervisor could not go on from what was saved."""

    def __init__(self, error: RoostError) -> None:
        super().__init__(str(error))
        self.error = error


class Starting:
    """The steps of the way up. Each raises what ends it; the reconciler writes that down."""

    def __init__(self, world: World, recorder: Recorder, custody: Custody, show: Show) -> None:
        self._world = world
        self._recorder = recorder
        self._custody = custody
        self._show = show

    # ------------------------------------------------------------------ what it is made from

    async def await_networks(self, key: str, machine: Machine, held: Held) -> None:
        """Show what it waits for, and why that may be for long: who waits for the machine is told, and it starts as soon as it can."""
        text, error = held.waits_for
        await self._show(key, phase="pending", progress=text, error=error, exit="", generation=machine.meta.generation)

    async def find_image(self, key: str, machine: Machine, held: Held) -> None:
        """Ask for the image."""
        await self._world.pictures.request(machine, key)
        held.begin(self._world.clock.now())
        await self._show(key, phase="preparing", progress="preparing the image", error=None, exit="", timing=Timing())

    async def await_image(self, key: str, machine: Machine, held: Held) -> None:
        """Show how far it is; its completion wakes the machine."""
        held.begin(self._world.clock.now())
        if held.trouble is not None:
            trouble, held.trouble = held.trouble, None
            kind = BY_CODE.get(trouble.code, Unavailable)
            raise kind(f'machine "{machine.name}" did not start', trouble.why or trouble.what, trouble.fix)
        self._world.pictures.expect(machine, key)
        await self._show(key, phase="preparing", progress=held.progress or "preparing the image", error=None, exit="")

    async def find_origin(self, key: str, machine: Machine, held: Held) -> None:
        """Find what the machine goes on from, or find out that it has to boot. For a restore whose snapshot can not be used the machine stays
        as it is."""
        held.begin(self._world.clock.now())
        held.making = False
        if machine.spec.source is None and not is_restoring(machine):
            await self._ask_for_template(key, machine, held)
            return
        try:
            held.origin = await self._world.origins.find(machine)
            if held.guest is not None and held.origin.memory and machine.spec.power != "stopped":
                # What runs is not given up for a memory that this QEMU would not take.
                seed = self._files(machine).seed
                await self._forked(machine, held.origin, Prepared(seed if seed.exists() else None))
        except RoostError as error:
            held.origin = None
            if held.guest is None:
                raise
            await self._refuse_restore(key, machine, error)

    async def _refuse_restore(self, key: str, machine: Machine, error: RoostError) -> None:
        trouble = Trouble(
            what=f'machine "{machine.name}" was not restored', why=f"{error.what}: {error.why}", fix=error.fix
        )
        trouble = msgspec.structs.replace(trouble, code=error.code)
        restored = machine.spec.restore.serial if machine.spec.restore is not None else 0
        await self._show(key, restored=restored, generation=machine.meta.generation, error=trouble)
        await self._recorder.record(machine, "RestoreFailed", trouble.why, level="error")

    async def _ask_for_template(self, key: str, machine: Machine, held: Held) -> None:
        manifest = self._manifest(machine, held)
        launch, _ = await self._launch(machine, manifest)
        found = await self._world.templates.look(machine, key, launch, manifest)
        if isinstance(found, Cold):
            held.cold = found
        elif found == "making":
            held.making = True
            await self._show(key, phase="preparing", progress=PROGRESS, error=None, exit="")
        else:
            held.mark("image", self._world.clock.now())
            held.origin = Origin(found, "warm", f"template {machine.spec.image}", memory=True)

    # ------------------------------------------------------------------ disk and process

    async def create_disk(self, key: str, machine: Machine, held: Held) -> None:
        """A new disk over the image."""
        held.begin(self._world.clock.now())
        held.mark("image", self._world.clock.now())
        manifest = self._manifest(machine, held)
        where = self._files(machine)
        where.keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        if manifest.format == "none":
            held.diskless = True
        else:
            await self._world.layers.create_disk(Base(image=manifest.digest), where, machine.spec.disk)
        if machine.status.image != manifest.digest:
            await self._show(key, phase="preparing", image=manifest.digest, error=None)
        held.mark("disk", self._world.clock.now())

    async def make_disk(self, key: str, machine: Machine, held: Held) -> None:
        """The disk of the origin, without its memory: the machine boots from it when it is to run."""
        origin = self._origin(held)
        await self._lay_disk(machine, origin)
        traits = origin.checkpoint.traits
        held.origin = None
        held.diskless = origin.checkpoint.base is None
        restored = machine.spec.restore.serial if machine.spec.restore is not None else 0
        changes = {} if is_restoring(machine) else {"origin": origin.text}
        await self._show(
            key,
            phase="stopped" if machine.spec.power == "stopped" else "preparing",
            image=traits.image,
            started_as=traits,
            born=True,
            restored=restored,
            configured=False,
            error=None,
            **changes,
        )

    async def start(self, key: str, machine: Machine, held: Held) -> None:
        """Boot."""
        held.begin(self._world.clock.now())
        launch, choice = await self._launch(machine, self._manifest(machine, held))
        reason = held.cold if held.cold is not None and not held.cold.expected else None
        warnings = (
            *choice.warnings,
            *((f"booted instead of going on from a template: {reason.reason}",) if reason else ()),
        )
        # Without an end that was seen, it went down with the host.
        configured = machine.status.configured and (machine.status.process is None or is_set_up(machine, clean=False))
        await self._run(key, machine, held, launch, warnings, configured=configured)
        if machine.status.origin and not configured:
            # A copy of a disk: it is another's twin until the agent has made it somebody.
            await self._guest(held).set_link(up=False)

    async def fork(self, key: str, machine: Machine, held: Held) -> None:
        """Go on from the origin's memory."""
        held.begin(self._world.clock.now())
        origin = self._origin(held)
        held.digest = origin.checkpoint.traits.image
        checkpoint = await self._world.checkpoints.load(origin.checkpoint.id)
        with self._world.checkpoints.pinned(checkpoint.id):
            launch, warnings = await self._forked(machine, origin)
            await self._lay_disk(machine, origin)
            held.mark("disk", self._world.clock.now())
            held.path = origin.path
            name = {} if origin.path == "restore" else {"origin": origin.text}
            launch = launch._replace(saved=checkpoint.saved)
            try:
                await self._run(key, machine, held, launch, warnings, configured=False, **name)
            except _NotTakenOver as failure:
                await self._boot_instead(key, machine, held, failure.error)
                return
            if origin.path == "warm":
                self._world.templates.used(checkpoint, launch)
        held.origin = None
        restored = machine.spec.restore.serial if machine.spec.restore is not None else 0
        timing = held.timing(checkpoint.pause if origin.path == "clone" else 0.0)
        await self._show(key, restored=restored, timing=timing)

    async def _boot_instead(self, key: str, machine: Machine, held: Held, error: RoostError) -> None:
        """A template that can not be gone on from is of no use to others either; the machine gets a disk over its image, and boots."""
        origin = self._origin(held)
        if origin.path != "warm":
            raise error
        held.path = "cold"
        await self._show(key, origin="")
        held.cold, held.origin = await self._world.templates.failed(origin.checkpoint, error), None
        where = self._files(machine)
        for path in (where.disk, where.base):
            path.unlink(missing_ok=True)

    async def _forked(
        self, machine: Machine, origin: Origin, prepared: Prepared | None = None
    ) -> tuple[Launch, tuple[str, ...]]:
        """How the QEMU that takes the origin over is started. Raises Unavailable when it could not, Invalid."""
        checkpoint, what = origin.checkpoint, f'machine "{machine.name}" did not start'
        manifest = self._world.images.find(checkpoint.traits.image)
        if manifest is None:
            raise Unavailable(
                what, f"the image {checkpoint.traits.image} that it stands on is gone", "roost image list"
            )
        if machine.spec.disk is not None and machine.spec.disk < checkpoint.virtual_size:
            why = f"its disk of {size.show(machine.spec.disk)} is smaller than the {size.show(checkpoint.virtual_size)} of {origin.text}"
            raise Invalid(what, why, "ask for a larger disk: --disk")
        launch, choice = await self._launch(machine, manifest, origin, prepared)
        launch = launch._replace(spare=checkpoint.id if origin.path == "warm" else "")
        if self._world.hypervisor.shape(launch) != checkpoint.shape:
            why = f"the memory of {origin.text} was saved by another QEMU, or by one with other devices"
            raise Unavailable(what, why, "copy its disk alone, and boot from that: --no-memory")
        return launch, choice.warnings

    async def _lay_disk(self, machine: Machine, origin: Origin) -> None:
        """The disk and the small files of the origin."""
        checkpoint, where = origin.checkpoint, self._files(machine)
        where.keep.mkdir(parents=True, exist_ok=True, mode=0o700)
        if checkpoint.base is not None:
            await self._world.layers.create_disk(checkpoint.base, where)
        if checkpoint.variables is not None:
            files.atomic_write(where.variables, checkpoint.variables)
        if checkpoint.tpm:
            where.tpm.mkdir(mode=0o700, exist_ok=True)
        for directory, contents in ((where.tpm, checkpoint.tpm), (where.keep, checkpoint.access)):
            for name, data in contents.items():
                files.atomic_write(directory / name, data)

    async def _launch(
        self, machine: Machine, manifest: Manifest, origin: Origin | None = None, prepared: Prepared | None = None
    ) -> tuple[Launch, Choice]:
        """What the hypervisor is asked for. With an origin it is what that was started as, whatever the spec says by now."""
        where = self._files(machine)
        if origin is not None:
            traits = origin.checkpoint.traits
            spec = msgspec.structs.replace(machine.spec, cpus=traits.cpus, memory=traits.memory, tpm=traits.tpm)
            machine = msgspec.structs.replace(machine, spec=spec)
            warnings = (await self._choose(machine, manifest)).warnings if traits.accelerator == "tcg" else ()
            choice, base = Choice(traits.accelerator, traits.firmware, warnings), origin.checkpoint.base
        else:
            choice = await self._choose(machine, manifest)
            base = self._world.layers.base_of(where, manifest.digest)
        self._check_host(machine)
        prepared = prepared or await self._world.prepare(machine, manifest)
        below = self._world.layers.below(base) if base is not None and manifest.format != "none" else ()
        return launch_of(machine, manifest, self._world.paths, choice, prepared, below), choice

    async def _run(
        self, key: str, machine: Machine, held: Held, launch: Launch, warnings: tuple[str, ...], **becomes: object
    ) -> None:
        """Start the process. What the machine `becomes` is written down before, so that no daemon after this one takes it for another."""
        where = self._files(machine)
        where.live.mkdir(parents=True, exist_ok=True, mode=0o700)
        ports = await self._world.ports.take(machine)
        await self._show(
            key,
            phase="starting",
            progress="starting",
            error=None,
            exit="",
            restarts=machine.spec.restarts,
            node=self._world.node,
            timing=Timing(path=held.path),
            ports=ports,
            **becomes,
        )
        async with self._world.ports.plugged(machine, ports) as cards:
            self._world.ports.check_published(machine)
            guest = await self._start_process(launch._replace(cards=cards))
        held.mark("process", self._world.clock.now())
        await failpoints.reach("machine.started")
        self._custody.hold(held, guest)
        held.agent, held.wired = None, True
        if ports and launch.saved is not None:
            ports = with_macs(ports, await guest.cards())
        down = [port.slot for port in ports if not port.link]
        if down:
            await guest.set_link(up=False, slots=down)
        traits = traits_of(launch, held.digest or machine.status.image, self._world.hypervisor.shape(launch))
        await self._show(
            key,
            process=guest.process,
            pid=guest.process.pid,
            accelerator=launch.accelerator,
            firmware=launch.firmware,
            started_as=traits,
            isolation=guest.isolation,
            addresses=shown(guest.addresses, ports),
            ports=ports,
            cloning=guest.cloning,
            image=traits.image,
            agent="none",
            progress="",
            warnings=tuple(dict.fromkeys((*_kept_warnings(machine), *warnings))),
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

    async def _start_process(self, launch: Launch) -> Guest:
        """The process, in a place of the host's memory that was free for it. Raises Unavailable, and what the hypervisor raises."""
        places = self._world.reservations
        way: Literal["cold", "fork"] = "cold" if launch.saved is None else "fork"
        shape = self._world.hypervisor.shape(launch)
        # Forks of one shape are alike; of boots each does as it likes.
        await places.take(launch.uid, places.forecast(way, launch.memory, shape), shape if way == "fork" else "")
        try:
            guest = await self._world.hypervisor.start(launch)
        except BaseException as error:
            places.release(launch.uid)
            if launch.saved is not None and isinstance(error, RoostError):
                raise _NotTakenOver(error) from error
            raise
        places.started(launch.uid, guest.private_memory)
        return guest

    # ------------------------------------------------------------------ from its first instruction to its first answer

    async def resume(self, key: str, machine: Machine, held: Held) -> None:
        """Let it run."""
        guest = self._guest(held)
        await guest.resume()
        await failpoints.reach("machine.resumed")
        self._custody.listen(machine, held, guest)
        if machine.status.phase == "paused":
            await self._recorder.record(machine, "Resumed", "the machine goes on")
        elif machine.status.phase != "stopping":
            await self._recorder.record(
                machine, "Started", f"the machine runs as pid {guest.process.pid} ({machine.status.accelerator})"
            )

    async def greet(self, key: str, machine: Machine, held: Held) -> None:
        """The guest answers: make it the machine it is to be, plug it in, and write down who answered and how long it took."""
        guest, kind, warnings = self._guest(held), held.agent, machine.status.warnings
        exact = machine.spec.source is not None and machine.spec.source.keep_identity
        if kind == "absent" and is_twin(machine):
            raise _nobody(machine, "its agent does not answer")
        if kind == "absent":
            why = f'image "{machine.spec.image}" gave no answer within {AGENT_SECONDS:.0f} s: see roost console'
            warnings = (*warnings, why)
        elif not exact and (not machine.status.configured or self._forgets(machine)):
            warnings = (*warnings, *await self._set_up(machine, guest))
        if not exact:
            if machine.status.timing.path != "cold":
                await self._world.ports.settle(machine)  # its cards have other addresses than they were plugged in with
            await guest.set_link(up=True, slots=linked_slots(machine))
        held.mark("total", self._world.clock.now())
        configured = machine.status.configured or kind != "absent"
        timing = held.timing(machine.status.timing.pause)
        await self._show(key, configured=configured, agent=kind, timing=timing, progress="", warnings=warnings)
        held.greeted.set()
        await self._recorder.record(machine, "Ready", f"the machine answered after {held.seconds('agent'):.1f} s")

    async def _set_up(self, machine: Machine, guest: Guest) -> tuple[str, ...]:
        """First-boot set-up; returns what went wrong. The machine runs and answers: that its name could not be set is no reason to end it."""
        setup = setup_of(machine)._replace(cards=await self._world.ports.setups(machine))
        if machine.status.origin and machine.spec.disk is not None:
            await guest.resize_disk(machine.spec.disk)
        if machine.status.origin or machine.status.timing.path == "restore":
            # Who goes on from a memory would draw the random numbers again that were drawn after that instant before.
            fresh = machine.spec.restore is None
            keys = await asyncio.to_thread(hostkeys.make) if fresh else ()
            setup = setup._replace(entropy=secrets.token_bytes(_ENTROPY), host_keys=keys)
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                await (await guest.agent()).setup(setup)
        except (RoostError, TimeoutError) as error:
            why = str(error) or f"that took longer than {SETUP_SECONDS:.0f} s"
            if is_twin(machine):
                raise _nobody(machine, why) from error
            return (f"first-boot set-up failed: {why}",)
        return ()

    def _forgets(self, machine: Machine) -> bool:
        """Whether the machine has no disk to remember its set-up on."""
        manifest = self._world.images.find(machine.status.image)
        return manifest is not None and manifest.format == "none"

    # ------------------------------------------------------------------ shared

    def _manifest(self, machine: Machine, held: Held) -> Manifest:
        digest = machine.status.image if self._files(machine).disk.exists() else held.digest
        manifest = self._world.images.find(digest or held.digest)
        if manifest is None:
            what = f'machine "{machine.name}" did not start'
            raise Unavailable(
                what, f"the image {digest or machine.spec.image} it stands on is gone", "roost image list"
            )
        return manifest

    def _files(self, machine: Machine) -> MachineFiles:
        return self._world.paths.machine(machine.meta.uid)

    @staticmethod
    def _origin(held: Held) -> Origin:
        if held.origin is None:
            raise Retry("what the machine goes on from has to be found again", after=0)
        return held.origin

    @staticmethod
    def _guest(held: Held) -> Guest:
        if held.guest is None:
            raise Retry("the process ended meanwhile", after=0)
        return held.guest


def _kept_warnings(machine: Machine) -> tuple[str, ...]:
    """What a copy was told when it was made is not forgotten at its first start."""
    return () if is_born(machine) else machine.status.warnings


def _nobody(machine: Machine, why: str) -> Unavailable:
    """What a copy ends with that could not be told from what it is a copy of."""
    what = f'machine "{machine.name}" did not start'
    origin = machine.status.origin or "what it is a copy of"
    return Unavailable(
        what, f"it could not be told from {origin}: {why}", "copy the disk alone, and boot from that: --no-memory"
    )
