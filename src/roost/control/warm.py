"""Warm templates: booted once for each project and shape, sealed, kept on disk, and forked for every later launch."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from msgspec.structs import replace

from roost.control.checkpoints import Checkpoint, Checkpoints
from roost.control.launches import traits_of
from roost.control.making import Maker, Order, Workshop
from roost.control.plan import is_born
from roost.control.warmth import HOT_SECONDS, SPARE_MEMORY, Cold, Kept, budget, evict, reason_for_cold, spares
from roost.errors import NotFound, RoostError, Unavailable
from roost.host import files
from roost.host.clock import Timer
from roost.hypervisor.base import Launch
from roost.log import get, spawn_task
from roost.model.machine import Machine, Traits
from roost.storage.layers import Base
from roost.storage.manifest import Manifest

AGAIN_SECONDS = 300.0
"""How long after a template could not be made it is not tried again: until then machines boot cold at once."""

LATER_SECONDS = 45.0
"""How long after a machine of a new shape was started its template is made: a Debian under emulation has come to rest by then."""

Place: TypeAlias = tuple[str, Traits]
"""Which template: never another project's, and only of a machine that is the same in every trait."""


class _Making:
    """A template that is being made, and the machines that wait for it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.waiting: set[str] = set()


class _Pool(NamedTuple):
    """Spares of a template: how many wait, what they are like, and what keeps the template's memory meanwhile."""

    waiting: int
    launch: Launch
    pins: contextlib.ExitStack


class Parts(NamedTuple):
    """What warm templates act upon besides the making. `has_image` tells whether an image is there, by its digest; `wake` is told the key
    of a machine whose template is ready, or will not be; `changed` is called when one is gone, so that its layer can go too."""

    checkpoints: Checkpoints
    workshop: Workshop
    has_image: Callable[[str], bool]
    wake: Callable[[str], None]
    changed: Callable[[], None] = lambda: None


