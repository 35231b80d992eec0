"""Streams over HTTP: watch by server-sent events, the console's record, files as tar, and the bytes of an image."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import get_args

from roost.api.access import Gate
from roost.api.resources import Resources, shown
from roost.api.services import Services
from roost.api.view import View, load
from roost.api.wire import Answer, Call, Streamed
from roost.errors import Conflict, Invalid, NotStarted, Problem
from roost.hypervisor.base import Agent, Guest
from roost.model import codec
from roost.model.access import Principal, Verb
from roost.model.image import DiskFormat, Image
from roost.model.kinds import BY_NAME, Kind, find
from roost.model.machine import Machine
from roost.model.program import Program
from roost.store.base import Entry

AGENT_SECONDS = 60.0
"""How long a request waits for the guest to answer at all."""
_MACHINE = BY_NAME["machine"]
_IMAGE = BY_NAME["image"]
_PROGRAM = BY_NAME["program"]


class Streams:
    """Routes whose answer or body is a stream."""

    def __init__(self, services: Services, view: View, gate: Gate, resources: Resources) -> None:
        self._services = services
        self._view = view
        self._gate = gate
        self._resources = resources

    async def watch(self, call: Call) -> Streamed:
        """Changes of one kind as server-sent events."""
        kind = find(call.query("kind"))
        prefix = self._resources.range(call, kind, "watch")
        given = call.query("since") or call.header(b"last-event-id") or ""
        if not (given.isascii() and given.isdigit() and len(given) <= 19) and given:
            raise Invalid("the request is wrong", problems=[Problem("since", "is not a revision")])
        source = self._events(call.principal, kind, prefix, int(given) if given else None)
        return Streamed(source, b"text/event-stream", heartbeat=b": heartbeat\n\n")

    async def _events(self, principal: Principal, kind: Kind, prefix: str, since: int | None) -> AsyncIterator[bytes]:
        yield b": roost\n\n"
        present = [item for item in self._view.below(prefix) if self._gate.sees(principal, kind, _project(item.key))]
        known = {item.key for item in present} if not kind.scoped else set()
        if since is None:
            since = self._view.revision
            for item in present:
                yield _event("put", item.revision, shown(self._gate, principal, _project(item.key), kind, item.body))
            yield _event("synced", since, b"{}")
        del present
        try:
            async for entry in self._services.store.watch(prefix, since=since):
                if (told := self._told(principal, kind, entry, known)) is not None:
                    yield told
        except Conflict:
            yield b"event: resync\ndata: {}\n\n"

    def _told(self, principal: Principal, kind: Kind, entry: Entry, known: set[str]) -> bytes | None:
        """What this caller is told of a change. A deleted project has no members any more: whoever knew it is told."""
        project = _project(entry.key)
        if entry.key not in known and not self._gate.sees(principal, kind, project):
            return None
        if entry.value is None:
            known.discard(entry.key)
            name = entry.key.rpartition("/")[2]
            gone = {"kind": kind.name, "project": project if kind.scoped else "", "name": name}
            return _event("delete", entry.revision, codec.encode(gone))
        if not kind.scoped:
            known.add(entry.key)
        body = codec.encode(load(kind, entry))
        return _event("put", entry.revision, shown(self._gate, principal, project, kind, body))

    async def machine(self, call: Call, verb: Verb) -> Machine:
        """The machine a path names. Raises NotFound, Forbidden."""
        found = await self._resources.read(call, _MACHINE, verb)
        assert isinstance(found, Machine)
        return found

    async def guest(self, call: Call, verb: Verb) -> Guest:
        """The running guest of the machine a path names. Raises NotFound, Forbidden, Conflict."""
        return await self._services.guests.guest(await self.machine(call, verb))

    async def inside(self, call: Call) -> tuple[Machine, Guest]:
        """The machine a path names and its running guest, for who may act inside of it. Raises NotFound, Forbidden, Conflict."""
        machine = await self.machine(call, "exec")
        return machine, await self._services.guests.guest(machine)

    async def agent(self, machine: Machine, guest: Guest) -> Agent:
        """The guest's agent, once the guest is set up: what acts before that meets a machine with another's name, or none.

        Raises NotStarted when none answers in time, Conflict when the guest ends."""
        try:
            async with asyncio.timeout(AGENT_SECONDS):
                agent = await guest.agent()
        except TimeoutError:
            what = f'machine "{machine.name}" did not answer'
            why, fix = (
                f"no agent in it spoke for {AGENT_SECONDS:.0f} s",
                f"look what it does: roost logs {machine.name}",
            )
            raise NotStarted(what, why, fix) from None
        await self._services.guests.greeted(machine, guest)
        return agent

    async def logs(self, call: Call) -> Answer | Streamed:
        """What the console printed: the live ring of a running machine, else what was kept."""
        machine = await self.machine(call, "console")
        follow = call.flag("follow")
        try:
            guest = await self._services.guests.guest(machine)
        except Conflict:
            kept = await asyncio.to_thread(self._services.guests.record, machine)
            return Answer(kept, content_type=b"application/octet-stream")
        if not follow:
            return Answer(guest.console.history(), content_type=b"application/octet-stream")
        return Streamed(guest.console.follow(), b"application/octet-stream")

    async def send_files(self, call: Call) -> Answer:
        """Unpack the body, a tar stream, inside the guest."""
        machine, guest = await self.inside(call)
        path = _guest_path(call)
        agent = await self.agent(machine, guest)
        await agent.send_archive(path, call.stream())
        return Answer(status=204)

    async def fetch_files(self, call: Call) -> Streamed:
        """A tar stream of a path inside the guest. The first bytes are awaited before the answer begins, so that errors are errors."""
        machine, guest = await self.inside(call)
        path = _guest_path(call)
        agent = await self.agent(machine, guest)
        chunks = agent.receive_archive(path)
        first = await anext(chunks, b"")
        return Streamed(_chain(first, chunks), b"application/x-tar")

    async def upload(self, call: Call) -> Answer:
        """The bytes of an image that its owner brings."""
        image = await self._resources.read(call, _IMAGE, "update")
        assert isinstance(image, Image)
        if not image.spec.upload or image.meta.deleting is not None or image.status.phase == "ready":
            what = f'nothing was uploaded to image "{image.name}"'
            raise Conflict(what, "it has its content already, or another source", "roost image import FILE --name NEW")
        await self._services.uploads.upload(image, call.stream())
        after = await self._resources.read(call, _IMAGE, "get")
        return Answer(codec.encode(after))

    async def upload_program(self, call: Call) -> Answer:
        """The file of a program, which whoever may change the program brings."""
        program = await self._program(call, "update")
        if program.meta.deleting is not None:
            raise Conflict(f'nothing was uploaded to program "{program.name}"', "it is being deleted")
        await self._services.programs.upload(program, call.stream())
        after = await self._program(call, "update")
        return Answer(codec.encode(after))

    async def program_logs(self, call: Call) -> Answer | Streamed:
        """What the program printed, in all its runs as far as it is kept."""
        program = await self._program(call, "console")
        if call.flag("follow"):
            return Streamed(self._services.programs.follow(program), b"application/octet-stream")
        kept = await asyncio.to_thread(self._services.programs.record, program)
        return Answer(kept, content_type=b"application/octet-stream")

    async def _program(self, call: Call, verb: Verb) -> Program:
        found = await self._resources.read(call, _PROGRAM, verb)
        assert isinstance(found, Program)
        return found

    async def download(self, call: Call) -> Streamed:
        """The disk of an image, in the format of the query."""
        image = await self._resources.read(call, _IMAGE, "get")
        assert isinstance(image, Image)
        wanted = call.query("format", "qcow2")
        format = next((known for known in get_args(DiskFormat) if known == wanted), None)
        if format is None:
            problem = Problem("format", f"is not one of {', '.join(get_args(DiskFormat))}")
            raise Invalid("the request is wrong", problems=[problem])
        return Streamed(await self._services.uploads.download(image, format), b"application/octet-stream")


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _event(name: str, revision: int, data: bytes) -> bytes:
    """One server-sent event; compact JSON has no line breaks."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (revision, name.encode(), data)


def _project(key: str) -> str:
    """The project of an object's key; for a project its own name."""
    return key.split("/")[1]


def _guest_path(call: Call) -> str:
    path = call.query("path")
    if not path.startswith("/") or "\0" in path or len(path) > 4096:
        raise Invalid("the request is wrong", problems=[Problem("path", "is not an absolute path of the guest")])
    return path
