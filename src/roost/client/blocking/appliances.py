# Derived from aio/appliances.py by `python -m roost.client.derive`: change that, not this.
# fmt: off
# ruff: noqa: I001, UP028, RUF100
"""Machines brought in from elsewhere, proved to boot, and taken out: OVA packages and disks of any format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from roost.client.blocking.machines import MachineHandle, Machines, silent
from roost.client.blocking.objects import decode
from roost.client.blocking.session import Session
from roost.client.blocking.sources import Sources
from roost.client.protocol import Request, path
from roost.client.results import Progress
from roost.errors import Conflict, Invalid, NotFound
from roost.model.image import DiskFormat, Hardware, Image
from roost.model.meta import MiB

ExportFormat: TypeAlias = DiskFormat | Literal["ova"]

PROOF_SECONDS = 1800.0
"""Longest that a proof may take, with those that wait before it."""

_LEAST = 128 * MiB


class Imported(NamedTuple):
    """A machine that was brought in, and the image that it stands on: `image.status.proof` says whether it boots."""

    machine: MachineHandle
    image: Image


class Appliances:
    """Machines in and out of a project."""

    def __init__(self, session: Session, project: str) -> None:
        self._session = session
        self._project = project

    def export(
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
        answer = self._session.open(Request("GET", target), timeout=None)
        part, done = file.with_name(f".{file.name}.part"), 0
        try:
            with open(part, "wb") as written:
                for piece in answer.pieces():
                    written.write(piece)
                    done += len(piece)
                    report(name, Progress(f"exporting {name}: {done // MiB} MiB"))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    def prove(self, image: str) -> Image:
        """Boot a copy of an image's disk without any network: `status.proof` is what came of it. Raises NotFound, Conflict, Unavailable."""
        target = path("images", self._project, image, "proof")
        return decode(self._session.call("POST", target, timeout=PROOF_SECONDS), Image)

    def screen(self, image: str) -> bytes:
        """A picture (PNG) of what the image showed when it was proved. Raises NotFound."""
        answer = self._session.open(Request("GET", path("images", self._project, image, "screen")))
        return answer.read()

    def bring_in(
        self,
        file: Path,
        name: str,
        *,
        prove: bool = True,
        report: Callable[[str, Progress], None] = silent,
        **spec: Any,
    ) -> Imported:
        """A stopped machine of an OVA or a disk of this computer: with the processors, the memory and the firmware that the appliance names, or
        that booted. `spec` holds fields of MachineSpec that go before those. With `prove` it is booted first where it can reach nothing.

        Raises NotFound (no such file), Invalid, Conflict, Unavailable.
        """
        images, machines = Sources(self._session, self._project), Machines(self._session, self._project)
        _check_free(machines, name)
        image = images.upload(file, report=report)
        if image.status.phase != "ready":
            raise Invalid(f"{file} was not imported", f"its image is {image.status.phase}", "roost image list")
        if prove:
            report(name, Progress(f"booting a copy of {image.name}"))
            image = self.prove(image.name)
        wanted = {"image": image.name, "power": "stopped", **_as_found(image), **spec}
        return Imported(MachineHandle(self._session, machines.create(name, wanted)), image)


def _check_free(machines: Machines, name: str) -> None:
    """Before anything is sent. Raises Conflict."""
    try:
        machines.get(name)
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
