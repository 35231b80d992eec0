"""What `roost run` does not run ends in one clear message with what to do, with the right exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from ctypes import byref
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest

from roost.runtimes import jre, libwasmtime, wine_prefix
from tests.conformance.laboratory import ROOST, environment
from tests.needs import repetitions
from tests.programs import managed
from tests.programs.build import program

pytestmark = pytest.mark.live

MANIFEST = "META-INF/MANIFEST.MF"
HEADS: Mapping[str, bytes] = {
    "class": b"\xca\xfe\xba\xbe\0\0\0\x34",
    "component": b"\0asm\x0d\0\1\0",
    "cwasm": b"\x7fELF\2\1\1\xc8",
    "elf": b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 62),
    "exe": b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0" + struct.pack("<H", 0x8664),
    "foreign": b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, 183),
    "jar": b"PK\3\4",
    "mach-o": b"\xcf\xfa\xed\xfe\7\0\0\1",
    "nothing": b"",
    "script": b"#!",
    "wasm": b"\0asm\1\0\0\0",
    "wat": b"(module ",
}
"""How files of each kind begin."""


def compiled(text: str) -> bytes:
    """The module or component of that text."""
    made = libwasmtime.ByteVector()
    source = text.encode()
    assert not libwasmtime.library().wasmtime_wat2wasm(source, len(source), byref(made))
    return libwasmtime.take_bytes(made)


def archive(**entries: str) -> bytes:
    """A ZIP archive with these entries, some by a short name."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as made:
        for name, text in entries.items():
            made.writestr(
                {"manifest": MANIFEST, "web": "WEB-INF/web.xml", "android": "AndroidManifest.xml"}.get(name, name), text
            )
    return data.getvalue()


def newer_class() -> bytes:
    """A class for the Java after the newest of this host."""
    if not jre.installed():
        pytest.skip("not installed: java")
    return (
        b"\xca\xfe\xba\xbe"
        + struct.pack(">HH", 0, 45 + max(one.java for one in jre.installed()))
        + (managed.classes().read_bytes()[8:])
    )


def graphical() -> bytes:
    """The probe, with the mark of a program that opens windows."""
    if wine_prefix.installation() is None:
        pytest.skip("not installed: wine64")
    data = bytearray(program("probe", "exe").read_bytes())
    header = int(struct.unpack_from("<I", data, 60)[0])
    struct.pack_into("<H", data, header + 24 + 68, 2)
    return bytes(data)


def without_libraries() -> bytes:
    """A dynamic program whose interpreter no package brings."""
    data = program("probe", "aarch64-dynamic").read_bytes()
    return data.replace(b"/lib/ld-linux-aarch64.so.1\0", b"/lib/ld-nowhere-at-all.so\0\0")


class Case(NamedTuple):
    """A file, its name, and what is said of it."""

    content: Callable[[], bytes]
    said: str
    code: int = 126
    name: str = "program"
    flags: tuple[str, ...] = ()


CASES = {
    "an app of Android": Case(lambda: archive(android="", manifest=""), "app of Android"),
    "a web application": Case(lambda: archive(web="<web-app/>", manifest="Manifest-Version: 1.0\n"), "servlet container"),
    "a jar without a main class": Case(lambda: archive(manifest="Manifest-Version: 1.0\n"), "no Main-Class"),
    "a jar without its main class": Case(lambda: archive(manifest="Main-Class: no.Such\n"), "no.Such"),
    "an archive": Case(lambda: archive(text="x"), "zip archive without a program"),
    "a class newer than any Java": Case(newer_class, "or newer, which this host lacks", name="Main.class"),
    "Mach-O": Case(lambda: HEADS["mach-o"] + bytes(64), "macOS"),
    "Mach-O of two processors": Case(lambda: b"\xca\xfe\xba\xbe\0\0\0\2" + bytes(64), "macOS"),
    "DOS": Case(lambda: b"MZ" + b"\x10\0" * 40, "DOS"),
    "precompiled WebAssembly": Case(lambda: HEADS["cwasm"] + bytes(8) + struct.pack("<HH", 1, 62) + bytes(44), "precompiled WebAssembly"),
    "a module for another host": Case(lambda: compiled('(module (import "env" "alien" (func)) (func (export "_start")))'), "env.alien"),
    "its text": Case(lambda: b'(module (import "env" "alien" (func)) (func (export "_start")))', "env::alien"),
    "a reactor": Case(lambda: compiled('(module (func (export "_initialize")) (func (export "run")))'), "has no _start; it exports _initialize, run"),
    "its text too": Case(lambda: b'(module (func (export "run")))', "it has no _start"),
    "a text with a mistake": Case(lambda: b'(module (func (export "_start") i32.bogus))', "unknown operator"),
    "a component of WASI 0.3": Case(
        lambda: compiled('(component (import "wasi:cli/stdout@0.3.0" (instance (export "f" (func)))))'), "built for WASI 0.3"
    ),
    "a program with windows": Case(graphical, "--gui", 125),
    "a program with windows and no display": Case(graphical, "DISPLAY is not set", 125, flags=("--gui",)),
    "a foreign program without its libraries": Case(without_libraries, "/lib/ld-nowhere-at-all.so"),
    "nothing": Case(lambda: b"", "is empty", 127),
    "a text": Case(lambda: b"just text\n", "text without a #! line", 127),
    "a picture": Case(lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "picture", 127),
    "noise": Case(lambda: random.Random(5).randbytes(5000), "no kind that is known here", 127),
    "a script for a program that is not there": Case(lambda: b"#!/usr/bin/env no-such-program\n", "no-such-program"),
    "a script of noise": Case(lambda: b"#!" + bytes(range(128, 256)) + b"\x1b[31m\n", "names no program"),
    "the wrong runtime": Case(lambda: b"#!/bin/sh\n", "wasm", 125, flags=("--vm", "wasm")),
    "a layer that there is not": Case(lambda: b"#!/bin/sh\n", "no such layer", 125, flags=("--require", "moat")),
    "a grant of what is not there": Case(lambda: b"#!/bin/sh\n", "no-such-directory", 125, flags=("--fs", "no-such-directory")),
}  # fmt: skip


