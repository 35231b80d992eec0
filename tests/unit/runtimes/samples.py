"""Small real files of every kind, built byte by byte, and what detection makes of bytes."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping

from roost.runtimes.base import Found
from roost.runtimes.detect import detect

BUDGET = 64 << 10


def detected(content: bytes) -> Found:
    """What a file with this content is; checks that no more than the budget was read of it."""
    descriptor = os.memfd_create("sample")
    read, plain = [0], os.pread

    def counting(fd: int, count: int, offset: int) -> bytes:
        data = plain(fd, count, offset)
        read[0] += len(data)
        return data

    try:
        os.write(descriptor, content)
        os.pread = counting
        found = detect(f"/proc/self/fd/{descriptor}")
    finally:
        os.pread = plain
        os.close(descriptor)
    assert read[0] <= BUDGET
    return found


def number(value: int) -> bytes:
    """Unsigned LEB128."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


def name(text: str) -> bytes:
    return number(len(text.encode())) + text.encode()


def section(kind: int, *items: bytes) -> bytes:
    body = number(len(items)) + b"".join(items)
    return bytes([kind]) + number(len(body)) + body


def wasm(imports: Iterable[tuple[str, str]] = (), exports: Iterable[str] = ("_start",), code: int = 0) -> bytes:
    """A module: function imports, function exports, and `code` bytes of a code section before the exports' own place would be too late."""
    taken = [name(module) + name(field) + b"\0\0" for module, field in imports]
    given = [name(export) + b"\0\0" for export in exports]
    parts = [section(1, b"\x60\0\0")]
    parts += [section(2, *taken)] if taken else []
    parts += [section(3, b"\0"), section(7, *given)] if given else [section(3, b"\0")]
    body = number(1) + number(code + 2) + b"\0" * (code + 1) + b"\x0b"
    parts.append(b"\x0a" + number(len(body)) + body)
    return b"\0asm\x01\0\0\0" + b"".join(parts)


def component(imports: Iterable[str] = (), exports: Iterable[str] = ("wasi:cli/run@0.2.3",), module: int = 0) -> bytes:
    """A component: instances imported and exported, around a core module of `module` bytes."""
    parts = [section(10, b"\0" + name(text) + b"\x05\0") for text in imports]
    parts.append(b"\x01" + number(module) + b"\0" * module)
    parts += [section(11, b"\0" + name(text) + b"\x05\0\0") for text in exports]
    return b"\0asm\x0d\0\x01\0" + b"".join(parts)


def elf(
    machine: int = 62,
    *,
    kind: int = 2,
    wide: bool = True,
    big: bool = False,
    interpreter: str = "",
    tags: Mapping[int, int] | None = None,
    system: int = 0,
    flags: int = 0,
    entry: int = 0x1000,
) -> bytes:
    """A file with its headers and no code: one loaded segment, an interpreter and a dynamic section where they are given."""
    order = ">" if big else "<"
    parts = [(1, b"\x90" * 16)]
    parts += [(3, interpreter.encode() + b"\0")] if interpreter else []
    word = "Q" if wide else "I"
    parts += [(2, b"".join(struct.pack(f"{order}2{word}", *tag) for tag in tags.items()))] if tags is not None else []
    start, size = (64, 56) if wide else (52, 32)
    offset = start + size * len(parts)
    headers = body = b""
    for part, data in parts:
        at = offset + len(body)
        if wide:
            headers += struct.pack(f"{order}IIQQQQQQ", part, 5, at, at, at, len(data), len(data), 1)
        else:
            headers += struct.pack(f"{order}IIIIIIII", part, at, at, at, len(data), len(data), 5, 1)
        body += data
    ident = b"\x7fELF" + bytes([2 if wide else 1, 2 if big else 1, 1, system]) + bytes(8)
    middle = struct.pack(f"{order}HHI3{word}I", kind, machine, 1, entry, start, 0, flags)
    return ident + middle + struct.pack(f"{order}6H", start, size, len(parts), 0, 0, 0) + headers + body


