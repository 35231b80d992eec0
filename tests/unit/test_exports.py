"""What other products are told of a machine that is exported."""

from __future__ import annotations

import pytest

from roost.control.exports import appliance
from roost.model.machine import Machine, MachineSpec, MachineStatus
from roost.model.meta import Firmware
from roost.model.network import PortSpec
from roost.storage import ovf, ovfwriter
from roost.storage.manifest import Manifest

SIZE = 1 << 30


def machine(**status: object) -> Machine:
    """A machine with a port of its own besides its user network."""
    spec = MachineSpec(
        image="base", cpus=3, memory=768 << 20, ports=(PortSpec(network="lan", mac="52:54:00:01:02:03"),)
    )
    return Machine(name="web", spec=spec, status=MachineStatus(**status))


def manifest(*firmwares: Firmware) -> Manifest:
    """An image that boots by these."""
    return Manifest(name="base", arch="x86_64", format="qcow2", firmwares=firmwares, agent="none")


def test_an_appliance_has_the_processors_the_memory_the_disk_and_the_cards_of_the_machine() -> None:
    made = appliance(machine(), manifest("bios"), SIZE)
    read, files = ovf.read(ovfwriter.write(made, {"web-disk1.vmdk": 4096}))
    assert (read.name, read.cpus, read.memory, read.firmware) == ("web", 3, 768 << 20, "bios")
    assert [(disk.capacity, disk.file) for disk in read.disks] == [(SIZE, "web-disk1.vmdk")]
    assert [(card.network, card.mac) for card in read.cards] == [("NAT", ""), ("lan", "52:54:00:01:02:03")]
    assert list(files) == ["web-disk1.vmdk"]


@pytest.mark.parametrize(
    ("ran_by", "image", "expected"),
    [
        ("uefi", ("bios", "uefi"), "uefi"),
        ("direct", ("direct", "bios"), "bios"),
        (None, ("direct", "uefi"), "uefi"),
        (None, ("direct",), "bios"),
    ],
)
def test_an_appliance_names_the_firmware_that_it_ran_by_or_its_image_boots_by(
    ran_by: Firmware | None, image: tuple[Firmware, ...], expected: str
) -> None:
    assert appliance(machine(firmware=ran_by), manifest(*image), SIZE).firmware == expected
