"""A hypervisor without guests: machines that run, answer and die as told, for tests of everything above it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from roost.errors import Conflict, NotStarted, RoostError
from roost.host.paths import MachineFiles
from roost.hypervisor.base import (
    Agent,
    Card,
    Chunk,
    Command,
    Console,
    Exit,
    Guest,
    Launch,
    Overlay,
    RunState,
    Saved,
    Session,
    Setup,
)
from roost.model.machine import Isolation, Process

USER_MAC = "52:54:00:00:00:01"


class FakeSession:
    """Echoes its argv, then its input, and ends with 0 (or with the number that follows "exit")."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)
        self.signals: list[int] = []
        self.closed = False

    async def output(self) -> AsyncIterator[Chunk]:
        argv = [part if isinstance(part, str) else part.decode() for part in self._command.argv]
        if argv[0] == "exit":
            yield Chunk("exit", code=int(argv[1]))
            return
        yield Chunk("stdout", " ".join(argv[1:] if argv[0] == "echo" else argv).encode() + b"\n")
        while self._command.stdin and (data := await self._input.get()) is not None:
            yield Chunk("stdout", data)
        yield Chunk("exit", code=0)

    async def write(self, data: bytes) -> None:
        await self._input.put(data)

    async def end_input(self) -> None:
        await self._input.put(None)

    async def signal(self, number: int) -> None:
        self.signals.append(number)

    async def resize(self, rows: int, columns: int) -> None:
        return None

    async def close(self) -> None:
        self.closed = True


class FakeAgent:
    """Answers at once."""

    kind: Literal["roost", "qemu-ga", "ssh"] = "roost"

    def __init__(self) -> None:
        self.setups: list[Setup] = []
        self.powers: list[str] = []
        self.done: list[str] = []
        self.archives: dict[str, bytes] = {}

    async def ping(self, timeout: float) -> None:
        return None

    async def execute(self, command: Command) -> Session:
        if not command.argv or command.argv[0] == "missing":
            raise NotStarted("command did not start", "no such file", "check the name")
        return FakeSession(command)

    async def setup(self, setup: Setup) -> None:
        self.setups.append(setup)

    async def power(self, action: Literal["off", "reboot"]) -> None:
        self.powers.append(action)

    async def seal(self) -> None:
        self.done.append("seal")

    async def freeze(self) -> None:
        self.done.append("freeze")

    async def thaw(self) -> None:
        self.done.append("thaw")

    async def send_archive(self, path: str, stream: AsyncIterator[bytes]) -> None:
        self.archives[path] = b"".join([part async for part in stream])

    async def receive_archive(self, path: str) -> AsyncIterator[bytes]:
        yield self.archives.get(path, b"")

    async def close(self) -> None:
        return None


class FakeConsole:
    """Remembers what was typed and shows it."""

    def __init__(self) -> None:
        self._printed = b"fake guest\n"

    def history(self) -> bytes:
        return self._printed

    async def follow(self) -> AsyncIterator[bytes]:
        yield self._printed

    async def write(self, data: bytes) -> None:
        self._printed += data


