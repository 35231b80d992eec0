"""One running QEMU that we hold: its state, its buttons, its checkpoints, its end, and letting go of it without touching it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec

from roost import log
from roost.errors import Conflict, RoostError, Unavailable
from roost.host import files, processes
from roost.host.outputlog import OutputLog
from roost.host.paths import MachineFiles
from roost.hypervisor import agent, cards, checkpoint, disks, guestagent, picture, record
from roost.hypervisor.base import Agent, Card, Console, Exit, Overlay, RunState, Saved, Volumes
from roost.hypervisor.checkpoint import GuestMemory, Scene, Wish
from roost.hypervisor.console import SerialConsole
from roost.hypervisor.disks import Block
from roost.hypervisor.gate import Gate
from roost.hypervisor.inmates import Held
from roost.hypervisor.monitor import CHANGES, Event, Monitor
from roost.hypervisor.record import Record
from roost.hypervisor.saved import duplicate, release
from roost.hypervisor.signals import Signals
from roost.hypervisor.volumes import Machine, QemuVolumes

_PREFERENCE_SECONDS = 1.0
"""How long Roost's own agent may be slower than qemu-guest-agent and still be taken."""

_OURS = frozenset({"STOP", "RESUME"})
"""What a checkpoint itself makes QEMU tell."""
_RETRY_SECONDS = 0.5
_PING_SECONDS = 2.0

Connector: TypeAlias = Callable[[], Awaitable[Agent]]

_ENDS = {
    "guest-shutdown": Exit("the guest shut down", True),
    "guest-reset": Exit("the guest asked for a restart", True),
    "guest-panic": Exit("the guest's kernel panicked", False),
    "host-qmp-quit": Exit("it was stopped", True),
    "host-signal": Exit("a signal from the host stopped it", False),
    "host-error": Exit("QEMU met an error of the host", False),
}
"""SHUTDOWN's reasons (qapi/run-state.json, ShutdownCause) that explain an exit."""


class Reach(NamedTuple):
    """How we reach the inside of a running QEMU."""

    monitor: Monitor
    signals: Signals
    memory: GuestMemory


