"""Kernels and their modules as bytes: the ELF image inside a bzImage, and modules in the order they must be loaded (pure).

A bzImage is described in the kernel's Documentation/arch/x86/boot.rst. Starting the ELF image inside it by its PVH entry point spares
the guest the decompression, which costs most of a second without KVM.
"""

from __future__ import annotations

import ctypes
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import zstandard

from roost.storage import elf

MAX_KERNEL = 512 << 20
"""Bytes a decompressed kernel or module may have."""

_PVH_NOTE = struct.pack("<III4s", 4, 4, 18, b"Xen\0"), struct.pack("<III4s", 4, 8, 18, b"Xen\0")
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK = 8 << 20


def direct(kernel: bytes) -> bytes:
    """The form of `kernel` that a hypervisor starts fastest: the ELF inside a bzImage when it has a PVH entry, without the gaps
    that would only take memory; else `kernel` itself."""
    if kernel[0x202:0x206] != b"HdrS":
        return kernel
    start = (kernel[0x1F1] + 1) * 512 + int.from_bytes(kernel[0x248:0x24C], "little")
    payload = kernel[start : start + int.from_bytes(kernel[0x24C:0x250], "little")]
    image = _decompressed(payload)
    if image[:4] == b"\x7fELF" and any(note in image for note in _PVH_NOTE):
        return elf.without_gaps(image)
    return kernel


def _decompressed(payload: bytes) -> bytes:
    """The payload, empty when its compression is not one we know or is damaged."""
    try:
        if payload[:4] == _LZ4_LEGACY:
            return _lz4_legacy(payload)
        if payload[:6] == b"\xfd7zXZ\0":
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, MAX_KERNEL)
        if payload[:2] == b"\x1f\x8b":
            return zlib.decompressobj(31).decompress(payload, MAX_KERNEL)
        if payload[:4] == b"\x28\xb5\x2f\xfd":
            return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    except (lzma.LZMAError, zlib.error, zstandard.ZstdError):
        pass
    return b""


def _lz4_legacy(payload: bytes) -> bytes:
    """LZ4's legacy frame, as the kernel uses it: blocks of at most 8 MiB, each after its length (LZ4_Frame_format.md).

    The library comes with apt, so every Debian has it; Python's standard library has no LZ4.
    """
    try:
        library = ctypes.CDLL("liblz4.so.1")
    except OSError:
        return b""
    room = ctypes.create_string_buffer(_LZ4_BLOCK)
    parts: list[bytes] = []
    offset = 4
    while offset + 8 <= len(payload):  # the last 4 bytes are the kernel's own record of the size
        length = int.from_bytes(payload[offset : offset + 4], "little")
        block = payload[offset + 4 : offset + 4 + length]
        got = library.LZ4_decompress_safe(block, room, len(block), _LZ4_BLOCK)
        if got < 0 or len(parts) * _LZ4_BLOCK > MAX_KERNEL:
            return b""
        parts.append(room.raw[:got])
        offset += 4 + length
    return b"".join(parts)


class Module(NamedTuple):
    """A kernel module, ready to be loaded: its name (with underscores) and its ELF file."""

    name: str
    data: bytes


def unpack_module(data: bytes, file_name: str) -> Module:
    """The module in the file `file_name` (`.ko`, `.ko.xz`, `.ko.zst`), unpacked."""
    stem, _, packing = file_name.partition(".ko")
    if packing == ".xz":
        data = lzma.decompress(data, memlimit=MAX_KERNEL)
    elif packing == ".zst":
        data = zstandard.ZstdDecompressor().decompress(data, MAX_KERNEL)
    return Module(stem.rpartition("/")[2].replace("-", "_"), data)


def needs(module: bytes) -> list[str]:
    """The names of the modules that `module` says it needs, hard and soft, from its .modinfo section."""
    names: list[str] = []
    for entry in _modinfo(module).split(b"\0"):
        key, _, value = entry.partition(b"=")
        if key == b"depends":
            names += value.decode().split(",")
        elif key == b"softdep" and value.startswith(b"pre:"):
            names += value[4:].decode().split("post:")[0].split()
    return [name.replace("-", "_") for name in names if name]


def _modinfo(module: bytes) -> bytes:
    """The section .modinfo of a little-endian ELF64 file (every architecture we have)."""
    if module[:6] != b"\x7fELF\x02\x01" or len(module) < 64:
        return b""
    table, size, count, names = (*struct.unpack_from("<Q", module, 40), *struct.unpack_from("<HHH", module, 58))
    sections = [struct.unpack_from("<IIQQQQ", module, table + index * size) for index in range(count)]
    strings = sections[names][4]
    for name, _, _, _, offset, length in sections:
        if module[strings + name : strings + name + 9] == b".modinfo\0":
            return module[offset : offset + length]
    return b""


def in_order(wanted: Iterable[str], files: Mapping[str, str], read: Callable[[str], bytes]) -> list[Module]:
    """`wanted` and all they need, each after what it needs. `files` maps a name to its file, `read` gives a file's bytes.

    Names that are not in `files` are built into the kernel or do not exist on it, and are left out.
    """
    done: dict[str, Module] = {}
    for name in wanted:
        for module in _below(name, files, read, done):
            done[module.name] = module
    return list(done.values())


def _below(
    name: str, files: Mapping[str, str], read: Callable[[str], bytes], done: dict[str, Module]
) -> Iterator[Module]:
    if name in done or name not in files:
        return
    module = unpack_module(read(files[name]), files[name])
    done[name] = module
    for needed in needs(module.data):
        yield from _below(needed, files, read, done)
    del done[name]
    yield module
