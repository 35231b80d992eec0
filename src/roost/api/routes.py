"""The route table: every path the API serves, what it asks of the caller, and what it takes and gives. All else derives from it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeAlias

from litestar.types import ASGIApp

from roost.api.children import Children, CloneRequest, RestoreRequest
from roost.api.clones import Clones
from roost.api.networks import NetworkRoutes
from roost.api.resources import NewName, Resources
from roost.api.sessions import Channel, ExecRequest, Sessions
from roost.api.streams import Streams
from roost.api.wire import Call
from roost.model.access import Verb
from roost.model.kinds import KINDS, Kind

HttpHandler: TypeAlias = Callable[[Call], Awaitable[ASGIApp]]
SocketHandler: TypeAlias = Callable[[Call, Channel], Awaitable[None]]


class Query(NamedTuple):
    """A query parameter for the documentation; values are checked where they are used."""

    name: str
    text: str
    required: bool = False


class Route(NamedTuple):
    """One method of one path. `verb` and `kind` are what `model.access.may` is asked; no verb: open to all, or to admins."""

    method: str
    path: str
    name: str
    text: str
    handler: HttpHandler | None = None
    socket: SocketHandler | None = None
    verb: Verb | None = None
    kind: Kind | None = None
    status: int = 200
    takes: str = ""
    """A schema's name, a media type, or nothing."""
    gives: str = "application/json"
    """A schema's name or a media type."""
    queries: tuple[Query, ...] = ()

    @property
    def writes(self) -> bool:
        """Whether it takes an Idempotency-Key."""
        return self.verb in ("create", "update", "delete") and self.takes not in (
            "application/x-tar",
            "application/octet-stream",
        )


_PROJECT = Query("project", 'a project\'s name, or "all" for everything the caller may see; "default" when left out')
_LIST = (
    _PROJECT,
    Query("label", '"key=value" or "key"; may be repeated, all must hold'),
    Query("limit", "objects in a page, 1 to 500"),
    Query("continue", "where the page before ended"),
)


_NOW = (Query("now", "true: remove it at once, past the trash"),)


def _kind_routes(kind: Kind, resources: Resources) -> list[Route]:
    """The routes of one kind."""
    base = f"/v1/{kind.plural}"
    place = base + ("/{project}/{name}" if kind.scoped else "/{name}")
    schema = kind.type.__name__

    def route(method: str, path: str, verb: Verb, do: Callable[[Call, Kind], Awaitable[ASGIApp]]) -> Route:
        async def handle(call: Call) -> ASGIApp:
            return await do(call, kind)

        name = f"{do.__name__}_{kind.plural if verb == 'list' else kind.name}"
        return Route(method, path, name, (do.__doc__ or "").strip(), handle, None, verb, kind, gives=schema)

    routes = [
        route("GET", base, "list", resources.page)._replace(
            gives=schema + "List", queries=_LIST if kind.scoped else _LIST[1:]
        ),
        route("GET", place, "get", resources.get),
    ]
    if kind.writable:
        routes += [
            route("POST", base, "create", resources.create)._replace(takes=schema, status=201),
            route("PUT", place, "update", resources.replace)._replace(takes=schema),
            route("PATCH", place, "update", resources.patch)._replace(takes="MergePatch"),
            route("DELETE", place, "delete", resources.delete)._replace(
                status=202 if kind.finalized else 200, queries=_NOW if kind.name == "volume" else ()
            ),
        ]
    return routes


def object_routes(resources: Resources) -> list[Route]:
    """The routes of all kinds."""
    return [route for kind in KINDS for route in _kind_routes(kind, resources)]


def clone_routes(clones: Clones) -> list[Route]:
    """What makes machines from others."""
    kinds = {kind.name: kind for kind in KINDS}
    machine, place = kinds["machine"], "/v1/{}/{{project}}/{{name}}/{}"

    def route(plural: str, tail: str, verb: Verb, do: HttpHandler) -> Route:
        return Route(
            "POST", place.format(plural, tail), do.__name__, (do.__doc__ or "").strip(), do, None, verb, machine
        )

    words: dict[str, Any] = {"takes": CloneRequest.__name__, "gives": Children.__name__}
    return [
        route("machines", "clone", "create", clones.clone_machine)._replace(**words),
        route("snapshots", "clone", "create", clones.clone_snapshot)._replace(**words),
        route("machines", "restore", "update", clones.restore_machine)._replace(
            takes=RestoreRequest.__name__, gives="Machine"
        ),
    ]


