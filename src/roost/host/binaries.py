"""What an ELF program needs to start: its interpreter and, followed to the end, its shared libraries."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from roost.errors import Unavailable

_TRIPLETS = {62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu", 243: "riscv64-linux-gnu"}  # by e_machine
_LARGEST = 64  # segments or, times 16, dynamic entries: more is no program we know
_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS, _RPATH, _RUNPATH = 1, 5, 15, 29


class Needs(NamedTuple):
    """The interpreter, and every library as the path that the interpreter will look for -> the file that it finds."""

    interpreter: Path | None
    libraries: Mapping[str, Path]


class _Object(NamedTuple):
    machine: int
    interpreter: Path | None
    needed: tuple[str, ...]
    search: tuple[str, ...]


def needs(binary: Path) -> Needs:
    """All that the binary needs, without running anything of it. Raises Unavailable when a library is missing."""
    main = _read(binary)
    system = _system_directories(main.machine)
    configured = [directory for directory in _configured(Path("/etc/ld.so.conf"), 0) if directory not in system]
    found: dict[str, Path] = {}
    names: set[str] = set()
    todo = [(binary, main)]
    while todo:
        file, parsed = todo.pop()
        own = [directory.replace("$ORIGIN", str(file.parent)) for directory in parsed.search]
        for name in parsed.needed:
            if name in names:
                continue
            names.add(name)
            directory, library = _find(name, main.machine, (*own, *system, *configured), binary)
            # The jail has no /etc/ld.so.cache: what only that names is put where the interpreter looks anyway.
            target = f"{system[0] if directory in configured else directory}/{name}"
            found[target] = library
            todo.append((library, _read(library)))
    return Needs(main.interpreter, found)


def _find(name: str, machine: int, directories: tuple[str, ...], binary: Path) -> tuple[str, Path]:
    for directory in directories:
        path = Path(directory) / name
        if path.is_file() and _read(path).machine == machine:
            return directory, path
    raise Unavailable(f"{binary.name} can not start", f"its library {name} was not found", "reinstall its package")


def _system_directories(machine: int) -> tuple[str, ...]:
    """Where glibc looks without any configuration; those that exist."""
    triplet = _TRIPLETS.get(machine, "none")
    # /usr/lib first, where both are one directory: QEMU looks for its modules there.
    places = (f"/usr/lib/{triplet}", f"/lib/{triplet}", "/usr/lib64", "/lib64", "/usr/lib", "/lib")
    return tuple(place for place in places if Path(place).is_dir())


def _configured(file: Path, depth: int) -> Iterator[str]:
    """The directories of ld.so.conf(5) and of what it includes."""
    if depth > 4 or not file.is_file():
        return
    for line in file.read_text(errors="replace").splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for included in sorted(Path("/").glob(str(file.parent / pattern).lstrip("/"))):
                    yield from _configured(included, depth + 1)
        elif words:
            yield words[0]


def _read(path: Path) -> _Object:
    """The dynamic part of a 64 bit little endian ELF file. Raises Unavailable for another file."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _parse(data)
    except (struct.error, IndexError, ValueError) as error:
        raise Unavailable(
            f"{path} can not be started", f"it is no ELF program for a 64 bit machine ({error})"
        ) from error


def _parse(data: mmap.mmap) -> _Object:
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("wrong magic")
    machine = struct.unpack_from("<H", data, 18)[0]
    segments = list(_segments(data))
    interpreter = next((_text(data, offset, size) for kind, offset, _, size in segments if kind == _INTERPRETER), None)
    entries = [
        entry for kind, offset, _, size in segments if kind == _DYNAMIC for entry in _dynamic(data, offset, size)
    ]
    values = dict(entries)
    strings = _file_offset(segments, values[_STRINGS]) if _STRINGS in values else 0
    needed = tuple(_text(data, strings + value) for tag, value in entries if tag == _NEEDED)
    search = values.get(_RUNPATH, values.get(_RPATH))
    paths = _text(data, strings + search).split(":") if search is not None else []
    return _Object(machine, Path(interpreter) if interpreter else None, needed, tuple(paths))


def _segments(data: mmap.mmap) -> Iterator[tuple[int, int, int, int]]:
    """(kind, offset in the file, address, size in the file)"""
    table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    for index in range(min(count, _LARGEST)):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + index * size)
        yield kind, offset, address, length


def _dynamic(data: mmap.mmap, offset: int, size: int) -> Iterator[tuple[int, int]]:
    for index in range(min(size // 16, _LARGEST * 16)):
        tag, value = struct.unpack_from("<QQ", data, offset + index * 16)
        if tag == 0:
            return
        yield tag, value


def _file_offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, start, size in segments:
        if kind == _LOAD and start <= address < start + size:
            return address - start + offset
    raise ValueError("a table lies outside of the file")


def _text(data: mmap.mmap, offset: int, size: int = 4096) -> str:
    return data[offset : offset + size].split(b"\0", 1)[0].decode()
