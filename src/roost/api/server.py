"""The HTTP server on the unix socket: who connects is asked of the kernel, and nobody may hold connections or headers for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import socket
import struct
from collections.abc import Iterator
from typing import Any, cast

import h11
import uvicorn
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

from roost.api.access import Peer
from roost.api.wire import MAX_JSON, error_answer
from roost.build import build_id
from roost.errors import Invalid

HEADER_SECONDS = 10.0
"""Time a client has from connecting (or from the first byte of a further request) to the end of its headers."""
KEEP_ALIVE = 60
"""Seconds an idle connection is kept."""
MAX_HEADER = 32 << 10
"""Bytes of request line and headers together."""
MAX_PATH = 2048
"""Bytes of a path; names are far shorter, and what is long goes into queries and bodies."""
MAX_CONNECTIONS = 1024
"""Connections in all; admins may use every one of them."""
MAX_CONNECTIONS_PER_UID = 256
"""Connections of one uid that is no admin, so that it can not lock out the others."""
STOP_SECONDS = 1
"""Time that requests under way get when the server ends."""


def peer_of(transport: asyncio.BaseTransport) -> Peer | None:
    """Who is at the other end of a unix socket; None for any other transport."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family != socket.AF_UNIX:
        return None
    return Peer(
        *struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("=iII")))
    )


def hung_up(transport: asyncio.BaseTransport) -> bool:
    """Whether the other side is gone, also while reading is paused: then the event loop does not look."""
    connection = transport.get_extra_info("socket")
    if transport.is_closing() or connection is None or connection.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLHUP | select.POLLERR)
    return bool(poll.poll(0))


class PeerProtocol(H11Protocol):
    """HTTP/1.1 that knows its peer, bounds the number of connections and the time that headers may take."""

    _header_timer: asyncio.TimerHandle | None = None

    owner = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the peer for every request and WebSocket of this connection; refuse one too many."""
        connection = cast("asyncio.Transport", transport)
        super().connection_made(connection)
        peer = peer_of(transport)
        # Also read by the WebSocket protocol that may take over: uvicorn hands it the same state.
        self.app_state = {**self.app_state, "peer": peer, "hung_up": lambda: hung_up(transport)}
        if self._crowded(peer):
            connection.abort()
            return
        self._await_header()

    def _crowded(self, peer: Peer | None) -> bool:
        if len(self.connections) > MAX_CONNECTIONS:
            return True
        if peer is None or peer.uid in (0, self.owner):
            return False
        peers: list[Peer] = [cast("Any", other).app_state["peer"] for other in self.connections]
        same = [other for other in peers if other.uid == peer.uid]
        return len(same) > MAX_CONNECTIONS_PER_UID

    def data_received(self, data: bytes) -> None:
        """Bytes came: the timer runs exactly while headers are incomplete, or a body that nobody waits for any more."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            waiting = bool(self.conn.trailing_data[0])
        else:
            waiting = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        if waiting:
            self._await_header()
        else:
            self._stop_timer()

    def on_response_complete(self) -> None:
        """A further request may begin whenever its client likes: uvicorn's keep-alive timer runs now."""
        self._stop_timer()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._stop_timer()
        super().connection_lost(exc)

    def _await_header(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def short_paths(app: ASGIApp) -> ASGIApp:
    """Refuse long paths before anything remembers them: routing keeps the last thousand it took apart."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and len(scope["raw_path"]) > MAX_PATH:
            await error_answer(Invalid("the request is wrong", f"its path is longer than {MAX_PATH} bytes"))(
                scope, receive, send
            )
            return
        await app(scope, receive, send)

    return bounded


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: the daemon stops it in its turn."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the daemon."""
        yield

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self.server_state.connections)


def make_server(app: ASGIApp, owner: int) -> Server:
    """The server for `app`; serve it with `await server.serve(sockets=[listener])`. `owner` is the daemon's uid."""
    # What uvicorn would log (paths, tracebacks of broken connections) is logged by us where it matters.
    logging.getLogger("uvicorn.error").addHandler(logging.NullHandler())
    logging.getLogger("uvicorn.error").propagate = False
    config = uvicorn.Config(
        short_paths(app),
        http=type("OwnedProtocol", (PeerProtocol,), {"owner": owner}),
        ws=WSProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        headers=[("roost-build", build_id())],  # so that a command of another build can say so
        date_header=False,
        proxy_headers=False,
        backlog=256,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=STOP_SECONDS,
        h11_max_incomplete_event_size=MAX_HEADER,
        ws_max_size=MAX_JSON,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
    )
    return Server(config)
