"""What the reconciler holds of a machine in memory; all of it can be found again from the world."""

from __future__ import annotations

import asyncio
from typing import Any, Literal, TypeAlias

from roost.control.origins import Origin
from roost.control.ports import Waits
from roost.control.warmth import Cold
from roost.hypervisor.base import Exit, Guest
from roost.model.machine import Timing
from roost.model.meta import Trouble
from roost.model.volume import Mount

AgentKind: TypeAlias = Literal["roost", "qemu-ga", "ssh", "absent"]
"""Who answers inside a guest; "absent" when nobody did for long."""


class Held:
    """One machine's guest, how it ended, and the marks of its way up (seconds on the injected clock)."""

    def __init__(self) -> None:
        self.key = ""
        self.guest: Guest | None = None
        self.exit: Exit | None = None
        self.looked = asyncio.Event()
        self.greeted = asyncio.Event()
        self.agent: AgentKind | None = None
        self.pressed: float | None = None
        self.asked = 0.0
        self.tried = float("-inf")
        self.reason = ""
        self.digest = ""
        self.progress = ""
        self.diskless = False
        self.origin: Origin | None = None
        self.cold: Cold | None = None
        self.making = False
        self.path: Literal["cold", "warm", "clone", "restore"] = "cold"
        self.acting = asyncio.Lock()
        self.recovered = False
        self.wired = False
        self.waits_for = Waits()
        self.mounts: tuple[Mount, ...] | None = None
        self.lacks: Trouble | None = None
        self.trouble: Trouble | None = None
        self.waiter: asyncio.Task[Any] | None = None
        self.listener: asyncio.Task[Any] | None = None
        self._began: float | None = None
        self._marks: dict[str, float] = {}

    def begin(self, now: float) -> None:
        """A way up begins, if none is under way."""
        if self._began is None:
            self._began, self._marks = now, {}

    @property
    def under_way(self) -> bool:
        """Whether a way up has begun."""
        return self._began is not None

    def mark(self, step: str, now: float) -> None:
        """A step of the way up ended."""
        if self._began is not None:
            self._marks[step] = now - self._began

    def seconds(self, step: str) -> float:
        """Seconds from the beginning to the end of a step; 0 when it was not seen."""
        return round(self._marks.get(step, 0.0), 4)

    def timing(self, pause: float = 0.0) -> Timing:
        """The way up in words for the status; `pause` is how long its source stood still, in seconds."""
        return Timing(
            path=self.path if self._began is not None else "",
            pause=round(pause, 4),
            **{step: self.seconds(step) for step in ("image", "disk", "process", "agent", "total")},
        )

    def forget_process(self) -> None:
        """The process is gone and written down: the next start begins afresh."""
        if self.listener is not None:
            self.listener.cancel()
        self.guest = self.exit = self.pressed = self._began = self.listener = self.waiter = self.cold = None
        self.path = "cold"
        self.agent, self.reason, self._marks = None, "", {}
        self.wired, self.mounts = False, None

    def stop_waiting(self) -> None:
        """Cancel what waits for the guest."""
        for task in (self.waiter, self.listener):
            if task is not None:
                task.cancel()
