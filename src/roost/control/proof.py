"""Boots a copy of an imported disk where nothing can be harmed, and says what came of it: no network, a disk that is thrown away."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from msgspec.structs import replace

from roost.control import proofplan
from roost.control.making import Layers
from roost.control.proofplan import Finding, Seen
from roost.control.records import Records
from roost.control.reservations import Reservations
from roost.errors import Conflict, NotFound, RoostError, Unavailable
from roost.host import files
from roost.host.clock import Clock
from roost.host.paths import MachineFiles, Paths
from roost.hypervisor.base import Disk, Guest, Hypervisor, Launch
from roost.log import get, spawn_task
from roost.model import codec
from roost.model.image import Attempt, Hardware, Image, Proof
from roost.model.kinds import BY_NAME, key_of
from roost.model.meta import Arch, Firmware, GiB, MiB
from roost.model.node import Verdict
from roost.storage.layers import Base
from roost.storage.manifest import Manifest

LOOK = 1.0
"""Seconds between two looks at a guest."""

_LEAST, _MOST = 512 * MiB, 4 * GiB
_MOST_CPUS = 2
_PICTURES = 2
"""Pictures that count as one: a text screen has its cursor on or off."""


class Parts(NamedTuple):
    """What it acts upon; `find` tells of an image in the pool."""

    records: Records
    hypervisor: Hypervisor
    layers: Layers
    paths: Paths
    clock: Clock
    reservations: Reservations
    verdict: Callable[[], Awaitable[Verdict]]
    find: Callable[[str], Manifest | None]
    arch: Arch


class _Boot(NamedTuple):
    """One attempt, with what was seen last."""

    attempt: Attempt
    suggestion: str
    picture: bytes
    console: str


class Prover:
    """Proves images, one at a time: a boot takes a processor."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._alone = asyncio.Lock()

    async def prove(self, image: Image) -> Image:
        """The image, with the outcome in its status. Raises Conflict (it is not ready, or has no disk), NotFound, Unavailable."""
        manifest = self._parts.find(image.status.digest) if image.status.phase == "ready" else None
        if manifest is None or manifest.format == "none":
            why = "it has no disk, only a kernel" if manifest is not None else f"it is {image.status.phase}"
            raise Conflict(f'image "{image.name}" was not proved', why, "roost image list")
        async with self._alone:
            proof = await self._proof(manifest, image.status.hardware or Hardware())
        return await self._write(image, proof)

    async def _proof(self, manifest: Manifest, hardware: Hardware) -> Proof:
        boots: list[_Boot] = []
        arch = manifest.arch or self._parts.arch
        for firmware in proofplan.candidates(manifest.firmwares, arch):
            boots.append(await self._attempt(manifest, hardware, arch, firmware))
            if boots[-1].attempt.outcome == "booted":
                break
        attempts = tuple(boot.attempt for boot in boots)
        chosen = boots[proofplan.best(attempts)]
        return Proof(
            outcome=chosen.attempt.outcome,
            firmware=chosen.attempt.firmware,
            why=chosen.attempt.why,
            suggestion=chosen.suggestion,
            screen=await asyncio.to_thread(self._keep, manifest.digest, chosen.picture),
            console=chosen.console,
            attempts=attempts,
        )

    def _keep(self, digest: str, picture: bytes) -> str:
        """Keep the picture beside the image; it goes with it."""
        if not picture:
            return ""
        place = self._parts.paths.image(digest).screen
        try:
            files.atomic_write(place, picture, 0o444, durable=False)
        except OSError as error:  # the disk is full, or the image was deleted meanwhile
            get(__name__).warning("a picture was not kept", file=str(place), why=str(error))
            return ""
        return str(place)

    async def _attempt(self, manifest: Manifest, hardware: Hardware, arch: Arch, firmware: Firmware) -> _Boot:
        uid = str(uuid.uuid4())
        where = self._parts.paths.spare(uid)
        begun = self._parts.clock.now()
        guest: Guest | None = None
        try:
            launch = await self._launch(uid, where, manifest, (hardware, arch, firmware))
            guest = await self._parts.hypervisor.start(launch)
            await guest.resume()
            watch = _Watch(guest, self._parts.clock)
            finding = await watch.wait(proofplan.patience(launch.accelerator))
            picture, console = watch.picture, proofplan.printed(guest.console.history())
        except RoostError as error:
            finding, picture, console = Finding("failed", f"it could not be started: {error}", error.fix), b"", ""
        finally:
            await asyncio.shield(spawn_task(self._remove(uid, where, guest), f"end of proof {uid}"))
        seconds = round(self._parts.clock.now() - begun, 1)
        attempt = Attempt(firmware=firmware, outcome=finding.outcome, why=finding.why, seconds=seconds)
        return _Boot(attempt, finding.suggestion, picture, console)

    async def _launch(
        self, uid: str, where: MachineFiles, manifest: Manifest, how: tuple[Hardware, Arch, Firmware]
    ) -> Launch:
        """A machine as the appliance says, within bounds: it is only to come up. Raises Unavailable."""
        hardware, arch, firmware = how
        memory = -(-min(max(hardware.memory, _LEAST), _MOST) // MiB) * MiB
        places = self._parts.reservations
        await places.take(uid, places.forecast("cold", memory))
        for directory in where:
            directory.mkdir(parents=True, mode=0o700)
        base = Base(image=manifest.digest)
        await self._parts.layers.create_disk(base, where)
        verdict = await self._parts.verdict() if arch == self._parts.arch else None
        return Launch(
            uid=uid,
            arch=arch,
            cpus=min(max(hardware.cpus, 1), _MOST_CPUS),
            memory=memory,
            accelerator="kvm" if verdict is not None and verdict.accelerator == "kvm" else "tcg",
            firmware=firmware,
            files=where,
            disks=(Disk(where.disk, self._parts.layers.below(base), serial="root"),),
            network="none",
            display=True,
        )

    async def _remove(self, uid: str, where: MachineFiles, guest: Guest | None) -> None:
        if guest is not None:
            await guest.kill()
        for directory in where:
            await asyncio.to_thread(files.remove_tree, directory)
        self._parts.reservations.release(uid)

    async def _write(self, image: Image, proof: Proof) -> Image:
        """Note it in the object. Raises NotFound when that is gone, or has other content by now."""
        key = key_of(BY_NAME["image"], image.project, image.name)
        while True:
            before = await self._parts.records.image(key)
            if before.meta.uid != image.meta.uid or before.status.digest != image.status.digest:
                raise NotFound(f'image "{image.name}" is gone', "it was deleted meanwhile", "roost image list")
            after = replace(before, status=replace(before.status, proof=proof))
            with contextlib.suppress(Conflict):
                revision = await self._parts.records.store.put(key, codec.encode(after), expect=before.meta.revision)
                return replace(after, meta=replace(after.meta, revision=revision))


class _Watch:
    """Looks at a guest until something is known of it."""

    def __init__(self, guest: Guest, clock: Clock) -> None:
        self._guest = guest
        self._clock = clock
        self._begun = self._changed = clock.now()
        self._known: deque[bytes] = deque(maxlen=_PICTURES)
        self._length = 0
        self.picture = b""

    async def wait(self, patience: proofplan.Patience) -> Finding:
        """What came of it; `picture` is then the last that its screen showed, b"" where there was none."""
        asking = spawn_task(self._guest.agent(), "agent of a proof")
        try:
            while True:
                state = await self._guest.state()
                await self._look()
                now = self._clock.now()
                seen = Seen(
                    state=state,
                    agent=asking.result().kind if asking.done() and asking.exception() is None else "",
                    console=proofplan.printed(self._guest.console.history()),
                    still=now - self._changed,
                    elapsed=now - self._begun,
                )
                finding = proofplan.judge(seen, patience)
                if finding is not None:
                    return finding
                await self._clock.sleep(LOOK)
        finally:
            asking.cancel()

    async def _look(self) -> None:
        """Take a picture, and note whether anything changed."""
        length = len(self._guest.console.history())
        try:
            self.picture = await self._guest.screenshot()
        except (Conflict, Unavailable) as error:
            get(__name__).info("no picture", why=error.why)
        digest = hashlib.sha256(self.picture).digest()
        if digest not in self._known or length != self._length:
            self._changed = self._clock.now()
            self._length = length
            if digest not in self._known:
                self._known.append(digest)