def refuse(place: Path, *words: str) -> tuple[int, str]:
    """Exit code and message of a run that must not begin: in one message of three lines at most, and with nothing left."""
    env = {name: value for name, value in environment().items() if name != "DISPLAY"}
    before, left = {entry.name for entry in place.iterdir()}, _mounts()
    command = [*ROOST, "run", *words]
    done = subprocess.run(
        command, cwd=place, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False
    )
    text = done.stderr.decode()
    assert done.stdout == b""
    assert "Traceback" not in text
    assert text.startswith("error: "), text
    assert [line[:7] for line in text.splitlines()[1:]] in ([], ["  why: "], ["  why: ", "  fix: "], ["  fix: "]), text
    assert all(character.isprintable() for line in text.splitlines() for character in line), text
    assert ({entry.name for entry in place.iterdir()}, _mounts()) == (before, left)
    return done.returncode, text


def _mounts() -> set[str]:
    return set(Path("/proc/self/mounts").read_text().splitlines())


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    path.chmod(0o755)
    return f"./{path.name}"


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    code, text = refuse(tmp_path, *case.flags, _write(tmp_path / case.name, case.content()))
    assert (code, case.said in text) == (case.code, True), text


def test_a_file_that_is_not_there_has_a_code_of_its_own(tmp_path: Path) -> None:
    assert refuse(tmp_path, "no-such-file")[0] == 127
    assert refuse(tmp_path, "/")[0] in (125, 126, 127)


@pytest.mark.parametrize("number", range(repetitions(3, 40)))
@pytest.mark.parametrize("kind", HEADS)
def test_noise_behind_a_head_is_refused(kind: str, number: int, tmp_path: Path) -> None:
    noise = random.Random(f"{kind} {number}").randbytes(4000)
    assert refuse(tmp_path, _write(tmp_path / "program", HEADS[kind] + noise))[0] in (126, 127)


SOURCES: Mapping[str, Callable[[], Path]] = {
    "exe": lambda: program("probe", "exe"),
    "foreign": lambda: program("probe", "aarch64"),
    "jar": managed.jar,
    "native": program,
    "wasm": lambda: program("probe", "wasm"),
}


@pytest.mark.parametrize("part", [0.001, 0.05, 0.5, 0.95])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_program_that_is_cut_off_is_refused(kind: str, part: float, tmp_path: Path) -> None:
    data = SOURCES[kind]().read_bytes()
    code, text = refuse(tmp_path, _write(tmp_path / "program", data[: max(64, int(len(data) * part))]))
    assert (code, "damaged or cut off" in text or "is no program" in text) == (126, True), text


def test_the_status_document_of_a_refusal_says_the_same(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    file = _write(tmp_path / "program", CASES["DOS"].content())
    command = [*ROOST, "run", "--status-json", str(theirs), file]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), pass_fds=[theirs], capture_output=True, timeout=60, check=False
    )
    os.close(theirs)
    with os.fdopen(ours, "rb") as status:
        told = json.loads(status.read())
    assert (done.returncode, told["ending"]["code"]) == (126, 126)
    assert "DOS" in json.dumps(told)