class QemuGuest:
    """A machine whose QEMU we hold. Implements `base.Guest`. Raises OSError when the console can not be reached."""

    def __init__(self, machine: MachineFiles, held: Held, known: Record, reach: Reach) -> None:
        if known.isolation is None:
            raise ValueError("its start has not come to its end")
        self.process = held.qemu.process
        self.isolation = known.isolation
        self.addresses = known.addresses
        self.cloning = known.cloning
        self._console = SerialConsole(machine.console, OutputLog(machine.console_log))
        self.console: Console = self._console
        self.on_change: Callable[[], None] = _nothing
        self._files = machine
        self._held = held
        self._record = known
        self._monitor, self._signals, self._memory = reach
        self._gate = Gate()
        self._agent: Agent | None = None
        self._connecting = asyncio.Lock()
        self._saving = asyncio.Lock()
        self._nodes = asyncio.Lock()
        self._shown: RunState | None = None  # what it was, while it stands still for a checkpoint
        self._kept: Saved | None = None  # of a paused guest, which QEMU saves only once
        self._reason = ""
        self._killed = False
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.trouble = ""
        self.volumes: Volumes = QemuVolumes(
            Machine(self.process.pid, self._qmp, self._signals, self._nodes, self.state, self.agent, self._still)
        )
        self._console.open()
        self._signals.listener = self._on_event
        self._watcher: asyncio.Task[None] | None = log.spawn_task(self._watch(), f"watch {self.process.pid}")

    def _on_event(self, event: Event) -> None:
        if event.name == "SHUTDOWN":
            self._reason = event.detail
        if event.name in ("BLOCK_IO_ERROR", "RESUME"):
            self.trouble = event.detail
        if event.name in CHANGES and not (self._shown is not None and event.name in _OURS):
            self.on_change()

    async def state(self) -> RunState:
        """What the guest is doing; "gone" when its process has ended."""
        if self._ended.done():
            return "gone"
        if self._shown is not None:
            return self._shown
        try:
            return await self._monitor.query_status()
        except RoostError:
            if not processes.is_alive(self._held.qemu.pidfd):
                return "gone"
            raise

    async def resume(self) -> None:
        """Let it run."""
        async with self._saving:
            self._forget_kept()
            await self._qmp().cont()

    async def pause(self) -> None:
        """Stop its virtual CPUs."""
        async with self._saving:
            await self._qmp().stop()

    async def reset(self) -> None:
        """Press the reset button, and let it run if it was paused by a panic."""
        async with self._saving:
            self._forget_kept()
            await self._qmp().system_reset()
            await self._qmp().cont()

    async def press_power(self) -> None:
        """Press the power button."""
        await self._qmp().system_powerdown()

    async def checkpoint(
        self, overlays: Sequence[Overlay], copies: Sequence[tuple[Path, Path]] = (), *, memory: bool = True
    ) -> Saved:
        """The guest at one instant: see `base.Guest.checkpoint`."""
        async with self._saving:
            monitor, scene = self._qmp(), self._scene()
            self._shown = before = await monitor.query_status()
            try:
                await self._make_room()
                again = memory and await monitor.is_saved()
                if again and self._kept is None:
                    why = "it stands still since it was saved last, and Roost was started anew since"
                    raise Conflict("the machine can not be saved", why, "roost resume it first")
                async with self._nodes:
                    saved = await checkpoint.take(scene, Wish(overlays, copies, memory and not again))
            finally:
                self._shown = None
            if again and self._kept is not None:
                return duplicate(self._kept)
            if memory and before != "running":
                self._forget_kept()
                self._kept = duplicate(saved)
            return saved

    def _scene(self) -> Scene:
        return Scene(self._record.uid, self._qmp(), self._signals, self._gate, self._memory, self._note)

    @contextlib.asynccontextmanager
    async def _still(self) -> AsyncIterator[None]:
        """The guest stands still for a moment, as in a checkpoint."""
        async with self._saving:
            self._shown = await self._qmp().query_status()
            try:
                async with self._gate.shut(), checkpoint.standing_still(self._scene()):
                    yield
            finally:
                self._shown = None

    async def tops(self) -> tuple[str, ...]:
        """The nodes that the writable disks write to."""
        return tuple(drive.node for drive in await disks.writable(self._qmp()))

    async def flatten(self, progress: Callable[[float], None], name: str = "") -> None:
        """Let the first disk stand on its lowest file alone: see `base.Guest.flatten`."""
        await disks.flatten(Block(self._qmp(), self._signals, self._nodes), progress, name)

    async def resize_disk(self, size: int) -> None:
        """Grow the first disk, in bytes."""
        await disks.resize(self._qmp(), self.process.pid, size)

    async def set_link(self, *, up: bool, slots: Sequence[int] = (0,)) -> None:
        """Plug the cables of network cards in, or pull them."""
        await cards.set_link(self._qmp(), slots, up=up)

    async def cards(self) -> Mapping[int, str]:
        """The network cards' MAC addresses by their slots."""
        return await cards.present(self._qmp())

    async def plug_in(self, card: Card) -> None:
        """Put a network card into a free slot."""
        async with self._saving:
            await cards.plug_in(self._qmp(), card)

    async def unplug(self, slot: int) -> None:
        """Take a network card out."""
        async with self._saving:
            await cards.unplug(self._qmp(), self._signals, slot)

    async def screenshot(self) -> bytes:
        """What its screen shows, as a PNG."""
        return await picture.take(self._qmp(), self._nodes)

    async def private_memory(self) -> int:
        """Bytes that only this guest holds, as the kernel counts them (Private_* of proc_pid_smaps_rollup)."""
        return await asyncio.to_thread(_private, self.process.pid)

    async def kill(self) -> None:
        """End it now; returns when it is gone with everything it held. Also for one that has ended already."""
        if not self._ended.done():
            self._killed = True
            processes.signal_pidfd(self._held.qemu.pidfd, signal.SIGKILL)
        await self.wait()

    async def wait(self) -> Exit:
        """Returns when the process has ended and what it held is gone."""
        return await asyncio.shield(self._ended)

    async def agent(self) -> Agent:
        """The agent that answers; waits without bound for the first time."""
        async with self._connecting:
            if self._agent is not None and not await _answers(self._agent):
                await self._forget_agent()
            if self._agent is None:
                self._agent = await first_agent(*self._connectors())
            return self._agent

    def _connectors(self) -> Iterator[Connector]:
        yield lambda: agent.connect(self._files.agent, self._gate)
        yield lambda: guestagent.connect(self._files.guest_agent, self._gate)
        if self._files.access_port.exists():
            yield self._connect_ssh

    async def _connect_ssh(self) -> Agent:
        # Imported here, for few machines need it and it takes 20 MiB.
        from roost.hypervisor import sshagent

        port = int(self._files.access_port.read_text())
        key, host_key = self._files.access_key, self._files.host_key
        return await sshagent.connect("127.0.0.1", port, user="root", key=key, host_key=host_key)

    async def detach(self) -> None:
        """Let go without touching the guest."""
        await self._let_go()
        self._held.forget()

    def _qmp(self) -> Monitor:
        if self._ended.done():
            raise Unavailable("the machine did not get the command", "its process has ended")
        return self._monitor

    async def _note(self, interrupted: bool) -> None:
        """Write down that whoever finds it standing still is to let it go on."""
        if not self._ended.done():
            noted = msgspec.structs.replace(self._record, interrupted=interrupted)
            await asyncio.to_thread(record.write, self._files, noted)

    async def _make_room(self) -> None:
        """What the guest gives away stays charged to it as long as others hold it, and it may write all of its memory anew."""
        group = self._held.qemu.cgroup
        if group is not None:
            await asyncio.to_thread(group.make_room, self._record.bound)

    async def _watch(self) -> None:
        await processes.wait_exit(self._held.qemu.pidfd)
        self._signals.end()
        memory = self._held.qemu.ran_out_of_memory()
        code = await self._held.qemu.end()
        for inmate in self._held.beside:
            await inmate.end()
        self._watcher = None
        await self._let_go()
        await asyncio.to_thread(files.remove_tree, self._files.live)
        self._ended.set_result(self._explain(code, out_of_memory=memory))
        if self._held.errors is not None:
            self._held.errors.close()
        self.on_change()

    async def _let_go(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        await self._forget_agent()
        await self._console.close()
        await self._monitor.close()
        await self._memory.close()
        self._forget_kept()

    def _forget_kept(self) -> None:
        if self._kept is not None:
            release(self._kept)
            self._kept = None

    async def _forget_agent(self) -> None:
        if self._agent is not None:
            with contextlib.suppress(RoostError, OSError):
                await self._agent.close()
            self._agent = None

    def _explain(self, code: int | None, *, out_of_memory: bool) -> Exit:
        if self._killed:
            return Exit("it was stopped by force", True)
        if out_of_memory:
            return Exit("it used more memory than its limit and the kernel killed it", False)
        if self._reason in _ENDS:
            return _ENDS[self._reason]
        if code is not None and code < 0:
            return Exit(f"QEMU was killed by {signal.Signals(-code).name}", False)
        why = self._held.last_words()
        return Exit("QEMU ended" + (f" with code {code}" if code else "") + (f": {why}" if why else ""), code == 0)


async def first_agent(*connectors: Connector) -> Agent:
    """The first agent that answers, earlier connectors preferred within a second of each other. Waits as long as none does."""
    tasks = [log.spawn_task(_reach(connector), "reach agent") for connector in connectors]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(tasks[:1], timeout=_PREFERENCE_SECONDS)
        best = next(task for task in tasks if task.done())
        tasks.remove(best)
        agent: Agent = best.result()
        return agent
    finally:
        for task in tasks:
            await _abandon(task)


async def _reach(connector: Connector) -> Agent:
    """An agent that has answered; what fails meanwhile is a guest that is not ready yet."""
    while True:
        with contextlib.suppress(RoostError, OSError):
            return await connector()
        await asyncio.sleep(_RETRY_SECONDS)


async def _answers(agent: Agent) -> bool:
    try:
        await agent.ping(_PING_SECONDS)
    except (RoostError, OSError):
        return False
    return True


async def _abandon(task: asyncio.Task[Agent]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled() and task.exception() is None:
        with contextlib.suppress(RoostError, OSError):
            await task.result().close()


def _private(pid: int) -> int:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        return sum(int(number) for number in re.findall(r"^Private_\w+: +(\d+) kB$", text, re.M)) * 1024
    return 0


def _nothing() -> None:
    """Until somebody wants to know of changes."""
