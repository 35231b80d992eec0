"""An API over a store in memory, called as ASGI without a socket: each call says which uid makes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from roost.api.access import Peer
from roost.api.app import create_app
from roost.api.services import Services, admit_all
from roost.errors import Conflict
from roost.model import codec
from roost.model.image import Image
from roost.model.kinds import Object, find, key_of
from roost.model.machine import Machine
from roost.model.meta import Meta
from roost.model.node import Node
from roost.model.project import Project, ProjectSpec
from roost.store.memory import MemoryStore
from roost.testing.clock import VirtualClock
from roost.testing.hypervisor import FakeAgent
from tests.fake_keepers import FakeKeepers
from tests.fake_networks import FakeNetworks

OWNER, ALICE, BOB, VIEWER = 4000, 1001, 1002, 1003
"""The daemon's uid; two users with a project each; one who may only look at Alice's."""


class Screen:
    """A console that prints what it is told and remembers what was typed."""

    def __init__(self) -> None:
        self.typed = b""
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    def history(self) -> bytes:
        return b"booting\n"

    async def follow(self) -> AsyncIterator[bytes]:
        yield self.history()
        while (line := await self.lines.get()) is not None:
            yield line

    async def write(self, data: bytes) -> None:
        self.typed += data


class Running:
    """A running guest."""

    def __init__(self) -> None:
        self.console = Screen()
        self.answering: Any = FakeAgent()

    async def agent(self) -> Any:
        return self.answering


class Guests:
    """Machines run when a test says so, by uid of the machine or by name."""

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        self.set_up = asyncio.Event()
        self.set_up.set()

    async def guest(self, machine: Machine) -> Any:
        if machine.name not in self.running:
            raise Conflict(f'machine "{machine.name}" is not running', "it is stopped", f"roost start {machine.name}")
        return self.running[machine.name]

    async def greeted(self, machine: Machine, guest: Any) -> None:
        await self.set_up.wait()

    def record(self, machine: Machine) -> bytes:
        return b"an older boot\n"


class Uploads:
    """Keeps what comes."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    async def upload(self, image: Image, content: AsyncIterator[bytes]) -> None:
        self.content[image.name] = b"".join([part async for part in content])

    async def download(self, image: Image, format: str = "qcow2") -> AsyncIterator[bytes]:
        if image.name not in self.content:
            raise Conflict(f'image "{image.name}" was not exported', "it has no disk")
        return self._parts(self.content[image.name])

    async def _parts(self, content: bytes) -> AsyncIterator[bytes]:
        yield content


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]


