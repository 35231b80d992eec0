"""Windows DLLs of nothing but forwarded exports: a name that a program imports leads to a function of another DLL.

Wine 8 has no bcryptprimitives.dll, whose one function that matters (ProcessPrng) is what advapi32 calls SystemFunction036; without it no current
Go or Rust program starts. Such a DLL holds no code, so it is written here rather than compiled.
"""

from __future__ import annotations

import struct

from roost.light import Mapping

# The format: "PE Format" of the Windows documentation.
_ALIGNMENT, _FILE_ALIGNMENT = 0x1000, 0x200
_SECTION = 0x1000  # where the one section lies in memory
_BASE = 0x1_8000_0000  # the usual place of a 64-bit DLL
_MACHINE_AMD64, _PE32_PLUS = 0x8664, 0x20B
_EXECUTABLE, _LARGE_ADDRESSES, _DLL = 0x2, 0x20, 0x2000
_DYNAMIC_BASE, _NX, _HIGH_ENTROPY, _NO_SEH = 0x40, 0x100, 0x20, 0x400
_CONSOLE = 3
_INITIALIZED_READABLE = 0x40000040
_DIRECTORIES = 16
_DOS, _FILE_HEADER, _OPTIONAL_HEADER, _SECTION_HEADER, _EXPORTS = (
    "<2s58xI",
    "<4sHHIIIHH",
    "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
    "<8sIIIIIIHHI",
    "<IIHHIIIIIII",
)


def forwarder(name: str, forwards: Mapping[str, str]) -> bytes:
    """A DLL for x86_64 called `name`, whose every export (key) leads to "library.function" (value)."""
    exports = _exports(name, sorted(forwards.items()))
    return _headers(len(exports)).ljust(_FILE_ALIGNMENT, b"\0") + exports.ljust(
        _round(len(exports), _FILE_ALIGNMENT), b"\0"
    )


def _exports(name: str, forwards: list[tuple[str, str]]) -> bytes:
    """The export section: directory, addresses, names, ordinals and the strings. An address within the section is that of a forward."""
    count = len(forwards)
    addresses = _SECTION + struct.calcsize(_EXPORTS)
    names = addresses + 4 * count
    ordinals = names + 4 * count
    strings = ordinals + 2 * count
    places, text = [], b""
    for word in (name, *(word for pair in forwards for word in pair)):
        places.append(strings + len(text))
        text += word.encode("ascii") + b"\0"
    return (
        struct.pack(_EXPORTS, 0, 0, 0, 0, places[0], 1, count, count, addresses, names, ordinals)
        + struct.pack(f"<{count}I", *places[2::2])
        + struct.pack(f"<{count}I", *places[1::2])
        + struct.pack(f"<{count}H", *range(count))
        + text
    )


def _headers(size: int) -> bytes:
    """Everything before the section, which is `size` bytes long."""
    raw = _round(size, _FILE_ALIGNMENT)
    dos = struct.pack(_DOS, b"MZ", struct.calcsize(_DOS))
    directories = struct.pack("<II", _SECTION, size).ljust(8 * _DIRECTORIES, b"\0")
    optional = struct.pack(
        _OPTIONAL_HEADER,
        _PE32_PLUS, 14, 0, 0, raw, 0, 0, _SECTION,
        _BASE, _ALIGNMENT, _FILE_ALIGNMENT, 6, 0, 0, 0, 6, 0, 0, _SECTION + _round(size, _ALIGNMENT), _FILE_ALIGNMENT, 0,
        _CONSOLE, _DYNAMIC_BASE | _NX | _HIGH_ENTROPY | _NO_SEH,
        0x100000, 0x1000, 0x100000, 0x1000, 0, _DIRECTORIES,
    ) + directories  # fmt: skip
    flags = _EXECUTABLE | _LARGE_ADDRESSES | _DLL
    file = struct.pack(_FILE_HEADER, b"PE\0\0", _MACHINE_AMD64, 1, 0, 0, 0, len(optional), flags)
    section = struct.pack(
        _SECTION_HEADER, b".edata", size, _SECTION, raw, _FILE_ALIGNMENT, 0, 0, 0, 0, _INITIALIZED_READABLE
    )
    return dos + file + optional + section


def _round(number: int, unit: int) -> int:
    return -(-number // unit) * unit
