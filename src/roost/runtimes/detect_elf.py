"""ELF by its headers: whose system and processor it is for, and what it needs to start."""

from __future__ import annotations

from roost.light import Any, NamedTuple
from roost.runtimes.base import Found
from roost.runtimes.detect_file import Damaged, File, KiB, refuse

_MACHINES = {
    2: "sparc", 3: "i386", 4: "m68k", 8: "mips", 15: "hppa", 18: "sparc32plus", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 42: "sh4",
    43: "sparc64", 62: "x86_64", 92: "or1k", 94: "xtensa", 164: "hexagon", 183: "aarch64", 189: "microblaze", 243: "riscv",
    258: "loongarch64", 0x9026: "alpha",
}  # fmt: skip
"""e_machine (the ELF registry of System V's ABI) for the processors that qemu-user has."""

_OTHER_MACHINES = {50: "ia64", 83: "avr", 105: "msp430", 190: "cuda", 220: "z80", 224: "amdgpu", 247: "bpf"}
_SYSTEMS = {
    1: "HP-UX",
    2: "NetBSD",
    6: "Solaris",
    7: "AIX",
    8: "IRIX",
    9: "FreeBSD",
    10: "Tru64",
    12: "OpenBSD",
    13: "OpenVMS",
    17: "CloudABI",
}
_WASMTIME = 0xC8
"""EI_OSABI that wasmtime gives its compiled modules (`.cwasm`): processor code that it would run unchecked."""
_INTERPRETERS = {
    "/libexec/ld-elf": "FreeBSD",
    "/usr/libexec/ld.": "OpenBSD or NetBSD",
    "/libexec/ld.": "NetBSD",
    "/system/": "Android",
}
_RELOCATABLE, _EXECUTABLE, _DYNAMIC, _CORE = 1, 2, 3, 4
_LOAD, _DYNAMIC_PART, _INTERPRETER = 1, 2, 3
_NEEDED, _SONAME, _FLAGS_1, _PIE = 1, 14, 0x6FFFFFFB, 0x08000000
_MOST_PARTS = 256
_LONGEST_INTERPRETER = 4 * KiB


class _Part(NamedTuple):
    """A program header: its kind, and where its bytes are in the file."""

    kind: int
    offset: int
    size: int


class _Elf:
    """Reads numbers of the file's class and byte order."""

    def __init__(self, file: File) -> None:
        ident = file.at(0, 16)
        if ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise Damaged("its class or byte order is none that there is")
        self.file = file
        self.wide, self.system = ident[4] == 2, ident[7]
        self.big = ident[5] == 2
        self.header = file.at(0, 64 if self.wide else 52)
        self.kind, self.machine = self.number(self.header, 16, 2), self.number(self.header, 18, 2)
        self.entry = self.word(self.header, 24, 24)
        self.flags = self.number(self.header, 48 if self.wide else 36, 4)

    def number(self, data: bytes, offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], "big" if self.big else "little")

    def word(self, data: bytes, wide: int, narrow: int) -> int:
        """A number of the class's width, which lies elsewhere in each class."""
        return self.number(data, wide, 8) if self.wide else self.number(data, narrow, 4)

    def parts(self) -> list[_Part]:
        """The program headers. Raises Damaged when they or what they name are not all in the file."""
        start = self.word(self.header, 32, 28)
        size, count = (self.number(self.header, at, 2) for at in ((54, 56) if self.wide else (42, 44)))
        if count and size != (56 if self.wide else 32):
            raise Damaged(f"its program headers have {size} bytes each")
        if count > _MOST_PARTS:
            raise Damaged(f"it has {count} program headers")
        table = self.file.at(start, size * count) if count else b""
        rows = [table[at : at + size] for at in range(0, len(table), size)] if count else []
        found = [_Part(self.number(row, 0, 4), self.word(row, 8, 4), self.word(row, 32, 16)) for row in rows]
        for part in found:
            if part.kind == _LOAD and part.offset + part.size > self.file.size:
                raise Damaged(f"a segment ends at byte {part.offset + part.size}, and the file at {self.file.size}")
        return found

    def interpreter(self, parts: list[_Part]) -> str:
        """The dynamic loader that it names; "" for none."""
        part = next((part for part in parts if part.kind == _INTERPRETER), None)
        if part is None:
            return ""
        if not 1 < part.size <= _LONGEST_INTERPRETER:
            raise Damaged(f"the name of its interpreter has {part.size} bytes")
        return self.file.at(part.offset, part.size).partition(b"\0")[0].decode("utf-8", "surrogateescape")

    def tags(self, parts: list[_Part]) -> dict[int, int]:
        """What it says to the dynamic loader, as far as it is short; of several equal tags the last."""
        part = next((part for part in parts if part.kind == _DYNAMIC_PART), None)
        data = self.file.some(part.offset, min(part.size, 8 * KiB)) if part else b""
        step = 16 if self.wide else 8
        half = step // 2
        rows = range(0, len(data) - step + 1, step)
        return {self.number(data, at, half): self.number(data, at + half, half) for at in rows}


