"""Files that begin with MZ: programs of Windows, .NET and DOS."""

from __future__ import annotations

from roost.light import Any, NamedTuple
from roost.runtimes.base import Found
from roost.runtimes.detect_file import Damaged, File, KiB, refuse, text

_MACHINES = {
    0x14C: "i386", 0x8664: "x86_64", 0xAA64: "aarch64", 0xA641: "aarch64", 0x1C0: "arm", 0x1C2: "arm", 0x1C4: "arm", 0x200: "ia64",
    0x5032: "riscv32", 0x5064: "riscv64", 0x6264: "loongarch64", 0xEBC: "efi-bytecode",
}  # fmt: skip
_DLL = 0x2000
_SUBSYSTEMS = {1: "native", 2: "gui", 3: "console", 5: "os2", 7: "posix", 9: "windows-ce", 14: "xbox", 16: "boot"}
_EFI = range(10, 14)
_CLR_DIRECTORY = 14
_OLD = {
    b"NE": (
        "NE",
        "is a 16-bit program of Windows or OS/2",
        "DOSBox with Windows 3.1 runs it, or a machine: roost launch",
    ),
    b"LE": ("LE", "is a 32-bit program of DOS or a driver of Windows 9x", "DOSBox runs it"),
    b"LX": ("LX", "is a program of OS/2", "a machine with OS/2 runs it"),
}
_MOST_SECTIONS = 96
"""What the loader of Windows takes at most."""


class _Pe(NamedTuple):
    """What the headers say. `clr`: address and size of the CLR's header; `sections`: (address, size, offset in the file)."""

    machine: int
    dll: bool
    wide: bool
    subsystem: int
    clr: tuple[int, int]
    sections: list[tuple[int, int, int]]


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def read(file: File) -> Found:
    """A program that starts with MZ."""
    head = file.some(0, 64)
    start = _number(head, 60, 4) if len(head) == 64 else 0
    signature = file.some(start, 4) if start >= 4 else b""
    if signature == b"PE\0\0":
        return _portable(file, _headers(file, start))
    if (
        start > file.size and _number(head, 24, 2) == 64
    ):  # the relocations come after a header that has room for the newer one
        raise Damaged(f"its header should be at byte {start}, and the file has {file.size}")
    name, why, fix = _OLD.get(signature[:2], ("MZ", "is a program of DOS", "DOSBox runs it"))
    return refuse("dos", why, fix, "i386", {"format": name})


def _headers(file: File, start: int) -> _Pe:
    fixed = file.at(start, 24)
    count, size = _number(fixed, 6, 2), _number(fixed, 20, 2)
    optional = file.at(start + 24, min(size, 4 * KiB))
    magic = _number(optional, 0, 2)
    if magic not in (0x10B, 0x20B) or len(optional) < 96:
        raise Damaged("its optional header is none of Windows")
    if count > _MOST_SECTIONS:
        raise Damaged(f"it has {count} sections")
    directories = 112 if magic == 0x20B else 96
    clr = b""
    if _number(optional, directories - 4, 4) > _CLR_DIRECTORY:
        clr = optional[directories + 8 * _CLR_DIRECTORY :][:8]
    table = file.at(start + 24 + size, 40 * count)
    rows = [table[at : at + 40] for at in range(0, len(table), 40)]
    sections = [(_number(row, 12, 4), _number(row, 16, 4), _number(row, 20, 4)) for row in rows]
    for _, length, offset in sections:
        if offset + length > file.size and length:
            raise Damaged(f"a section ends at byte {offset + length}, and the file at {file.size}")
    return _Pe(
        _number(fixed, 4, 2), bool(_number(fixed, 22, 2) & _DLL), magic == 0x20B, _number(optional, 68, 2),
        (_number(clr, 0, 4), _number(clr, 4, 4)), sections,
    )  # fmt: skip


def _portable(file: File, pe: _Pe) -> Found:
    arch = _MACHINES.get(pe.machine, f"machine-{pe.machine:#x}")
    subsystem = "efi" if pe.subsystem in _EFI else _SUBSYSTEMS.get(pe.subsystem, str(pe.subsystem))
    details: dict[str, Any] = {"bits": 64 if pe.wide else 32, "dll": pe.dll, "subsystem": subsystem}
    managed = pe.clr[0] != 0
    kind = "clr" if managed else "exe"
    if managed:
        details.update(_managed(file, pe))
    refusal = _refusal(kind, arch, details)
    return refuse(kind, *refusal, arch, details) if refusal else Found(kind, arch, details)


def _refusal(kind: str, arch: str, details: dict[str, Any]) -> tuple[str, str] | None:
    """Why it can not run, and what to do."""
    core = details.get("framework", "").startswith((".NETCoreApp", ".NETStandard"))
    if core:
        name = details["framework"].replace(",Version=v", " ").replace(".NETCoreApp", ".NET").lstrip()
        fix = "publish it for Linux: dotnet publish -r linux-x64 --self-contained; then run that file"
        return f"is made for {name}, and Mono runs programs of the .NET Framework", fix
    if details["dll"]:
        return (
            f"is a library of {'.NET' if kind == 'clr' else 'Windows'} (DLL), not a program",
            "run the program that loads it",
        )
    if details["subsystem"] == "efi":
        return (
            "is an EFI application, which firmware runs",
            "put it into the EFI partition of a machine: roost launch --firmware uefi",
        )
    if details["subsystem"] not in ("console", "gui"):
        return (
            f"is made for the subsystem {details['subsystem']} of Windows, not for its console or desktop",
            "run the program it belongs to",
        )
    if kind == "exe" and arch == "i386":
        return "is a 32-bit program of Windows, and only 64-bit ones run here", "take its 64-bit build (x64, amd64)"
    if kind == "exe" and arch != "x86_64":
        return (
            f"is a program of Windows for the processor {arch}, and only those for x86_64 run here",
            "take its build for x64 (amd64)",
        )
    return None


def _managed(file: File, pe: _Pe) -> dict[str, Any]:
    """What the CLR's header and the metadata say, as far as they can be reached."""
    found: dict[str, Any] = {"clr": "", "framework": "", "il_only": False}
    header = file.some(_offset(pe, pe.clr[0]), 24)
    if len(header) < 24:
        return found
    found["il_only"] = bool(_number(header, 16, 4) & 1)
    start, size = _offset(pe, _number(header, 8, 4)), _number(header, 12, 4)
    root = file.some(start, min(size, 32 * KiB))
    if root[:4] == b"BSJB":
        found["clr"] = text(root[16 : 16 + min(_number(root, 12, 4), 64)]).rstrip("\0")
        found["framework"] = _framework(root + file.some(start + len(root), max(0, min(size - len(root), 16 * KiB))))
    return found


def _framework(metadata: bytes) -> str:
    """The value of the attribute TargetFramework, which lies in the metadata as text."""
    for name in (b".NETCoreApp,Version=v", b".NETStandard,Version=v", b".NETFramework,Version=v"):
        at = metadata.find(name)
        if at >= 0:
            end = at + len(name)
            while end < len(metadata) and metadata[end : end + 1] in b"0123456789.":
                end += 1
            return text(metadata[at:end])
    return ""


def _offset(pe: _Pe, address: int) -> int:
    """Where in the file an address of the loaded program is; -1 when nowhere."""
    for start, size, offset in pe.sections:
        if start <= address < start + size:
            return offset + address - start
    return -1
