"""What a program is, by its content alone: at most 64 KiB are read, nothing is executed, and no content makes it raise."""

from __future__ import annotations

from roost.light import Callable
from roost.runtimes.base import Found
from roost.runtimes.detect_file import Bounded, Damaged, File, refuse

_MACHO = {b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbf"}
_APE = (b"MZqFpD", b"jartsr", b"APEDBG")
"""Heads of "actually portable executables": Windows programs, shell scripts and ELF files at once."""


def detect(path: str) -> Found:
    """What the file is. Raises NotFound when there is none, Forbidden when it may not be read, RoostError when reading it fails."""
    with File(path) as file:
        if file.directory:
            return refuse("unknown", "is a directory", "name the file of the program")
        if not file.regular:
            return refuse(
                "unknown", "is a device, a pipe or a socket, not an ordinary file", "copy its content to a file first"
            )
        read = _format(file.start())
        try:
            return read(file)
        except Damaged as damage:
            return refuse(_KINDS[read], f"is damaged or cut off: {damage}", "fetch or build it again")
        except Bounded:
            return refuse(
                _KINDS[read], "hides what it is beyond what is read of a file", "roost run --vm NAME forces a runtime"
            )


def _format(head: bytes) -> Callable[[File], Found]:
    """Which format a head promises."""
    if head.startswith(b"\0asm"):
        return _wasm
    if head.startswith(b"\x7fELF"):
        return _elf
    if head.startswith(b"\xca\xfe\xba\xbe"):
        return _class if int.from_bytes(head[6:8], "big") >= 45 else _macho
    if head.startswith(_APE):
        return _ape
    if head.startswith(b"MZ"):
        return _exe
    return _macho if head[:4] in _MACHO else _other


def _wasm(file: File) -> Found:
    from roost.runtimes import detect_wasm

    return detect_wasm.read(file)


def _elf(file: File) -> Found:
    from roost.runtimes import detect_elf

    return detect_elf.read(file)


def _class(file: File) -> Found:
    from roost.runtimes import detect_class

    return detect_class.read(file)


def _exe(file: File) -> Found:
    from roost.runtimes import detect_pe

    return detect_pe.read(file)


def _other(file: File) -> Found:
    """Archives, which may stand behind anything, and text."""
    from roost.runtimes import detect_zip

    found = detect_zip.read(file)
    if found is not None:
        return found
    from roost.runtimes import detect_text

    return detect_text.read(file)


def _macho(file: File) -> Found:
    fix = "take its build for Linux; Roost runs no programs of macOS"
    return refuse("macho", "is a program of macOS or iOS (Mach-O)", fix)


def _ape(file: File) -> Found:
    fix = "make an ELF file of a copy of it with Cosmopolitan's `assimilate`, and run that"
    return refuse("ape", "is an actually portable executable, which starts as a shell script that rewrites itself", fix)


_KINDS: dict[Callable[[File], Found], str] = {
    _wasm: "wasm",
    _elf: "elf",
    _class: "class",
    _exe: "exe",
    _other: "unknown",
    _macho: "macho",
    _ape: "ape",
}
"""What a damaged file of each format is called."""
