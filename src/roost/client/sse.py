"""Server-sent events without I/O: bytes in, events out (the part of the WHATWG HTML standard, 9.2.6, that Roost's daemon uses)."""

from __future__ import annotations

from typing import NamedTuple

from roost.errors import OutcomeUnknown

MAX_EVENT = 8 << 20
"""Bytes that one event may have."""


class ServerEvent(NamedTuple):
    """One event: its name, its data (lines joined), and the id that a later watch may go on from."""

    name: str
    data: str
    id: str


class Parser:
    """Feed it bytes as they come, cut anywhere; it gives the events that are complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._data: list[str] = []
        self._size = 0
        self._id = ""

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that `data` completes. Raises OutcomeUnknown when one is longer than MAX_EVENT."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_EVENT:
            raise _too_long()
        return [
            event for line in lines if (event := self._line(line.rstrip(b"\r").decode(errors="replace"))) is not None
        ]

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._size += len(value)
            if self._size > MAX_EVENT:
                raise _too_long()
            self._data.append(value)
        elif field == "event":
            self._name = value
        elif field == "id":
            self._id = value
        return None

    def _dispatch(self) -> ServerEvent | None:
        event = ServerEvent(self._name or "message", "\n".join(self._data), self._id) if self._data else None
        self._name, self._data, self._size = "", [], 0
        return event


def _too_long() -> OutcomeUnknown:
    return OutcomeUnknown("the watch was ended", f"an event is longer than {MAX_EVENT} bytes", "roost doctor")