class World:
    """The application, its store, and its fakes."""

    def __init__(self, store: Any, app: Any, guests: Guests, uploads: Uploads) -> None:
        self.store, self.app, self.guests, self.uploads = store, app, guests, uploads

    @property
    def api(self) -> Any:
        return self.app.state.api

    async def put(self, thing: Object) -> int:
        """Write an object as the daemon itself would."""
        revision = await self.store.put(key_of(find(thing.kind), thing.project, thing.name), codec.encode(thing))
        await turns(3)
        return revision

    async def call(
        self, method: str, path: str, body: Any = None, *, uid: int = OWNER, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One whole request; `body` is bytes, or something that becomes JSON."""
        reply = Reply()
        async for chunk in self.stream(method, path, body, uid=uid, headers=headers, reply=reply):
            reply.body += chunk
        return reply

    async def stream(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        uid: int = OWNER,
        headers: Mapping[str, str] | None = None,
        reply: Reply | None = None,
    ) -> AsyncIterator[bytes]:
        """The pieces of the answer as they come; leaving the loop hangs up."""
        reply = reply or Reply()
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        hung_up = asyncio.Event()
        sent = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if sent:
                return sent.pop()
            await hung_up.wait()
            return {"type": "http.disconnect"}

        scope = _scope("http", path, uid, {"content-length": str(len(content)), **(headers or {})}) | {"method": method}
        task = asyncio.ensure_future(self.app(scope, receive, parts.put))
        try:
            more = True
            while more:
                message = await parts.get()
                if message["type"] == "http.response.start":
                    reply.status = message["status"]
                    reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
                    continue
                more = message["more_body"]
                yield message["body"]
        finally:
            hung_up.set()
            await asyncio.wait([task], timeout=1)
            task.cancel()

    def socket(self, path: str, *, uid: int = OWNER, hung_up: Callable[[], bool] = lambda: False) -> Socket:
        """A WebSocket that is being opened."""
        return Socket(self.app, path, uid, hung_up)


class Socket:
    """The client's end of a WebSocket."""

    def __init__(self, app: Any, path: str, uid: int, hung_up: Callable[[], bool]) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=4)
        self.inbox.put_nowait({"type": "websocket.connect"})
        scope = _scope("websocket", path, uid, {}) | {"subprotocols": [], "extensions": {"websocket.http.response": {}}}
        scope["state"]["hung_up"] = hung_up
        self.task = asyncio.ensure_future(app(scope, self.inbox.get, self.outbox.put))

    async def opened(self) -> Reply | None:
        """None when it was accepted, else the HTTP answer."""
        first = await self.outbox.get()
        if first["type"] == "websocket.accept":
            return None
        headers = {name.decode(): value.decode() for name, value in first["headers"]}
        return Reply(first["status"], headers, (await self.outbox.get())["body"])

    async def send(self, data: bytes | dict[str, Any]) -> None:
        text = json.dumps(data) if isinstance(data, dict) else None
        await self.inbox.put({"type": "websocket.receive", "bytes": data if text is None else None, "text": text})

    async def receive(self) -> bytes | dict[str, Any] | None:
        """A binary message, a text message as JSON, or None for the end."""
        message = await self.outbox.get()
        if message["type"] == "websocket.close":
            return None
        return message["bytes"] if message["bytes"] is not None else json.loads(message["text"])

    async def close(self) -> None:
        """Go away."""
        await self.inbox.put({"type": "websocket.disconnect", "code": 1006})
        await asyncio.wait([self.task], timeout=1)


def _scope(kind: str, path: str, uid: int, headers: Mapping[str, str]) -> dict[str, Any]:
    path, _, query = path.partition("?")
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
        "state": {"peer": Peer(1, uid, uid)},
    }


async def turns(count: int) -> None:
    """Let everything else run."""
    for _ in range(count):
        await asyncio.sleep(0)


def machine(name: str = "web", project: str = "alice", **spec: Any) -> dict[str, Any]:
    """A document to POST."""
    return {"kind": "machine", "project": project, "name": name, "spec": {"image": "tiny", **spec}}


@asynccontextmanager
async def world(admit: Any = admit_all) -> AsyncIterator[World]:
    """A world with the projects default, system, alice and bob, and the node."""
    store = MemoryStore(VirtualClock())
    for name, members in (
        ("default", {}),
        ("system", {}),
        ("alice", {f"uid:{ALICE}": "owner", f"uid:{VIEWER}": "viewer"}),
        ("bob", {f"uid:{BOB}": "owner"}),
    ):
        await store.put(
            f"projects/{name}", codec.encode(Project(name=name, meta=Meta(uid=name), spec=ProjectSpec(members=members)))
        )
    await store.put("nodes/system/here", codec.encode(Node(name="here")))
    guests, uploads = Guests(), Uploads()
    services = Services(
        store=store,
        guests=guests,
        uploads=uploads,
        programs=FakeKeepers(),
        networks=FakeNetworks(),
        now=lambda: "2030-01-01T00:00:00.000Z",
        owner=OWNER,
        node="here",
        build="1.2.3+test",
        admit=admit,
    )
    app = create_app(services)
    async with app.lifespan():
        yield World(store, app, guests, uploads)
    await store.close()
