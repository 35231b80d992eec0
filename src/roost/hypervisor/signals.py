"""What QEMU tells, for those who wait for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from roost.errors import OutcomeUnknown, Unavailable
from roost.hypervisor.monitor import Event


class _Wanted(NamedTuple):
    """An event that somebody waits for."""

    name: str
    details: Collection[str]
    subject: str
    found: asyncio.Queue[Event]


class Signals:
    """Hands the events of one QEMU to those who wait for them, and all to `listener`; nothing is kept for those who come later."""

    def __init__(self) -> None:
        self.listener: Callable[[Event], None] | None = None
        self._wanted: list[_Wanted] = []
        self._ended = False

    def tell(self, event: Event) -> None:
        """An event came."""
        for wanted in self._wanted:
            if event.name == wanted.name and event.detail in wanted.details and event.subject == wanted.subject:
                if wanted.found.full():
                    wanted.found.get_nowait()  # what came last counts
                wanted.found.put_nowait(event)
        if self.listener is not None:
            self.listener(event)

    def end(self) -> None:
        """The process has ended: nothing will come any more."""
        self._ended = True
        for wanted in self._wanted:
            self._finish(wanted)

    @contextlib.contextmanager
    def expect(self, name: str, details: Collection[str], subject: str = "") -> Iterator[Expected]:
        """Begin before you ask for what makes the event come."""
        wanted = _Wanted(name, details, subject, asyncio.Queue(maxsize=1))
        self._wanted.append(wanted)
        if self._ended:
            self._finish(wanted)
        try:
            yield Expected(wanted.found, name)
        finally:
            self._wanted.remove(wanted)

    def _finish(self, wanted: _Wanted) -> None:
        if wanted.found.empty():
            wanted.found.put_nowait(_END)


_END = Event("")


class Expected:
    """The events that somebody waits for."""

    def __init__(self, found: asyncio.Queue[Event], name: str) -> None:
        self._found = found
        self._name = name

    async def next(self, seconds: float | None = None) -> str:
        """The detail of the next one. Raises OutcomeUnknown when it does not come in time, Unavailable when the process has ended."""
        try:
            async with asyncio.timeout(seconds):
                event = await self._found.get()
        except TimeoutError:
            what = "QEMU did not come to an end with what it was asked"
            raise OutcomeUnknown(what, f"no {self._name} within {seconds:g} s") from None
        if event is _END:
            raise Unavailable("QEMU did not come to an end with what it was asked", "its process has ended")
        return event.detail
