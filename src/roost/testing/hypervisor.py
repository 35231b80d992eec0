"""A hypervisor without guests: machines that run, answer and die as told, for tests of everything above it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from roost.errors import Conflict, Invalid, NotFound, NotStarted, RoostError, Unavailable
from roost.host.paths import MachineFiles
from roost.hypervisor.base import (
    Agent,
    Attachment,
    Card,
    Chunk,
    Command,
    Console,
    Exit,
    Guest,
    Launch,
    Medium,
    Overlay,
    RunState,
    Saved,
    Session,
    Setup,
    Volumes,
)
from roost.model.machine import Isolation, Process
from roost.model.volume import MOST_VOLUMES, Limits

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


class FakeVolumes:
    """The volumes of a guest that obeys. `done` is what was asked, in order; `refuse` is raised instead of doing anything; with `clings` the guest
    lets go of none; `hold`, once a test makes one, is waited for in a move after its first half."""

    def __init__(self) -> None:
        self.present: dict[int, Attachment] = {}
        self.sizes: dict[int, int] = {}
        self.done: list[str] = []
        self.refuse: RoostError | None = None
        self.clings = False
        self.hold: asyncio.Event | None = None

    async def attached(self) -> Mapping[int, str]:
        return {lun: one.uid for lun, one in self.present.items()}

    async def attach(self, attachment: Attachment) -> None:
        lun = attachment.lun
        self._note(f"attach {lun}")
        if not 0 <= lun < MOST_VOLUMES:
            raise Invalid("the volume was not attached", f"there is no LUN {lun}")
        here = self.present.get(lun)
        if here is not None and here.uid != attachment.uid:
            raise Conflict("the volume was not attached", f"LUN {lun} is taken")
        if any(one.uid == attachment.uid for place, one in self.present.items() if place != lun):
            raise Conflict("the volume was not attached", "it is attached already")
        self.present.setdefault(lun, attachment)

    async def detach(self, lun: int, *, force: bool = False) -> None:
        self._note(f"detach {lun}")
        if self.clings and lun in self.present and not force:
            raise Unavailable("the volume was not detached", "the guest does not let go of it")
        self.present.pop(lun, None)

    async def limit(self, lun: int, limits: Limits) -> None:
        self._note(f"limit {lun}")
        self.present[lun] = self._find(lun)._replace(limits=limits)

    async def grow(self, lun: int, size: int) -> None:
        self._note(f"grow {lun}")
        self._find(lun)
        if size < self.sizes.get(lun, 0):
            raise Invalid("the volume was not grown", "it is larger already")
        self.sizes[lun] = size

    async def move(
        self, lun: int, to: Medium, progress: Callable[[float], None], ready: Callable[[], Awaitable[None]]
    ) -> None:
        self._note(f"move {lun}")
        found = self._find(lun)
        progress(0.5)
        if self.hold is not None:
            await self.hold.wait()
        await ready()
        self.present[lun] = found._replace(medium=to)
        progress(1.0)

    async def backing(self, lun: int) -> Medium | None:
        found = self.present.get(lun)
        return None if found is None else found.medium._replace(below=(), key=None)

    async def cover(self, lun: int, overlay: Overlay, key: bytes | None = None) -> None:
        self._note(f"cover {lun}")
        found = self._find(lun)
        below = (*((found.medium.file,) if found.medium.file else ()), *found.medium.below)
        self.present[lun] = found._replace(medium=Medium("qcow2", overlay.file, below, key=key))

    def _note(self, what: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.done.append(what)

    def _find(self, lun: int) -> Attachment:
        if lun not in self.present:
            raise NotFound("no such volume", f"LUN {lun} is empty")
        return self.present[lun]


class FakeGuest:
    """A guest that obeys. `hears_power` False: it ignores its power button."""

    def __init__(self, launch: Launch, process: Process, *, hears_power: bool) -> None:
        self.launch = launch
        self.process = process
        self.isolation = Isolation(boundary="none", note="a fake")
        self.addresses: tuple[str, ...] = ("10.0.0.2",) if launch.network == "user" else ()
        self.fake_console = FakeConsole()
        self.console: Console = self.fake_console
        self.fake_volumes = FakeVolumes()
        self.volumes: Volumes = self.fake_volumes
        self.trouble = ""
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

    async def screenshot(self) -> bytes:
        if not self.launch.display:
            raise Conflict("there is no picture", "the machine has no screen")
        return b"\x89PNG\r\n\x1a\n"

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
