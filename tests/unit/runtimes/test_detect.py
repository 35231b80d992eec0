"""What a program is, told from its content: every kind, and one clear refusal for each that nothing runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.errors import Forbidden, NotFound
from roost.runtimes.detect import detect
from tests.unit.runtimes.samples import GOOD, archive, component, detected, elf, java, pe, wasm


@pytest.mark.parametrize("sample", GOOD)
def test_every_kind_that_runs_is_known_by_its_content(sample: str) -> None:
    found = detected(GOOD[sample])
    assert (found.kind, found.refusal, found.fix) == (sample.partition("-")[0].removesuffix("32"), "", "")


def test_a_module_says_what_it_imports_and_that_it_starts() -> None:
    assert detected(GOOD["wasm"]).details == {"imports": ["wasi_snapshot_preview1"], "start": True, "wasi": "p1"}


def test_exports_behind_megabytes_are_reached_by_the_heads_of_sections() -> None:
    big = wasm([("wasi_snapshot_preview1", "fd_write")], exports=[])
    custom = b"\0" + b"\x80\x80\x80\x02" + bytes(4 << 20)
    assert "has no _start" in detected(big + custom).refusal
    late = wasm(exports=["_start"])
    assert detected(late[:8] + custom + late[8:]).refusal == ""


def test_a_component_has_its_interfaces() -> None:
    found = detected(component(["wasi:cli/stdout@0.2.0"], module=1 << 20))
    assert found.details == {"exports": ["wasi:cli/run@0.2.3"], "imports": ["wasi:cli/stdout@0.2.0"], "wasi": "p2"}


@pytest.mark.parametrize(
    ("content", "word", "fix"),
    [
        (wasm([("gojs", "syscall/js.finalizeRef")]), "built by Go", "GOOS=wasip1"),
        (wasm([("wbg", "__wbg_alert")]), "wasm-bindgen", "wasm32-wasip1"),
        (wasm([("env", "emscripten_memcpy_js")]), "Emscripten", "STANDALONE_WASM"),
        (wasm([("wasi_unstable", "fd_write")]), "before preview 1", "wasi-sdk"),
        (wasm([("env", "host_log"), ("env", "host_now")]), "env.host_log, env.host_now", "roost.Wasm"),
        (wasm(exports=["add", "_initialize"]), "no _start; it exports add, _initialize", "roost.Wasm"),
        (wasm()[:4] + b"\x02\0\0\0", "version 2, layer 0", "newer Roost"),
        (wasm()[:-4], "cut off", "again"),
        (component(["wasi:cli/stdout@0.3.0"]), "WASI 0.3", "wasm32-wasip2"),
        (component(["acme:db/query@1.0.0"]), "acme:db/query@1.0.0", "wac plug"),
        (component(["wasi:http/types@0.2.0"]), "no program gets here: it imports wasi:http/types@0.2.0", "wac plug"),
        (component(exports=["wasi:http/incoming-handler@0.2.0"]), "without wasi:cli/run", "wasi:cli/command"),
    ],
)  # fmt: skip
def test_webassembly_for_another_host_is_refused_by_what_it_wants(content: bytes, word: str, fix: str) -> None:
    found = detected(content)
    assert word in found.refusal
    assert fix in found.fix


@pytest.mark.parametrize(
    ("content", "arch", "expected"),
    [
        (elf(62), "x86_64", {"bits": 64, "link": "static", "endian": "little"}),
        (elf(3, wide=False), "i386", {"bits": 32}),
        (elf(40, wide=False), "arm", {"abi": "eabi"}),
        (elf(40, wide=False, flags=0x400), "arm", {"abi": "eabihf"}),
        (elf(40, wide=False, big=True), "armeb", {"endian": "big"}),
        (elf(243), "riscv64", {"bits": 64}),
        (elf(243, wide=False), "riscv32", {"bits": 32}),
        (elf(21, flags=2), "ppc64le", {"abi": "elfv2"}),
        (elf(21, big=True, flags=1), "ppc64", {"abi": "elfv1"}),
        (elf(8, wide=False, big=True), "mips", {}),
        (elf(8, wide=False), "mipsel", {}),
        (elf(8), "mips64el", {}),
        (elf(8, wide=False, flags=0x20), "mipsn32el", {"abi": "n32"}),
        (elf(22, big=True, interpreter="/lib/ld64.so.1"), "s390x", {"link": "dynamic", "interpreter": "/lib/ld64.so.1"}),
        (elf(62, kind=3, interpreter="/lib64/ld-linux-x86-64.so.2"), "x86_64", {"pie": True, "link": "dynamic"}),
        (elf(62, kind=3, tags={0x6FFFFFFB: 0x08000001, 0: 0}), "x86_64", {"pie": True, "link": "static"}),
        (elf(62, kind=3), "x86_64", {"pie": True, "link": "static"}),
    ],
)  # fmt: skip
def test_an_elf_program_has_its_processor_and_what_it_needs(
    content: bytes, arch: str, expected: dict[str, object]
) -> None:
    found = detected(content)
    assert (found.kind, found.arch, found.refusal) == ("elf", arch, "")
    assert expected.items() <= found.details.items()


@pytest.mark.parametrize(
    ("content", "kind", "word"),
    [
        (elf(system=0xC8), "cwasm", "native code that nothing checked, which is not accepted"),
        (elf(kind=1), "elf", "object file"),
        (elf(kind=4), "elf", "core dump"),
        (elf(kind=9), "elf", "unknown type 9"),
        (elf(kind=3, tags={14: 1, 1: 2}), "elf", "shared library"),
        (elf(kind=3, entry=0), "elf", "shared library"),
        (elf(system=9), "elf", "for FreeBSD"),
        (elf(interpreter="/system/bin/linker64"), "elf", "for Android"),
        (elf(interpreter="/libexec/ld-elf.so.1"), "elf", "for FreeBSD"),
        (elf(50), "elf", "processor ia64"),
        (elf(4711), "elf", "processor machine-4711"),
        (elf(62, wide=False), "elf", "x32 ABI"),
        (elf()[:-8], "elf", "cut off"),
        (elf()[:40], "elf", "cut off"),
        (b"\x7fELF", "elf", "cut off"),
        (b"\xcf\xfa\xed\xfe" + bytes(60), "macho", "macOS"),
        (b"\xca\xfe\xba\xbe\0\0\0\x02" + bytes(60), "macho", "macOS"),
        (b"MZqFpD='\n" + bytes(90), "ape", "actually portable"),
    ],
)  # fmt: skip
def test_what_is_no_program_for_linux_is_refused(content: bytes, kind: str, word: str) -> None:
    found = detected(content)
    assert found.kind == kind
    assert word in found.refusal
    assert found.fix


@pytest.mark.parametrize(("subsystem", "word"), [(3, "console"), (2, "gui")])
def test_a_program_of_windows_has_its_subsystem(subsystem: int, word: str) -> None:
    found = detected(pe(subsystem=subsystem))
    assert (found.kind, found.arch, found.refusal) == ("exe", "x86_64", "")
    assert found.details == {"bits": 64, "dll": False, "subsystem": word}


def test_a_program_of_the_net_framework_has_its_version() -> None:
    found = detected(GOOD["clr"])
    assert (found.kind, found.refusal) == ("clr", "")
    expected = {"clr": "v4.0.30319", "framework": ".NETFramework,Version=v4.8", "il_only": True, "subsystem": "console"}
    assert expected.items() <= found.details.items()


@pytest.mark.parametrize(
    ("content", "kind", "word", "fix"),
    [
        (pe(0x14C), "exe", "32-bit program", "64-bit build"),
        (pe(0xAA64), "exe", "processor aarch64", "x64"),
        (pe(dll=True), "exe", "DLL", "loads it"),
        (pe(0x14C, framework="", dll=True), "clr", "DLL", "loads it"),
        (pe(0x14C, framework=".NETCoreApp,Version=v8.0"), "clr", "made for .NET 8.0", "dotnet publish"),
        (pe(subsystem=10), "exe", "EFI", "--firmware uefi"),
        (pe(subsystem=1), "exe", "subsystem native", "belongs to"),
        (pe()[:-100], "exe", "cut off", "again"),
        (b"MZ" + bytes(100), "dos", "program of DOS", "DOSBox"),
        (b"MZ", "dos", "program of DOS", "DOSBox"),
        (b"MZ".ljust(60, b"\0") + b"\x40\0\0\0NE" + bytes(60), "dos", "16-bit", "DOSBox"),
        (b"MZ".ljust(60, b"\0") + b"\x40\0\0\0LE" + bytes(60), "dos", "32-bit program of DOS", "DOSBox"),
        (b"MZ".ljust(60, b"\0") + b"\x40\0\0\0LX" + bytes(60), "dos", "OS/2", "OS/2"),
    ],
)  # fmt: skip
def test_windows_programs_that_do_not_run_say_why(content: bytes, kind: str, word: str, fix: str) -> None:
    found = detected(content)
    assert found.kind == kind
    assert word in found.refusal
    assert fix in found.fix


def test_a_class_has_its_name_and_version() -> None:
    assert detected(java(65)).details == {"class_version": 65, "java": 21, "preview": False, "main": "pkg.Main"}
    assert detected(java(65, minor=0xFFFF)).details["preview"] is True


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (java(method="run"), "without a main method"), (java(access=0x8000), "Java module"), (java(120), "version 120, which no Java has"),
        (java()[:-30], "cut off"),
    ],
)  # fmt: skip
def test_a_class_that_can_not_start_is_refused(content: bytes, word: str) -> None:
    assert word in detected(content).refusal


@pytest.mark.parametrize(
    ("line", "name", "language", "arguments"),
    [
        (b"#!/bin/sh", "sh", "shell", []),
        (b"#! /usr/bin/python3.11 -E\r", "python3.11", "python", ["-E"]),
        (b"#!/usr/bin/env node", "node", "javascript", []),
        (b"#!/usr/bin/env -S A=1 perl -w -T", "perl", "perl", ["-w", "-T"]),
        (b"#!/usr/bin/env -S\truby", "ruby", "ruby", []),
        (b"#!/srv/strange", "strange", "", []),
        (b"#!/bin/sh -e -u", "sh", "shell", ["-e -u"]),
    ],
)
def test_a_script_names_its_interpreter(line: bytes, name: str, language: str, arguments: list[str]) -> None:
    found = detected(line + b"\nexit 0\n")
    assert found.kind == "script"
    assert (found.details["name"], found.details["language"], found.details["arguments"]) == (name, language, arguments)


@pytest.mark.parametrize("content", [b"#!\n", b"#!", b"#!/usr/bin/env\n", b"#!/usr/bin/env -i\n"])
def test_a_script_without_an_interpreter_is_refused(content: bytes) -> None:
    assert "names no interpreter" in detected(content).refusal


@pytest.mark.parametrize(
    ("content", "word", "fix"),
    [
        (b"", "is empty", "again"),
        (b"print(1)\n", "without a #! line", "#!/usr/bin/env python3"),
        ("grüße ".encode() * 1000, "without a #! line", "#!"),
        (b"\xef\xbb\xbf#!/bin/sh\n", "byte order mark", "without the mark"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip", "gunzip"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x"),
        (b"QFI\xfb\0\0\0\x03", "qcow2", "roost launch"),
        (b"x" * 257 + b"ustar", "tar archive", "tar xf"),
        (b"\x01\x02\x03\x04\x05\x06\x07\x08", "begins with 01 02 03 04 05 06 07 08", "WebAssembly, ELF"),
        (b"(modulex", "without a #! line", "#!"),
    ],
)  # fmt: skip
def test_what_is_no_program_is_named(content: bytes, word: str, fix: str) -> None:
    found = detected(content)
    assert found.kind == "unknown"
    assert word in found.refusal
    assert fix in found.fix


def test_a_directory_and_a_pipe_are_no_programs_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "directory" in detect(str(tmp_path)).refusal
    assert "pipe" in detect(str(tmp_path / "pipe")).refusal
    assert "device" in detect("/dev/null").refusal


@pytest.mark.parametrize("path", ["/nowhere/app.wasm", "", "a\0b", "/etc/passwd/x"])
def test_a_file_that_is_not_there_is_not_found(path: str) -> None:
    with pytest.raises(NotFound):
        detect(path)


def test_a_file_that_may_not_be_read_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(Forbidden, match="can not be read"):
        detect(str(tmp_path / "secret"))


def test_what_a_file_says_of_itself_is_no_way_around_its_first_bytes() -> None:
    """An archive behind an ELF or PE head is what its head says."""
    inside = archive({"__main__.py": "print(1)"})
    assert [detected(GOOD[kind] + inside).kind for kind in ("elf", "exe", "class")] == ["elf", "exe", "class"]
