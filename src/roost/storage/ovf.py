"""OVF descriptors, as VirtualBox, VMware and others write them, as one neutral value (pure).

Source: DMTF DSP0243 1.1 and 2.1 (OVF), DSP0004 (programmatic units), CIM_ResourceAllocationSettingData (numbers of resource types).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from roost.storage.formats.content import Unfit
from roost.storage.formats.qcow2 import MAX_VIRTUAL
from roost.storage.ovfxml import Element, parse

Bus = Literal["ide", "sata", "scsi", "virtio", "nvme", "usb"]
Firmware = Literal["bios", "uefi"]

MOST_DISKS, MOST_CARDS, MOST_CPUS, MOST_MEMORY = 64, 64, 4096, 64 << 40
PROCESSOR, MEMORY, IDE, SCSI, ETHERNET, CD, DVD, DISK, OTHER_STORAGE = 3, 4, 5, 6, 10, 15, 16, 17, 20
"""CIM's numbers of resource types."""

_POWERS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_UNIT = re.compile(r"bytes?(?:\s*\*\s*(\d{1,4})(?:\s*\^\s*(\d{1,2}))?)?")
_NAMED = re.compile(r"(kilo|mega|giga|tera|ki|mi|gi|ti|k|m|g|t|)(?:b|bytes?)")
_MAC = re.compile(r"[0-9a-f]{12}")


class ApplianceDisk(NamedTuple):
    """A disk: its `id` in the descriptor, the `file` that holds it ("": it is empty), bytes the guest sees, and where it is plugged."""

    id: str
    file: str
    capacity: int
    bus: Bus = "scsi"
    unit: int = 0
    format: str = ""


class Card(NamedTuple):
    """A network card: the name of its network, its model as the descriptor has it, and its MAC address ("" when it has none)."""

    network: str
    model: str = ""
    mac: str = ""


class Appliance(NamedTuple):
    """A machine as a descriptor tells of it; 0, "" and None stand for what it does not say. `memory` is in bytes.

    `os` is the product's word ("Debian_64", "debian10_64Guest"), `os_id` CIM's number. `notes` are sentences on what was left out.
    """

    name: str
    cpus: int
    memory: int
    disks: tuple[ApplianceDisk, ...]
    cards: tuple[Card, ...] = ()
    networks: tuple[str, ...] = ()
    os: str = ""
    os_id: int = 0
    firmware: Firmware | None = None
    secure_boot: bool = False
    description: str = ""
    notes: tuple[str, ...] = ()


class File(NamedTuple):
    """A file that a descriptor refers to: `size` in bytes, None when it does not say; `gzip` when it is compressed beyond its format."""

    name: str
    size: int | None
    gzip: bool


def read(data: bytes) -> tuple[Appliance, dict[str, File]]:
    """What a descriptor says of its machine, and the files it refers to by name. Raises Unfit."""
    root = parse(data)
    if root.name != "Envelope":
        raise Unfit(f"its descriptor is no OVF: it begins with {root.name[:80]!r}")
    files = {}
    for element in _section(root, "References", "File"):
        files[element.get("id")] = _file(element)
    machine = _machine(root)
    items = _items(root, machine)
    disks = _disks(root, files, items)
    appliance = Appliance(
        name=machine.value("Name") or machine.get("id"),
        cpus=sum(_number(item.value("VirtualQuantity"), MOST_CPUS) for item in items if _type(item) == PROCESSOR),
        memory=sum(_memory(item) for item in items if _type(item) == MEMORY),
        disks=disks,
        cards=_cards(items),
        networks=tuple(element.get("name") for element in _section(root, "NetworkSection", "Network")),
        os=_os(machine),
        os_id=_os_id(machine),
        firmware=_firmware(machine),
        secure_boot=_config(machine, "bootOptions.efiSecureBootEnabled") == "true",
        description=machine.value("AnnotationSection"),
        notes=tuple(_notes(root, machine, items)),
    )
    return appliance, {file.name: file for file in files.values()}


