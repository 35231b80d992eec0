"""Decides how a machine is started: from (launch, facts) to QEMU's arguments and all it is handed. Pure.

Everything that can go by descriptor does: the jail holds no path of the host but the kernel, the initramfs and /dev/kvm,
which QEMU opens by name only. Whatever a user wrote goes into JSON (or is the single argument of -append), never into
QEMU's comma lists; every layer of every disk names its driver, so nothing is probed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from roost.errors import Invalid, Unavailable
from roost.host.paths import MachineFiles
from roost.hypervisor.base import SLOTS, Card, Disk, Launch
from roost.hypervisor.boards import BOARDS, Board, find_pflash, kvm_cpu
from roost.model import size
from roost.model.facts import Emulator, HostFacts
from roost.model.meta import MiB
from roost.model.volume import MOST_VOLUMES

_NOBODY = "00000000-0000-0000-0000-000000000000"
_NO_MAC = "52:54:00:00:00:00"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_COMMAND_LINE = re.compile(r"[^\x00-\x1f\x7f]{0,2047}")
"""x86 kernels take 2048 bytes with the final zero: COMMAND_LINE_SIZE."""
_SERIAL = re.compile(r"[\x21-\x7e]{0,20}")  # VIRTIO_BLK_ID_BYTES
SEED_SERIAL = "roost-seed"

AGENT_PORT = "roost.agent.0"
GUEST_AGENT_PORT = "org.qemu.guest_agent.0"

_FIRST_FD = 10
_OVERHEAD = 320 * MiB
"""What QEMU may use beside the guest's memory and its translation cache: its own heap, device state, disk buffers."""
_IO_THREADS = 73
"""QEMU's pool makes up to 64 threads for disk requests (util/thread-pool.c); main loop, RCU, our library's and some to spare."""
_FILES = 256 + MOST_VOLUMES * 32
"""Descriptors: QEMU's own, and for volumes three for each file of chains as long as they become."""
NETWORK_CARD = "nic0"

NETWORK_CABLE = "cable"
"""What joins the card of a machine that went on from a saved state with its network."""
HUB = 0
"""The hub of the card in slot 0; that of every other slot has its number."""
_SLOTS_AT = 0x1D
"""The place on the board of the ports that cards can be plugged into while it runs: functions of one device, free on every board."""

CONTROLLER = "volumes"
"""What volumes are plugged into, in every machine: QEMU's name of the bus is that with ".0" after it."""
_CONTROLLER_AT = 0x1C  # free on every board

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Listen(NamedTuple):
    """A listening unix socket that the daemon makes at `path` and QEMU accepts on."""

    fd: int
    path: Path


class Open(NamedTuple):
    """A file opened with exactly this mode; QEMU's descriptor set for it has the number `set`."""

    fd: int
    path: Path
    writable: bool
    set: int


class Link(NamedTuple):
    """The connected stream socket to the process that is the machine's network."""

    fd: int


class Tpm(NamedTuple):
    """The connected stream socket to the process that is the machine's TPM."""

    fd: int


class TapOf(NamedTuple):
    """The tap of the launch's card in `slot`."""

    fd: int
    slot: int


Resource: TypeAlias = Listen | Open | Link | Tpm | TapOf


class Mount(NamedTuple):
    """A file of the host that QEMU can open by name only, and where it is in the jail."""

    source: Path
    target: str
    device: bool = False
    writable: bool = False


class Bounds(NamedTuple):
    """What QEMU may use: bytes, threads, descriptors, CPUs."""

    memory: int
    processes: int
    files: int
    cpus: float


class Plan(NamedTuple):
    """How to start one machine: `argv[0]` is the emulator's path, on the host and in the jail. `memory_control` is the number of the
    socket for the library that maps the guest's memory."""

    argv: tuple[str, ...]
    resources: tuple[Resource, ...]
    mounts: tuple[Mount, ...]
    bounds: Bounds
    memory_control: int
    notes: tuple[str, ...] = ()


