"""Every format and subformat that qemu-img writes becomes an image with the same content, and goes out again; broken and hostile ones are refused."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from roost.errors import Invalid
from roost.model.image import DiskFormat
from roost.storage import formats, importing
from roost.storage.formats import Text, vhdx
from tests.conformance.test_images import MiB, blocks, left, needs_qemu_img, pool, qemu_img, silent
from tests.disks import SIZE, made, pattern, tar

pytestmark = needs_qemu_img
LIMIT = 64 * MiB
WHOLE = [
    ("qcow2", ""), ("qcow2", "compat=0.10"), ("qcow2", "compression_type=zstd"), ("vmdk", "subformat=monolithicSparse"),
    ("vmdk", "subformat=streamOptimized"), ("vpc", "subformat=dynamic,force_size=on"), ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", "subformat=dynamic"), ("vhdx", "subformat=fixed"), ("vdi", ""), ("vdi", "static=on"),
]  # fmt: skip
SPLIT = ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"]


async def content(tmp_path: Path, data: bytes) -> bytes:
    """What the guest of an image of this upload sees."""
    there = pool(tmp_path)
    manifest = await there.ensure_upload(blocks(data), LIMIT, silent)
    qemu_img("convert", "-f", "qcow2", "-O", "raw", there.files(manifest.digest).disk, tmp_path / "seen.raw")
    return (tmp_path / "seen.raw").read_bytes()


async def refused(tmp_path: Path, data: bytes) -> str:
    """Why an upload is refused, with nothing of it left."""
    with pytest.raises(Invalid) as caught:
        await pool(tmp_path).ensure_upload(blocks(data), LIMIT, silent)
    assert left(tmp_path) == []
    assert caught.value.fix
    return caught.value.why


@pytest.mark.parametrize(("driver", "options"), WHOLE)
async def test_a_disk_of_every_format_becomes_an_image_with_the_same_content(
    tmp_path: Path, driver: str, options: str
) -> None:
    disk = made(tmp_path, driver, options).read_bytes()
    assert await content(tmp_path, disk) == (tmp_path / "pattern.raw").read_bytes()


@pytest.mark.parametrize("kind", SPLIT)
async def test_a_vmdk_in_several_files_is_taken_when_they_come_in_one_archive(tmp_path: Path, kind: str) -> None:
    disk = made(tmp_path, "vmdk", f"subformat={kind}")
    archive = tar({path.name: path.read_bytes() for path in sorted(disk.parent.iterdir())})
    assert await content(tmp_path, archive) == (tmp_path / "pattern.raw").read_bytes()
    assert "other files" in await refused(tmp_path / "alone", disk.read_bytes())


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
async def test_a_compressed_disk_is_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    disk = pattern(tmp_path).read_bytes()
    packed = pack(disk[: 1 << 20]) + pack(disk[1 << 20 :])
    assert await content(tmp_path, packed) == disk
    assert "cut off" in await refused(tmp_path / "cut", packed[:-20])


async def test_a_compressed_disk_in_an_archive_is_unpacked_and_one_compressed_twice_is_not(tmp_path: Path) -> None:
    disk = pattern(tmp_path).read_bytes()
    assert await content(tmp_path, tar({"disk.raw.gz": gzip.compress(disk)})) == disk
    assert "gzip" in await refused(tmp_path / "twice", gzip.compress(gzip.compress(disk)))


@pytest.mark.fault(54)
@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress])
async def test_a_bomb_is_given_up_by_its_ratio(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    bomb = pack(b"A" * 80 * MiB)
    with pytest.raises(Invalid) as caught:
        await pool(tmp_path).ensure_upload(blocks(bomb), 1024 * MiB, silent)
    assert "1000 times" in caught.value.why
    assert left(tmp_path) == []


@pytest.mark.fault(54)
async def test_a_bomb_is_given_up_at_the_limit(tmp_path: Path) -> None:
    assert "becomes more than the 64MiB" in await refused(tmp_path, gzip.compress(b"A" * 80 * MiB, 1))


@pytest.mark.parametrize("format", ["raw", "vmdk", "vhd", "vhdx", "vdi"])
async def test_an_image_goes_out_in_every_format_and_comes_back_the_same(tmp_path: Path, format: DiskFormat) -> None:
    there = pool(tmp_path)
    disk = pattern(tmp_path).read_bytes()
    manifest = await there.ensure_upload(blocks(disk), LIMIT, silent)
    out = b"".join([piece async for piece in await there.export(manifest.digest, format, "image")])
    assert formats.inspect(Text(out, len(out)), "out") == (format, SIZE)
    assert await content(tmp_path / "again", out) == disk
    assert list((tmp_path / "s" / "building").iterdir()) == []


def forged(disk: bytes, at: int, data: bytes) -> bytes:
    return disk[:at] + data + disk[at + len(data) :]


def why(data: bytes) -> str:
    with pytest.raises(Invalid) as caught:
        formats.inspect(Text(data, len(data)), "disk")
    return caught.value.why


@pytest.mark.fault(53)
def test_a_vmdk_that_stands_on_another_or_names_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path, "vmdk", "subformat=monolithicSparse").read_bytes()
    text = disk[512:1024]
    assert "parentCID" in why(disk.replace(b"parentCID=ffffffff", b"parentCID=00000001"))
    hint = b'parentFileNameHint="/etc/passwd"\n'
    assert "parentFileNameHint" in why(forged(disk, 512, text.replace(b"# The Disk Data Base\n#DDB\n\n", hint)))
    assert "beside" in why(disk.replace(b'"disk.vmdk"', b'"/etc/pass"'))
    assert "not in this file" in why(disk.replace(b' SPARSE "disk.vmdk"', b' FLAT "disk.vmdk" 0'))
    assert "no size" in why(forged(disk, 12, bytes(8)))
    assert "as text" in why(forged(disk, 73, b"\r"))
    assert "cut off" in why(disk[:-512])


@pytest.mark.fault(53)
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../secret", "json:{}", "nbd:127.0.0.1:1", "a/b", ".hidden", "missing"]
)
async def test_an_extent_that_is_no_file_beside_its_descriptor_is_refused(tmp_path: Path, name: str) -> None:
    text = f'# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 8 FLAT "{name}" 0\n'
    assert name in await refused(tmp_path, tar({"disk.vmdk": text.encode(), "data": bytes(4096)}))


async def test_an_extent_that_is_shorter_than_it_should_be_is_refused(tmp_path: Path) -> None:
    text = b'# Disk DescriptorFile\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 80 FLAT "data" 0\n'
    assert "cut off" in await refused(tmp_path, tar({"disk.vmdk": text, "data": bytes(4096)}))


def test_a_stream_optimized_vmdk_without_its_end_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path, "vmdk", "subformat=streamOptimized").read_bytes()
    assert "cut off" in why(disk[: len(disk) // 2])
    footed = forged(disk, 56, b"\xff" * 8)
    assert "footer" in why(footed)
    marker, end = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0"), bytes(512)
    whole = footed + marker + disk[:512] + end
    assert formats.inspect(Text(whole, len(whole)), "disk") == ("vmdk", SIZE)
    assert "do not agree" in why(footed + marker + forged(disk[:512], 12, struct.pack("<Q", 1 << 30)) + end)


def test_a_vhd_with_a_parent_or_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path, "vpc", "subformat=dynamic,force_size=on").read_bytes()
    assert "checksum of its footer" in why(forged(disk, len(disk) - 512 + 60, struct.pack(">I", 4)))
    assert "checksum of its dynamic header" in why(forged(disk, 512 + 64, b"/etc/passwd"))
    assert "differ" in why(forged(disk, 40, bytes(8)))
    assert "cut off" in why(disk[:-512])
    footer = bytearray(disk[-512:])
    footer[60:64], footer[64:68] = struct.pack(">I", 4), bytes(4)
    footer[64:68] = struct.pack(">I", ~sum(footer) & 0xFFFFFFFF)
    assert "differencing" in why(bytes(footer) + disk[512:-512] + bytes(footer))


def sealed(disk: bytes, at: int, length: int) -> bytes:
    """The structure at `at`, with its checksum set right."""
    part = disk[at : at + 4] + bytes(4) + disk[at + 8 : at + length]
    return forged(disk, at + 4, struct.pack("<I", vhdx.crc32c(part)))


def test_a_vhdx_whose_log_waits_that_has_a_parent_or_damage_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path, "vhdx", "subformat=dynamic").read_bytes()
    dirty = disk
    for at in (64 << 10, 128 << 10):
        dirty = sealed(forged(dirty, at + 48, b"\1" * 16), at, 4096)
    assert "replayed" in why(dirty)
    assert "neither of its headers" in why(forged(forged(disk, 65_600, b"x"), 131_136, b"x"))
    assert "neither of its region tables" in why(forged(forged(disk, (192 << 10) + 8, b"x"), (256 << 10) + 8, b"x"))
    metadata = disk.index(b"metadata")
    flags = disk.index(bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b"), metadata)
    offset = metadata + int.from_bytes(disk[flags + 16 : flags + 20], "little")
    assert "parent" in why(forged(disk, offset + 4, b"\2"))
    assert "parent locator" in why(forged(disk, flags, bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")))
    assert "cut off" in why(disk[: 6 << 20])


def test_a_vdi_that_stands_on_another_or_lies_about_its_blocks_is_refused(tmp_path: Path) -> None:
    disk = made(tmp_path, "vdi").read_bytes()
    assert "differencing" in why(forged(disk, 76, struct.pack("<I", 4)))
    parent = 64 + formats.vdi._HEADER.size - 16
    assert "parent" in why(forged(disk, parent, b"\1" * 16))
    assert "sectors" in why(forged(disk, 360, b"\1"))
    assert "cut off" in why(disk[:-512])


@pytest.mark.parametrize(("driver", "options"), [*WHOLE[3:8], *WHOLE[9:]])
def test_no_damage_of_a_header_makes_the_judge_fail(tmp_path: Path, driver: str, options: str) -> None:
    """Each of many places is overwritten; what comes is a verdict or a reason, never another error."""
    disk = made(tmp_path, driver, options).read_bytes()
    for at in (*range(0, 2000, 56), *range(len(disk) - 600, len(disk), 40), *range(3 << 20, (3 << 20) + 400, 24)):
        for junk in (b"\xff" * 8, bytes(8)):
            try:
                formats.judge(Text(data := forged(disk, at, junk), len(data)))
            except formats.Unfit as problem:
                assert str(problem)


@pytest.mark.fault(57)
def test_a_link_in_the_place_of_a_disk_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").symlink_to(pattern(tmp_path))
    with pytest.raises(OSError, match="symbolic"), importing.opened(tmp_path / "disk"):
        pass
