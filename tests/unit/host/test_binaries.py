"""What a program needs to start, read from the ELF files without running them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from roost.errors import Unavailable
from roost.host import binaries, jail

SLEEP = Path("/usr/bin/sleep")


def test_a_program_needs_its_interpreter_and_the_c_library() -> None:
    needs = binaries.needs(SLEEP)
    assert needs.interpreter is not None
    assert needs.interpreter.name.startswith("ld-")
    assert [Path(target).name for target in needs.libraries if "libc.so" in target] == ["libc.so.6"]


def test_every_library_exists() -> None:
    assert [path for path in binaries.needs(SLEEP).libraries.values() if not path.is_file()] == []


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(60)])
def test_what_is_no_64_bit_program_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Unavailable, match="no ELF program"):
        binaries.needs(tmp_path / "x")


@pytest.mark.parametrize("cut", [64, 100, 1000, 5000])
def test_a_cut_off_program_is_refused_or_needs_less(tmp_path: Path, cut: int) -> None:
    (tmp_path / "x").write_bytes(SLEEP.read_bytes()[:cut])
    try:
        assert binaries.needs(tmp_path / "x").interpreter in (None, binaries.needs(SLEEP).interpreter)
    except Unavailable as error:
        assert "no ELF program" in error.why


def test_the_binds_of_a_program_hold_it_its_libraries_and_the_null_device() -> None:
    targets = {bind.target for bind in jail.program_binds(SLEEP)}
    assert {str(SLEEP), "/dev/null"} < targets
    assert all(not bind.writable for bind in jail.program_binds(SLEEP))


def test_the_binds_are_remembered_until_the_program_changes(tmp_path: Path) -> None:
    copy = tmp_path / "x"
    copy.write_bytes(SLEEP.read_bytes())
    first = jail.program_binds(copy)
    assert jail.program_binds(copy) is first
    copy.write_bytes(SLEEP.read_bytes() + b"\0")
    assert jail.program_binds(copy) is not first


def test_a_missing_program_is_told() -> None:
    with pytest.raises(Unavailable):
        jail.program_binds(Path("/usr/bin/qemu-system-none"))


def test_the_interpreter_of_this_test_can_be_followed() -> None:
    assert binaries.needs(Path(sys.executable).resolve()).interpreter is not None
