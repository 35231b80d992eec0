"""A checkpoint against a QEMU that does not do what it is told at once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from roost.errors import OutcomeUnknown
from roost.hypervisor import checkpoint
from roost.hypervisor.checkpoint import Scene, Wish
from roost.hypervisor.gate import Gate
from roost.hypervisor.guestmemory import InPlace
from roost.hypervisor.signals import Signals
from tests.unit.hypervisor.test_monitor import Peer, reply, session

UNFINISHED = "Migration is not finalized yet"


def reluctant(refusals: int) -> Callable[[dict[str, Any]], bytes]:
    """A guest that runs, and can be told to go on again only after so many times."""
    left = refusals

    def answer(command: dict[str, Any]) -> bytes:
        nonlocal left
        if command["execute"] == "query-status":
            return reply(command, {"status": "running", "running": True})
        if command["execute"] == "cont" and left:
            left -= 1
            return (
                json.dumps({"error": {"class": "GenericError", "desc": UNFINISHED}, "id": command["id"]}).encode()
                + b"\r\n"
            )
        return reply(command, {})

    return answer


async def _note(interrupted: bool) -> None:
    return None


@asynccontextmanager
async def _running(refusals: int) -> AsyncIterator[tuple[Scene, Peer]]:
    async with session(reluctant(refusals)) as (monitor, peer, _):
        yield Scene("uid", monitor, Signals(), Gate(), InPlace.__new__(InPlace), _note), peer


async def test_a_guest_goes_on_although_qemu_still_puts_a_failed_saving_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checkpoint, "_RETRIES", (0.0, 0.0, 0.001, 0.001))
    async with _running(3) as (scene, peer):
        await checkpoint.take(scene, Wish((), memory=False))
        assert [command["execute"] for command in peer.commands].count("cont") == 4


async def test_a_guest_that_can_not_be_let_go_on_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_RETRIES", (0.0,))
    async with _running(2) as (scene, _):
        with pytest.raises(OutcomeUnknown) as told:
            await checkpoint.take(scene, Wish((), memory=False))
    assert UNFINISHED in told.value.why
