"""Which programs the runtimes for ELF and for scripts take, and what they make of an ending; without any system."""

from __future__ import annotations

import os

import pytest

from roost.runtimes.base import Ending, Found, Grant, Policy, Request
from roost.runtimes.foreign import EMULATED, Foreign
from roost.runtimes.native import Native
from roost.runtimes.program_file import shown
from roost.runtimes.script import Script

HOST = os.uname().machine
FOREIGN = "s390x" if HOST != "s390x" else "aarch64"


def elf(arch: str, **details: object) -> Found:
    return Found("elf", arch, details)


def test_each_architecture_has_one_runtime_of_its_own() -> None:
    assert (Native().score(elf(HOST)), Foreign().score(elf(HOST))) == (100, 1)
    assert (Native().score(elf(FOREIGN)), Foreign().score(elf(FOREIGN))) == (0, 50)
    assert all(Foreign().score(elf(arch)) for arch in EMULATED)


@pytest.mark.parametrize(
    "found", [Found("wasm"), elf("z80"), elf("x86_64", abi="x32"), Found("elf", HOST, {}, "is damaged")]
)
def test_what_nothing_here_runs_is_taken_by_neither(found: Found) -> None:
    assert (Native().score(found), Foreign().score(found), Script().score(found)) == (0, 0, 0)


def test_scripts_and_zip_applications_are_for_their_interpreter() -> None:
    assert [Script().score(Found(kind)) for kind in ("script", "pyz", "jar")] == [50, 50, 0]


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
def test_an_ending_of_the_program_stays_as_it_is(code: int) -> None:
    ending = Ending(code)
    assert Foreign().classify(elf(FOREIGN), ending, b"some words\n") == ending
    assert Native().classify(elf(HOST), ending, b"some words\n") == ending


def test_a_signal_stays_a_signal() -> None:
    ending = Ending(139, "signal", 11)
    assert Foreign().classify(elf(FOREIGN), ending, b"qemu: uncaught target signal 11\n") == ending


def test_what_the_emulator_says_of_a_program_that_it_can_not_load_is_a_failure() -> None:
    said = f"qemu-{FOREIGN}: /app/x: Error mapping file: Cannot allocate memory\n".encode()
    ending = Foreign().classify(elf(FOREIGN), Ending(255), said)
    assert (ending.code, ending.reason) == (125, "failed")
    assert "Error mapping file" in ending.message


@pytest.mark.parametrize(("library", "words"), [("libstdc++.so.6", "libstdc++6-arm64-cross"), ("libz.so.1", "--fs")])
def test_a_library_that_a_dynamic_program_lacks_is_named_with_what_brings_it(library: str, words: str) -> None:
    said = f"tool: error while loading shared libraries: {library}: cannot open shared object file\n".encode()
    found = elf("aarch64", interpreter="/lib/ld-linux-aarch64.so.1")
    ending = Foreign().classify(found, Ending(127), said)
    assert (ending.code, library in ending.message, words in ending.message) == (127, True, True)


def test_a_program_in_a_granted_directory_runs_there() -> None:
    policy = Policy(fs=(Grant("/data", "/outer"), Grant("/data/inner", "/inner"), Grant("/dat", "/wrong")))
    assert shown(Request("/data/inner/bin/tool", policy=policy)) == ("/inner/bin/tool", ())
    assert shown(Request("/data/tool", policy=policy)) == ("/outer/tool", ())
    inside, mounts = shown(Request("/database/tool", policy=policy))
    assert (inside, [(mount.source, mount.target, mount.kind, mount.lent) for mount in mounts]) == (
        "/app/tool",
        [("/database/tool", "/app/tool", "read", True)],
    )
