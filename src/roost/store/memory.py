"""A store in memory: the reference for every other one, and the quick one for tests."""

from __future__ import annotations

from roost.store.serving import Decide, LeaseClock, ServingStore
from roost.store.state import Draft, State


class MemoryStore(ServingStore):
    """A `Store` that ends with its process. Leases run on `clock`."""

    def __init__(self, clock: LeaseClock) -> None:
        super().__init__(State(), clock)

    async def _submit(self, decide: Decide) -> int:
        self._check_open()
        draft = Draft(self._state)
        result = decide(draft)
        self._publish(draft.commits)
        due = self._state.compaction_due()
        if due is not None:
            await self.compact(due)
        return result

    async def compact(self, revision: int) -> None:
        """Forget history up to `revision`; the latest value of every key stays."""
        self._state.compact(self._state.compaction(revision))

    async def close(self) -> None:
        """End all watches."""
        self._serve_no_more()
