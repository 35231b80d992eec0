"""The first words with a QEMU that was just started, and what its last words mean when it ends instead."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any, TypeVar

from roost import log
from roost.errors import Conflict, NotStarted, RoostError, Unavailable
from roost.host import processes, sockets
from roost.host.paths import MachineFiles
from roost.hypervisor.base import Launch
from roost.hypervisor.inmates import Held
from roost.hypervisor.monitor import Monitor
from roost.hypervisor.signals import Signals

_SECONDS = 30.0
_LAST_SECONDS = 2.0

T = TypeVar("T")


class DiskInUse(Conflict):
    """QEMU could not lock an image: somebody else has it open."""


async def unless_ended(held: Held, launch: Launch, asking: Coroutine[Any, Any, T]) -> T:
    """What `asking` a QEMU gives. Raises what QEMU's last words mean when it ends instead."""
    answering = log.spawn_task(_attempt(asking, launch.uid), "question to QEMU")
    ended = log.spawn_task(processes.wait_exit(held.qemu.pidfd), "end before the answer")
    try:
        await asyncio.wait([answering, ended], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await asyncio.wait([answering], timeout=_LAST_SECONDS)  # its sockets close with it
        error: RoostError | None = None
        value: list[T] = []
        if answering.done():
            error, value = answering.result()
        if value:
            return value[0]
        await asyncio.wait([ended], timeout=_LAST_SECONDS)  # a QEMU that ends closes its sockets a moment before
        if error is None or ended.done():
            raise translate(held.last_words(), launch)
        raise error
    finally:
        for task in (answering, ended):
            task.cancel()
        await asyncio.wait([answering, ended])


async def _attempt(asking: Coroutine[Any, Any, T], uid: str) -> tuple[RoostError | None, list[T]]:
    """Its value or why there is none: an error that is an answer is not one the log should hold."""
    try:
        return None, [await asking]
    except OSError as error:
        return NotStarted(f"machine {uid} was not started", f"QEMU's monitor can not be reached: {error}"), []
    except RoostError as error:
        return error, []


async def greet(machine: MachineFiles, identity: str, signals: Signals) -> Monitor:
    """The monitor of the QEMU with that UUID. Raises NotStarted, OSError."""
    monitor = await Monitor.connect(sockets.connect_unix(machine.monitor), signals.tell, timeout=_SECONDS)
    try:
        if await monitor.query_uuid() != identity:
            what = f"machine {identity} was not started"
            raise NotStarted(what, "the QEMU that answers says that it is another machine")
    except BaseException:
        await monitor.close()
        raise
    return monitor


_MESSAGES: tuple[tuple[str, type[RoostError], str, str], ...] = (
    (
        r'Failed to get (?:"write"|shared "write"|"consistent read") lock',
        DiskInUse,
        "its disk is in use by another process",
        "stop the machine that uses it: roost list",
    ),
    (
        r"[Cc]annot (?:set up guest|allocate) memory",
        Unavailable,
        "this host has not enough free memory",
        "stop another machine or give this one less: --memory",
    ),
    (
        r"Could not access KVM kernel module|failed to initialize kvm",
        Unavailable,
        "the jail may not use /dev/kvm",
        "sudo chgrp kvm /dev/kvm && sudo chmod 0660 /dev/kvm",
    ),
    (
        r"load of migration failed|[Uu]nknown savevm section|error while loading state",
        Unavailable,
        "this QEMU does not take the state that was saved",
        "let it boot from its disk: roost start --cold",
    ),
)
"""What QEMU's last words mean."""


def translate(words: str, launch: Launch) -> RoostError:
    """The error for a QEMU that ended before the machine was there."""
    what = f"machine {launch.uid} did not start"
    for pattern, error, why, fix in _MESSAGES:
        if re.search(pattern, words):
            return error(what, f"{why} ({words.splitlines()[0][:300]})", fix)
    return NotStarted(what, f"QEMU ended at once: {words or 'it said nothing'}", "roost doctor")
