"""The initramfs writer, the order of kernel modules, and the kernel inside a bzImage."""

from __future__ import annotations

import gzip
import lzma
import struct

import pytest

from roost.storage import initramfs, kernels
from roost.storage.kernels import Module

PVH = struct.pack("<III4s", 4, 4, 18, b"Xen\0")


def members(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name -> (mode, data) of a newc archive, read independently of the writer."""
    found, offset = {}, 0
    while True:
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        assert archive[offset : offset + 6] == b"070701"
        name = archive[offset + 110 : offset + 110 + fields[11] - 1].decode()
        start = offset + 110 + fields[11] + (-(110 + fields[11]) % 4)
        if name == "TRAILER!!!":
            return found
        found[name] = (fields[1], archive[start : start + fields[6]])
        offset = start + fields[6] + (-fields[6] % 4)


def elf_module(modinfo: bytes) -> bytes:
    """A minimal ELF64 with a .modinfo section."""
    names = b"\0.modinfo\0.shstrtab\0"
    sections = [(0, 0, 0), (1, 64, len(modinfo)), (10, 64 + len(modinfo), len(names))]
    table = b"".join(struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, at, size, 0, 0, 0, 0) for name, at, size in sections)
    head = b"\x7fELF\x02\x01".ljust(40, b"\0") + struct.pack(
        "<QIHHHHHH", 64 + len(modinfo) + len(names), 0, 64, 0, 0, 64, 3, 2
    )
    return head + modinfo + names + table


def bzimage(payload: bytes) -> bytes:
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload


def test_parents_modes_and_contents_are_there() -> None:
    archive = initramfs.Archive()
    archive.file("a/b/run", b"hello", 0o755)
    archive.link("a/link", "b/run")
    assert members(archive.finish()) == {
        "a": (0o40755, b""),
        "a/b": (0o40755, b""),
        "a/b/run": (0o100755, b"hello"),
        "a/link": (0o120777, b"b/run"),
    }


def test_a_name_is_not_added_twice() -> None:
    archive = initramfs.Archive()
    archive.file("x", b"1")
    with pytest.raises(ValueError, match="already"):
        archive.file("x", b"2")


def test_tiny_starts_its_agent_between_early_and_late_modules() -> None:
    programs = initramfs.Programs(b"init", b"agent", b"\x7fELF...[\0[[\0ash\0true\0\0...", b"#!/bin/sh")
    archive = initramfs.tiny(programs, [Module("virtio", b"1")], [Module("evdev", b"2")])
    found = members(archive.finish())
    assert found["roost/modules"][1] == b"/lib/modules/virtio.ko\n-\n/lib/modules/evdev.ko\n"
    assert found["bin/true"] == (0o120777, b"busybox")
    assert found["roost/agent"] == (0o100755, b"agent")
    assert found["lib/modules/evdev.ko"][1] == b"2"


def test_the_same_input_gives_the_same_bytes() -> None:
    made = [initramfs.accelerator(b"init", [Module("ext4", b"1")]).finish() for _ in range(2)]
    assert made[0] == made[1]


def test_modules_come_after_what_they_need_and_once() -> None:
    files = {
        "virtio_net": elf_module(b"depends=virtio,net_failover\0"),
        "virtio": elf_module(b"depends=virtio-ring\0"),
        "virtio_ring": elf_module(b"depends=\0"),
        "net_failover": elf_module(b"softdep=pre: failover\0depends=\0"),
        "failover": elf_module(b""),
    }
    order = kernels.in_order(
        ["virtio", "virtio_net"], {name: f"{name}.ko" for name in files}, lambda file: files[file[:-3]]
    )
    assert [module.name for module in order] == ["virtio_ring", "virtio", "failover", "net_failover", "virtio_net"]


def test_modules_built_into_the_kernel_are_left_out() -> None:
    assert kernels.in_order(["ext4"], {}, lambda _: b"") == []


def test_modules_that_need_each_other_do_not_loop() -> None:
    files = {"a": elf_module(b"depends=b\0"), "b": elf_module(b"depends=a\0")}
    order = kernels.in_order(["a"], {name: f"{name}.ko" for name in files}, lambda file: files[file[:-3]])
    assert sorted(module.name for module in order) == ["a", "b"]


def test_packed_modules_are_unpacked_and_named_as_the_kernel_names_them() -> None:
    plain = elf_module(b"depends=\0")
    assert kernels.unpack_module(lzma.compress(plain), "drivers/virtio-rng.ko.xz") == Module("virtio_rng", plain)


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress])
def test_the_elf_inside_a_bzimage_is_taken_when_it_can_be_started_directly(pack) -> None:
    image = b"\x7fELF" + PVH + bytes(1000)
    assert kernels.direct(bzimage(pack(image))) == image


@pytest.mark.parametrize(
    "payload",
    [b"?????", lzma.compress(b"\x7fELF without a note"), b"\xfd7zXZ\0 damaged", b"\x02\x21\x4c\x18\xff\xff\xff\x7f"],
)
def test_a_bzimage_we_cannot_use_better_stays_as_it_is(payload: bytes) -> None:
    assert kernels.direct(bzimage(payload)) == bzimage(payload)


def test_other_kernels_stay_as_they_are() -> None:
    assert kernels.direct(b"MZ arm64 Image") == b"MZ arm64 Image"
