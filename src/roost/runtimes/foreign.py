"""Linux programs for other processors, under qemu-user: an emulator inside of the sandbox, whose system calls are the program's own.

qemu-user translates instructions and passes system calls on; it protects nothing. What holds the program is the sandbox alone.
"""

from __future__ import annotations

import os

from roost.errors import Unavailable
from roost.host import packages
from roost.light import Any, Mapping, NamedTuple
from roost.runtimes import detect, host_programs, program_file
from roost.runtimes.base import FAILED, Command, Ending, Found, MiB, Mount, Need, Progress, Request, silent

EMULATED = frozenset({
    "aarch64", "aarch64_be", "alpha", "arm", "armeb", "cris", "hexagon", "hppa", "i386", "loongarch64", "m68k", "microblaze", "microblazeel",
    "mips", "mips64", "mips64el", "mipsel", "mipsn32", "mipsn32el", "nios2", "or1k", "ppc", "ppc64", "ppc64le", "riscv32", "riscv64", "s390x",
    "sh4", "sh4eb", "sparc", "sparc32plus", "sparc64", "x86_64", "xtensa", "xtensaeb",
})  # fmt: skip
"""Architectures as qemu-user names its programs (QEMU 7.2 and later)."""
INSIDE = "/.emulator"
"""The directory of the emulator, where no program looks by accident."""
_SCORE, _ON_REQUEST = 50, 1
_OWN_MEMORY = 128 * MiB
"""Beside the program: the translated code (its buffer holds 32 MiB at first) and the tables of the address space; 60 MiB were seen."""
_MISSING_LIBRARY = b"error while loading shared libraries: "
_NO_FORMAT = b"Exec format error"
_HELPLESS = (
    "it started a program that is not for {0}, or one for {0} that the sandbox can start from Linux 6.7 on; this is {1}"
)
_INTERPRETERS = ("/lib", "/lib32", "/lib64")
_HEADER, _BIG_ENDIAN = 20, 2
_CXX = (b"libstdc++.so", b"libgcc_s.so")


class Setup(NamedTuple):
    """What a program runs with: the emulator, whether it needs the host's libraries itself, the directory with the program's libraries ("":
    none), and the first words of the line by which the kernel knows programs like it."""

    emulator: str
    dynamic: bool
    sysroot: str
    handler: str


class Foreign:
    """Runs `elf` for processors that are not this host's; with `--vm foreign` also the host's own."""

    name = "foreign"

    def probe(self) -> Mapping[str, Any]:
        """The emulator for each architecture, and where the libraries of dynamic programs are."""
        emulators = {arch: path for arch in sorted(EMULATED) if (path := _emulator(arch))}
        present = {
            arch: found.directory
            for arch, found in packages.SYSROOTS.items()
            if arch in emulators and os.path.isdir(found.directory)
        }
        return {"emulators": emulators, "sysroots": present} if emulators else {}

    def score(self, found: Found) -> int:
        """Every architecture there is an emulator for; programs with 32-bit pointers on x86_64 (x32) it does not know."""
        if found.kind != "elf" or found.arch not in EMULATED or found.details.get("abi") == "x32" or found.refusal:
            return 0
        return _ON_REQUEST if found.arch == os.uname().machine else _SCORE

    def needs(self, found: Found) -> tuple[Need, ...]:
        """The emulator, and the libraries for a dynamic program."""
        needs = []
        if not _emulator(found.arch):
            needs.append(Need(f"qemu-user for {found.arch}", packages.apt(*packages.QEMU_USER), "foreign"))
        if _interpreter(found) and not _sysroot(found) and not _multiarch(found):
            needs.append(_libraries(found))
        return tuple(needs)

    def prepare(self, found: Found, request: Request, progress: Progress = silent) -> Setup:
        """What it runs with. Raises Unavailable."""
        program_file.check_mode(request)  # the emulator ends without a word there
        for need in self.needs(found):
            raise Unavailable(
                f"{os.path.basename(request.file)} can not run", f"{need.what} is not installed", need.install
            )
        emulator = _emulator(found.arch)
        dynamic = detect.detect(emulator).details.get("link") == "dynamic"
        sysroot = _sysroot(found) if _interpreter(found) and not _multiarch(found) else ""
        return Setup(emulator, dynamic or _multiarch(found), sysroot, _handler(found.arch, request.file))

    def command(self, found: Found, request: Request, prepared: Setup) -> Command:
        """The emulator, whose only sight of the host is the program, its libraries and what is granted."""
        emulator, dynamic, sysroot, handler = prepared
        inside, own = program_file.shown(request)
        mounts = [*own]
        # One that loads libraries of the host stays where those are; a static one needs nothing beside it.
        place = emulator if dynamic else f"{INSIDE}/qemu-{found.arch}"
        if not (dynamic and host_programs.shown(emulator)):
            mounts.append(Mount(emulator, place))
        libraries: tuple[str, ...] = ()
        if sysroot and dynamic:
            libraries = ("-L", sysroot)  # which also shadows other paths that are in both
        elif sysroot:
            places = dict.fromkeys(("/lib", os.path.dirname(_interpreter(found))))
            mounts += [Mount(sysroot + place, place) for place in places]
        memory = request.policy.memory
        return Command(
            argv=(place, *libraries, "-0", request.name or request.file, inside, *request.arguments),
            mounts=tuple(mounts),
            system=dynamic,
            handlers=(f"{handler}:{place}:FP",) if handler else (),
            memory=None if memory is None else memory + _OWN_MEMORY,
        )

    def classify(self, found: Found, ending: Ending, errors: bytes) -> Ending:
        """Codes and signals are the program's own: the emulator ends by the signal that ended the program. What it can not load, it says itself."""
        if ending.reason != "exit" or not ending.code:
            return ending
        last = errors.rstrip().rpartition(b"\n")[2]
        if ending.code == 127 and _MISSING_LIBRARY in last:
            return ending._replace(message=_lacks(found, last.partition(_MISSING_LIBRARY)[2].partition(b":")[0]))
        if ending.code == 126 and _NO_FORMAT in errors:
            return ending._replace(message=_HELPLESS.format(found.arch, os.uname().release))
        if ending.code in (1, 255) and last.startswith(b"qemu-" + found.arch.encode()):
            why = last.partition(b": ")[2].decode(errors="replace")[:200]
            return Ending(FAILED, "failed", message=f"the emulator could not run it: {why}")
        return ending