def pe(machine: int = 0x8664, *, dll: bool = False, subsystem: int = 3, framework: str | None = None) -> bytes:
    """A program of Windows with one section; with `framework` ("" for one that says none) one of .NET."""
    wide = machine != 0x14C
    text = b""
    if framework is not None:
        version = b"v4.0.30319\0\0"
        root = b"BSJB" + struct.pack("<HHII", 1, 1, 0, len(version)) + version + framework.encode()
        text = struct.pack("<IHHIIII", 72, 2, 5, 0x1000 + 72, len(root), 1, 0) + bytes(48) + root
    text = text.ljust(512, b"\0")
    directories = (
        bytes(8 * 14) + struct.pack("<II", 0x1000, 72) * (framework is not None) + bytes(8 * (1 + (framework is None)))
    )
    optional = struct.pack("<H66xH", 0x20B if wide else 0x10B, subsystem).ljust(
        108 if wide else 92, b"\0"
    ) + struct.pack("<I", 16)
    optional += directories
    fixed = struct.pack("<HHIIIHH", machine, 1, 0, 0, 0, len(optional), 0x22 | (0x2000 if dll else 0))
    table = b".text\0\0\0" + struct.pack("<IIII16x", len(text), 0x1000, len(text), 0x400)
    head = b"MZ".ljust(60, b"\0") + struct.pack("<I", 64) + b"PE\0\0" + fixed + optional + table
    return head.ljust(0x400, b"\0") + text


def java(major: int = 61, *, method: str = "main", own: str = "pkg/Main", minor: int = 0, access: int = 0x21) -> bytes:
    """A class file with one method without a body."""
    texts = [own, "java/lang/Object", method, "([Ljava/lang/String;)V"]
    pool = b"".join(b"\x01" + struct.pack(">H", len(text)) + text.encode() for text in texts) + b"\x07\0\x01\x07\0\x02"
    pool += b"\x05" + bytes(8)  # a long takes two places
    members = struct.pack(">4H", access, 5, 6, 0) + struct.pack(">H", 0) + struct.pack(">5H", 1, 9, 3, 4, 0) + b"\0\0"
    return b"\xca\xfe\xba\xbe" + struct.pack(">HHH", minor, major, 9) + pool + members


def archive(
    files: Mapping[str, bytes | str], *, before: bytes = b"", method: int = zipfile.ZIP_DEFLATED, comment: bytes = b""
) -> bytes:
    """A zip archive, perhaps behind something else."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        made.comment = comment
        for path, content in files.items():
            made.writestr(path, content)
    return before + stream.getvalue()


def manifest(main: str = "pkg.Main", more: str = "") -> str:
    return f"Manifest-Version: 1.0\r\nMain-Class: {main}\r\n{more}\r\n"


def jar(major: int = 61, more: str = "", **how: object) -> bytes:
    """A jar with a program of one class."""
    return archive({"META-INF/MANIFEST.MF": manifest(more=more), "pkg/Main.class": java(major)}, **how)  # type: ignore[arg-type]


GOOD = {
    "wasm": wasm([("wasi_snapshot_preview1", "proc_exit")]),
    "component": component(["wasi:cli/environment@0.2.3", "wasi:io/streams@0.2.3"], module=200),
    "wat": b";; text\n(; more ;) (module (func))",
    "elf": elf(183, interpreter="/lib/ld-linux-aarch64.so.1"),
    "elf32": elf(40, wide=False, flags=0x5000400),
    "elf-big": elf(22, big=True, kind=3, tags={0x6FFFFFFB: 0x08000000, 0: 0}),
    "class": java(),
    "jar": jar(),
    "pyz": archive({"__main__.py": "print(1)"}, before=b"#!/usr/bin/env python3\n"),
    "exe": pe(),
    "clr": pe(0x14C, framework=".NETFramework,Version=v4.8"),
    "script": b"#!/usr/bin/env python3\nprint(1)\n",
}
"""Files that some runtime runs."""
