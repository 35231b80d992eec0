"""OVF descriptors: what the dialects mean, what is refused, and that what we write says what it should."""

from __future__ import annotations

import itertools
import time
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.storage import ovf, ovfwriter
from roost.storage.formats import Unfit
from roost.storage.ovf import Appliance, ApplianceDisk, Card
from tests.appliances import STREAM, virtualbox, vmware

MiB, GiB = 1 << 20, 1 << 30
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"


def test_virtualbox_is_understood() -> None:
    found, files = ovf.read(virtualbox())
    assert found == Appliance(
        "Debian test", 2, 512 * MiB, (ApplianceDisk("vmdisk1", "disk.vmdk", 3146240, "sata", 3, STREAM),),
        (Card("NAT", "E1000"),), ("NAT",), "Debian12_64", 96, "uefi",
        notes=("a sound card was left out", "a CD drive was left out"),
    )  # fmt: skip
    assert files == {"disk.vmdk": ovf.File("disk.vmdk", None, False)}


def test_vmware_is_understood_in_its_default_configuration() -> None:
    found, files = ovf.read(vmware(size=1024))
    assert found == Appliance(
        "appliance", 4, 2 * GiB, (ApplianceDisk("vmdisk1", "disk.vmdk", 8 * GiB, "scsi", 0, STREAM),),
        (Card("VM Network", "VMXNET3", "00:50:56:aa:bb:01"),), ("VM Network",), "debian12_64Guest", 96, "uefi", True,
    )  # fmt: skip
    assert files["disk.vmdk"].size == 1024


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("byte", 1), ("Bytes", 1), ("byte * 2^20", MiB), ("byte*2^10", 1024), ("byte * 10^6", 10**6), ("byte * 1024", 1024),
        ("MegaBytes", MiB), ("MB", MiB), ("GigaBytes", GiB), ("KB", 1024), ("GiB", GiB), ("TB", 1 << 40),
    ],
)  # fmt: skip
def test_sizes_are_read_in_every_unit(unit: str, factor: int) -> None:
    assert ovf.size_in("3", unit) == 3 * factor


@pytest.mark.parametrize("unit", ["hertz", "byte * 2^999", "byte * 99999", "furlong", "byte ** 2"])
def test_what_is_no_unit_of_bytes_is_refused(unit: str) -> None:
    with pytest.raises(Unfit, match="unit"):
        ovf.size_in("3", unit)


def with_doctype(text: str) -> bytes:
    return vmware().replace(b"?>\n", b"?>\n<!DOCTYPE x [" + text.encode() + b"]>", 1)


@pytest.mark.fault(54)
@pytest.mark.parametrize(
    "doctype",
    [
        '<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">',
        '<!ENTITY secret SYSTEM "file:///etc/passwd">',
        '<!ENTITY % outer SYSTEM "http://192.0.2.1/x"> %outer;',
        "<!ELEMENT x ANY>",
    ],
)
def test_a_document_type_is_refused(doctype: str) -> None:
    with pytest.raises(Unfit, match="document type"):
        ovf.read(with_doctype(doctype))


@pytest.mark.fault(54)
@pytest.mark.parametrize(
    "data",
    [
        b"<a>" * 100_000, b"<a>" + b"<b/>" * 30_000 + b"</a>", b"<a>" + b"x" * (5 << 20) + b"</a>", b"<a>" + b"x" * 100_000 + b"</a>",
        b"<a " + b" ".join(b'x%d="1"' % number for number in range(100)) + b"/>",
    ],
)  # fmt: skip
def test_a_descriptor_without_measure_is_refused_at_once(data: bytes) -> None:
    started = time.process_time()
    with pytest.raises(Unfit):
        ovf.read(data)
    assert time.process_time() - started < 0.2


