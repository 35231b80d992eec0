"""Waits for descriptors and moments, in one thread and without asyncio, which would cost `roost run` more than the sandbox does."""

from __future__ import annotations

import select
import time

from roost.light import Callable

READ, WRITE = select.POLLIN, select.POLLOUT
ENDED = select.POLLHUP | select.POLLERR | select.POLLNVAL

Ready = Callable[[int], None]
"""Told the poll(2) events of its descriptor."""


class Loop:
    """Calls who waits for a descriptor or a moment. While nothing happens it sleeps in the kernel: there is no tick."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._ready: dict[int, Ready] = {}
        self._moments: dict[Callable[[], None], float] = {}

    def watch(self, descriptor: int, events: int, ready: Ready) -> None:
        """Call `ready` whenever one of the events (READ, WRITE), or an end, is there; it replaces what was said before."""
        self._ready[descriptor] = ready
        self._poll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """No longer look at it. To be called before it is closed; fine when nobody watches it."""
        if self._ready.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)

    def at(self, moment: float, call: Callable[[], None]) -> None:
        """Call once at that moment of the monotonic clock; it replaces an earlier moment of the same call."""
        self._moments[call] = moment

    def turn(self) -> None:
        """Sleep until something happens, and do what it asks for."""
        happened = [
            (descriptor, events, self._ready[descriptor])
            for descriptor, events in self._poll.poll(self._milliseconds())
        ]
        for descriptor, events, ready in happened:
            # One call may forget the descriptor of the next, and its number may already be another's.
            if self._ready.get(descriptor) is ready:
                ready(events)
        now = time.monotonic()
        for call in [call for call, moment in self._moments.items() if moment <= now]:
            del self._moments[call]
            call()

    def _milliseconds(self) -> int | None:
        if not self._moments:
            return None
        # One more, because poll(2) counts whole ones: it must not wake before the moment and turn in vain.
        return max(0, int((min(self._moments.values()) - time.monotonic()) * 1000) + 1)
