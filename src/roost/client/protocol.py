"""HTTP/1.1 without I/O: what to send for a request, what the bytes that came back mean, and whether a loss of connection did harm.

Rules: one exchange at a time; `begin` gives the head (and a small body) to send, `chunk`/`finish` a streamed body, `feed` takes what
came, `next_event` says what it was. Nothing here knows a socket, so both faces of the SDK and every test share it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import quote

import h11

from roost.errors import BY_CODE, Invalid, NotStarted, OutcomeUnknown, Problem, RoostError

MAX_HEAD = 64 << 10
"""Bytes that the head of an answer may have."""

MAX_BODY = 256 << 20
"""Bytes of an answer that is taken as a whole; longer ones (logs, archives) are streamed."""

SAFE = frozenset({"GET", "HEAD"})
"""Methods that change nothing: losing their answer harms nobody."""


class Request(NamedTuple):
    """A request. `body` is sent with the head; `streamed` announces a body of unknown length that comes by `chunk`."""

    method: str
    target: str
    body: bytes = b""
    content_type: str = "application/json"
    key: str = ""
    streamed: bool = False


class Head(NamedTuple):
    """The beginning of an answer; header names in small letters."""

    status: int
    headers: Mapping[str, str]


Event = Head | bytes | Literal["end"] | None
"""A head, a piece of the body, the end, or None: more bytes are needed."""


class Lost(Exception):
    """The connection ended before the exchange did."""


class Protocol:
    """One connection's HTTP state."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)

    @property
    def reusable(self) -> bool:
        """Whether another exchange may follow on this connection."""
        return self._connection.our_state is h11.IDLE and self._connection.their_state is h11.IDLE

    def begin(self, request: Request) -> bytes:
        """The bytes that begin the exchange: all of it, unless the body is streamed."""
        head = self._send(h11.Request(method=request.method, target=request.target, headers=_headers(request)))
        if request.streamed:
            return head
        return head + (self._send(h11.Data(data=request.body)) if request.body else b"") + self.finish()

    def chunk(self, data: bytes) -> bytes:
        """A piece of a streamed body, framed."""
        return self._send(h11.Data(data=data))

    def finish(self) -> bytes:
        """The end of the body."""
        return self._send(h11.EndOfMessage())

    def feed(self, data: bytes) -> None:
        """Bytes that came; empty: the other side has closed."""
        self._connection.receive_data(data)

    def next_event(self) -> Event:
        """What came. Raises Lost when the connection ended too early or speaks no HTTP."""
        try:
            while True:
                event = self._connection.next_event()
                if isinstance(event, h11.Response):
                    return Head(
                        event.status_code,
                        {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers},
                    )
                if isinstance(event, h11.Data):
                    return bytes(event.data)
                if isinstance(event, h11.EndOfMessage):
                    self._again()
                    return "end"
                if event is h11.NEED_DATA:
                    return None
                if not isinstance(event, h11.InformationalResponse):
                    raise Lost("the connection was closed")
        except h11.RemoteProtocolError as error:
            raise Lost(str(error)) from error

    def _again(self) -> None:
        if self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE:
            self._connection.start_next_cycle()

    def _send(self, event: h11.Event) -> bytes:
        return self._connection.send(event) or b""


def _headers(request: Request) -> list[tuple[str, str]]:
    headers = [("Host", "roost"), ("Accept", "application/json")]
    if request.key:
        headers.append(("Idempotency-Key", request.key))
    if request.streamed:
        headers += [("Content-Type", request.content_type), ("Transfer-Encoding", "chunked")]
    elif request.body or request.method not in SAFE:
        headers += [("Content-Type", request.content_type), ("Content-Length", str(len(request.body)))]
    return headers


def path(*parts: str, **query: str | int | None) -> str:
    """The target `/v1/a/b?k=v`, every part and value quoted; None values are left out."""
    target = "/v1/" + "/".join(quote(part, safe="") for part in parts)
    pairs = [f"{name.rstrip('_')}={quote(str(value), safe='')}" for name, value in query.items() if value is not None]
    return target + ("?" + "&".join(pairs) if pairs else "")


def dumps(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def loads(body: bytes, what: str) -> Any:
    """The JSON of an answer. Raises OutcomeUnknown when it is not JSON: whoever sent it is not a Roost daemon we know."""
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError) as error:
        raise OutcomeUnknown(
            f"{what}: the answer can not be read", f"it is not JSON: {error}", "roost doctor"
        ) from None


def failure(status: int, body: bytes, what: str) -> RoostError:
    """The error that an answer of this status carries: the same class, words and problems as were raised in the daemon."""
    try:
        return error_of(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return RoostError(
            f"{what} failed", f"the daemon answered {status}: {body[:200].decode(errors='replace')!r}", "roost doctor"
        )


def error_of(fields: Mapping[str, Any]) -> RoostError:
    """The error described by `{"code", "what", "why", "fix", "problems"}`."""
    code, what, why, fix = (str(fields.get(name) or "") for name in ("code", "what", "why", "fix"))
    if code == Invalid.code:
        problems = [Problem(str(item["path"]), str(item["message"])) for item in fields.get("problems") or ()]
        return Invalid(what, why, fix, problems)
    error = BY_CODE.get(code, RoostError)(what, why, fix)
    if code and code not in BY_CODE:
        error.code = code
    return error


def lost(request: Request, *, sent: bool, reason: str) -> RoostError:
    """What the loss of a connection means: nothing happened (it was not sent, or could change nothing), or nobody knows."""
    what = f"{request.method} {request.target.partition('?')[0]}: the connection to the daemon was lost"
    if not sent or request.method in SAFE:
        return NotStarted(
            what, reason or "it ended before the request was sent", "try again; `roost doctor` if it happens again"
        )
    return OutcomeUnknown(
        what, f"the request was sent, the answer did not come ({reason})", "look with `roost list` before you try again"
    )
