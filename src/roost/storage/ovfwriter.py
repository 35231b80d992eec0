"""An OVF descriptor of a machine, in the form that VirtualBox and VMware both take (pure).

OVF 1.1 (DSP0243 1.1.1) with disks on an LSI Logic SCSI, AHCI or IDE controller and E1000 cards: what the importers of both products know. The
elements of an Item stand in the order of CIM's schema, which is that of the alphabet.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import escape, quoteattr

from roost.storage.ovf import Appliance, ApplianceDisk, Bus, Card

FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
_SPACES = {
    "": "http://schemas.dmtf.org/ovf/envelope/1",
    "ovf": "http://schemas.dmtf.org/ovf/envelope/1",
    "rasd": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData",
    "vssd": "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData",
    "vmw": "http://www.vmware.com/schema/ovf",
    "vbox": "http://www.virtualbox.org/ovf/machine",
}
_CONTROLLERS: Mapping[Bus, tuple[int, str, str]] = {
    "ide": (5, "PIIX4", "IDE Controller"),
    "sata": (20, "AHCI", "SATA Controller"),
    "scsi": (6, "lsilogic", "SCSI Controller"),
}
_PER_CONTROLLER: Mapping[Bus, int] = {"ide": 2, "sata": 30, "scsi": 15}
_RESERVED_UNIT = 7
"""The place of a SCSI controller on its own bus."""


def write(appliance: Appliance, sizes: Mapping[str, int]) -> bytes:
    """The descriptor of a machine whose disks are in streamOptimized VMDK files of these `sizes` in bytes, by name."""
    spaces = "".join(f" xmlns{':' if key else ''}{key}={quoteattr(value)}" for key, value in _SPACES.items())
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f'<Envelope ovf:version="1.0" xml:lang="en-US"{spaces}>']
    lines += (*_references(appliance, sizes), *_disk_section(appliance), *_network_section(appliance))
    lines += (*_machine(appliance), "</Envelope>", "")
    return "\n".join(lines).encode()


def _references(appliance: Appliance, sizes: Mapping[str, int]) -> Iterator[str]:
    yield "  <References>"
    for number, disk in enumerate(appliance.disks, 1):
        yield f'    <File ovf:href={quoteattr(disk.file)} ovf:id="file{number}" ovf:size="{sizes[disk.file]}"/>'
    yield "  </References>"


def _disk_section(appliance: Appliance) -> Iterator[str]:
    yield "  <DiskSection>\n    <Info>Virtual disks</Info>"
    for number, disk in enumerate(appliance.disks, 1):
        yield (
            f'    <Disk ovf:capacity="{disk.capacity}" ovf:capacityAllocationUnits="byte" ovf:diskId="vmdisk{number}"'
            f' ovf:fileRef="file{number}" ovf:format="{FORMAT}"/>'
        )
    yield "  </DiskSection>"


def _network_section(appliance: Appliance) -> Iterator[str]:
    names = list(dict.fromkeys((*appliance.networks, *(card.network for card in appliance.cards))))
    if not names:
        return
    yield "  <NetworkSection>\n    <Info>Logical networks</Info>"
    for name in names:
        yield f"    <Network ovf:name={quoteattr(name)}>\n      <Description>{escape(name)}</Description>\n    </Network>"
    yield "  </NetworkSection>"


def _machine(appliance: Appliance) -> Iterator[str]:
    name = escape(appliance.name)
    yield f"  <VirtualSystem ovf:id={quoteattr(appliance.name)}>\n    <Info>A virtual machine</Info>\n    <Name>{name}</Name>"
    if appliance.description:
        text = escape(appliance.description)
        yield f"    <AnnotationSection>\n      <Info>Notes</Info>\n      <Annotation>{text}</Annotation>\n    </AnnotationSection>"
    yield f'    <OperatingSystemSection ovf:id="{appliance.os_id or 1}">\n      <Info>The installed operating system</Info>'
    yield f"      <Description>{escape(appliance.os or 'Other')}</Description>\n    </OperatingSystemSection>"
    yield "    <VirtualHardwareSection>\n      <Info>Virtual hardware</Info>\n      <System>"
    yield "        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>"
    yield f"        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>"
    yield "        <vssd:VirtualSystemType>vmx-10</vssd:VirtualSystemType>\n      </System>"
    for number, item in enumerate(_items(appliance), 1):
        yield from _item({**item, "InstanceID": str(number)})
    yield from _firmware(appliance)
    yield "    </VirtualHardwareSection>\n  </VirtualSystem>"


def _item(item: Mapping[str, str]) -> Iterator[str]:
    yield "      <Item>"
    for key in sorted(item):
        yield f"        <rasd:{key}>{escape(item[key])}</rasd:{key}>"
    yield "      </Item>"


def _items(appliance: Appliance) -> Iterator[dict[str, str]]:
    memory = str(-(-appliance.memory // (1 << 20)))
    yield _resource(3, f"{appliance.cpus} virtual CPU(s)", "Number of virtual CPUs", AllocationUnits="hertz * 10^6",
                    VirtualQuantity=str(appliance.cpus))  # fmt: skip
    yield _resource(4, f"{memory} MB of memory", "Memory size", AllocationUnits="byte * 2^20", VirtualQuantity=memory)
    number = 3
    for bus in dict.fromkeys(_bus(disk) for disk in appliance.disks):
        disks = [(place, disk) for place, disk in enumerate(appliance.disks, 1) if _bus(disk) == bus]
        for index in range(0, len(disks), _PER_CONTROLLER[bus]):
            kind, sub, name = _CONTROLLERS[bus]
            parent, controller = number, index // _PER_CONTROLLER[bus]
            yield _resource(kind, f"{name} {controller}", name, Address=str(controller), ResourceSubType=sub)
            number += 1
            for unit, (place, _) in enumerate(disks[index : index + _PER_CONTROLLER[bus]]):
                at = unit + (bus == "scsi" and unit >= _RESERVED_UNIT)
                yield _resource(17, f"Hard disk {place}", "Hard disk", AddressOnParent=str(at),
                                HostResource=f"ovf:/disk/vmdisk{place}", Parent=str(parent))  # fmt: skip
                number += 1
    for place, card in enumerate(appliance.cards, 1):
        yield _ethernet(place, card)


def _ethernet(place: int, card: Card) -> dict[str, str]:
    item = _resource(10, f"Network adapter {place}", "E1000 network adapter", AddressOnParent=str(place + 6),
                     AutomaticAllocation="true", Connection=card.network, ResourceSubType="E1000")  # fmt: skip
    return {**item, "Address": card.mac} if card.mac else item


def _resource(kind: int, name: str, description: str, **more: str) -> dict[str, str]:
    return {"ResourceType": str(kind), "ElementName": name, "Description": description, **more}


def _bus(disk: ApplianceDisk) -> Bus:
    """The controller that both products have for it: they have no virtio, and not everywhere NVMe."""
    return disk.bus if disk.bus in _CONTROLLERS else "scsi"


def _firmware(appliance: Appliance) -> Iterator[str]:
    if appliance.firmware is not None:
        word = "efi" if appliance.firmware == "uefi" else "bios"
        yield f'      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="{word}"/>'
    if appliance.secure_boot:
        yield '      <vmw:Config ovf:required="false" vmw:key="bootOptions.efiSecureBootEnabled" vmw:value="true"/>'
