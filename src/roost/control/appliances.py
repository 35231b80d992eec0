"""What brings machines in and takes them out, put together over a control plane that runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from roost.control.exports import ExportFormat, Exports, Pool
from roost.control.plane import Here, Plane
from roost.control.proof import Parts, Prover
from roost.control.records import Records
from roost.errors import NotFound
from roost.host import files
from roost.hypervisor.base import Hypervisor
from roost.model.image import Image
from roost.model.machine import Machine

_MOST_PICTURE = 16 << 20


class Appliances:
    """Exports, proofs and their pictures."""

    def __init__(self, here: Here, hypervisor: Hypervisor, pool: Pool, plane: Plane) -> None:
        records, self._paths = Records(here.store), here.paths
        self._exports = Exports(records, plane.custody, plane.layers, plane.housekeeping, pool, here.paths)
        self._prover = Prover(
            Parts(
                records,
                hypervisor,
                plane.layers,
                here.paths,
                here.clock,
                plane.places,
                here.verdict,
                pool.find,
                here.facts.arch,
            )
        )

    async def export(self, machine: Machine, format: ExportFormat) -> AsyncIterator[bytes]:
        """A machine at rest, as a stream: see Exports."""
        return await self._exports.export(machine, format)

    async def prove(self, image: Image) -> Image:
        """Boot a copy of it: see Prover."""
        return await self._prover.prove(image)

    async def screen(self, image: Image) -> bytes:
        """The picture (PNG) that is kept beside the image. Raises NotFound."""
        try:
            place = self._paths.image(image.status.digest).screen
            return await asyncio.to_thread(files.read_bounded, place, _MOST_PICTURE)
        except OSError:
            why = "it was not proved, or showed nothing"
            raise NotFound(f'image "{image.name}" has no picture', why, "roost machine import FILE") from None
