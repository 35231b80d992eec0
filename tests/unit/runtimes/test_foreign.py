"""Which programs the runtimes for ELF and for scripts take, and what they make of an ending; without any system."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from roost.host import boxed_root, kernel
from roost.runtimes.base import Ending, Found, Grant, Policy, Request
from roost.runtimes.foreign import EMULATED, Foreign, _handler
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


def test_a_program_that_it_could_not_start_is_explained() -> None:
    said = b"/bin/dash: 1: /app/other: Exec format error\n"
    ending = Foreign().classify(elf(FOREIGN), Ending(126), said)
    assert (ending.code, ending.reason) == (126, "exit")
    assert "Linux 6.7" in ending.message


def test_the_kernel_knows_programs_of_one_processor_by_their_header(tmp_path: Path) -> None:
    little, big = tmp_path / "little", tmp_path / "big"
    little.write_bytes(b"\x7fELF\2\1\1\3" + bytes(8) + b"\3\0\xb7\0" + bytes(44))
    big.write_bytes(b"\x7fELF\2\2\1\0" + bytes(8) + b"\0\2\0\x16" + bytes(44))
    lines = [_handler("arch", str(file)) for file in (little, big)]
    magics = [r"\x7f\x45\x4c\x46\x02\x01\x01\x03", r"\x7f\x45\x4c\x46\x02\x02\x01\x00"]
    ends = [r"\x02\x00\xb7\x00", r"\x00\x02\x00\x16"]
    cares = [r"\xfe\xff\xff\xff", r"\xff\xfe\xff\xff"]
    zeros = r"\x00" * 8
    for line, magic, end, care in zip(lines, magics, ends, cares, strict=True):
        assert line == f":arch:M::{magic}{zeros}{end}:{any_abi()}{care}"
    assert _handler(HOST, str(little)) == ""


def any_abi() -> str:
    return r"\xff" * 7 + r"\x00" + r"\xff" * 8


def test_a_kernel_that_lets_no_sandbox_have_handlers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(kernel, "mount", refuse)
    monkeypatch.setattr(boxed_root, "_BINFMT_PARENT", str(tmp_path))
    (missing,) = boxed_root.register((":x:M::x::/x:FP",))
    assert missing.startswith("programs that it starts: Operation not permitted; Linux has this")
    assert boxed_root.register(()) == []
    assert not [*tmp_path.iterdir()]


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