@pytest.mark.fault(53)
@pytest.mark.parametrize("href", ["/etc/passwd", "file:///etc/passwd", "http://192.0.2.1/disk.vmdk"])
def test_a_file_that_is_not_in_the_package_is_refused(href: str) -> None:
    with pytest.raises(Unfit, match="not in the package"):
        ovf.read(vmware(href))


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        (b'ovf:capacity="8"', b'ovf:capacity="8" ovf:parentRef="other"', "parentRef"),
        (b'ovf:capacity="8"', b'ovf:capacity="99999999999"', "more than"),
        (b'ovf:capacity="8"', b'ovf:capacity="-8"', "number"),
        (b'ovf:capacity="8"', b'ovf:capacity="${size}"', "property"),
        (b'ovf:fileRef="file1"', b'ovf:fileRef="file2"', "refer"),
        (b"ovf:/disk/vmdisk1", b"ovf:/disk/other", "describe"),
        (b">2</rasd:VirtualQuantity>", b">99999999999</rasd:VirtualQuantity>", "memory"),
        (b'ovf:id="file1"', b'ovf:id="file1" ovf:chunkSize="100"', "chunks"),
        (b'ovf:id="file1"', b'ovf:id="file1" ovf:compression="rot13"', "compressed"),
        (b"</ovf:VirtualSystem>", b'</ovf:VirtualSystem><ovf:VirtualSystem ovf:id="b"/>', "2 machines"),
        (b"ovf:Envelope", b"ovf:Package", "no OVF"),
        (b"</ovf:Envelope>", b"", "no XML"),
    ],
)
def test_what_can_not_be_is_refused(old: bytes, new: bytes, word: str) -> None:
    with pytest.raises(Unfit, match=word):
        ovf.read(vmware().replace(old, new))


def machine(disks: int = 2) -> Appliance:
    return Appliance(
        'web & "more" <1>', 3, 1536 * MiB,
        tuple(ApplianceDisk(f"vmdisk{n}", f"disk{n}.vmdk", n * GiB, "scsi", n - 1 + (n > 7), STREAM) for n in range(1, disks + 1)),
        (Card("lan", "E1000", "52:54:00:12:34:56"), Card("nat", "E1000")), ("lan", "nat"), "debian:12", 96, "uefi", True, "a <b>",
    )  # fmt: skip


def test_what_is_written_is_read_as_it_was() -> None:
    wanted = machine(9)
    found, files = ovf.read(ovfwriter.write(wanted, {disk.file: 512 for disk in wanted.disks}))
    assert found._replace(description=wanted.description) == wanted
    assert [file.size for file in files.values()] == [512] * 9


def test_what_is_written_has_the_order_that_the_schemas_want() -> None:
    """DSP8023: the sections of an envelope; the CIM classes: the elements of an item in the order of the alphabet."""
    root = ElementTree.fromstring(ovfwriter.write(machine(), {"disk1.vmdk": 1, "disk2.vmdk": 2}))
    assert [child.tag.removeprefix(OVF) for child in root] == [
        "References",
        "DiskSection",
        "NetworkSection",
        "VirtualSystem",
    ]
    items = [[part.tag.removeprefix(RASD) for part in item] for item in root.iter(f"{OVF}Item")]
    assert items == [sorted(item) for item in items]
    assert [item for item in items if not {"InstanceID", "ElementName", "ResourceType"} <= set(item)] == []
    numbers = [item.findtext(f"{RASD}InstanceID") for item in root.iter(f"{OVF}Item")]
    assert len(set(numbers)) == len(numbers) == 7
    sections = [section for section in root.iter() if section.tag.endswith("Section")]
    assert all(section[0].tag == f"{OVF}Info" for section in sections)


def test_a_scsi_disk_is_never_plugged_into_the_place_of_its_controller() -> None:
    found, _ = ovf.read(ovfwriter.write(machine(20), {f"disk{n}.vmdk": 1 for n in range(1, 21)}))
    assert [disk.unit for disk in found.disks] == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4]


@given(st.binary(max_size=64), st.integers(0, 4000))
def test_no_bytes_make_the_reader_fail(junk: bytes, at: int) -> None:
    for whole, replaced in itertools.product((vmware(), virtualbox()), (0, len(junk))):
        try:
            ovf.read(whole[:at] + junk + whole[at + replaced :])
        except Unfit as problem:
            assert str(problem)