class FakeGuest:
    """A guest that obeys. `hears_power` False: it ignores its power button."""

    def __init__(self, launch: Launch, process: Process, *, hears_power: bool) -> None:
        self.launch = launch
        self.process = process
        self.isolation = Isolation(boundary="none", note="a fake")
        self.addresses: tuple[str, ...] = ("10.0.0.2",) if launch.network == "user" else ()
        self.fake_console = FakeConsole()
        self.console: Console = self.fake_console
        self.on_change: Callable[[], None] = lambda: None
        self.hears_power = hears_power
        self.answering = FakeAgent()
        self.silent = False
        self._speaks = asyncio.Event()
        self.presses = 0
        self.cloning: Literal["in-place", "copy"] = "in-place"
        self.checkpoints = 0
        self.nodes = ["disk0"] * len(launch.disks)
        self.refuse_checkpoint: RoostError | None = None
        self.flattened = 0
        self.size = 0
        self.link_up = launch.saved is None and launch.network == "user"
        self.plugged = {card.slot: card.mac for card in launch.cards} | (
            {0: USER_MAC} if launch.network == "user" else {}
        )
        self.taps = {card.slot: os.dup(card.tap) for card in launch.cards if card.tap is not None}
        self.links = dict.fromkeys(self.plugged, launch.saved is None)
        self.private = 30 << 20
        self._state: RunState = "prelaunch"
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def become(self, state: RunState) -> None:
        """The guest changes its state by itself (a panic, ...)."""
        self._state = state
        self.on_change()

    def speak(self) -> None:
        """A silent guest answers."""
        self.silent = False
        self._speaks.set()

    def end(self, reason: str, *, clean: bool) -> None:
        """The process ends."""
        self._state = "gone"
        while self.taps:
            os.close(self.taps.popitem()[1])
        if not self._ended.done():
            self._ended.set_result(Exit(reason, clean))

    async def state(self) -> RunState:
        return self._state

    async def resume(self) -> None:
        self.become("running")

    async def pause(self) -> None:
        self.become("paused")

    async def reset(self) -> None:
        return None

    async def press_power(self) -> None:
        self.presses += 1
        if self.hears_power:
            self.end("the guest shut down", clean=True)

    async def checkpoint(
        self, overlays: Sequence[Overlay], copies: Sequence[tuple[Path, Path]] = (), *, memory: bool = True
    ) -> Saved:
        if self.refuse_checkpoint is not None:
            raise self.refuse_checkpoint
        self.checkpoints += 1
        self.nodes = [overlay.node for overlay in overlays]
        for source, target in copies:
            target.write_bytes(source.read_bytes())
        device = os.memfd_create("device", os.MFD_CLOEXEC) if memory else None
        return Saved(device, None, pause=0.02, method=self.cloning)

    async def tops(self) -> tuple[str, ...]:
        return tuple(self.nodes)

    async def flatten(self, progress: Callable[[float], None], name: str = "") -> None:
        self.flattened += 1
        progress(1.0)

    async def resize_disk(self, size: int) -> None:
        self.size = size

    async def set_link(self, *, up: bool, slots: Sequence[int] = (0,)) -> None:
        self.link_up = up if 0 in slots else self.link_up
        self.links |= {slot: up for slot in slots if slot in self.plugged}

    async def cards(self) -> Mapping[int, str]:
        return dict(self.plugged)

    async def plug_in(self, card: Card) -> None:
        if card.slot in self.plugged or not card.slot or card.tap is None:
            raise Conflict(f"slot {card.slot} takes no card")
        self.plugged[card.slot], self.links[card.slot], self.taps[card.slot] = card.mac, True, os.dup(card.tap)

    async def unplug(self, slot: int) -> None:
        if not slot:
            raise Conflict("the card in slot 0 is fixed")
        self.plugged.pop(slot, None)
        self.links.pop(slot, None)
        if slot in self.taps:
            os.close(self.taps.pop(slot))

    async def private_memory(self) -> int:
        return self.private

    async def kill(self) -> None:
        self.end("killed", clean=False)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def agent(self) -> Agent:
        if self.silent:
            await self._speaks.wait()
        return self.answering

    async def detach(self) -> None:
        return None


class FakeHypervisor:
    """Starts fake guests. `guests` outlive a "restart" of the control plane as real processes do: hand the same fake to the next.
    `doubles` counts starts of a machine that ran already: each is a fault of the caller."""

    def __init__(self, *, hears_power: bool = True) -> None:
        self.guests: dict[str, FakeGuest] = {}
        self.launches: list[Launch] = []
        self.hears_power = hears_power
        self.doubles = 0
        self.refuse: RoostError | None = None
        self.silent = False
        self.spares: dict[str, int] = {}

    async def start(self, launch: Launch) -> Guest:
        if self.refuse is not None:
            raise self.refuse
        current = self.guests.get(launch.uid)
        if current is not None and await current.state() != "gone":
            self.doubles += 1
            raise Conflict(f"machine {launch.uid} runs already")
        self.launches.append(launch)
        process = Process(pid=100_000 + len(self.launches), start=1, uid=300_000, boot="fake")
        guest = FakeGuest(launch, process, hears_power=self.hears_power)
        guest.silent = self.silent
        self.guests[launch.uid] = guest
        return guest

    async def adopt(self, files: MachineFiles, uid: str) -> Guest | None:
        guest = self.guests.get(uid)
        return guest if guest is not None and await guest.state() != "gone" else None

    def shape(self, launch: Launch) -> str:
        parts = (
            launch.arch,
            launch.cpus,
            launch.memory,
            launch.accelerator,
            launch.firmware,
            launch.network != "none",
            sorted(card.slot for card in launch.cards),
            launch.tpm,
        )
        return hashlib.sha256(repr((*parts, launch.direct, launch.seed is not None)).encode()).hexdigest()

    async def keep_spares(self, launch: Launch, count: int) -> None:
        self.spares[launch.spare] = count

    async def close(self) -> None:
        self.spares.clear()
