"""Machines brought in from elsewhere, proved to boot, and taken out: OVA packages and disks of any format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from roost.client.aio.machines import AsyncMachineHandle, AsyncMachines, silent
from roost.client.aio.objects import decode
from roost.client.aio.session import AsyncSession
from roost.client.aio.sources import AsyncSources
from roost.client.protocol import Request, path
from roost.client.results import Progress
from roost.errors import Conflict, Invalid, NotFound
from roost.model.image import DiskFormat, Hardware, Image
from roost.model.meta import MiB

ExportFormat: TypeAlias = DiskFormat | Literal["ova"]

PROOF_SECONDS = 1800.0
"""Longest that a proof may take, with those that wait before it."""

_LEAST = 128 * MiB


class AsyncImported(NamedTuple):
    """A machine that was brought in, and the image that it stands on: `image.status.proof` says whether it boots."""

    machine: AsyncMachineHandle
    image: Image


class AsyncAppliances:
    """Machines in and out of a project."""

    def __init__(self, session: AsyncSession, project: str) -> None:
        self._session = session
        self._project = project

    async def export(
        self,
        name: str,
        file: Path,
        *,
        format: ExportFormat = "qcow2",
        report: Callable[[str, Progress], None] = silent,
    ) -> None:
        """Write a stopped machine to `file`, which appears when it is whole. Raises NotFound, Conflict (it runs), OutcomeUnknown."""
        report(name, Progress(f"converting {name}"))
        target = path("machines", self._project, name, "disk", format=format)
        answer = await self._session.open(Request("GET", target), timeout=None)
        part, done = file.with_name(f".{file.name}.part"), 0
        try:
            with open(part, "wb") as written:
                async for piece in answer.pieces():
                    written.write(piece)
                    done += len(piece)
                    report(name, Progress(f"exporting {name}: {done // MiB} MiB"))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    async def prove(self, image: str) -> Image:
        """Boot a copy of an image's disk without any network: `status.proof` is what came of it. Raises NotFound, Conflict, Unavailable."""
        target = path("images", self._project, image, "proof")
        return decode(await self._session.call("POST", target, timeout=PROOF_SECONDS), Image)

    async def screen(self, image: str) -> bytes:
        """A picture (PNG) of what the image showed when it was proved. Raises NotFound."""
        answer = await self._session.open(Request("GET", path("images", self._project, image, "screen")))
        return await answer.read()

    async def bring_in(
        self,
        file: Path,
        name: str,
        *,
        prove: bool = True,
        report: Callable[[str, Progress], None] = silent,
        **spec: Any,
    ) -> AsyncImported:
        """A stopped machine of an OVA or a disk of this computer: with the processors, the memory and the firmware that the appliance names, or
        that booted. `spec` holds fields of MachineSpec that go before those. With `prove` it is booted first where it can reach nothing.

        Raises NotFound (no such file), Invalid, Conflict, Unavailable.
        """
        images, machines = AsyncSources(self._session, self._project), AsyncMachines(self._session, self._project)
        await _check_free(machines, name)
        image = await images.upload(file, report=report)
        if image.status.phase != "ready":
            raise Invalid(f"{file} was not imported", f"its image is {image.status.phase}", "roost image list")
        if prove:
            report(name, Progress(f"booting a copy of {image.name}"))
            image = await self.prove(image.name)
        wanted = {"image": image.name, "power": "stopped", **_as_found(image), **spec}
        return AsyncImported(AsyncMachineHandle(self._session, await machines.create(name, wanted)), image)


async def _check_free(machines: AsyncMachines, name: str) -> None:
    """Before anything is sent. Raises Conflict."""
    try:
        await machines.get(name)
    except NotFound:
        return
    raise Conflict(f'machine "{name}" exists already', "nothing was imported", "choose another name: --name")


def _as_found(image: Image) -> dict[str, Any]:
    """The fields of a machine's spec that its appliance, or the proof, decides."""
    hardware, proof = image.status.hardware or Hardware(), image.status.proof
    found: dict[str, Any] = {}
    if hardware.cpus:
        found["cpus"] = min(hardware.cpus, 256)
    if hardware.memory:
        found["memory"] = max(-(-hardware.memory // MiB) * MiB, _LEAST)
    if image.status.hardware is not None and not hardware.cards:
        found["network"] = "none"
    if proof is not None and proof.outcome != "failed":
        found["firmware"] = proof.firmware
    return found