def size_in(text: str, unit: str) -> int:
    """Bytes in `text` of `unit`: "byte * 2^20", "MegaBytes", "GB". Raises Unfit."""
    written = unit.strip().lower()
    match, named = _UNIT.fullmatch(written), _NAMED.fullmatch(written)
    if named is not None:
        factor = _POWERS[named[1][:1]]
    elif match is not None:
        factor = int(match[1] or 1) ** int(match[2] or 1)
    else:
        raise Unfit(f"its descriptor counts in {unit[:80]!r}, which is no unit of bytes")
    return _number(text, 1 << 62) * factor


def _number(text: str, most: int) -> int:
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) > most:
        raise Unfit(f"its descriptor has {text[:40]!r} where a number up to {most} belongs")
    return int(text)


def _section(root: Element, section: str, name: str) -> Iterator[Element]:
    return (element for found in root.all(section) for element in found.all(name))


def _file(element: Element) -> File:
    name, told = element.get("href"), element.get("size")
    if "://" in name or name.startswith("/"):
        raise Unfit(f"its descriptor refers to {name[:200]!r}, which is not in the package")
    if element.get("chunkSize"):
        raise Unfit(f"its file {name[:200]!r} is cut into chunks, which is not supported")
    compression = element.get("compression", "identity")
    if compression not in ("", "identity", "gzip"):
        raise Unfit(f"its file {name[:200]!r} is compressed by {compression[:40]!r}, which is not known")
    return File(name, _number(told, 1 << 62) if told else None, compression == "gzip")


def _machine(root: Element) -> Element:
    found = list(root.all("VirtualSystem"))
    for collection in root.all("VirtualSystemCollection"):
        found += collection.below("VirtualSystem")
    if len(found) != 1:
        raise Unfit(f"it holds {len(found)} machines: one machine at a time can be imported")
    return found[0]


def _items(root: Element, machine: Element) -> list[Element]:
    """The hardware of the default configuration (DSP0243 9.8), by instance: what names a configuration overrides what names none."""
    configurations = list(_section(root, "DeploymentOptionSection", "Configuration"))
    chosen = next((element for element in configurations if element.get("default") in ("true", "1")), None)
    if chosen is None and configurations:
        chosen = configurations[0]
    items: dict[str, Element] = {}
    for hardware in list(machine.all("VirtualHardwareSection"))[:1]:
        for item in hardware.all("Item", "StorageItem", "EthernetPortItem"):
            wanted = item.get("configuration").split()
            if not wanted or (chosen is not None and chosen.get("id") in wanted):
                items[item.value("InstanceID", "InstanceId")] = item
    return list(items.values())


def _type(item: Element) -> int:
    if item.name == "EthernetPortItem":
        return ETHERNET
    return _number(item.value("ResourceType") or "0", 1 << 16)


def _memory(item: Element) -> int:
    size = size_in(item.value("VirtualQuantity"), item.value("AllocationUnits") or "byte * 2^20")
    if size > MOST_MEMORY:
        raise Unfit(f"its descriptor wants {size} bytes of memory")
    return size


def _disks(root: Element, files: dict[str, File], items: list[Element]) -> tuple[ApplianceDisk, ...]:
    """The disks that are plugged into something, in the order of the hardware."""
    known = {element.get("diskId"): element for element in _section(root, "DiskSection", "Disk")}
    controllers = {item.value("InstanceID", "InstanceId"): item for item in items}
    found: list[ApplianceDisk] = []
    for item in items:
        if _type(item) != DISK:
            continue
        kind, _, name = item.value("HostResource").removeprefix("ovf:").strip("/").partition("/")
        unit = _number(item.value("AddressOnParent") or "0", 1 << 16)
        bus = _bus(controllers.get(item.value("Parent")))
        if kind == "disk" and name in known:
            found.append(_disk(known[name], files)._replace(bus=bus, unit=unit))
        elif kind == "file" and name in files:
            found.append(ApplianceDisk(name, files[name].name, 0, bus, unit))
        else:
            raise Unfit(
                f"its descriptor plugs in a disk {item.value('HostResource')[:120]!r} that it does not describe"
            )
    if len(found) > MOST_DISKS or len({disk.id for disk in found}) != len(found):
        raise Unfit(f"it has more than {MOST_DISKS} disks, or one twice")
    return tuple(found)


