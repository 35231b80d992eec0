"""The HTTP API: the route table becomes a Litestar application, and errors become HTTP answers, here and only here.

Transport: HTTP/1.1 over a unix socket. Who calls is the peer's uid (SO_PEERCRED): principal "uid:1000"; root and the daemon's own uid
are admins. Bodies are JSON (at most 1 MiB, 32 levels) unless a route says otherwise; sizes may be written "2GiB". Answers are JSON.

Objects: {"kind", "project", "name", "meta", "spec", "status"} exactly as in roost.model. `meta.revision` is the revision of the last
change. `spec.user_data` of a machine, and the values of `spec.policy.env` of a program, are shown to owners, operators and admins only.
Only admins write programs with `policy.fs`, `publish`, `gui`, or a `net` that leads to this host; others may start and stop them.

    GET    /healthz                               200 {"status": "ok"} | 503 error; needs no role
    GET    /v1/version                            {"version", "build", "api": "v1", "pid", "uid", "node", "principal", "admin"}
    GET    /metrics                               Prometheus text; admins only
    GET    /openapi.json                          OpenAPI 3.1
    GET    /v1/doctor?area=host|jail|storage        report (JSON); admins only

PLURAL is projects, machines, programs, networks, rulesets, forwards, images, snapshots, pools, volumes, volumesnapshots, nodes or events;
PLACE is NAME for projects and pools, else PROJECT/NAME (nodes live in "system").
    GET    /v1/PLURAL?project=P|all&label=k=v&limit=500&continue=TOKEN
                                                  {"items": [OBJECT...], "revision": N, "continue": TOKEN or null}, in order of project and
                                                  name; `project` defaults to "default", `all` is everything the caller may see; label may be
                                                  repeated (all must hold) and is "k=v" or "k"; watch from `revision` of the first page
    GET    /v1/PLURAL/PLACE                       200 OBJECT
    POST   /v1/PLURAL                             201 OBJECT; body {"kind"?, "project"?, "name", "meta": {"labels"}?, "spec"}
    PUT    /v1/PLURAL/PLACE                       200 OBJECT; the whole object; a `meta.revision` other than 0 must be the current one
    PATCH  /v1/PLURAL/PLACE                       200 OBJECT; JSON merge patch (RFC 7396) of {"spec": .., "meta": {"labels": .., "revision": N?}}
    DELETE /v1/PLURAL/PLACE                       202 OBJECT with `meta.deleting` set (what a reconciler clears up: a watch tells when it is gone),
                                                  200 OBJECT as it was (projects); again: 202 while it goes, then 404
    POST   /v1/machines/PROJECT/NAME/rename       200 OBJECT; body {"name": NEW}
    POST   /v1/volumes/PROJECT/NAME/rename        200 OBJECT; body {"name": NEW}; a volume in the trash (status.phase) comes back by that;
                                                  409 while a machine names it
    DELETE /v1/volumes/PROJECT/NAME?now=true      202 OBJECT; without `now` the volume goes to the trash first, under another name
    POST   /v1/machines/PROJECT/NAME/restore      200 OBJECT; body {"snapshot": "NAME.SNAP", "memory"?: bool}; 409 for a snapshot of another machine
    POST   /v1/machines|snapshots/PROJECT/NAME/clone
                                                  200 {"items": [{"name", "machine": OBJECT} | {"name", "error": {..}}...]}; body {"names":
                                                  [NEW...], "keep_identity"?, "start"?, "memory"?: bool}; one outcome for each name, in their order
                                                  (a name that is taken or over quota stops only itself); all that are made are one commit, and
                                                  copies of one instant
A snapshot is called MACHINE.SNAP, MACHINE being its `spec.machine` when it is made; only `expires` and labels of it change. A volumesnapshot is
called VOLUME.SNAP likewise. Pools are seen by everybody and written by admins.
Nodes and events are read-only (405). A write may carry `status` and the rest of `meta` only as they stand (PUT what GET gave) or as their
defaults: anything else is Invalid. A PUT or PATCH that changes nothing writes nothing.

Idempotency-Key (1 to 128 printable characters) on POST, PUT, PATCH, DELETE: a retry with the same key, path and body within 24 hours gets
the first outcome again (header `Idempotency-Replayed: true`) and does nothing; another body or path: 409.

    GET    /v1/watch?kind=KIND&project=P|all&since=REVISION     text/event-stream
      id: REVISION \\n event: put \\n data: OBJECT                           created or changed
      id: REVISION \\n event: delete \\n data: {"kind", "project", "name"}   gone
      id: REVISION \\n event: synced \\n data: {}        only without `since`: the present objects were all sent (as puts), changes follow
      event: resync \\n data: {}                        history was lost (too slow, compacted, restarted): list again; ends the stream
      ": heartbeat" comments come at least every 15 s. `since` may also come as the header Last-Event-ID.

    WS     /v1/machines/PROJECT/NAME/exec
      A refused upgrade is an ordinary HTTP answer with an error body. First message, text: {"argv": [..], "env": {}, "cwd": "", "user": "",
      "stdin": false, "terminal": [rows, cols] | null, "timeout": seconds | null}. Then
      client binary: byte 0x00 + stdin data; client text: {"signal": N} | {"resize": [rows, cols]} | {"eof": true}
      server binary: byte 0x01 + stdout data | 0x02 + stderr data; server text: {"started": true}, at last {"exit": code} |
      {"error": {..}}, then close 1000. A timeout kills the command and is error code "timeout". Whoever does not read stops the
      command's output, not the server. A client that goes away kills its command. Messages are at most 1 MiB.
    WS     /v1/machines/PROJECT/NAME/console      binary both ways: what was printed lately, then live; typed bytes
    GET    /v1/machines/PROJECT/NAME/logs?follow=true|false     application/octet-stream: the console's record; follow: until it ends
    PUT    /v1/machines/PROJECT/NAME/files?path=/dir    body: tar stream, unpacked into the directory; 204
    GET    /v1/machines/PROJECT/NAME/files?path=/x      application/x-tar; member names relative to the parent of /x; when the
                                                        transfer breaks the connection ends without the last chunk
    PUT    /v1/programs/PROJECT/NAME/content      body: the program's file, whose sha256 is `spec.sha256`; 200 OBJECT; it starts then
    GET    /v1/programs/PROJECT/NAME/logs?follow=true|false     application/octet-stream: what it printed; follow: until it comes to rest
    GET    /v1/networks/PROJECT/NAME/picture      who is plugged in, with addresses, rules and counters
    GET    /v1/networks/PROJECT/NAME/trace?from=M&to=M|ADDRESS&port=N&protocol=tcp|udp|icmp     which rule, route or link decides
    GET    /v1/networks/PROJECT/NAME/capture?machine=M&port=NAME&frames=N     application/vnd.tcpdump.pcap: what passes a port
    GET    /v1/networks/PROJECT/NAME/flows?follow=true|false     application/x-ndjson: the flow log; follow: until it is off
    PUT    /v1/images/PROJECT/NAME/content        body: the disk's bytes, for an image with `spec.upload`; 200 OBJECT
    GET    /v1/images/PROJECT/NAME/content        the disk as stored (qcow2); its sha256 is `status.digest`; 409 when the image has none

Errors: {"error": {"code", "what", "why", "fix", "problems": [{"path", "message"}]}}; status 400 invalid, 403 forbidden and
quota-exceeded, 404 not-found (also for what the caller may not know of), 405, 409 conflict, 413 too large, 408 too slow, 503 unavailable
(507 when the disk is full) and not-started, 500 outcome-unknown and failed. Codes of 405, 413 and 408 are "invalid".
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from litestar import Litestar, Request, Response, WebSocket
from litestar.handlers import HTTPRouteHandler, WebsocketRouteHandler
from litestar.types import ASGIApp, ControllerRouterHandler

from roost.api import openapi
from roost.api.access import Gate, principal_of
from roost.api.appliances import Appliances, appliance_routes
from roost.api.clones import Clones
from roost.api.commits import Commits
from roost.api.metrics import CONTENT_TYPE, Metrics
from roost.api.networks import NetworkRoutes
from roost.api.resources import Resources
from roost.api.routes import Query, Route, clone_routes, network_routes, object_routes, stream_routes
from roost.api.services import Services
from roost.api.sessions import Channel, Sessions
from roost.api.streams import Streams
from roost.api.view import View
from roost.api.wire import Answer, Call, Gone, error_answer, json_answer
from roost.errors import Unavailable
from roost.log import get, spawn_task
from roost.model import codec

__all__ = ["Api", "Services", "create_app"]

_log = get(__name__)
READY_SECONDS = 30.0
"""How long the first reading of the store may take."""


class Api:
    """The parts of the API over one set of services, and the table of its routes."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.view = View(services.store)
        self._gate = Gate(self.view)
        commits = Commits(services.store, self.view)
        resources = Resources(services, self.view, self._gate, commits)
        clones = Clones(services, self.view, self._gate, resources, commits)
        streams = Streams(services, self.view, self._gate, resources)
        self.metrics = Metrics(self.view, services.gauges)
        self.routes = [
            *self._own_routes(),
            *object_routes(resources),
            *clone_routes(clones),
            *network_routes(NetworkRoutes(services, resources)),
            *stream_routes(resources, streams, Sessions(streams)),
            *appliance_routes(Appliances(services, resources)),
        ]
        self._document = codec.encode(openapi.document(self.routes, services.build.partition("+")[0]))

    def call(self, connection: Request[Any, Any, Any] | WebSocket[Any, Any, Any]) -> Call:
        """The call a connection makes."""
        principal = principal_of(connection.scope["state"].get("peer"), self.services.owner)
        return Call(connection.scope, connection.receive, principal)

    def _own_routes(self) -> list[Route]:
        area = (Query("area", "host, jail or storage"),)
        return [
            Route("GET", "/healthz", "healthz", "Whether the daemon serves.", self._healthz),
            Route("GET", "/v1/version", "version", "What runs here, and who the caller is.", self._version),
            Route("GET", "/metrics", "metrics", "Numbers for Prometheus.", self._metrics, gives="text/plain"),
            Route("GET", "/openapi.json", "openapi", "This document.", self._openapi),
            Route("GET", "/v1/doctor", "doctor", "What the host has and lacks.", self._doctor, queries=area),
        ]

    async def _healthz(self, call: Call) -> Answer:
        del call
        if not self.view.ready.is_set():
            raise Unavailable("Roost does not serve yet", "it reads its store", "try again in a moment")
        return json_answer({"status": "ok"})

    async def _version(self, call: Call) -> Answer:
        here = self.services
        about = {
            "version": here.build.partition("+")[0],
            "build": here.build,
            "api": "v1",
            "pid": os.getpid(),
            "uid": here.owner,
        }
        return json_answer(
            {**about, "node": here.node, "principal": call.principal.name, "admin": call.principal.admin}
        )

    async def _metrics(self, call: Call) -> Answer:
        self._gate.check_admin(call.principal)
        return Answer(self.metrics.text(await self.services.networks.pictures()), content_type=CONTENT_TYPE)

    async def _openapi(self, call: Call) -> Answer:
        del call
        return Answer(self._document)

    async def _doctor(self, call: Call) -> Answer:
        self._gate.check_admin(call.principal)
        return json_answer(await self.services.doctor(call.query("area", "host")))


