"""The shape of a reconciler, and the two ways an act can fail."""

from __future__ import annotations

from typing import Protocol


class Retry(Exception):
    """Not now: reconcile this key again, after `after` seconds or, without it, after a delay that grows."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Reconciler(Protocol):
    """Brings one kind's objects from what is to what is wanted. Stateless between calls: everything is in the store or in the world."""

    async def reconcile(self, key: str) -> None:
        """Observe, plan, act for the object at `key`, until nothing differs. Raises Retry."""
        ...
