"""The seam to system virtual machines: what control asks of a hypervisor, and what it gets back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from roost.host.paths import MachineFiles
from roost.model.machine import Isolation, Process, Publish
from roost.model.meta import Arch, Firmware
from roost.model.volume import Limits

RunState = Literal["prelaunch", "running", "paused", "shutdown", "panicked", "internal-error", "io-error", "gone"]
"""What QMP says of the guest, in few words; "gone" when the process has ended."""


class DirectBoot(NamedTuple):
    """A kernel that the hypervisor loads itself: paths on the host, and the kernel command line."""

    kernel: Path
    initramfs: Path | None
    command_line: str


class Disk(NamedTuple):
    """A disk of the machine. `file` is opened by us and passed by descriptor; `below` are the read-only qcow2 files that it stands on,
    the nearest first."""

    file: Path
    below: Sequence[Path] = ()
    format: Literal["qcow2", "raw"] = "qcow2"
    read_only: bool = False
    serial: str = ""


class Overlay(NamedTuple):
    """An empty qcow2 file, as large as the disk that it is to cover, and the name of QEMU's node for it: [a-z][a-z0-9-]{0,24}, never
    used before in this machine."""

    file: Path
    node: str


class Medium(NamedTuple):
    """How the bytes of a volume are reached: a `file` of this host, opened by us and passed by descriptor, that stands on the read-only qcow2
    files `below`, the nearest first; or the unix `socket` of an NBD server and its `export`. `key` is the passphrase of what is encrypted by
    LUKS in it; it is never in argv or in a message of ours. In the order of storage.pool.Opened."""

    format: Literal["qcow2", "raw"]
    file: Path | None = None
    below: Sequence[Path] = ()
    socket: Path | None = None
    export: str = ""
    key: bytes | None = None


class Attachment(NamedTuple):
    """A volume as a machine is given it: `uid` (a UUID) is the volume's, `lun` its place (0 to MOST_VOLUMES - 1), `serial` what the guest knows it by
    (1 to 36 letters, digits, '.', '_' and '-'). Several machines may have one that all of them have `read_only`."""

    uid: str
    lun: int
    serial: str
    medium: Medium
    limits: Limits = Limits()
    read_only: bool = False


class Volumes(Protocol):
    """The volumes of one guest, at any time from before its first instruction on. What QEMU says counts: nothing is remembered."""

    async def attached(self) -> Mapping[int, str]:
        """The uids of the volumes, as they were given to `attach`, by their LUNs."""
        ...

    async def attach(self, attachment: Attachment) -> None:
        """Plug a volume in. Nothing when exactly this one is there. Raises Conflict (the LUN is taken, the volume is in use elsewhere), Invalid,
        Unavailable (its file, server or key); then nothing of it is left behind."""
        ...

    async def detach(self, lun: int, *, force: bool = False) -> None:
        """Take a volume out: returns when all is written and QEMU has closed it. Nothing when there is none. A guest whose agent answers lets go
        of it first; raises Conflict when it uses it (mounted, part of something) or stands still, and Unavailable when it does not let go
        in time: then it is attached still. `force` takes it away without asking; what the guest has not written yet is lost."""
        ...

    async def limit(self, lun: int, limits: Limits) -> None:
        """Other limits, from now on. Raises NotFound, Unavailable."""
        ...

    async def grow(self, lun: int, size: int) -> None:
        """Grow a volume to `size` bytes, and tell the guest; nothing when it is as large already. Raises Invalid for a smaller one, NotFound,
        Conflict while it moves."""
        ...

    async def move(
        self, lun: int, to: Medium, progress: Callable[[float], None], ready: Callable[[], Awaitable[None]]
    ) -> None:
        """Copy a volume to an empty medium of the same size, and from then on use that alone, while the guest goes on. `ready` is awaited as
        soon as `to` is used, has all, and the guest still stands still for it (so be quick): until it has returned the guest is told of no write
        that the old one lacks. When this raises (Unavailable, OutcomeUnknown, NotFound, Conflict) or is cancelled, the volume is where
        `backing` says: as a rule where it was."""
        ...

    async def backing(self, lun: int) -> Medium | None:
        """Which file the volume is written to now; without what is below and without a key. None when there is no volume.
        This tells after a cut of any kind whether a move or a cover came to be."""
        ...

    async def cover(self, lun: int, overlay: Overlay, key: bytes | None = None) -> None:
        """What was written until now stays in the file below, which QEMU writes no more; the overlay is written from now on. Raises Unavailable,
        OutcomeUnknown, NotFound, Conflict while it moves; then `backing` tells."""
        ...


class Frozen(Protocol):
    """A guest's memory at one instant, which nobody writes any more: see hypervisor.memory.Memory. `size` in bytes."""

    size: int

    def close(self) -> None:
        """Let go of it; whoever maps the memory keeps it."""
        ...

    def resident(self) -> int:
        """Bytes that it takes."""
        ...