def create_app(services: Services) -> Litestar:
    """The application. Its lifespan keeps the view; serve it with `roost.api.server` so that callers have a uid."""
    api = Api(services)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        app.state.api = api
        following = spawn_task(api.view.run(), "the API's view of the store")
        try:
            async with asyncio.timeout(READY_SECONDS):
                await api.view.ready.wait()
            yield
        finally:
            following.cancel()

    return Litestar(
        route_handlers=[_handler(api, route) for route in api.routes],
        lifespan=[lifespan],
        exception_handlers={Exception: _unrouted},
        openapi_config=None,
        logging_config=None,
        # Bodies are bounded where they are read: uploads have other bounds than JSON.
        request_max_body_size=None,
    )


def _handler(api: Api, route: Route) -> ControllerRouterHandler:
    path = route.path.replace("}", ":str}")
    if route.socket is not None:
        return WebsocketRouteHandler(path)(_socket_function(api, route))
    return HTTPRouteHandler(path, http_method=cast("Any", route.method), status_code=200)(_http_function(api, route))


def _http_function(api: Api, route: Route) -> Callable[[Request[Any, Any, Any]], Awaitable[ASGIApp]]:
    handle = route.handler
    assert handle is not None

    async def answer(request: Request[Any, Any, Any]) -> ASGIApp:
        began = time.monotonic()
        call = api.call(request)
        try:
            given = await handle(call)
        except Gone:
            given = Answer(status=400, headers=[(b"connection", b"close")])
        except Exception as error:
            given = error_answer(error, unread=call.unread)
        api.metrics.answered(route.method, route.path, getattr(given, "status", 200), time.monotonic() - began)
        return given

    return answer


def _socket_function(api: Api, route: Route) -> Callable[[WebSocket[Any, Any, Any]], Awaitable[None]]:
    handle = route.socket
    assert handle is not None

    async def serve(socket: WebSocket[Any, Any, Any]) -> None:
        began = time.monotonic()
        channel = Channel(socket.receive, socket.send)
        try:
            await handle(api.call(socket), channel)
        except Gone:
            pass
        except Exception as error:
            await _tell(channel, error)
        api.metrics.answered(route.method, route.path, channel.status, time.monotonic() - began)

    return serve


async def _tell(channel: Channel, error: Exception) -> None:
    try:
        await channel.fail(error)
    except Gone:
        return


def _unrouted(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The answer to what no route took."""
    del request
    answer = error_answer(error)
    headers = {name.decode(): value.decode() for name, value in answer.headers if name == b"allow"}
    return Response(answer.body, status_code=answer.status, media_type="application/json", headers=headers)
