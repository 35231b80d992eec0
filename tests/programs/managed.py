"""Builds the Java and C# twins of the probe and of the hostile stand-in, at most once for each state of their sources."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.programs.build import CACHE, HERE, ZIG_CACHE

_SECONDS = 600
_JAVA = "11"
"""The release the classes are for: older than any Java that a test host has."""


def jar() -> Path:
    """probe.jar; skips the test where no Java compiler is."""
    return _built(HERE / "Probe.java", "probe.jar", "javac", _build_jar)


def classes() -> Path:
    """Probe.class, in a directory with what else was compiled from it."""
    return _built(HERE / "Probe.java", "Probe.class", "javac", _build_classes)


def clr() -> Path:
    """Probe.exe for the CLR; skips the test where Mono's compiler is missing."""
    return _built(HERE / "Probe.cs", "ProbeClr.exe", "mcs", _build_clr)


def escapes_jar() -> Path:
    """escapes.jar, hostile; skips the test where no Java compiler is."""
    return _built(HERE / "Escapes.java", "escapes.jar", "javac", _build_jar)


def escapes_clr() -> Path:
    """Escapes.exe for the CLR, hostile; skips the test where Mono's compiler is missing."""
    return _built(HERE / "Escapes.cs", "Escapes.exe", "mcs", _build_clr)


def compile_java(source: str, directory: Path, *options: str) -> None:
    """Compile Java text (a public class Main) into `directory`; skips the test where no Java compiler is."""
    if shutil.which("javac") is None:
        pytest.skip("not installed: javac")
    with tempfile.TemporaryDirectory(prefix="roost-java-") as work:
        file = Path(work) / "Main.java"
        file.write_text(source)
        _call(["javac", "-nowarn", *options, "-d", str(directory), str(file)])


def pack(directory: Path, main: str, *manifest: str) -> Path:
    """A jar of the classes in `directory` with their main class."""
    text = directory / "manifest"
    text.write_text("".join(f"{line}\n" for line in (f"Main-Class: {main}", *manifest)))
    names = sorted(path.name for path in directory.iterdir() if path.name != "manifest")
    _call(
        [
            "jar",
            "cfm",
            str(directory / "made.jar"),
            str(text),
            "-C",
            str(directory),
            *names[:1],
            *_others(directory, names[1:]),
        ]
    )
    return directory / "made.jar"


def _others(directory: Path, names: list[str]) -> list[str]:
    return [word for name in names for word in ("-C", str(directory), name)]


def _built(source: Path, name: str, compiler: str, build: Callable[[Path, Path], None]) -> Path:
    if compiler and shutil.which(compiler) is None:
        pytest.skip(f"not installed: {compiler}")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    place = CACHE / f"{source.stem}-{digest}-{compiler or 'zig'}" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            build(source, place)
    return place


def _build_classes(source: Path, place: Path) -> None:
    # The signals of sun.misc are in every Java, but in none of the lists of --release.
    _call(
        [
            "javac",
            "-nowarn",
            "-source",
            _JAVA,
            "-target",
            _JAVA,
            "-Xlint:-options",
            "-d",
            str(place.parent),
            str(source),
        ]
    )


def _build_jar(source: Path, place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=place.parent) as work:
        _build_classes(source, Path(work) / "Probe.class")
        pack(Path(work), source.stem).rename(place)


def _build_clr(source: Path, place: Path) -> None:
    beside = place.with_name(f".{place.name}")
    _call(["mcs", "-optimize+", f"-out:{beside}", str(source)])
    beside.rename(place)


def _call(command: list[str]) -> None:
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(ZIG_CACHE),
        "ZIG_LOCAL_CACHE_DIR": str(ZIG_CACHE / "local"),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-2000:]}{done.stderr[-4000:]}"


def raw(target: str) -> Path:
    """raw.c as a Windows program (`exe`) or as a native library of this host (`so`); skips the test where zig is not installed."""
    pytest.importorskip("ziglang", reason="not installed: the package ziglang, a C compiler for every target")
    options = {
        "exe": ("-target", "x86_64-windows-gnu"),
        "so": ("-target", "x86_64-linux-gnu.2.31", "-shared", "-fPIC", "-nostdlib"),
    }[target]

    def build(source: Path, place: Path) -> None:
        beside = place.with_name(f"new-{place.name}")
        _call(
            [
                sys.executable,
                "-m",
                "ziglang",
                "cc",
                *options,
                "-O1",
                "-fno-sanitize=all",
                "-o",
                str(beside),
                str(source),
            ]
        )
        beside.chmod(0o755)
        beside.rename(place)

    return _built(HERE / "raw.c", f"raw.{target}", "", build)


def refusals(output: bytes) -> dict[str, int]:
    """What raw.c said: the result of each attempt."""
    lines = (line.split("\t") for line in output.decode().splitlines() if "\t" in line)
    return {name: int(result) for name, result in lines}