class Saved(NamedTuple):
    """A running guest at one instant, in memory: whoever has it owns its descriptors, and calls hypervisor.saved.release.

    `device` is QEMU's stream of device state in a sealed memfd, `memory` the guest's memory. `pause` is the longest that the guest stood
    still at once, in seconds; `method` as in `Guest.cloning`. Both parts are None for disks alone.
    """

    device: int | None
    memory: Frozen | None
    pause: float = 0.0
    method: Literal["in-place", "copy"] = "in-place"


class Card(NamedTuple):
    """A network card that a network of Roost's own is plugged into. `slot` 0 is on the board itself; the others, up to SLOTS, can be plugged and
    unplugged while the machine runs. `tap` is the descriptor of its tap, which stays the caller's; without one it leads nowhere."""

    slot: int
    mac: str
    tap: int | None = None


SLOTS = 4
"""Places for cards that can be plugged in while the machine runs: as many as a machine may have ports. Each lengthens a boot by some 30 ms."""


class Launch(NamedTuple):
    """All that is needed to start one machine, decided already: the hypervisor adds nothing of its own but facts of the host.

    `memory` is in bytes. `uid` is the machine's identity (a UUID) and its SMBIOS UUID. `hostname` is for the network's DHCP.
    A network "unplugged" is a network card whose link stays down. `cards` are further ones; with a user network
    none of them is in slot 0. With `saved` the guest does not boot but goes on from there:
    everything else must give the same `shape`. `spare` names the pool whose waiting QEMU may be taken. `display` gives it a graphics card,
    whose picture `Guest.screenshot` takes; nobody else sees it.
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
    network: Literal["user", "none", "unplugged"] = "user"
    cards: Sequence[Card] = ()
    publish: Sequence[Publish] = ()
    hostname: str = ""
    tpm: bool = False
    saved: Saved | None = None
    spare: str = ""
    display: bool = False


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


class HostKey(NamedTuple):
    """An SSH host key: OpenSSH's names for the kind ("ed25519", "ecdsa"), the private key file's text and the public key's line."""

    kind: str
    private: str
    public: str


class CardSetup(NamedTuple):
    """What the network card with this MAC address is given, in place of what it had: addresses with the length of their prefix
    ("10.20.0.5/24"), the gateways of its default routes, resolvers, the domain in which names are looked up, bytes of a packet."""

    mac: str
    addresses: Sequence[str] = ()
    gateways: Sequence[str] = ()
    resolvers: Sequence[str] = ()
    domain: str = ""
    mtu: int = 1500


