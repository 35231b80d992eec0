"""Which image a machine means: one of its project, one that is published, or a template that is made at need."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, NamedTuple

import msgspec

from roost.control.events import now
from roost.control.records import read
from roost.errors import Conflict, NotFound
from roost.model import codec
from roost.model.image import Image, ImageSpec, ImageStatus
from roost.model.kinds import BY_NAME, key_of, prefix_of
from roost.model.machine import Machine
from roost.model.meta import Arch, Meta, Trouble
from roost.store.base import Store

_IMAGE = BY_NAME["image"]


class Picture(NamedTuple):
    """An image as a machine sees it."""

    state: Literal["unknown", "building", "ready", "failed"]
    digest: str = ""
    progress: str = ""
    trouble: Trouble | None = None


class Pictures:
    """Finds and requests the images of machines, and wakes the machines that wait for them.

    `known` says whether a name is a template or a catalogue entry that can be made on this host.
    """

    def __init__(
        self, store: Store, arch: Arch, known: Callable[[str, Arch], bool], wake: Callable[[str], None]
    ) -> None:
        self._store = store
        self._arch = arch
        self._known = known
        self._wake = wake
        self._waiting: dict[str, set[str]] = {}

    async def look(self, machine: Machine) -> Picture:
        """The state of the image that `machine` names."""
        image = await self._find(machine)
        if image is None:
            return Picture("unknown")
        status = image.status
        if status.phase == "ready":
            return Picture("ready", status.digest)
        if status.phase == "failed":
            return Picture("failed", trouble=status.error or Trouble(what=f'image "{image.name}" failed'))
        return Picture("building", progress=status.progress)

    async def request(self, machine: Machine, key: str) -> None:
        """Make sure the image is on its way (a failed one is tried again), and wake the machine when it changes. Raises NotFound."""
        image = await self._find(machine)
        if image is None:
            image = await self._create(machine)
        elif image.status.phase == "failed":
            await self._again(image)
        self.expect(machine, key)

    def expect(self, machine: Machine, key: str) -> None:
        """Wake `key` at the next change of any image of this name."""
        self._waiting.setdefault(machine.spec.image, set()).add(key)

    async def follow(self) -> None:
        """Watch images for ever and wake who waits. Run as a task of the daemon."""
        while True:
            _, revision = await self._store.list(prefix_of(_IMAGE))
            try:
                async for entry in self._store.watch(prefix_of(_IMAGE), since=revision):
                    self._wake_waiting(entry.key.rsplit("/", 1)[-1])
            except Conflict:
                for name in tuple(self._waiting):
                    self._wake_waiting(name)

    def _wake_waiting(self, name: str) -> None:
        for wanted in (
            name,
            *(name.removesuffix(f"-{arch}") for arch in ("x86_64", "aarch64", "riscv64") if name.endswith(f"-{arch}")),
        ):
            for key in self._waiting.pop(wanted, set()):
                self._wake(key)

    async def _find(self, machine: Machine) -> Image | None:
        for name in self._names(machine):
            with suppress(NotFound):
                image = read(await self._store.get(key_of(_IMAGE, machine.project, name)), Image)
                # An image of another CPU that is known by its bare name is another image, not another processor's word for it.
                if name == self._names(machine)[0] or image.spec.arch in (None, machine.spec.arch):
                    return image
        # A template of Roost's own wins over what another project published under its name: nobody can slip in another "tiny".
        if self._known(machine.spec.image, machine.spec.arch or self._arch):
            return None
        return await self._published(machine)

    async def _published(self, machine: Machine) -> Image | None:
        entries, _ = await self._store.list(prefix_of(_IMAGE))
        names = self._names(machine)
        offered = (read(entry, Image) for entry in entries if entry.key.rsplit("/", 1)[-1] in names)
        return next((image for image in offered if image.spec.published and image.status.phase == "ready"), None)

    def _names(self, machine: Machine) -> tuple[str, ...]:
        """Under which names the image may stand: for another CPU the name carries it ("tiny-aarch64")."""
        arch = machine.spec.arch or self._arch
        return (machine.spec.image,) if arch == self._arch else (f"{machine.spec.image}-{arch}", machine.spec.image)

    async def _create(self, machine: Machine) -> Image:
        arch = machine.spec.arch or self._arch
        if not self._known(machine.spec.image, arch):
            what = f'image "{machine.spec.image}" does not exist'
            why = f'project "{machine.project}" has no image of this name, and no template for {arch} has it'
            raise NotFound(what, why, "roost template list; or roost image import FILE --name NAME")
        image = Image(
            project=machine.project,
            name=self._names(machine)[0],
            meta=Meta(uid=str(uuid.uuid4()), created=now(), creator="roost"),
            spec=ImageSpec(template=machine.spec.image, arch=arch),
        )
        try:
            await self._store.put(key_of(_IMAGE, image.project, image.name), codec.encode(image), expect=0)
        except Conflict:
            return await self._find(machine) or image
        return image

    async def _again(self, image: Image) -> None:
        fresh = msgspec.structs.replace(image, status=ImageStatus(arch=image.status.arch))
        try:
            await self._store.put(
                key_of(_IMAGE, image.project, image.name), codec.encode(fresh), expect=image.meta.revision
            )
        except Conflict:
            return
