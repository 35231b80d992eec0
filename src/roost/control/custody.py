"""Who holds the guests: takes them back after a restart of the daemon, listens for their first answer and for their end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from roost.control.held import AgentKind, Held
from roost.control.plan import is_twin
from roost.errors import Conflict, NotStarted, Unavailable
from roost.host import files
from roost.host.clock import Clock
from roost.host.paths import Paths
from roost.hypervisor.base import Exit, Guest, Hypervisor
from roost.log import get, spawn_task
from roost.model.kinds import BY_NAME, key_of
from roost.model.machine import Machine

ADOPTION_SECONDS = 30.0
"""Longest a request waits for its machine to be taken back."""

AGENT_SECONDS = 300.0
"""Longest a start waits for an answer from inside; Debian's own cloud images take some 100 s under emulation."""

GREETING_SECONDS = 90.0
"""Longest a request waits until a machine that answers is set up; more than the set-up itself may take."""

TWIN_SECONDS = 60.0
"""Longest a copy of what answered already is waited for; 32 made at once by two processors took 10 s."""


class Custody:
    """The guests of this host by their machine's uid. `wake` is told the key of a machine about which something changed."""

    def __init__(
        self, hypervisor: Hypervisor, paths: Paths, clock: Clock, boot: str, wake: Callable[[str], None]
    ) -> None:
        self._hypervisor = hypervisor
        self._paths = paths
        self._clock = clock
        self._boot = boot
        self._wake = wake
        self._held: dict[str, Held] = {}

    def of(self, machine: Machine) -> Held:
        """What is held of a machine, under the name it has now."""
        held = self._held.setdefault(machine.meta.uid, Held())
        held.key = key_of(BY_NAME["machine"], machine.project, machine.name)
        return held

    def forget(self, machine: Machine) -> None:
        """The machine is no more."""
        held = self._held.pop(machine.meta.uid, None)
        if held is not None:
            held.stop_waiting()

    async def guest(self, machine: Machine) -> Guest:
        """The running guest of a machine. Raises Conflict when it does not run."""
        held = await self.looked(machine)
        if held.guest is None:
            raise _not_running(machine)
        return held.guest

    async def looked(self, machine: Machine) -> Held:
        """What is held of a machine, once it is known whether it runs: straight after a start of the daemon it is taken back first.

        Raises Unavailable when that takes too long."""
        held = self.of(machine)
        if machine.status.process is not None:
            try:
                async with asyncio.timeout(ADOPTION_SECONDS):
                    await held.looked.wait()
            except TimeoutError:
                what = f'machine "{machine.name}" does not answer'
                raise Unavailable(what, "Roost was started anew and could not take it over yet", "try again") from None
        return held

    async def greeted(self, machine: Machine, guest: Guest) -> None:
        """Wait until an answering guest is the machine it is to be: before that it has no name, no users, or those of what it is a copy of.

        Raises Conflict when it ends before that, NotStarted when it takes too long."""
        held = self.of(machine)
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await held.greeted.wait()
        except TimeoutError:
            what, why = f'machine "{machine.name}" is not ready', "it answers, and is still being set up"
            raise NotStarted(what, why, f"look what it does: roost logs {machine.name}") from None
        if held.guest is not guest:
            what = f'machine "{machine.name}" is not running'
            raise Conflict(what, "it ended while it was set up", f"roost start {machine.name}")

    def running(self) -> int:
        """How many guests are held."""
        return sum(held.guest is not None for held in self._held.values())

    async def detach(self) -> None:
        """Let go of every guest without touching it."""
        for held in self._held.values():
            held.stop_waiting()
            if held.guest is not None:
                await held.guest.detach()
                held.guest = None

    async def sweep(self, known: set[str]) -> None:
        """At daemon start: end and remove what a killed daemon left and no machine of `known` uids owns.

        What has a disk stays: an operator may have put back an older store, and want it.
        """
        tops = (self._paths.machines, self._paths.live_machines)
        present = {entry.name for top in tops if top.is_dir() for entry in top.iterdir()}
        for uid in sorted(present - known):
            where = self._paths.machine(uid)
            if where.disk.exists():
                get(__name__).warning("a disk belongs to no machine", file=str(where.disk))
                continue
            guest = await self._hypervisor.adopt(where, uid)
            if guest is not None:
                await guest.kill()
            for directory in where:
                await asyncio.to_thread(files.remove_tree, directory)

    async def take_back(self, machine: Machine, held: Held) -> bool:
        """After a restart of the daemon: hold what runs (True), or find out that it ended meanwhile. Looks once."""
        if held.looked.is_set():
            return False
        guest = await self._hypervisor.adopt(self._paths.machine(machine.meta.uid), machine.meta.uid)
        if guest is not None:
            get(__name__).info("machine adopted", pid=guest.process.pid)
            held.agent = machine.status.agent if machine.status.agent != "none" else None
            self.hold(held, guest)
            if held.agent is not None:
                held.greeted.set()
            self.listen(machine, held, guest)
            return True
        before = machine.status.process
        if before is not None and before.boot == self._boot:
            held.exit = Exit("it ended while Roost was not there to see it", clean=machine.status.phase == "stopping")
        held.looked.set()
        return False

    def hold(self, held: Held, guest: Guest) -> None:
        """Hold a guest: its changes wake the machine, its end is awaited."""
        held.guest, held.exit = guest, None
        held.looked.set()
        held.greeted.clear()
        guest.on_change = lambda: self._wake(held.key)
        held.waiter = spawn_task(self._await_exit(held, guest), f"exit of {held.key}")

    def listen(self, machine: Machine, held: Held, guest: Guest) -> None:
        """Listen for the first answer from inside, unless somebody does or it came."""
        if held.listener is None and held.agent in (None, "absent"):
            longest = TWIN_SECONDS if is_twin(machine) else AGENT_SECONDS
            held.listener = spawn_task(self._await_agent(held, guest, longest), f"agent of {held.key}")

    async def _await_exit(self, held: Held, guest: Guest) -> None:
        ended = await guest.wait()
        if held.guest is guest:
            held.guest = None
            held.exit = Exit(held.reason, clean=False) if held.reason else ended
            held.reason = ""
            held.greeted.set()  # who waits for it is told that it is gone
        self._wake(held.key)

    async def _await_agent(self, held: Held, guest: Guest, longest: float) -> None:
        """The first answer wins; an image that brings no agent is not waited for without end, but an answer is never too late."""
        asking = spawn_task(guest.agent(), f"first answer of {held.key}")
        try:
            _, late = await asyncio.wait([asking], timeout=longest)
            if late:
                self._answered(held, guest, "absent")
            self._answered(held, guest, (await asking).kind)
        finally:
            asking.cancel()

    def _answered(self, held: Held, guest: Guest, kind: AgentKind) -> None:
        if held.guest is guest:
            held.agent = kind
            held.mark("agent", self._clock.now())
            self._wake(held.key)


def _not_running(machine: Machine) -> Conflict:
    """Whatever it waits for, or failed by, is why."""
    status, trouble = machine.status, machine.status.error
    more = f"{trouble.what}: {trouble.why}" if trouble is not None else status.progress
    fix = trouble.fix if trouble is not None and trouble.fix else f"roost start {machine.name}"
    return Conflict(
        f'machine "{machine.name}" is not running', f"it is {status.phase}" + (f": {more}" if more else ""), fix
    )
