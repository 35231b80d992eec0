"""Requests in and answers out: bounded bodies, parsed queries, JSON and streamed answers, and errors as HTTP."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, cast
from urllib.parse import parse_qs

import msgspec
from litestar.exceptions import HTTPException
from litestar.types import HTTPScope, Receive, Scope, Send, WebSocketScope

from roost.errors import (
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    NotStarted,
    OutcomeUnknown,
    Problem,
    QuotaExceeded,
    RoostError,
    Unavailable,
)  # fmt: skip
from roost.log import get
from roost.model import codec
from roost.model.access import Principal

_log = get(__name__)

MAX_JSON = 1 << 20
"""Bytes of a JSON body."""
MAX_VALUES = 20_000
"""Values (of all levels) in a JSON body: far above any real object, far below what makes checking slow."""
MAX_PROBLEMS = 100
"""Problems told in one answer."""
BODY_IDLE = 30.0
"""Seconds without a byte after which a body is given up."""
BODY_TOTAL = 60.0
"""Seconds a JSON body may take."""
HEARTBEAT = 15.0
"""Seconds between two signs of life on a stream that has them."""
PIECE = 64 << 10
"""Bytes handed to the socket at once: an answer that nobody reads holds this much, not all of itself."""

STATUS: Mapping[type[RoostError], int] = {
    Invalid: 400, Forbidden: 403, QuotaExceeded: 403, NotFound: 404, Conflict: 409, Unavailable: 503, NotStarted: 503,
    OutcomeUnknown: 500,
}  # fmt: skip
_BY_STATUS = {404: "not-found", 405: "invalid", 400: "invalid", 408: "invalid", 413: "invalid"}


class TooLarge(Invalid):
    """A body over its bound."""


class TooSlow(Invalid):
    """A body that does not come."""


class Gone(Exception):
    """The client went away in the middle of its request: there is nobody to answer."""


class Call:
    """One request: who, what, and with which words."""

    def __init__(self, scope: HTTPScope | WebSocketScope, receive: Receive, principal: Principal) -> None:
        self._receive = receive
        self.principal = principal
        self.path = scope["path"]
        self.parameters: Mapping[str, Any] = scope["path_params"]
        self.method = str(scope.get("method", "WS"))
        self.hung_up: Callable[[], bool] = scope["state"].get("hung_up", lambda: False)
        self._headers = scope["headers"]
        self._query = _parsed(scope["query_string"])
        self._drained = False

    @property
    def unread(self) -> bool:
        """Whether a body that is long, or of unknown length, was not read to its end."""
        length = self.header(b"content-length") or "0"
        long = not length.isdigit() or len(length) > 15 or int(length) > MAX_JSON
        return not self._drained and (long or self.header(b"transfer-encoding") is not None)

    @property
    def project(self) -> str:
        """The project in the path ("" where there is none)."""
        return str(self.parameters.get("project", ""))

    @property
    def name(self) -> str:
        """The object's name in the path ("" where there is none)."""
        return str(self.parameters.get("name", ""))

    def header(self, name: bytes) -> str | None:
        """A header's value (the last one when repeated)."""
        values = [value for key, value in self._headers if key == name]
        return values[-1].decode("latin-1") if values else None

    def query(self, name: str, default: str = "") -> str:
        """A query parameter's value (the last one when repeated)."""
        return self._query.get(name, [default])[-1]

    def queries(self, name: str) -> Sequence[str]:
        """All values of a query parameter."""
        return self._query.get(name, [])

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """A query parameter as a whole number. Raises Invalid."""
        text = self.query(name)
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 19 and least <= int(text) <= most):
            raise Invalid(
                "the request is wrong", problems=[Problem(name, f"is not a whole number from {least} to {most}")]
            )
        return int(text)

    def flag(self, name: str) -> bool:
        """A query parameter as true or false (absent: false). Raises Invalid."""
        text = self.query(name, "false")
        if text not in ("true", "false", "1", "0"):
            raise Invalid("the request is wrong", problems=[Problem(name, "is not true or false")])
        return text in ("true", "1")

    async def stream(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises TooSlow when it stops coming, Gone when the client does."""
        more = True
        while more:
            try:
                async with asyncio.timeout(BODY_IDLE):
                    message = cast("dict[str, Any]", await self._receive())
            except TimeoutError:
                raise TooSlow("the request was given up", f"no byte of its body came for {BODY_IDLE:.0f} s") from None
            if message["type"] == "http.disconnect":
                raise Gone
            more = message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk
        self._drained = True

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge, TooSlow, Gone."""
        announced = self.header(b"content-length") or "0"
        if not announced.isdigit() or len(announced) > 15 or int(announced) > MAX_JSON:
            raise _too_large()
        whole = bytearray()
        try:
            async with asyncio.timeout(BODY_TOTAL):
                async for chunk in self.stream():
                    whole += chunk
                    if len(whole) > MAX_JSON:
                        raise _too_large()
        except TimeoutError:
            raise TooSlow("the request was given up", f"its body took more than {BODY_TOTAL:.0f} s") from None
        return bytes(whole)

    async def document(self) -> dict[str, Any]:
        """The body as a JSON object, bounded in depth and number of values. Raises Invalid."""
        return document(await self.body())


def document(text: bytes) -> dict[str, Any]:
    """JSON `text` as an object, bounded in depth and number of values before anything walks it. Raises Invalid."""
    what = "the request is wrong"
    data = codec.parse(text, what)
    if not isinstance(data, dict):
        raise Invalid(what, "the body is not a JSON object", 'send {"name": ..., "spec": {...}}')
    level, seen = [data], 0
    for _ in range(codec.MAX_DEPTH):
        level = [item for value in level for item in _inside(value)]
        seen += len(level)
        if seen > MAX_VALUES:
            raise Invalid(what, f"it holds more than {MAX_VALUES} values")
        if not level:
            return data
    raise Invalid(what, f"it is nested deeper than {codec.MAX_DEPTH} levels")


def _parsed(query: bytes) -> Mapping[str, list[str]]:
    try:
        return parse_qs(query.decode("latin-1"), keep_blank_values=True, max_num_fields=64)
    except ValueError:
        raise Invalid("the request is wrong", "its query has more than 64 fields") from None


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_large() -> TooLarge:
    return TooLarge(
        "the request is too large", f"a JSON body may have {MAX_JSON} bytes", "bring large files with `roost copy`"
    )


class Answer:
    """A complete answer, written in pieces that wait for the reader."""

    def __init__(
        self,
        body: bytes | Sequence[bytes] = b"",
        status: int = 200,
        content_type: bytes = b"application/json",
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self._parts: Sequence[bytes] = (body,) if isinstance(body, bytes) else body
        self.status = status
        self.headers: Sequence[tuple[bytes, bytes]] = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % sum(map(len, self._parts))),
            (b"cache-control", b"no-store"),
            *headers,
        ]

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        headers = self.headers if self.status != 204 else self.headers[2:]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for piece in _pieces(self._parts):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _pieces(parts: Iterable[bytes]) -> Iterable[bytes]:
    """`parts` joined to pieces of about PIECE bytes."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    if size:
        yield b"".join(waiting)


def json_answer(value: Any, status: int = 200) -> Answer:
    """`value` as JSON."""
    return Answer(codec.encode(value), status)


class Streamed:
    """An answer of unknown length. Ends its source when the client goes away; when the source fails, the connection breaks off."""

    def __init__(self, source: AsyncIterator[bytes], content_type: bytes, heartbeat: bytes = b"") -> None:
        self._source = source
        self._content_type = content_type
        self._heartbeat = heartbeat
        self.status = 200

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it (ASGI)."""
        headers = [
            (b"content-type", self._content_type),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        lock = asyncio.Lock()
        try:
            await first_of(self._send(send, lock), _disconnected(receive), self._beat(send, lock))
        finally:
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()

    async def _send(self, send: Send, lock: asyncio.Lock) -> None:
        try:
            async for chunk in self._source:
                async with lock:
                    for start in range(0, len(chunk), PIECE):
                        await send(
                            {"type": "http.response.body", "body": chunk[start : start + PIECE], "more_body": True}
                        )
        except Exception as error:
            # Without the last chunk the reader knows that something is missing; the server then closes the connection.
            _log.warning(
                "a stream broke off", what=str(error) if isinstance(error, RoostError) else type(error).__name__
            )
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send, lock: asyncio.Lock) -> None:
        """Show between two chunks that the stream lives; for ever, where there is a heartbeat."""
        while True:
            await asyncio.sleep(HEARTBEAT)
            if self._heartbeat:
                async with lock:
                    await send({"type": "http.response.body", "body": self._heartbeat, "more_body": True})