class Setup(NamedTuple):
    """First-boot set-up, done once by the agent for each machine id; in a clone it is what makes the clone another machine.

    `entropy` (32 to 64 bytes, or nothing) goes into the kernel's random number generator first of all. `host_keys` replace those
    that are there, and an SSH server that runs takes them. `link` gives the network card with the first MAC address the second. `cards`
    are done every time, also for a machine id that was set up already; one that is not there is left to the guest's DHCP client, or, when
    they were `plugged` in just now, waited for.
    """

    hostname: str
    machine_id: str
    ssh_keys: Sequence[str] = ()
    users: Sequence[tuple[str, Sequence[str], bool]] = ()
    grow_root: bool = False
    entropy: bytes = b""
    host_keys: Sequence[HostKey] = ()
    link: tuple[str, str] | None = None
    cards: Sequence[CardSetup] = ()
    plugged: bool = False


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

    async def seal(self) -> None:
        """Make ready to be copied: remove what tells this machine from another (machine-id, host keys, random seed, name, DHCP leases, logins),
        and write everything to disk. Raises CommandFailed."""
        ...

    async def freeze(self) -> None:
        """Write everything to disk and hold all further writing to file systems, for at most 10 s: then they thaw by themselves.
        Raises CommandFailed."""
        ...

    async def thaw(self) -> None:
        """Let writing go on; nothing when it does."""
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
    volumes: Volumes
    trouble: str
    """What QEMU said of the error of a disk for which the guest stands still ("No space left on device"), or ""."""
    on_change: Callable[[], None]
    cloning: Literal["in-place", "copy"]
    """How `checkpoint` keeps memory: "in-place" shares it, "copy" copies it while the guest stands still."""

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

    async def checkpoint(
        self, overlays: Sequence[Overlay], copies: Sequence[tuple[Path, Path]] = (), *, memory: bool = True
    ) -> Saved:
        """The guest at one instant, and it goes on as it was (running or paused).

        `overlays` cover its writable disks, in the order of Launch.disks: what was written before the instant stays in the files
        below, which QEMU writes no more. `copies` (from, to) are small files copied while it stands still. While it stands still
        `state` tells what it was and `on_change` is silent. Raises Conflict (something blocks it: why and fix say what), Unavailable,
        OutcomeUnknown; then the guest goes on unharmed, and `tops` tells whether its disks were covered.
        """
        ...

    async def tops(self) -> tuple[str, ...]:
        """The names of the nodes that the writable disks write to, in the order of Launch.disks."""
        ...

    async def flatten(self, progress: Callable[[float], None], name: str = "") -> None:
        """Copy into the first disk all that it takes from the files below it, except from the lowest, which it then stands on alone. The guest
        runs meanwhile. `name` is what the disk's header says of that file, for people. Returns when that is durable; when cancelled or
        raising (Unavailable, OutcomeUnknown) the disk stands where it stood."""
        ...

    async def resize_disk(self, size: int) -> None:
        """Grow the first disk to `size` bytes, and tell the guest."""
        ...

    async def set_link(self, *, up: bool, slots: Sequence[int] = (0,)) -> None:
        """Plug the cable into the network cards in these slots, or pull it; nothing for slots without a card."""
        ...

    async def cards(self) -> Mapping[int, str]:
        """The network cards that are there: their MAC addresses, by their slots."""
        ...

    async def plug_in(self, card: Card) -> None:
        """Put a network card with a tap into a free slot. Raises Conflict (slot 0, or it is taken), Unavailable."""
        ...

    async def unplug(self, slot: int) -> None:
        """Take the card out of a slot; returns when the guest let go of it and its tap is closed. Nothing when there is none. Raises Conflict for
        slot 0, Unavailable when the guest does not let go."""
        ...

    async def screenshot(self) -> bytes:
        """What its screen shows, as a PNG of at most 16 MiB. Raises Conflict for a machine without `Launch.display`, Unavailable."""
        ...

    async def private_memory(self) -> int:
        """Bytes of memory that only this guest holds; 0 when it can not be told."""
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
        """A guest paused before its first instruction (or, with `launch.saved`, where it was saved, its link down), its Process recorded in
        `launch.files.record`. Raises Unavailable, Conflict (port taken, disk in use), NotStarted; then nothing is left behind. A spare that
        is taken brings its own empty disk, which replaces `launch.disks[0].file`."""
        ...

    async def adopt(self, files: MachineFiles, uid: str) -> Guest | None:
        """The guest that an earlier daemon started, or None when it is gone; never a foreign process. What it left is removed."""
        ...

    def shape(self, launch: Launch) -> str:
        """What a saved guest and the QEMU that takes it over must have in common, as a hash (hexadecimal): the QEMU build, machine type, CPU
        model and count, memory, accelerator, firmware, kernel, and every device; nothing that tells one machine from another."""
        ...

    async def keep_spares(self, launch: Launch, count: int) -> None:
        """From now on keep `count` QEMUs waiting for `launch.spare`; `launch` (its uid and files do not matter) tells what they are like and has
        `saved`. They are made in the background, one at a time, and none when memory is short. 0 ends them."""
        ...

    async def close(self) -> None:
        """End all spares."""
        ...
