"""The Debian packages of the process VMs, in one place for the runtimes that need them and the doctor that installs them; light imports only."""

from __future__ import annotations

from roost.light import NamedTuple

INSTALL = "sudo apt-get install --no-install-recommends "
"""How each line begins that installs packages; `roost doctor --fix` takes the packages from behind it."""


class Sysroot(NamedTuple):
    """What dynamic programs of another architecture load: Debian's C and C++ libraries for it, and the directory they are in."""

    package: str
    directory: str

    @property
    def packages(self) -> tuple[str, ...]:
        """The package of the C library, and that of the C++ library (which brings libgcc)."""
        return self.package, f"libstdc++6-{self.package.partition('-')[2]}"


JAVA = ("default-jre-headless",)
JAVA_EXTRA = "pip install 'roost[java]'"
"""A newer Java than Debian's, for this Python only and without root."""
JAVA_EXTRA_RELEASE = 25
"""The release it brings, the newest with long-term support: it runs what was built for any before it."""
WINE = ("wine64",)
"""Enough for programs of the console and for windows on a display: libwine brings wineserver, the wrapper package `wine` is not needed."""
CLR = ("mono-runtime", "libmono-system-core4.0-cil")
"""mono-runtime brings mscorlib and System; System.Core (LINQ) is what else ordinary programs load."""
QEMU_USER = ("qemu-user-static",)

AREAS = {"java": JAVA, "windows": WINE, "clr": CLR, "foreign": QEMU_USER}
"""Areas of `roost doctor` and what they install."""

SYSROOTS = {
    "aarch64": Sysroot("libc6-arm64-cross", "/usr/aarch64-linux-gnu"),
    "alpha": Sysroot("libc6.1-alpha-cross", "/usr/alpha-linux-gnu"),
    "arm": Sysroot("libc6-armhf-cross", "/usr/arm-linux-gnueabihf"),
    "armel": Sysroot("libc6-armel-cross", "/usr/arm-linux-gnueabi"),
    "hppa": Sysroot("libc6-hppa-cross", "/usr/hppa-linux-gnu"),
    "i386": Sysroot("libc6-i386-cross", "/usr/i686-linux-gnu"),
    "m68k": Sysroot("libc6-m68k-cross", "/usr/m68k-linux-gnu"),
    "mips": Sysroot("libc6-mips-cross", "/usr/mips-linux-gnu"),
    "mips64": Sysroot("libc6-mips64-cross", "/usr/mips64-linux-gnuabi64"),
    "mips64el": Sysroot("libc6-mips64el-cross", "/usr/mips64el-linux-gnuabi64"),
    "mipsel": Sysroot("libc6-mipsel-cross", "/usr/mipsel-linux-gnu"),
    "ppc": Sysroot("libc6-powerpc-cross", "/usr/powerpc-linux-gnu"),
    "ppc64": Sysroot("libc6-ppc64-cross", "/usr/powerpc64-linux-gnu"),
    "ppc64le": Sysroot("libc6-ppc64el-cross", "/usr/powerpc64le-linux-gnu"),
    "riscv64": Sysroot("libc6-riscv64-cross", "/usr/riscv64-linux-gnu"),
    "s390x": Sysroot("libc6-s390x-cross", "/usr/s390x-linux-gnu"),
    "sh4": Sysroot("libc6-sh4-cross", "/usr/sh4-linux-gnu"),
    "sparc64": Sysroot("libc6-sparc64-cross", "/usr/sparc64-linux-gnu"),
    "x86_64": Sysroot("libc6-amd64-cross", "/usr/x86_64-linux-gnu"),
}
"""By architecture as `runtimes.detect` names it; "armel" is arm with its floating point in software (the abi "eabi")."""

COMMON = ("aarch64", "arm", "ppc64le", "riscv64", "s390x")
"""Architectures whose libraries `roost doctor foreign --fix` installs: those of Debian's releases that programs are likely built for."""


def apt(*packages: str) -> str:
    """The line that installs these packages."""
    return INSTALL + " ".join(packages)
