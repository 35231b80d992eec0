"""The seam to system virtual machines: what control asks of a hypervisor, and what it gets back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from roost.host.paths import MachineFiles
from roost.model.machine import Isolation, Process, Publish
from roost.model.meta import Arch, Firmware

RunState = Literal["prelaunch", "running", "paused", "shutdown", "panicked", "internal-error", "io-error", "gone"]
"""What QMP says of the guest, in few words; "gone" when the process has ended."""


class DirectBoot(NamedTuple):
    """A kernel that the hypervisor loads itself: paths on the host, and the kernel command line."""

    kernel: Path
    initramfs: Path | None
    command_line: str


class Disk(NamedTuple):
    """A disk of the machine. `file` is opened by us and passed by descriptor; `base` is the read-only image below a qcow2 overlay."""

    file: Path
    base: Path | None = None
    format: Literal["qcow2", "raw"] = "qcow2"
    read_only: bool = False
    serial: str = ""


class Launch(NamedTuple):
    """All that is needed to start one machine, decided already: the hypervisor adds nothing of its own but facts of the host.

    `memory` is in bytes. `uid` is the machine's identity (a UUID) and its SMBIOS UUID. `hostname` is for the network's DHCP.
    """

    uid: str
    arch: Arch
    cpus: int
    memory: int
    accelerator: Literal["kvm", "tcg"]
    firmware: Firmware
    files: MachineFiles
    direct: DirectBoot | None = None
    disks: Sequence[Disk] = ()
    seed: Path | None = None
    network: Literal["user", "none"] = "user"
    publish: Sequence[Publish] = ()
    hostname: str = ""


class Exit(NamedTuple):
    """How a guest's process ended. `reason` for people; `clean` when the guest or we asked for it."""

    reason: str
    clean: bool


class Chunk(NamedTuple):
    """A piece of a running command's output; `stream` "exit" ends it with `code` (128 + signal when killed)."""

    stream: Literal["stdout", "stderr", "exit"]
    data: bytes = b""
    code: int = 0


class Command(NamedTuple):
    """A command for a guest: argv, no shell. `terminal` is (rows, columns) when it wants a terminal, else None."""

    argv: Sequence[str | bytes]
    env: Mapping[str, str] = {}
    cwd: str = ""
    user: str = ""
    stdin: bool = False
    terminal: tuple[int, int] | None = None


class Session(Protocol):
    """A command running inside a guest. Nothing is buffered without bound: whoever does not read, stops the guest's writer."""

    def output(self) -> AsyncIterator[Chunk]:
        """The output as it comes; the last chunk is the exit."""
        ...

    async def write(self, data: bytes) -> None:
        """Feed standard input; waits while the guest has no room."""
        ...

    async def end_input(self) -> None:
        """End of standard input."""
        ...

    async def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        ...

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size."""
        ...

    async def close(self) -> None:
        """Kill the command if it still runs, and forget the session."""
        ...


class Setup(NamedTuple):
    """First-boot set-up, done once by the agent."""

    hostname: str
    machine_id: str
    ssh_keys: Sequence[str] = ()
    users: Sequence[tuple[str, Sequence[str], bool]] = ()
    grow_root: bool = False


class Agent(Protocol):
    """What answers inside a guest, by whichever way (Roost's own agent, qemu-guest-agent, SSH)."""

    kind: Literal["roost", "qemu-ga", "ssh"]

    async def ping(self, timeout: float) -> None:
        """Returns when the guest answered. Raises NotStarted after `timeout` seconds."""
        ...

    async def execute(self, command: Command) -> Session:
        """Start a command. Raises NotStarted when the guest could not (no such file, ...), OutcomeUnknown when it may have."""
        ...

    async def setup(self, setup: Setup) -> None:
        """Apply the first-boot set-up."""
        ...

    async def power(self, action: Literal["off", "reboot"]) -> None:
        """Ask the guest's operating system to shut down. Raises CommandFailed; that the guest is gone before it answered is no error."""
        ...

    async def send_archive(self, path: str, stream: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the directory `path` of the guest (made when missing)."""
        ...

    def receive_archive(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of the guest's file or directory `path`; member names are relative to its parent. Raises NotFound."""
        ...

    async def close(self) -> None:
        """Let go of the guest; what runs in it is not touched by us but ends with the connection."""
        ...


class Console(Protocol):
    """The serial console: a bounded memory of what was printed, and a live stream for any number of readers."""

    def history(self) -> bytes:
        """The last bytes printed, at most the bound of the ring."""
        ...

    def follow(self) -> AsyncIterator[bytes]:
        """History, then what is printed from now on. A reader who is too slow misses bytes, never holds up the guest."""
        ...

    async def write(self, data: bytes) -> None:
        """Type on the console."""
        ...


class Guest(Protocol):
    """A machine whose process we hold. `on_change` is called (from the event loop) whenever `state` may have changed."""

    process: Process
    isolation: Isolation
    addresses: tuple[str, ...]
    console: Console
    on_change: Callable[[], None]

    async def state(self) -> RunState:
        """What the guest is doing now."""
        ...

    async def resume(self) -> None:
        """Let it run (also for the first time)."""
        ...

    async def pause(self) -> None:
        """Stop its virtual CPUs."""
        ...

    async def reset(self) -> None:
        """Press the reset button."""
        ...

    async def press_power(self) -> None:
        """Press the power button: the guest shuts down if it wants to."""
        ...

    async def kill(self) -> None:
        """End the process now; returns when it is gone and everything it held (passt, control group, sockets) with it."""
        ...

    async def wait(self) -> Exit:
        """Returns when the process has ended."""
        ...

    async def agent(self) -> Agent:
        """The best agent the guest has; connects at need, waits without bound: use a timeout."""
        ...

    async def detach(self) -> None:
        """Let go without touching the guest (the daemon ends, the guest goes on)."""
        ...


class Hypervisor(Protocol):
    """Starts machines in a jail and finds them again."""

    async def start(self, launch: Launch) -> Guest:
        """A guest paused before its first instruction, its Process recorded in `launch.files.record`. Raises Unavailable, Conflict (port
        taken, disk in use), NotStarted; then nothing is left behind."""
        ...

    async def adopt(self, files: MachineFiles, uid: str) -> Guest | None:
        """The guest that an earlier daemon started, or None when it is gone; never a foreign process. What it left is removed."""
        ...
