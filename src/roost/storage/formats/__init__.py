"""Disk formats as bytes: what a header may say before any tool opens the file (pure).

Nothing is ever probed by a tool: this package decides by magic, and from then on every tool is told the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from roost.errors import Invalid
from roost.model import size as sizes
from roost.model.image import DiskFormat
from roost.storage.formats import qcow2, vdi, vhd, vhdx, vmdk
from roost.storage.formats.content import Content, Span, Text, Unfit
from roost.storage.formats.qcow2 import MAX_VIRTUAL, level_1, rename_backing, virtual_size

__all__ = [
    "MAX_VIRTUAL", "Content", "Span", "Text", "Unfit", "level_1", "rename_backing", "virtual_size"
]  # fmt: skip

Format = DiskFormat

DRIVERS: Mapping[Format, str] = {
    "qcow2": "qcow2", "raw": "raw", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "vdi": "vdi"
}  # fmt: skip
"""QEMU's names for them."""

HEAD = 64 << 10
"""Bytes of a file's beginning by which formats are told apart."""

Compression = Literal["gzip", "xz", "zstd", "bzip2"]
_COMPRESSIONS: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")
)  # fmt: skip

_FOREIGN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\xfd7zXZ\0", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"COWD", "a VMDK disk of an ESX server (vmfsSparse), which stands on another"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor: its data are in other files"),
    (0, b"QED\0", "a QED disk"),
    (0, b"LUKS\xba\xbe", "a LUKS volume, which nobody can read without its key"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"<?xml", "an XML document"),
    (257, b"ustar", "a tar archive"),
    (0x8001, b"CD001", "a CD image"),
)
_FIXES = {
    b"QFI\xfb": "rewrite it on a machine you trust: qemu-img convert -f qcow2 -O qcow2 IN OUT",
    b"# Di": "bring descriptor and extents in one archive: tar cf disk.tar disk.vmdk disk-*.vmdk && roost image import disk.tar",
    b"LUKS": "decrypt it where its key is: cryptsetup open IN clear && qemu-img convert -f raw -O qcow2 /dev/mapper/clear OUT",
}
_OTHERWISE = "export it again as a whole disk (qcow2, raw, vmdk, vhd, vhdx, vdi), without a parent and without a key"


class Checked(NamedTuple):
    """A file whose header holds nothing dangerous: its format, and the size its guest sees in bytes."""

    format: Format
    virtual_size: int


def inspect(content: Content, name: str, format: Format | None = None) -> Checked:
    """What the file called `name` is. `format` None decides by our own magic check.

    Raises Invalid for anything that could make a tool open another file (backing file, external data file, extent, parent), needs a
    tool to repair it first, is encrypted, truncated, absurdly large, or is another format altogether.
    """
    head = content.read(0, HEAD)
    try:
        return judge(content, format)
    except Unfit as problem:
        fix = _FIXES.get(head[:4], _OTHERWISE)
        raise Invalid(f"{name} is not a disk that can be imported", str(problem), fix) from None


def judge(content: Content, format: Format | None = None) -> Checked:
    """What `inspect` does, with Unfit in place of the error."""
    head = content.read(0, HEAD)
    found = _looks(content, head)
    if format is not None and format not in (found, "raw"):
        raise Unfit(f"it does not begin as a {format} file")
    if format == "raw" or found == "raw":
        _raw(content, head)
        return Checked("raw", content.size)
    virtual = _JUDGES[found](content)
    if not 0 < virtual <= MAX_VIRTUAL:
        raise Unfit(f"a disk of {virtual} bytes is not between 1 byte and {sizes.show(MAX_VIRTUAL)}")
    return Checked(found, virtual)


def compression(head: bytes) -> Compression | None:
    """How a file that begins like this is compressed."""
    return next((kind for magic, kind in _COMPRESSIONS if head.startswith(magic)), None)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins like this is a tar archive, as an OVA is."""
    return head[257:262] == b"ustar"


def _looks(content: Content, head: bytes) -> Format:
    for offset, magic, format in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return format
    return "vhd" if vhd.is_fixed(content) else "raw"


def _qcow2(content: Content) -> int:
    problem, virtual = qcow2.judge(content.read(0, HEAD), content.size)
    if problem:
        raise Unfit(problem)
    return virtual


_MAGIC: tuple[tuple[int, bytes, Format], ...] = (
    (0, qcow2.MAGIC, "qcow2"),
    (0, vmdk.MAGIC, "vmdk"),
    (0, vhd.MAGIC, "vhd"),
    (0, vhdx.MAGIC, "vhdx"),
    (vdi.MAGIC_AT, vdi.MAGIC, "vdi"),
)
_JUDGES: Mapping[Format, Callable[[Content], int]] = {
    "qcow2": _qcow2, "vmdk": vmdk.judge, "vhd": vhd.judge, "vhdx": vhdx.judge, "vdi": vdi.judge
}  # fmt: skip


def _raw(content: Content, head: bytes) -> None:
    for offset, magic, what in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise Unfit(f"it is {what}")
    if content.size == 0:
        raise Unfit("it is empty")
    if content.size % 512:
        raise Unfit(f"its size, {content.size} bytes, is not a whole number of 512 byte sectors: it is cut off")
    if content.size > MAX_VIRTUAL:
        raise Unfit(f"{content.size} bytes is more than the {sizes.show(MAX_VIRTUAL)} allowed")
    _check_gpt(head, content.size)


def _check_gpt(head: bytes, file_size: int) -> None:
    """A GPT names the sector of its backup at the end of the disk (UEFI specification, 5.3.2)."""
    if head[512:520] != b"EFI PART" or len(head) < 1024:
        return
    backup = int.from_bytes(head[512 + 32 : 512 + 40], "little")
    if (backup + 1) * 512 > file_size:
        raise Unfit(f"its partition table ends at byte {(backup + 1) * 512}, the file at {file_size}: it is cut off")
