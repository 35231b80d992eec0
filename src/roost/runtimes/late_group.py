"""The control group of a run that lasts: joined when it is clear that it is no short one, which the join would make several times as long."""

from __future__ import annotations

import time

from roost.host import boxed_group
from roost.host.boxed_group import Group
from roost.runtimes.loop import Loop

_LASTING = 0.1
"""Seconds after which a run is no short one. Under version 1 the kernel takes some 15 ms to move a process."""


class LateGroup:
    """Joins the group in the turns of the loop, one process a turn, since each may block. Until it is `joined`, and where there is none, the watchdog
    alone holds the limits; `missing` says why."""

    def __init__(self, loop: Loop, pid: int, memory: int | None, processes: int) -> None:
        """For the init `pid`; `memory` in bytes is for all that the kernel counts from now on, so also files of its own in /tmp."""
        self.group: Group | None = None
        self.joined = False
        self.missing = f"a run that lasts joins one after {_LASTING:g} s; until then the watchdog holds the limits"
        self._loop = loop
        self._pid = pid
        self._bounds = memory, processes
        self._inside: set[int] = set()
        loop.at(time.monotonic() + _LASTING, self._make)

    def _make(self) -> None:
        self.group, self.missing = boxed_group.create(self._pid, *self._bounds)
        if self.group is not None:
            self._join()

    def _join(self) -> None:
        if self.group is None:
            return
        try:
            moved = self.group.join_next(self._pid, self._inside)
        except OSError as error:
            self.missing = f"{error.strerror}: {error.filename}"
            return
        if moved:
            self._loop.at(time.monotonic(), self._join)
        else:
            self.joined = True