def _disk(element: Element, files: dict[str, File]) -> ApplianceDisk:
    name, reference = element.get("diskId"), element.get("fileRef")
    if element.get("parentRef"):
        raise Unfit(f"its disk {name[:80]!r} stands on another (parentRef): a disk that is imported must be whole")
    if reference and reference not in files:
        raise Unfit(f"its disk {name[:80]!r} is in a file that it does not refer to")
    if element.get("capacity").startswith("${"):
        raise Unfit(f"its disk {name[:80]!r} is as large as a property says, which is not supported")
    capacity = size_in(element.get("capacity"), element.get("capacityAllocationUnits") or "byte")
    if capacity > MAX_VIRTUAL:
        raise Unfit(f"its disk {name[:80]!r} has {capacity} bytes, more than {MAX_VIRTUAL}")
    return ApplianceDisk(name, files[reference].name if reference else "", capacity, format=element.get("format"))


def _bus(controller: Element | None) -> Bus:
    if controller is None:
        return "scsi"
    kind, sub = _type(controller), controller.value("ResourceSubType").lower()
    if kind == IDE:
        return "ide"
    words: tuple[tuple[str, Bus], ...] = (
        ("virtio", "virtio"),
        ("nvme", "nvme"),
        ("ahci", "sata"),
        ("sata", "sata"),
        ("usb", "usb"),
    )
    named = next((bus for word, bus in words if word in sub), None)
    if kind == SCSI:
        return "virtio" if sub.startswith("virtio") and "lsi" not in sub else "scsi"
    return named or ("sata" if kind == OTHER_STORAGE else "scsi")


def _cards(items: list[Element]) -> tuple[Card, ...]:
    cards = tuple(_card(item) for item in items if _type(item) == ETHERNET)
    if len(cards) > MOST_CARDS:
        raise Unfit(f"it has more than {MOST_CARDS} network cards")
    return cards


def _card(item: Element) -> Card:
    mac = re.sub(r"[:-]", "", item.value("Address").lower())
    shown = ":".join(mac[at : at + 2] for at in range(0, 12, 2)) if _MAC.fullmatch(mac) else ""
    return Card(item.value("Connection"), item.value("ResourceSubType"), shown)


def _system(machine: Element) -> Element | None:
    return machine.first("OperatingSystemSection")


def _os(machine: Element) -> str:
    found = _system(machine)
    if found is None:
        return ""
    return found.value("OSType") or found.get("osType") or found.value("Description")


def _os_id(machine: Element) -> int:
    found = _system(machine)
    told = found.get("id") if found is not None else ""
    return int(told) if re.fullmatch(r"\d{1,5}", told) else 0


def _firmware(machine: Element) -> Firmware | None:
    """VMware has a Config "firmware", VirtualBox a copy of its own settings."""
    told = _config(machine, "firmware").lower()
    for settings in machine.all("Machine"):
        told = told or next((element.get("type").lower() for element in settings.below("Firmware")), "")
    return "uefi" if told.startswith("efi") else "bios" if told == "bios" else None


def _config(machine: Element, key: str) -> str:
    for hardware in machine.all("VirtualHardwareSection"):
        for element in hardware.all("Config", "ExtraConfig"):
            if element.get("key") == key:
                return element.get("value")
    return ""


def _notes(root: Element, machine: Element, items: list[Element]) -> Iterator[str]:
    """What the machine here will not have."""
    left = {
        "EulaSection": "the licence text",
        "ProductSection": "the product's description",
        "SharedDiskSection": "shared storage",
    }
    for element in (*root.children, *machine.children):
        if element.name in left:
            yield f"{left[element.name]} ({element.name}) was left out"
    names = {
        1: "special device",
        14: "floppy drive",
        CD: "CD drive",
        DVD: "DVD drive",
        23: "USB controller",
        35: "sound card",
    }
    for name in dict.fromkeys(names[_type(item)] for item in items if _type(item) in names):
        yield f"a {name} was left out"
