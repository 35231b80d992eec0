"""One running QEMU that we hold: its state, its buttons, its end, and letting go of it without touching it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple, TypeAlias

from roost import log
from roost.errors import RoostError, Unavailable
from roost.host import files, processes
from roost.host.cgroups import CGroup
from roost.host.paths import MachineFiles
from roost.hypervisor import agent, guestagent
from roost.hypervisor.base import Agent, Console, Exit, RunState
from roost.hypervisor.console import Record, SerialConsole
from roost.hypervisor.monitor import Event, Monitor
from roost.model.machine import Isolation, Process

_PREFERENCE_SECONDS = 1.0
"""How long Roost's own agent may be slower than qemu-guest-agent and still be taken."""

_STDERR = 64 << 10
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


class ErrorFile:
    """Where QEMU's messages go: memory of a fixed size, which needs no reader, takes no more when full, and outlives us."""

    def __init__(self) -> None:
        descriptor = os.memfd_create("stderr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._file = os.fdopen(descriptor, "rb", buffering=0)
        os.ftruncate(descriptor, _STDERR)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)

    def fileno(self) -> int:
        """The descriptor to pass on."""
        return self._file.fileno()

    def close(self) -> None:
        """Let go of it."""
        self._file.close()

    def read(self) -> str:
        """What was written, without control characters, at most the last 2000 characters."""
        text = os.pread(self.fileno(), _STDERR, 0).rstrip(b"\0").decode(errors="replace").strip()
        return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)[-2000:]


class Inmate(NamedTuple):
    """A jailed process that we hold by its pidfd, and its control group."""

    process: Process
    pidfd: int
    cgroup: CGroup | None

    async def end(self) -> int | None:
        """Kill it, wait until it is gone, remove its control group, close the pidfd. Returns how it ended, if that can be known."""
        processes.signal_pidfd(self.pidfd, signal.SIGKILL)
        code = await processes.wait_pidfd(self.pidfd)
        os.close(self.pidfd)
        if self.cgroup is not None:
            await self.cgroup.remove()
        return code

    def ran_out_of_memory(self) -> bool:
        """Whether the kernel killed in its control group for its memory limit (memory.events, or version 1's memory.oom_control)."""
        for directory in self.cgroup.directories if self.cgroup else ():
            for name in ("memory.events", "memory.oom_control"):
                with contextlib.suppress(OSError):
                    if re.search(r"^oom_kill [1-9]", (directory / name).read_text(), re.M):
                        return True
        return False


class Held(NamedTuple):
    """All that belongs to a running machine: QEMU, the processes that are its network, and QEMU's standard error if we have it."""

    qemu: Inmate
    network: tuple[Inmate, ...]
    errors: ErrorFile | None

    def last_words(self) -> str:
        """What QEMU wrote to its standard error, "" when an earlier daemon started it."""
        return self.errors.read() if self.errors else ""

    def forget(self) -> None:
        """Close what we hold of it; the processes are not touched."""
        for inmate in (self.qemu, *self.network):
            os.close(inmate.pidfd)
        if self.errors is not None:
            self.errors.close()


class QemuGuest:
    """A machine whose QEMU we hold. Implements `base.Guest`."""

    def __init__(self, machine: MachineFiles, held: Held, isolation: Isolation, addresses: tuple[str, ...]) -> None:
        self.process = held.qemu.process
        self.isolation = isolation
        self.addresses = addresses
        self._console = SerialConsole(machine.console, Record(machine.console_log))
        self.console: Console = self._console
        self.on_change: Callable[[], None] = _nothing
        self._files = machine
        self._held = held
        self._monitor: Monitor | None = None
        self._agent: Agent | None = None
        self._connecting = asyncio.Lock()
        self._reason = ""
        self._killed = False
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._watcher: asyncio.Task[None] | None = None

    def attend(self, monitor: Monitor) -> None:
        """Begin: read the console, watch for the end. Raises OSError when the console can not be reached."""
        self._monitor = monitor
        self._console.open()
        self._watcher = log.spawn_task(self._watch(), f"watch {self.process.pid}")

    def on_event(self, event: Event) -> None:
        """What QEMU tells."""
        if event.name == "SHUTDOWN":
            self._reason = event.detail
        self.on_change()

    async def state(self) -> RunState:
        """What the guest is doing; "gone" when its process has ended."""
        if self._monitor is None or self._ended.done():
            return "gone"
        try:
            return await self._monitor.query_status()
        except RoostError:
            if not processes.is_alive(self._held.qemu.pidfd):
                return "gone"
            raise

    async def resume(self) -> None:
        """Let it run."""
        await self._qmp().cont()

    async def pause(self) -> None:
        """Stop its virtual CPUs."""
        await self._qmp().stop()

    async def reset(self) -> None:
        """Press the reset button, and let it run if it was paused by a panic."""
        await self._qmp().system_reset()
        await self._qmp().cont()

    async def press_power(self) -> None:
        """Press the power button."""
        await self._qmp().system_powerdown()

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
        yield lambda: agent.connect(self._files.agent)
        yield lambda: guestagent.connect(self._files.guest_agent)
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
        if self._monitor is None or self._ended.done():
            raise Unavailable("the machine did not get the command", "its process has ended")
        return self._monitor

    async def _watch(self) -> None:
        await processes.wait_exit(self._held.qemu.pidfd)
        memory = self._held.qemu.ran_out_of_memory()
        code = await self._held.qemu.end()
        for inmate in self._held.network:
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
        if self._monitor is not None:
            await self._monitor.close()

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


def _nothing() -> None:
    """Until somebody wants to know of changes."""