class _Descriptors:
    """Hands out descriptor and set numbers while a plan is made."""

    def __init__(self) -> None:
        self.resources: list[Resource] = []

    def _next(self) -> int:
        return _FIRST_FD + len(self.resources)

    def listen(self, path: Path) -> int:
        self.resources.append(Listen(self._next(), path))
        return self.resources[-1].fd

    def link(self) -> int:
        self.resources.append(Link(self._next()))
        return self.resources[-1].fd

    def tap(self, slot: int) -> int:
        self.resources.append(TapOf(self._next(), slot))
        return self.resources[-1].fd

    def tpm(self) -> int:
        self.resources.append(Tpm(self._next()))
        return self.resources[-1].fd

    def open(self, path: Path, *, writable: bool, covered: bool = False) -> str:
        """The name by which QEMU opens the descriptor again, in the mode it has; a disk that may be `covered` by another is then opened
        for reading only."""
        number = 1 + max((entry.set for entry in self.resources if isinstance(entry, Open)), default=0)
        self.resources.append(Open(self._next(), path, writable, number))
        if writable and covered:
            self.resources.append(Open(self._next(), path, writable=False, set=number))
        return f"/dev/fdset/{number}"


def plan(launch: Launch, facts: HostFacts) -> Plan:
    """How to start `launch` on the host with these facts.

    Raises Unavailable when the host lacks what it takes (QEMU for the architecture, memory, KVM, firmware), Invalid when a
    value can not be passed on safely.
    """
    board, emulator = BOARDS[launch.arch], _emulator(launch, facts)
    _check(launch, facts)
    translation = _translation_cache(launch)
    descriptors = _Descriptors()
    memory_control = descriptors.listen(launch.files.memory_control)
    arguments = [
        *_base(launch, emulator),
        *_machine(launch, facts, board, emulator),
        *_firmware(launch, facts, board, descriptors),
        *_channels(launch, descriptors),
        *_devices(board, emulator),
        *_disks(launch, descriptors),
        *_network(launch, descriptors),
        *_slots(),
        *_device("virtio-scsi-pci", id=CONTROLLER, bus="pcie.0", addr=f"{_CONTROLLER_AT:x}"),
        *_cards(launch, descriptors),
        *_display(launch, board, emulator),
        *_tpm(launch, board, emulator, descriptors),
        *(("-incoming", "defer") if launch.saved is not None else ()),
    ]
    opened = [entry for entry in descriptors.resources if isinstance(entry, Open)]
    sets = [("-add-fd", f"fd={one.fd},set={one.set},opaque={'write' if one.writable else 'read'}") for one in opened]
    return Plan(
        argv=(emulator.path, *(word for pair in sets for word in pair), *arguments),
        resources=tuple(descriptors.resources),
        mounts=tuple(_mounts(launch)),
        bounds=Bounds(
            memory=launch.memory + translation + _OVERHEAD,
            processes=launch.cpus + _IO_THREADS,
            files=_FILES + 16 * sum(1 + len(disk.below) for disk in launch.disks),
            cpus=launch.cpus + 1.0,
        ),
        memory_control=memory_control,
        notes=tuple(_notes(launch, board, emulator)),
    )


def shape(launch: Launch, facts: HostFacts) -> str:
    """What a saved guest and the QEMU that takes it over must have in common: see `base.Hypervisor.shape`. Raises what `plan` raises.

    It is the command line of such a machine with all that is its own left out, but whether
    the card in slot 0 is a port. The kernel counts by its command line and the name of
    its directory, which is its image's digest.
    """
    emulator = _emulator(launch, facts)
    disks = tuple(disk._replace(file=Path(), below=()) for disk in launch.disks)
    # A guest that leaves work to its card can not go on where the card is on no tap ("saved image requires vnet_hdr").
    tapped = any(card.slot == 0 for card in launch.cards)
    plain = launch._replace(
        uid=_NOBODY,
        files=MachineFiles(Path(), Path()),
        disks=disks,
        seed=launch.seed and Path(),
        network="unplugged" if tapped or launch.network != "none" else "none",
        cards=tuple(Card(slot, _NO_MAC) for slot in sorted(card.slot for card in launch.cards) if slot),
        saved=None,
    )
    kernel = launch.direct.kernel.parent.name if launch.direct else ""
    words = (emulator.version, kernel, *(("tap",) if tapped else ()), *plan(plain, facts).argv)
    return hashlib.sha256("\0".join(words).encode()).hexdigest()


def mac_address(uid: str) -> str:
    """The machine's MAC address: QEMU's prefix and 24 bits of its identity."""
    return "52:54:00:" + hashlib.sha256(uid.encode()).digest()[:3].hex(":")


def card_name(slot: int) -> str:
    """What QEMU calls the card in a slot."""
    return NETWORK_CARD if slot == 0 else f"nic{slot}"


def back_end(slot: int) -> str:
    """What QEMU calls what the card in a slot is plugged into."""
    return f"net{slot}"


