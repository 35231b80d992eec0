"""Disk headers: what may be imported, what must never be, and the overlays we write ourselves."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.errors import Invalid
from roost.storage import formats, overlays
from tests.qcow2 import header

GiB = 1 << 30


def why(head: bytes, size: int = GiB, format: formats.Format | None = None) -> str:
    with pytest.raises(Invalid) as caught:
        formats.inspect(formats.Text(head, size), "disk.img", format)
    return caught.value.why


def test_a_plain_qcow2_is_accepted_with_its_virtual_size() -> None:
    assert formats.inspect(formats.Text(header(), GiB), "disk.img") == ("qcow2", 10 * GiB)


def test_version_2_is_accepted() -> None:
    assert formats.inspect(formats.Text(header(version=2), GiB), "disk.img").format == "qcow2"


@pytest.mark.parametrize("bit", [0, 3, 4])
def test_harmless_features_are_accepted(bit: int) -> None:
    assert formats.inspect(formats.Text(header(incompatible=1 << bit), GiB), "disk.img").format == "qcow2"


@pytest.mark.fault(50)
def test_an_external_data_file_is_refused() -> None:
    assert "data-file" in why(header(incompatible=1 << 2))


@pytest.mark.fault(50)
def test_the_name_of_a_data_file_is_refused_even_without_the_feature() -> None:
    assert "another file" in why(header(extensions=struct.pack(">II8s", 0x44415441, 8, b"/etc/pwd")))


@pytest.mark.fault(51)
@pytest.mark.parametrize(
    "name", [b"/etc/shadow", b'json:{"driver":"file","filename":"/etc/shadow"}', b"nbd:127.0.0.1:10809", b"disk.img"]
)
def test_any_backing_file_is_refused(name: bytes) -> None:
    assert "backing file" in why(header(backing=name))


def test_a_backing_format_without_a_backing_file_is_refused() -> None:
    assert "another file" in why(header(extensions=struct.pack(">II8s", 0xE2792ACA, 3, b"raw")))


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (header(virtual=1 << 63), "not between"),
        (header(virtual=0), "not between"),
        (header(l1_entries=1), "level 1"),
        (header(l1_entries=1 << 31), "level 1"),
        (header(cluster_bits=63), "clusters"),
        (header(crypt=2), "encrypted"),
        (header(incompatible=1 << 1), "corrupt"),
        (header(incompatible=1 << 40), "not known"),
        (header(version=4), "version 4"),
        (header(header_length=1 << 31), "header of"),
        (header(l1_offset=1 << 40), "cut off"),
        (header(table_offset=0), "cut off"),
        (header(extensions=struct.pack(">II", 0x1234, 0xFFFFFFF0)), "no end"),
        (header()[:60], "cut off"),
        (header()[:90], "cut off"),
    ],
)
def test_what_cannot_be_true_or_read_is_refused(head: bytes, word: str) -> None:
    assert word in why(head)


def test_a_qcow2_shorter_than_its_tables_is_refused() -> None:
    assert "cut off" in why(header(), 100_000)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x1f\x8b\x08", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"# Disk DescriptorFile\n", "VMDK"),
        (b"COWD", "ESX"), (b"LUKS\xba\xbe", "LUKS"), (b"QED\0", "QED"), (b"<!DOCTYPE html>", "web page"),
        (bytes(0x8001) + b"CD001", "CD image"), (bytes(257) + b"ustar", "tar"),
    ],
)  # fmt: skip
def test_other_formats_are_named(head: bytes, word: str) -> None:
    assert word in why(head.ljust(formats.HEAD, b"\0"), formats.HEAD)


def test_a_raw_disk_is_accepted_and_is_as_large_as_its_file() -> None:
    assert formats.inspect(formats.Text(bytes(formats.HEAD), GiB), "disk.img") == ("raw", GiB)


@pytest.mark.fault(52)
def test_a_disk_said_to_be_raw_stays_raw_whatever_its_guest_wrote_into_it() -> None:
    assert formats.inspect(formats.Text(header(backing=b"/etc/shadow"), GiB), "disk.img", "raw") == ("raw", GiB)


def test_a_disk_said_to_be_qcow2_must_be_one() -> None:
    assert "does not begin" in why(bytes(512), GiB, "qcow2")


@pytest.mark.parametrize(("size", "word"), [(0, "empty"), (1000, "cut off"), (1 << 50, "more than")])
def test_raw_disks_of_impossible_sizes_are_refused(size: int, word: str) -> None:
    assert word in why(bytes(512), size)


def test_a_raw_disk_that_ends_before_its_partition_table_says_is_refused() -> None:
    gpt = bytes(512) + b"EFI PART" + bytes(24) + struct.pack("<Q", 2 * GiB // 512 - 1)
    assert "cut off" in why(gpt.ljust(4096, b"\0"))


@given(st.binary(max_size=4096), st.integers(0, 1 << 62))
def test_no_bytes_make_the_judge_fail(data: bytes, size: int) -> None:
    for head in (data, b"QFI\xfb\0\0\0\3" + data):
        try:
            formats.inspect(formats.Text(head, size), "disk.img")
        except Invalid as error:
            assert error.why


@given(st.integers(0, 1023), st.binary(min_size=1, max_size=8))
def test_a_damaged_header_never_gets_a_reference_past_the_judge(offset: int, junk: bytes) -> None:
    head = bytearray(header(backing=b"/etc/shadow").ljust(4096, b"\0"))
    head[32 + offset : 32 + offset + len(junk)] = junk  # anything but magic, version and the reference itself
    assert "backing file" in why(bytes(head))


def test_our_overlay_has_the_size_and_the_backing_file_that_were_asked_for() -> None:
    made = overlays.empty(10 * GiB, "../image/disk.qcow2")
    offset, length = struct.unpack_from(">QI", made, 8)
    assert made[offset : offset + length] == b"../image/disk.qcow2"
    assert struct.unpack_from(">Q", made, 24) == (10 * GiB,)


@pytest.mark.parametrize("size", [0, formats.MAX_VIRTUAL + 1])
def test_an_overlay_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(Invalid):
        overlays.empty(size, "disk.qcow2")


def test_the_backing_file_of_an_overlay_gets_another_name_and_nothing_else_changes() -> None:
    before = overlays.empty(10 * GiB, "/0")
    after = formats.rename_backing(before[: formats.HEAD], "../../images/longer/disk.qcow2") + before[formats.HEAD :]
    assert after == overlays.empty(10 * GiB, "../../images/longer/disk.qcow2")
    assert formats.rename_backing(after[: formats.HEAD], "/0") == before[: formats.HEAD]


@pytest.mark.parametrize("head", [bytes(formats.HEAD), b"\xff" * formats.HEAD, overlays.empty(GiB, "x")[:200]])
def test_a_header_without_room_for_a_backing_file_is_left_alone(head: bytes) -> None:
    with pytest.raises(Invalid):
        formats.rename_backing(head, "y" * 1000)


def test_an_overlay_tells_its_size_and_where_its_empty_level_1_table_is() -> None:
    made = overlays.empty(10 * GiB, "x")
    offset, length = formats.level_1(made)
    assert formats.virtual_size(made) == 10 * GiB
    assert made[offset : offset + length] == bytes(20 * 8)
    assert formats.level_1(made[:40]) == (0, 0)


@pytest.mark.parametrize("head", [b"", b"QFI\xfb", b"\0" * 32, b"QFI\xfb" + bytes(28), b"QFI\xfb" + b"\xff" * 28])
def test_what_is_no_disk_of_ours_has_no_size(head: bytes) -> None:
    with pytest.raises(Invalid):
        formats.virtual_size(head)
