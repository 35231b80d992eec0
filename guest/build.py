"""Compiles the guest programs with zig, as a build hook of hatchling and as a command: `python guest/build.py`."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl", "riscv64": "riscv64-linux-musl"}
FLAGS = (
    "-std=gnu11", "-static", "-Os", "-s", "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing",
    "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections",
)  # fmt: skip
# A library for whatever C library QEMU was built with: it needs none itself, and no symbol of a certain version. 64 KiB is the
# largest page of an aarch64 host.
LIBRARY_FLAGS = (
    "-std=gnu11", "-shared", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-fvisibility=hidden", "-Os", "-s",
    "-Wall", "-Wextra", "-Werror", "-fno-strict-aliasing", "-Wl,-z,now", "-Wl,-z,relro", "-Wl,-z,max-page-size=65536",
    "-Wl,-soname,memory.so",
)  # fmt: skip


class Program(NamedTuple):
    """One program: its sources, the architectures it is made for, and how it is compiled."""

    name: str
    sources: tuple[str, ...]
    arches: tuple[str, ...]
    flags: tuple[str, ...] = FLAGS


AGENT = (
    "agent.c", "frame.c", "session.c", "spawn.c", "freeze.c", "builtin.c", "archive.c", "extract.c", "setup.c", "identity.c",
    "link.c", "card.c", "seal.c", "files.c",
)  # fmt: skip
PROGRAMS = (
    Program(
        "agent",
        AGENT,
        ("x86_64", "aarch64", "riscv64"),
    ),
    Program("init", ("init.c", "switchroot.c", "tiny.c"), ("x86_64", "aarch64", "riscv64")),
    Program("escape", ("escape.c",), ("x86_64", "aarch64")),
    Program("fence", ("fence.c",), ("x86_64", "aarch64", "riscv64")),
    Program("holder", ("holder.c",), ("x86_64", "aarch64", "riscv64")),
    Program("relay", ("relay.c",), ("x86_64", "aarch64", "riscv64")),
    Program("capget.so", ("capget.c",), ("x86_64", "aarch64", "riscv64"), (*LIBRARY_FLAGS, "-Wl,-soname,capget.so")),
    Program("memory.so", ("memory.c",), ("x86_64", "aarch64", "riscv64"), LIBRARY_FLAGS),
)


def shipped() -> list[Path]:
    """The files of this directory that go into the wheel, so that whoever has a binary has its source."""
    return sorted(
        p for p in HERE.iterdir() if p.suffix in {".c", ".h", ".md", ".script", ".service"} or p.name == "build.py"
    )


def build(output: Path, version: str) -> list[Path]:
    """Bring all programs in `output/<arch>/` up to date; those whose sources and flags did not change are left alone."""
    made = []
    for program in PROGRAMS:
        if not (HERE / program.sources[0]).is_file():
            continue
        for arch in program.arches:
            made.append(_compile(program, arch, output / arch / program.name, version))
    return made


def _compile(program: Program, arch: str, target: Path, version: str) -> Path:
    stamp = target.with_name(f".{program.name}.stamp")
    digest = _digest(program, arch, version)
    if target.is_file() and stamp.is_file() and stamp.read_text() == digest:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{program.name}.{os.getpid()}")
    argv = [
        sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[arch], *program.flags,
        f'-DROOST_AGENT_VERSION="{version}"', "-o", str(beside), *(str(HERE / name) for name in program.sources),
    ]  # fmt: skip
    print(f"guest: {program.name} for {arch}", file=sys.stderr)
    try:
        subprocess.run(argv, check=True, env=_environment(), stdin=subprocess.DEVNULL)
        beside.chmod(0o755)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    stamp.write_text(digest)
    return target


def _digest(program: Program, arch: str, version: str) -> str:
    state = hashlib.sha256("\0".join((*program.flags, TARGETS[arch], version)).encode())
    headers = sorted(p.name for p in HERE.glob("*.h"))
    for name in (*program.sources, *headers):
        state.update(name.encode() + b"\0" + (HERE / name).read_bytes() + b"\0")
    return state.hexdigest()


def _environment() -> dict[str, str]:
    """A cache that survives the isolated environment of a build; zig would take $HOME, which a builder may not have."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME") or "/tmp") / ".cache") / "roost-zig"
    return {**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache / "local")}


class CustomBuildHook(BuildHookInterface[Any]):
    """Runs before hatchling packs: the binaries go into the package (also of an editable install), the sources beside them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        output = Path(self.root) / "src" / "roost" / "guest" / "bin"
        for binary in build(output, self.metadata.version):
            build_data["force_include"][str(binary)] = f"roost/guest/bin/{binary.parent.name}/{binary.name}"
        if version == "standard":
            build_data["force_include"].update({str(path): f"roost/guest/source/{path.name}" for path in shipped()})
        build_data["pure_python"] = True


def _project_version() -> str:
    import tomllib

    return str(tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["version"])


if __name__ == "__main__":
    for path in build(HERE.parent / "src" / "roost" / "guest" / "bin", _project_version()):
        print(path, path.stat().st_size)