def card_device(card: Card) -> dict[str, Any]:
    """The card as a device."""
    # No option ROM: nobody boots from this network, and its file is not in the jail.
    device = {"driver": "virtio-net-pci", "id": card_name(card.slot), "netdev": back_end(card.slot), "mac": card.mac}
    return {**device, "romfile": "", **({"bus": f"slot{card.slot}"} if card.slot else {})}


def _emulator(launch: Launch, facts: HostFacts) -> Emulator:
    emulator = facts.emulators.get(launch.arch)
    if emulator is None or not emulator.machine:
        raise Unavailable(
            f"a machine for {launch.arch} can not start here",
            f"qemu-system-{launch.arch} is not installed"
            if emulator is None
            else f"{emulator.path} has no machine type we know",
            f"sudo apt-get install --no-install-recommends {BOARDS[launch.arch].package}",
        )
    return emulator


def _check(launch: Launch, facts: HostFacts) -> None:
    what = f"machine {launch.uid} can not start"
    if not _UUID.fullmatch(launch.uid):
        raise Invalid("a machine can not start", f"{launch.uid!r} is not a UUID in small letters")
    if launch.direct and not _COMMAND_LINE.fullmatch(launch.direct.command_line):
        raise Invalid(what, "its kernel command line has control characters or more than 2047 characters")
    for disk in launch.disks:
        if not _SERIAL.fullmatch(disk.serial) or disk.serial == SEED_SERIAL:
            raise Invalid(
                what, f"{disk.serial!r} can not be a disk's serial: 20 printable characters, not {SEED_SERIAL!r}"
            )
    if launch.memory > facts.memory:
        has, wants = size.show(facts.memory), size.show(launch.memory)
        raise Unavailable(what, f"it wants {wants} of memory and this host has {has}", "give it less: --memory")
    if launch.accelerator == "kvm" and (launch.arch != facts.arch or facts.kvm != "open"):
        foreign = f"its architecture {launch.arch} is not the host's"
        why = f"/dev/kvm is {facts.kvm}" if launch.arch == facts.arch else foreign
        raise Unavailable(what, f"it is to run under KVM, but {why}", "let Roost choose: accelerator auto")