def _handler(arch: str, file: str) -> str:
    r"""By what the kernel knows programs of the same processor as this one: their first 20 bytes, whatever their ABI (byte 7), and as type
    (bytes 16 and 17) an executable or a shared object. "" for the host's own: the emulator is such a program itself."""
    if arch == os.uname().machine:
        return ""
    with open(file, "rb") as opened:
        header = bytearray(opened.read(_HEADER))
    mask = bytearray(b"\xff" * _HEADER)
    mask[7], kind = 0, 17 if header[5] == _BIG_ENDIAN else 16
    header[kind], mask[kind] = 2, 0xFE  # ET_EXEC and ET_DYN are 2 and 3
    magic, care = ("".join(f"\\x{byte:02x}" for byte in part) for part in (header, mask))
    return f":{arch}:M::{magic}:{care}"


def _emulator(arch: str) -> str:
    return host_programs.find(f"qemu-{arch}-static", f"qemu-{arch}") if arch in EMULATED else ""


def _interpreter(found: Found) -> str:
    return str(found.details.get("interpreter", ""))


def _usual(found: Found) -> bool:
    """Whether the interpreter is where interpreters are. What a hostile program names elsewhere is not looked for, and its directory not shown."""
    return os.path.dirname(_interpreter(found)) in _INTERPRETERS


def _multiarch(found: Found) -> bool:
    """Whether the host itself has the libraries, as Debian's multiarch installs them, or because they are its own."""
    return _usual(found) and os.path.exists(_interpreter(found))


def _package(found: Found) -> packages.Sysroot | None:
    if "/ld-musl-" in _interpreter(found) or not _usual(found):
        return None
    soft = found.arch == "arm" and found.details.get("abi") == "eabi"
    return packages.SYSROOTS.get("armel" if soft else found.arch)


def _sysroot(found: Found) -> str:
    """The directory in which the program's interpreter is found at the path that it names; "" for none."""
    package = _package(found)
    if package is None or not os.path.exists(package.directory + _interpreter(found)):
        return ""
    return package.directory


def _libraries(found: Found) -> Need:
    """What a dynamic program lacks."""
    package = _package(found)
    what = f"the C library for {found.arch} ({_interpreter(found)})"
    if package is None:
        return Need(what, f"take a static build: no Debian package has {_interpreter(found)} beside the host's own")
    return Need(what, packages.apt(package.package))


def _lacks(found: Found, library: bytes) -> str:
    name = library.decode(errors="replace")[:100]
    package = _package(found)
    if package is not None and library.startswith(_CXX):
        return f"{name} for {found.arch} is not installed; {packages.apt(package.packages[1])}"
    return f"it needs {name}, which it does not see; --fs DIRECTORY:/app/lib:ro --env LD_LIBRARY_PATH=/app/lib"