def read(file: File) -> Found:
    """A program for Linux, or why it is none."""
    if file.at(0, 8)[7] == _WASMTIME:
        why = "is precompiled WebAssembly (.cwasm): native code that nothing checked, which is not accepted"
        return refuse(
            "cwasm", why, "run the .wasm file it was made from; what Roost compiles of it is kept for the next run"
        )
    elf = _Elf(file)
    arch = _arch(elf)
    details: dict[str, Any] = {
        "abi": _abi(elf, arch),
        "bits": 64 if elf.wide else 32,
        "endian": "big" if elf.big else "little",
        "interpreter": "",
        "link": "static",
        "pie": elf.kind == _DYNAMIC,
    }
    if elf.kind not in (_EXECUTABLE, _DYNAMIC):
        return _no_program(elf.kind, arch, details)
    parts = elf.parts()
    interpreter = elf.interpreter(parts)
    if interpreter:
        details.update(interpreter=interpreter, link="dynamic")
    elif elf.kind == _DYNAMIC and not _static_pie(elf, parts):
        return refuse("elf", "is a shared library (ELF), not a program", "run the program that loads it", arch, details)
    if not parts:
        raise Damaged("it has no program headers")
    system = _SYSTEMS.get(elf.system) or next(
        (name for start, name in _INTERPRETERS.items() if interpreter.startswith(start)), ""
    )
    why, fix = _foreign(elf, arch, system, details["abi"])
    return refuse("elf", why, fix, arch, details) if why else Found("elf", arch, details)


def _foreign(elf: _Elf, arch: str, system: str, abi: str) -> tuple[str, str]:
    """Why a program is not for Linux, or for no processor that there is an emulator of, and what to do; "" when it is."""
    if system:
        return f"is a program for {system}, not for Linux", "take its build for Linux"
    if elf.machine not in _MACHINES:
        return (
            f"is a program for the processor {arch}, which nothing here emulates",
            "take a build for another processor",
        )
    if abi == "x32":
        why = "is a program of the x32 ABI (64-bit instructions, 32-bit addresses), which nothing here runs"
        return why, "take its build for x86_64 (amd64)"
    return "", ""


def _no_program(kind: int, arch: str, details: dict[str, Any]) -> Found:
    if kind == _RELOCATABLE:
        why, fix = "is an object file (ELF), not linked to a program yet", "link it: cc FILE.o -o program"
    elif kind == _CORE:
        why, fix = "is a core dump (ELF), what was left of a program", "look at it with a debugger: gdb PROGRAM CORE"
    else:
        why, fix = f"is an ELF file of the unknown type {kind}", "fetch or build it again"
    return refuse("elf", why, fix, arch, details)


def _static_pie(elf: _Elf, parts: list[_Part]) -> bool:
    """Whether what has no interpreter is a program all the same: it says so, or it has an entry and nothing of a library."""
    tags = elf.tags(parts)
    if tags.get(_FLAGS_1, 0) & _PIE:
        return True
    return elf.entry != 0 and _SONAME not in tags and _NEEDED not in tags


def _arch(elf: _Elf) -> str:
    """The processor, as qemu-user names it."""
    name = _MACHINES.get(elf.machine) or _OTHER_MACHINES.get(elf.machine, f"machine-{elf.machine}")
    if name == "riscv":
        return "riscv64" if elf.wide else "riscv32"
    if name == "mips":
        narrow = "mipsn32" if elf.flags & 0x20 else "mips"  # EF_MIPS_ABI2
        return ("mips64" if elf.wide else narrow) + ("" if elf.big else "el")
    if name == "ppc64":
        return name if elf.big else "ppc64le"
    if elf.big:
        return {"aarch64": "aarch64_be", "arm": "armeb", "sh4": "sh4eb", "xtensa": "xtensaeb"}.get(name, name)
    return "microblazeel" if name == "microblaze" else name


def _abi(elf: _Elf, arch: str) -> str:
    """Which of a processor's calling conventions, where that decides which libraries fit."""
    if arch in ("arm", "armeb"):
        return "eabihf" if elf.flags & 0x400 else "eabi"  # EF_ARM_ABI_FLOAT_HARD
    if arch.startswith("ppc64"):
        return "elfv2" if elf.flags & 3 == 2 else "elfv1"
    if arch.startswith("mipsn32"):
        return "n32"
    return "x32" if arch == "x86_64" and not elf.wide else ""
