"""Machines that come in from elsewhere and go there: their disks as streams, and whether an image boots."""

from __future__ import annotations

from typing import get_args

from roost.api.resources import Resources
from roost.api.routes import Query, Route
from roost.api.services import Services
from roost.api.wire import Answer, Call, Streamed
from roost.control.exports import ExportFormat
from roost.errors import Invalid, Problem
from roost.model import codec
from roost.model.access import Verb
from roost.model.image import DiskFormat, Image
from roost.model.kinds import BY_NAME
from roost.model.machine import Machine

FORMATS: tuple[ExportFormat, ...] = ("ova", *get_args(DiskFormat))
_MACHINE, _IMAGE = BY_NAME["machine"], BY_NAME["image"]


class Appliances:
    """Routes of what is imported and exported."""

    def __init__(self, services: Services, resources: Resources) -> None:
        self._appliances = services.appliances
        self._resources = resources

    async def export(self, call: Call) -> Streamed:
        """A stopped machine: its disk in one format, or all of it as an OVA. Who may look inside a machine may have it."""
        machine = await self._resources.read(call, _MACHINE, "exec")
        assert isinstance(machine, Machine)
        asked = call.query("format", "qcow2")
        format = next((known for known in FORMATS if known == asked), None)
        if format is None:
            raise Invalid("the request is wrong", problems=[Problem("format", f"is not one of {', '.join(FORMATS)}")])
        return Streamed(await self._appliances.export(machine, format), b"application/octet-stream")

    async def prove(self, call: Call) -> Answer:
        """Boot a copy of the disk where it can reach nothing; what came of it is in the answer's status. That takes up to some minutes."""
        return Answer(codec.encode(await self._appliances.prove(await self._image(call, "update"))))

    async def screen(self, call: Call) -> Answer:
        """A picture of what the disk showed when it was proved."""
        picture = await self._appliances.screen(await self._image(call, "get"))
        return Answer(picture, content_type=b"image/png")

    async def _image(self, call: Call, verb: Verb) -> Image:
        found = await self._resources.read(call, _IMAGE, verb)
        assert isinstance(found, Image)
        return found


def appliance_routes(appliances: Appliances) -> list[Route]:
    """What brings machines in, and takes them out."""
    machine, image = "/v1/machines/{project}/{name}", "/v1/images/{project}/{name}"
    format = (Query("format", f"one of {', '.join(FORMATS)}; qcow2 when left out"),)

    def text(of: object) -> str:
        return (of.__doc__ or "").strip()

    return [
        Route(
            "GET",
            f"{machine}/disk",
            "export_machine",
            text(appliances.export),
            appliances.export,
            None,
            "exec",
            _MACHINE,
            gives="application/octet-stream",
            queries=format,
        ),
        Route(
            "POST",
            f"{image}/proof",
            "prove_image",
            text(appliances.prove),
            appliances.prove,
            None,
            "update",
            _IMAGE,
            gives="Image",
        ),
        Route(
            "GET",
            f"{image}/screen",
            "screen_image",
            text(appliances.screen),
            appliances.screen,
            None,
            "get",
            _IMAGE,
            gives="image/png",
        ),
    ]