def _translation_cache(launch: Launch) -> int:
    """Bytes of TCG's translation cache: QEMU's own default (1 GiB) makes a small guest three times its size, and a kernel's boot
    needs about 40 MiB."""
    if launch.accelerator == "kvm":
        return 0
    return min(128, max(32, launch.memory // MiB // 16)) * MiB


def _base(launch: Launch, emulator: Emulator) -> Iterator[str]:
    yield from ("-nodefaults", "-no-user-config", "-display", "none", "-S")
    yield from ("-sandbox", SANDBOX)
    yield from ("-name", f"guest={launch.uid},debug-threads=on", "-uuid", launch.uid)
    # A panicked guest stays, so that whoever looks later still sees what became of it.
    yield from ("-action", "panic=pause", "-rtc", "base=utc")


def _machine(launch: Launch, facts: HostFacts, board: Board, emulator: Emulator) -> Iterator[str]:
    kvm = launch.accelerator == "kvm"
    options = (board.kvm_options if kvm else "") or board.options
    fixed = "memory-backend=mem,mem-merge=off,dump-guest-core=off,usb=off"
    pflash = "pflash0=firmware,pflash1=variables" if launch.firmware == "uefi" else ""
    yield from ("-machine", ",".join(filter(None, (emulator.machine, fixed, options, pflash))))
    yield from ("-accel", "kvm" if kvm else _tcg(launch, facts, board))
    yield from ("-cpu", kvm_cpu(board, facts.vendor, facts.flags, emulator.cpus) if kvm else board.tcg_cpu)
    yield from ("-smp", f"cpus={launch.cpus},sockets=1,cores={launch.cpus},threads=1")
    yield from ("-m", f"size={launch.memory}B")
    yield from ("-object", _json(_memory(launch)))
    if launch.seed is not None and board.smbios:
        # Tells cloud-init's ds-identify the datasource, so that it looks for no other and for no network.
        yield from ("-smbios", "type=1,manufacturer=Roost,product=Machine,serial=ds=nocloud")


def _memory(launch: Launch) -> dict[str, Any]:
    """A named file that is shared: only memory of that kind may stay out of what QEMU saves, whatever is mapped in its place later."""
    file = str(launch.files.memory)
    return {"qom-type": "memory-backend-file", "id": "mem", "size": launch.memory, "mem-path": file, "share": True}


def _tcg(launch: Launch, facts: HostFacts, board: Board) -> str:
    """A guest that counts on x86's memory order runs on one thread where the host does not give that order."""
    single = board.strong_memory and not BOARDS[facts.arch].strong_memory
    return f"tcg,thread={'single' if single else 'multi'},tb-size={_translation_cache(launch) // MiB}"


def _firmware(launch: Launch, facts: HostFacts, board: Board, descriptors: _Descriptors) -> Iterator[str]:
    if launch.direct is not None:
        yield from ("-kernel", "/kernel", "-append", launch.direct.command_line)
        if launch.direct.initramfs is not None:
            yield from ("-initrd", "/initrd")
    elif launch.firmware == "direct":
        raise Invalid(
            f"machine {launch.uid} can not start",
            "it boots directly, but its image has no kernel",
            "use --firmware bios or uefi",
        )
    elif launch.firmware == "bios" and board.builtin != "bios":
        raise Invalid(
            f"machine {launch.uid} can not start", f"{launch.arch} machines have no BIOS", "use --firmware uefi"
        )
    if launch.firmware == "uefi":
        yield from _pflash(launch, facts, board, descriptors)


def _pflash(launch: Launch, facts: HostFacts, board: Board, descriptors: _Descriptors) -> Iterator[str]:
    pair = find_pflash(board, facts.files)
    if pair is None:
        raise Unavailable(
            f"machine {launch.uid} can not start",
            f"it boots by UEFI and no UEFI for {launch.arch} is installed",
            f"sudo apt-get install --no-install-recommends {board.firmware_package}",
        )
    code = descriptors.open(Path(pair.code), writable=False)
    variables = descriptors.open(launch.files.variables, writable=True)
    yield from _node("firmware", "raw", code, read_only=True)
    yield from _node("variables", "raw", variables, read_only=False)


def _channels(launch: Launch, descriptors: _Descriptors) -> Iterator[str]:
    files = launch.files
    ports = (
        ("qmp", files.monitor),
        ("console", files.console),
        ("agent", files.agent),
        ("guest-agent", files.guest_agent),
    )
    for name, path in ports:
        yield from ("-chardev", f"socket,id={name},fd={descriptors.listen(path)},server=on,wait=off")
    yield from ("-mon", "chardev=qmp,mode=control", "-serial", "chardev:console")


def _devices(board: Board, emulator: Emulator) -> Iterator[str]:
    yield from _device("virtio-serial-pci", id="ports")
    yield from _device("virtserialport", bus="ports.0", nr=1, chardev="agent", name=AGENT_PORT)
    yield from _device("virtserialport", bus="ports.0", nr=2, chardev="guest-agent", name=GUEST_AGENT_PORT)
    yield from ("-object", _json({"qom-type": "rng-builtin", "id": "random"}))
    yield from _device("virtio-rng-pci", rng="random")
    panic = next((name for name in board.panic if name in emulator.devices), None)
    if panic is not None:
        yield from _device(panic)
    if "vmgenid" in emulator.devices:
        yield from _device("vmgenid", guid="auto")


def _disks(launch: Launch, descriptors: _Descriptors) -> Iterator[str]:
    for index, disk in enumerate(launch.disks):
        name = f"disk{index}"
        yield from _disk(name, disk, descriptors)
        yield from _device(
            "virtio-blk-pci", id=name, drive=name, serial=disk.serial or f"roost-{index}", bootindex=index + 1
        )
    if launch.seed is not None:
        # Last, for cloud-init tries the highest device name first: no other disk that calls itself "cidata" comes before it.
        yield from _node("seed", "raw", descriptors.open(launch.seed, writable=False), read_only=True)
        yield from _device("virtio-blk-pci", id="seed", drive="seed", serial=SEED_SERIAL)


def _disk(name: str, disk: Disk, descriptors: _Descriptors) -> Iterator[str]:
    # Without a backing node the answer is "none", whatever the file's own header says.
    below: str | None = None
    for depth in range(len(disk.below), 0, -1):
        layer = descriptors.open(disk.below[depth - 1], writable=False)
        yield from _node(f"{name}-below{depth}", "qcow2", layer, read_only=True, backing=below)
        below = f"{name}-below{depth}"
    file = descriptors.open(disk.file, writable=not disk.read_only, covered=True)
    backing: dict[str, Any] = {"backing": below} if disk.format == "qcow2" else {}
    yield from _node(name, disk.format, file, read_only=disk.read_only, discard="unmap", **backing)


def _node(name: str, driver: str, file: str, *, read_only: bool, **options: Any) -> Iterator[str]:
    """A format node over a file node; both drivers are named, nothing is probed."""
    below = {"driver": "file", "node-name": f"{name}-file", "filename": file, "read-only": read_only}
    if "discard" in options:
        below["discard"] = options["discard"]
    node = {"driver": driver, "node-name": name, "file": f"{name}-file", "read-only": read_only, **options}
    yield from ("-blockdev", _json(below), "-blockdev", _json(node))


def _network(launch: Launch, descriptors: _Descriptors) -> Iterator[str]:
    if launch.network == "none":
        return
    # Leads nowhere until something is added to the hub, and has no state to save.
    backend: dict[str, Any] = {"type": "hubport", "id": "net0", "hubid": HUB}
    if launch.network == "user" and launch.saved is None:
        address = {"type": "fd", "str": str(descriptors.link())}
        backend = {"type": "stream", "id": "net0", "server": False, "addr": address}
    yield from ("-netdev", _json(backend))
    yield from ("-device", _json(card_device(Card(0, mac_address(launch.uid)))))


def _slots() -> Iterator[str]:
    """Root ports without I/O ports of their own, of which a board has too few."""
    for slot in range(1, SLOTS + 1):
        place = {"addr": f"{_SLOTS_AT:x}.{slot - 1}", "multifunction": slot == 1, "io-reserve": 0}
        yield from _device("pcie-root-port", id=f"slot{slot}", bus="pcie.0", chassis=slot, slot=slot, **place)


def _cards(launch: Launch, descriptors: _Descriptors) -> Iterator[str]:
    """Straight on their taps: a hub would keep the guest from leaving checksums and segmentation to the host."""
    for card in launch.cards:
        name = back_end(card.slot)
        backend: dict[str, Any] = {"type": "hubport", "id": name, "hubid": card.slot}
        if card.tap is not None:
            backend = {"type": "tap", "id": name, "fd": str(descriptors.tap(card.slot))}
        yield from ("-netdev", _json(backend), "-device", _json(card_device(card)))


def _display(launch: Launch, board: Board, emulator: Emulator) -> Iterator[str]:
    """A graphics card that shows what the guest draws to nobody but `screendump`."""
    if not launch.display:
        return
    device = next((name for name in board.display if name in emulator.devices), None)
    if device is None:
        raise Unavailable(f"machine {launch.uid} can not start", f"{emulator.path} has no graphics card for its board")
    yield from _device(device, id="picture")


def _tpm(launch: Launch, board: Board, emulator: Emulator, descriptors: _Descriptors) -> Iterator[str]:
    if not launch.tpm:
        return
    device = next((name for name in board.tpm if name in emulator.devices), None)
    if device is None:
        why = f"{emulator.path} has no TPM for its board"
        raise Unavailable(f"machine {launch.uid} can not start", why, "launch it without --tpm")
    if launch.arch == "x86_64" and launch.direct is not None and launch.direct.initramfs is not None:
        why = "with a TPM QEMU puts the initramfs over the firmware's tables"
        raise Invalid(f"machine {launch.uid} can not start", why, "use --firmware uefi")
    yield from ("-chardev", f"socket,id=tpm-control,fd={descriptors.tpm()}")
    yield from ("-tpmdev", "emulator,id=tpm0,chardev=tpm-control")
    yield from _device(device, tpmdev="tpm0")


def _device(driver: str, **properties: Any) -> tuple[str, str]:
    return "-device", _json({"driver": driver, **properties})


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _mounts(launch: Launch) -> Iterator[Mount]:
    # At its own path: where a jail has no mount namespace, only whole arguments can be replaced by what they stand for.
    yield Mount(launch.files.memory, str(launch.files.memory), writable=True)
    if launch.direct is not None:
        yield Mount(launch.direct.kernel, "/kernel")
        if launch.direct.initramfs is not None:
            yield Mount(launch.direct.initramfs, "/initrd")
    if launch.accelerator == "kvm":
        yield Mount(Path("/dev/kvm"), "/dev/kvm", device=True)


def _notes(launch: Launch, board: Board, emulator: Emulator) -> Iterator[str]:
    if launch.accelerator == "tcg":
        yield "emulated (tcg): slower, and the jail is the only boundary between the guest and this host"
    if not any(name in emulator.devices for name in board.panic):
        yield f"{emulator.path} has no device that reports a guest's panic"
