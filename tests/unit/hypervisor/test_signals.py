"""Waiting for what QEMU tells: only what is wanted wakes, the end of the process wakes all."""

from __future__ import annotations

import pytest

from roost.errors import OutcomeUnknown, Unavailable
from roost.hypervisor.monitor import Event
from roost.hypervisor.signals import Signals


async def test_only_the_wanted_event_counts_and_the_last_of_them() -> None:
    heard: list[Event] = []
    signals = Signals()
    signals.listener = heard.append
    with signals.expect("JOB_STATUS_CHANGE", {"pending", "concluded"}, "mine") as changes:
        for detail, job in (("pending", "another"), ("running", "mine"), ("pending", "mine"), ("concluded", "mine")):
            signals.tell(Event("JOB_STATUS_CHANGE", detail, job))
        assert await changes.next(1) == "concluded"
    assert len(heard) == 4


async def test_what_does_not_come_is_an_unknown_outcome() -> None:
    with Signals().expect("MIGRATION", {"completed"}) as ended, pytest.raises(OutcomeUnknown, match="MIGRATION"):
        await ended.next(0.01)


async def test_the_end_of_the_process_ends_all_waiting_also_of_those_who_come_later() -> None:
    signals = Signals()
    with signals.expect("MIGRATION", {"completed"}) as ended:
        signals.end()
        with pytest.raises(Unavailable, match="ended"):
            await ended.next(1)
    with signals.expect("MIGRATION", {"completed"}) as late, pytest.raises(Unavailable, match="ended"):
        await late.next(1)