class Warm:
    """The warm templates of this host: a cache, bounded, rebuilt when it no longer fits, never loaded when its seal does not match."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._checkpoints = parts.checkpoints
        self._world = parts.workshop
        self._maker = Maker(parts.workshop)
        self._templates: dict[Place, str] = {}
        self._makings: dict[Place, _Making] = {}
        self._failures: dict[Place, tuple[float, str]] = {}
        self._loading: Counter[str] = Counter()
        self._uses: dict[str, tuple[float, Launch]] = {}
        self._pools: dict[str, _Pool] = {}
        self._arranging = asyncio.Lock()
        self._later: dict[Place, Timer] = {}
        self._cooling: Timer | None = None

    async def begin(self) -> None:
        """At daemon start, after all processes without a machine were ended: find what is kept, and forget what is of no use."""
        await asyncio.to_thread(files.remove_tree, self._world.paths.spares)
        for uid, kept in sorted(self._checkpoints.kept("warm").items(), key=lambda entry: entry[1].taken):
            place = (kept.project, kept.traits)
            if not self._parts.has_image(kept.traits.image):
                await self._checkpoints.forget(uid)
                continue
            if place in self._templates:
                await self._checkpoints.forget(self._templates[place])
            self._templates[place] = uid
        await self._evict()

    async def look(
        self, machine: Machine, key: str, launch: Launch, manifest: Manifest
    ) -> Checkpoint | Literal["making"] | Cold:
        """What `machine` may go on from, whose cold start would be `launch`: pin what you get at once, and tell `used`.

        The first to ask for a template has it made in the background; "making": `key` is woken when it is ready, or will not be. Where there is one
        of another shape, a machine of a new shape boots at once, and its shape gets a template for those that come later.
        """
        if reason := reason_for_cold(machine, manifest, launch):
            return Cold(reason, expected=machine.spec.cold or is_born(machine))
        traits = traits_of(launch, manifest.digest, self._world.hypervisor.shape(launch))
        place = (machine.project, traits)
        found = await self._load(place)
        if found is not None:
            return found
        if place not in self._makings:
            failure = self._failure(place)
            if failure is not None:
                return failure
            order = Order(machine.project, launch, traits, f"template {machine.spec.image}")
            if self._has_another_shape(place):
                self._make_later(order)
                return Cold(f"no template of {machine.spec.image} has its shape yet", expected=True)
            self._make(order)
        self._makings[place].waiting.add(key)
        return "making"

    def used(self, checkpoint: Checkpoint, launch: Launch) -> None:
        """A machine was started from the template by `launch`: it stays longer, and spares are kept waiting for the next one."""
        if checkpoint.id not in self._templates.values():
            return
        with contextlib.suppress(OSError):  # not written yet: then it is new
            os.utime(self._world.paths.checkpoint(checkpoint.id).manifest)
        self._uses[checkpoint.id] = (self._world.clock.now(), launch)
        self._arrange_later()

    async def failed(self, checkpoint: Checkpoint, error: RoostError) -> Cold:
        """A machine could not go on from the template: it is forgotten, and not made again at once. Returns how the machine comes up instead."""
        for place, uid in self._templates.items():
            if uid == checkpoint.id:
                self._failures[place] = (self._world.clock.now(), _words(error))
        await self._forget(checkpoint.id)
        return Cold(f"its template can not be used: {_words(error)}")

    async def forget_image(self, digest: str) -> None:
        """The image is going: so do the templates that stand on it, also those that are being made."""
        await self._forget_all(lambda project, traits: traits.image == digest)

    async def forget_project(self, name: str) -> None:
        """The project is gone: another of its name must not find its templates."""
        await self._forget_all(lambda project, traits: project == name)

    @property
    def busy(self) -> bool:
        """Whether a template is being made or written down."""
        return bool(self._makings)

    def roots(self) -> list[Base]:
        """Layers that are there already and that no checkpoint names yet: they must not be collected."""
        return self._maker.roots()

    async def close(self) -> None:
        """At the daemon's end: give up what is being made, and let go of spares, whose processes the hypervisor ends."""
        if self._cooling is not None:
            self._cooling.cancel()
        for timer in self._later.values():
            timer.cancel()
        self._later.clear()
        await self._give_up(list(self._makings))
        for pool in self._pools.values():
            pool.pins.close()
        self._pools.clear()

    # ------------------------------------------------------------------ finding and forgetting

    async def _load(self, place: Place) -> Checkpoint | None:
        """The template, verified; what can not be used is forgotten."""
        uid = self._templates.get(place)
        if uid is None:
            return None
        self._loading[uid] += 1
        try:
            found = await self._checkpoints.load(uid)
            if found.base is not None:
                self._world.layers.below(found.base)
            if found.saved is not None:
                return found
            trouble = "it has no memory"
        except (NotFound, Unavailable) as error:
            trouble = str(error)
        finally:
            self._loading[uid] -= 1
        get(__name__).warning("a template is not used", template=uid, why=trouble)
        await self._forget(uid)
        return None

    def _failure(self, place: Place) -> Cold | None:
        """Why the template could not be made a while ago."""
        when, why = self._failures.get(place, (float("-inf"), ""))
        if self._world.clock.now() - when < AGAIN_SECONDS:
            return Cold(f"its template can not be used: {why}")
        self._failures.pop(place, None)
        return None

    async def _forget(self, uid: str) -> None:
        self._templates = {place: kept for place, kept in self._templates.items() if kept != uid}
        self._uses.pop(uid, None)
        async with self._arranging:
            await self._keep_spares(uid, 0)
        await self._checkpoints.forget(uid)
        self._parts.changed()

    async def _forget_all(self, matches: Callable[[str, Traits], bool]) -> None:
        for place in [place for place in self._later if matches(*place)]:
            self._later.pop(place).cancel()
        await self._give_up([place for place in self._makings if matches(*place)])
        self._failures = {place: failure for place, failure in self._failures.items() if not matches(*place)}
        for uid in [uid for place, uid in self._templates.items() if matches(*place)]:
            await self._forget(uid)

    async def _give_up(self, places: list[Place]) -> None:
        tasks = [self._makings[place].task for place in places]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _evict(self) -> None:
        """Forget those unused for longest, until the rest keep the bounds."""
        weighed = {uid: await asyncio.to_thread(self._weigh, uid) for uid in tuple(self._templates.values())}
        kept = [Kept(uid, size, used, self._in_use(uid)) for uid, (size, used) in weighed.items()]
        for uid in evict(kept, budget(shutil.disk_usage(self._world.paths.state).total)):
            if not self._in_use(uid):  # nor since a moment ago
                get(__name__).info("a template is evicted", template=uid)
                await self._forget(uid)

    def _in_use(self, uid: str) -> bool:
        return self._loading[uid] > 0 or self._checkpoints.in_use(uid)

    def _weigh(self, uid: str) -> tuple[int, float]:
        """Bytes on disk, the disk's layer included, and when it was used last."""
        checkpoint, size = self._checkpoints.find(uid), self._checkpoints.size(uid)
        if checkpoint is not None and checkpoint.base is not None and checkpoint.base.layer:
            with contextlib.suppress(FileNotFoundError):
                size += self._world.paths.layer(checkpoint.base.layer).disk.stat().st_blocks * 512
        try:
            return size, self._world.paths.checkpoint(uid).manifest.stat().st_mtime
        except FileNotFoundError:  # being written: new
            return size, float("inf")

    # ------------------------------------------------------------------ making

    def _has_another_shape(self, place: Place) -> bool:
        project, traits = place
        known = (*self._templates, *self._makings)
        others = (replace(other, shape=traits.shape) for owner, other in known if owner == project)
        return any(other.image == traits.image and other != traits for other in others)

    def _make_later(self, order: Order) -> None:
        """When the machine that asked for it has come up: it wants the processor for itself."""
        place = order.project, order.traits
        if place not in self._later:
            self._later[place] = self._world.clock.call_later(LATER_SECONDS, lambda: self._begin_later(place, order))

    def _begin_later(self, place: Place, order: Order) -> None:
        self._later.pop(place)
        if place not in self._templates and place not in self._makings:
            self._make(order)

    def _make(self, order: Order) -> None:
        place = (order.project, order.traits)
        task = spawn_task(self._made(place, order), order.origin)
        self._makings[place] = _Making(task)
        task.add_done_callback(lambda _: self._ended(place))

    async def _made(self, place: Place, order: Order) -> None:
        """Make one template; what failed is not begun again at once."""
        try:
            await self._forget_outdated(place)
            checkpoint = await self._maker.make(order)
            self._checkpoints.hold(checkpoint)
            self._templates[place] = checkpoint.id
            self._wake(place)
            await self._checkpoints.keep(checkpoint, "warm")
            await self._evict()
        except Exception as error:  # also what nobody foresaw: without a note each waiting machine would begin it again
            get(__name__).warning("a template could not be made", template=order.origin, exc_info=error)
            self._failures[place] = (self._world.clock.now(), _words(error))
            if place in self._templates:
                await self._forget(self._templates[place])

    def _ended(self, place: Place) -> None:
        self._wake(place)
        del self._makings[place]

    async def _forget_outdated(self, place: Place) -> None:
        """Another shape with the same traits was of another QEMU, or another host: nothing can go on from it any more."""
        project, traits = place
        for (owner, other), uid in tuple(self._templates.items()):
            if owner == project and other != traits and replace(other, shape=traits.shape) == traits:
                await self._forget(uid)

    def _wake(self, place: Place) -> None:
        waiting = self._makings[place].waiting
        while waiting:
            self._parts.wake(waiting.pop())

    # ------------------------------------------------------------------ spares

    def _arrange_later(self) -> None:
        spawn_task(self._arrange(), "spares")
        if self._cooling is not None:
            self._cooling.cancel()
        self._cooling = self._world.clock.call_later(HOT_SECONDS, lambda: spawn_task(self._arrange(), "spares"))

    async def _arrange(self) -> None:
        """Give each template the spares that it deserves now."""
        async with self._arranging:
            free = self._world.reservations.room() + SPARE_MEMORY * sum(pool.waiting for pool in self._pools.values())
            wanted = spares({uid: when for uid, (when, _) in self._uses.items()}, self._world.clock.now(), free)
            for uid in {*self._pools, *wanted}:
                await self._keep_spares(uid, wanted.get(uid, 0))

    async def _keep_spares(self, uid: str, count: int) -> None:
        """The memory of a template that has spares stays. Spares are of one template alone: its id names their pool."""
        pool = self._pools.pop(uid, None)
        if pool is None:
            if not count:
                return
            pins = contextlib.ExitStack()
            try:
                saved = pins.enter_context(self._checkpoints.pinned(uid)).saved
            except NotFound:  # its memory went; the next use brings it back
                return
            pool = _Pool(0, self._uses[uid][1]._replace(saved=saved, spare=uid), pins)
        if count != pool.waiting:
            await self._world.hypervisor.keep_spares(pool.launch, count)
        if count:
            self._pools[uid] = pool._replace(waiting=count)
        else:
            pool.pins.close()


def _words(error: Exception) -> str:
    """One line for people."""
    if isinstance(error, RoostError):
        return f"{error.what}: {error.why}" if error.why else error.what
    return str(error) or type(error).__name__