async def first_of(*works: Coroutine[Any, Any, None]) -> None:
    """Run all until the first has ended; the others are cancelled. Raises what that one raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_answer(error: Exception, *, unread: bool = False) -> Answer:
    """Any error as an HTTP answer; `unread`: a long body may still be under way."""
    status, body = refusal(error)
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, HTTPException) and error.headers and "allow" in error.headers:
        headers.append((b"allow", error.headers["allow"].encode()))
    if unread or status in (408, 413):
        # The rest of the body is not waited for: the connection can not be used again.
        headers.append((b"connection", b"close"))
    return Answer(codec.encode(body), status, headers=headers)


def refusal(error: Exception) -> tuple[int, dict[str, Any]]:
    """The HTTP status and body of an error. One that is not Roost's own is logged here, once, and told without its insides."""
    if isinstance(error, RoostError):
        return _status(error), {"error": _words(error)}
    if isinstance(error, HTTPException) and error.status_code < 500:
        code = _BY_STATUS.get(error.status_code, "invalid")
        why = {404: "no such route", 405: "the route does not take this method"}.get(error.status_code, error.detail)
        words = {
            "code": code,
            "what": "the request was not understood",
            "why": why,
            "fix": "see /openapi.json",
            "problems": [],
        }
        return error.status_code, {"error": words}
    _log.error("a request failed", exc_info=error)
    words = {
        "code": "failed",
        "what": "the request failed",
        "why": "an error inside Roost",
        "fix": "see the daemon's log",
        "problems": [],
    }
    return 500, {"error": words}


def _status(error: RoostError) -> int:
    if isinstance(error, TooLarge):
        return 413
    if isinstance(error, TooSlow):
        return 408
    if isinstance(error, Unavailable) and _disk_full(error.__cause__):
        return 507
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def _disk_full(cause: BaseException | None) -> bool:
    """Whether the file system, or SQLite on it, had no room."""
    full_file = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
    return full_file or getattr(cause, "sqlite_errorname", "") == "SQLITE_FULL"


def _words(error: RoostError) -> dict[str, Any]:
    problems: Sequence[Problem] = error.problems if isinstance(error, Invalid) else ()
    shown = [{"path": path[:200], "message": message[:2000]} for path, message in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        shown.append({"path": "", "message": f"and {len(problems) - MAX_PROBLEMS} more"})
    return {"code": error.code, "what": error.what[:1000], "why": error.why[:4000], "fix": error.fix, "problems": shown}


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7396); both are bounded in depth already."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


def compact(value: Any) -> bytes:
    """Stable JSON, for fingerprints: keys in order."""
    return msgspec.json.encode(value, order="sorted")
