"""Builds the C programs of this directory with zig, for every target that a runtime runs: at most once for each state of their sources."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from tests.checkout import ROOT

HERE = Path(__file__).resolve().parent
CACHE = ROOT / ".cache" / "programs"
ZIG_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "roost-zig"
_SECONDS = 600

SOURCES: Mapping[str, tuple[str, ...]] = {
    "probe": ("probe.c", "attempts.c"),
    "blocks": ("blocks.c",),
    "escape": ("escape.c",),
    "rawcall": ("rawcall.c",),
    "wasi_escapes": ("wasi_escapes.c",),
    "windows_escapes": ("windows_escapes.c",),
}
_HEADERS = ("portable.h",)

FOREIGN: Mapping[str, str] = {
    "aarch64": "aarch64-linux-musl",
    "aarch64_be": "aarch64_be-linux-musl",
    "arm": "arm-linux-musleabihf",
    "armeb": "armeb-linux-musleabihf",
    "i386": "x86-linux-musl",
    "loongarch64": "loongarch64-linux-musl",
    "mips": "mips-linux-musleabihf",
    "mips64": "mips64-linux-muslabi64",
    "mips64el": "mips64el-linux-muslabi64",
    "mipsel": "mipsel-linux-musleabihf",
    "ppc": "powerpc-linux-musleabihf",
    "ppc64": "powerpc64-linux-musl",
    "ppc64le": "powerpc64le-linux-musl",
    "riscv32": "riscv32-linux-musl",
    "riscv64": "riscv64-linux-musl",
    "s390x": "s390x-linux-musl",
    "x86_64": "x86_64-linux-musl",
}
"""Architectures, named as `qemu-NAME-static` is, for which zig brings a static C library; the host's own is among them."""

DYNAMIC: Mapping[str, str] = {
    "aarch64-dynamic": "aarch64-linux-gnu.2.31",
    "arm-dynamic": "arm-linux-gnueabihf.2.31",
    "ppc64le-dynamic": "powerpc64le-linux-gnu.2.36",
    "riscv64-dynamic": "riscv64-linux-gnu.2.31",
    "s390x-dynamic": "s390x-linux-gnu.2.31",
    "x86_64-dynamic": "x86_64-linux-gnu.2.31",
}
"""The same with a dynamic linker, for the C library of Debian."""

TARGETS: Mapping[str, str] = {
    **FOREIGN,
    **DYNAMIC,
    "wasm": "wasm32-wasi",
    "exe": "x86_64-windows-gnu",
}


def host() -> str:
    """The target of this host's own processor."""
    return platform.machine()


def program(name: str = "probe", target: str = "") -> Path:
    """The program `name` for a key of TARGETS (this host's processor without one), compiled now when its sources changed.

    Many tests may ask at once: one compiles, the others wait. Skips the test where zig is not installed.
    """
    target = target or host()
    place = CACHE / f"{name}-{_digest(name, target)}" / _file_name(name, target)
    if place.is_file():
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{target}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            _compile(name, target, place)
    return place


def _file_name(name: str, target: str) -> str:
    suffix = {"wasm": ".wasm", "exe": ".exe"}.get(target, "")
    return f"{name}{suffix}" if suffix else f"{name}-{target}"


def _flags(target: str) -> tuple[str, ...]:
    # zig gives clang an option that the ABI of mips64 does not have.
    warnings = ("-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-option-ignored")
    common = ("-std=gnu17", "-O2", "-s", *warnings)
    if target == "exe":
        return (*common, "-lws2_32", "-lshell32")
    if target == "loongarch64":  # QEMU 7.2 has none of its vector instructions
        common = (*common, "-mcpu=baseline-lsx")
    return common if target in DYNAMIC else (*common, "-static")


@functools.cache
def _digest(name: str, target: str) -> str:
    text = hashlib.sha256()
    for source in (*SOURCES[name], *_HEADERS):
        text.update((HERE / source).read_bytes())
    text.update("\0".join((_zig_version(), TARGETS[target], *_flags(target))).encode())
    return text.hexdigest()[:16]


def _zig_version() -> str:
    try:
        return metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        pytest.skip("not installed: the package ziglang, a C compiler for every target")


def _compile(name: str, target: str, place: Path) -> None:
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[target], *_flags(target), "-o", str(beside)]
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(ZIG_CACHE),
        "ZIG_LOCAL_CACHE_DIR": str(ZIG_CACHE / "local"),
    }
    try:
        done = subprocess.run(
            [*command, *SOURCES[name]], cwd=HERE, env=environment, capture_output=True, text=True, timeout=_SECONDS
        )
        assert done.returncode == 0, f"{name} for {target}: {done.stderr[-4000:]}"
        # Tests run it as other users too.
        beside.chmod(0o755)
        beside.rename(place)
    finally:
        beside.unlink(missing_ok=True)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TARGETS:
        print(program("probe", wanted))