def network_routes(networks: NetworkRoutes) -> list[Route]:
    """What looks into networks."""
    kind = next(kind for kind in KINDS if kind.name == "network")
    place = "/v1/networks/{{project}}/{{name}}/{}"

    def route(tail: str, verb: Verb, do: HttpHandler, *queries: Query) -> Route:
        text = (do.__doc__ or "").strip()
        return Route("GET", place.format(tail), f"{tail}_network", text, do, None, verb, kind, queries=queries)

    traced = (
        Query("from", "a machine", required=True),
        Query("to", "a machine or an address", required=True),
        Query("protocol", "tcp (default), udp or icmp"),
        Query("port", "the port that is connected to"),
    )
    captured = (
        Query("machine", "a machine", required=True),
        Query("port", "the name of its port; its first one of this network when left out"),
        Query("frames", "how many frames; without end when left out"),
    )
    return [
        route("picture", "get", networks.picture),
        route("trace", "get", networks.trace, *traced),
        route("flows", "get", networks.flows, Query("follow", "true: what comes, too, until the log is off"))._replace(
            gives="application/x-ndjson"
        ),
        route("capture", "exec", networks.capture, *captured)._replace(gives="application/vnd.tcpdump.pcap"),
    ]


def stream_routes(resources: Resources, streams: Streams, sessions: Sessions) -> list[Route]:
    """What is more than reading and writing objects."""
    kinds = {kind.name: kind for kind in KINDS}
    machine, image, volume = kinds["machine"], kinds["image"], kinds["volume"]
    one = "/v1/machines/{project}/{name}"
    path = (Query("path", "an absolute path inside the guest", required=True),)
    tar, raw = "application/x-tar", "application/octet-stream"
    watched = (
        Query("kind", "which kind to watch", required=True),
        _PROJECT,
        Query("since", "send what changed after this revision; without it first all that is there"),
    )

    def on_machine(method: str, tail: str, verb: Verb, handler: HttpHandler, text: str) -> Route:
        return Route(method, f"{one}/{tail}", handler.__name__, text, handler, None, verb, machine)

    async def rename(call: Call) -> ASGIApp:
        return await resources.rename(call, machine)

    async def rename_volume(call: Call) -> ASGIApp:
        return await resources.rename(call, volume)

    return [
        Route("GET", "/v1/watch", "watch", "Changes as server-sent events.", streams.watch, gives="text/event-stream", queries=watched),
        on_machine("POST", "rename", "update", rename, "Give the machine another name.")._replace(
            takes=NewName.__name__, gives="Machine"
        ),
        Route("POST", "/v1/volumes/{project}/{name}/rename", "rename_volume", "Give the volume another name; one in the trash comes back.",
              rename_volume, None, "update", volume, takes=NewName.__name__, gives="Volume"),
        Route("WS", f"{one}/exec", "exec", "Run a command.", None, sessions.execute, "exec", machine, 101, takes=ExecRequest.__name__),
        Route("WS", f"{one}/console", "console", "The serial console.", None, sessions.console, "console", machine, 101),
        on_machine("GET", "logs", "console", streams.logs, "What the console printed.")._replace(
            gives=raw, queries=(Query("follow", "true: until the machine ends"),)
        ),
        on_machine("PUT", "files", "exec", streams.send_files, "Unpack a tar stream in the guest.")._replace(
            takes=tar, gives="", status=204, queries=path
        ),
        on_machine("GET", "files", "exec", streams.fetch_files, "A path of the guest as a tar stream.")._replace(
            gives=tar, queries=path
        ),
        Route("PUT", "/v1/programs/{project}/{name}/content", "upload_program", "Bring the file of a program.", streams.upload_program, None,
              "update", kinds["program"], takes=raw, gives="Program"),
        Route("GET", "/v1/programs/{project}/{name}/logs", "program_logs", "What the program printed.", streams.program_logs, None,
              "console", kinds["program"], gives=raw, queries=(Query("follow", "true: until the program comes to rest"),)),
        Route("PUT", "/v1/images/{project}/{name}/content", "upload", "Bring the bytes of an image.", streams.upload, None, "update",
              image, takes=raw, gives="Image"),
        Route("GET", "/v1/images/{project}/{name}/content", "download", "The disk of an image.", streams.download, None, "get",
              image, gives=raw, queries=(Query("format", "qcow2 (as stored; the default), raw, vmdk, vhd, vhdx or vdi"),)),
    ]  # fmt: skip
