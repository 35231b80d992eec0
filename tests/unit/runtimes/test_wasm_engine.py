"""The binding to Wasmtime and what its words mean."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import pytest

from roost.errors import Invalid, Unavailable
from roost.runtimes import libwasmtime, wasm_compile
from roost.runtimes.base import Found, Grant
from roost.runtimes.wasm import WasmRuntime
from roost.runtimes.wasm_compile import artefact_of_bytes, artefact_of_file
from roost.runtimes.wasm_engine import Options, Stop, clean
from roost.runtimes.wasm_wasi import NOTHING, Preopen, preopens

EMPTY = b"\0asm\1\0\0\0"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ROOST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wasm"


def test_every_prototype_is_that_of_the_wheel() -> None:
    bindings = pytest.importorskip("wasmtime._bindings")
    letters = {ctypes.c_size_t: "z", ctypes.c_bool: "b", ctypes.c_int64: "i", ctypes.c_uint8: "k", None: "-"}
    differing = {}
    for name, ours in libwasmtime._PROTOTYPES.items():
        theirs = getattr(bindings, f"_{name}", None)
        if theirs is not None:
            told = "".join(letters.get(kind, "p") for kind in (theirs.restype, *theirs.argtypes))
            if told != ours.replace("s", "p").replace("u", "z"):
                differing[name] = told
    assert not differing


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "wasmtime" / f"linux-{os.uname().machine}"
    place.mkdir(parents=True)
    (place / "_libwasmtime.so").touch()
    (tmp_path / "wasmtime-99.1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(Unavailable, match=r"99\.1\.0"):
        libwasmtime.find()
    assert WasmRuntime().needs(Found("wasm"))[0].install == libwasmtime.FIX


def test_without_the_library_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path)])
    assert WasmRuntime().needs(Found("wasm"))[0].install == libwasmtime.FIX
    assert WasmRuntime().probe() == {}


def test_what_the_library_says_is_one_printable_line() -> None:
    assert clean(b"a\x1b[31m\n  b\0") == "a\N{REPLACEMENT CHARACTER}[31m b"
    assert len(clean(b"x" * 100_000)) < 2100


def test_code_is_compiled_once_and_found_again(cache: Path, tmp_path: Path) -> None:
    program = tmp_path / "empty.wasm"
    program.write_bytes(EMPTY)
    first = artefact_of_file(str(program), Options())
    second = artefact_of_file(str(program), Options())
    assert os.fstat(first.descriptor).st_ino == os.fstat(second.descriptor).st_ino
    assert first.options == Options()
    os.close(first.descriptor)
    os.close(second.descriptor)


@pytest.mark.fault(92)
@pytest.mark.parametrize("damage", ["shorter", "start", "end", "empty"])
def test_code_that_is_not_whole_is_never_mapped_but_made_anew(cache: Path, damage: str) -> None:
    os.close(artefact_of_bytes(EMPTY, Options()).descriptor)
    kept = next(path for path in cache.iterdir() if not path.name.startswith("."))
    code = kept.read_bytes()
    bad = {
        "shorter": code[:-100],
        "start": b"\0" * 64 + code[64:],
        "end": code[:-64] + b"\0" * 36 + code[-28:],
        "empty": b"",
    }[damage]
    kept.write_bytes(bad)
    assert wasm_compile._check(os.open(kept, os.O_RDONLY)) is None
    again = artefact_of_bytes(EMPTY, Options())
    assert os.pread(again.descriptor, len(code), 0) == code
    os.close(again.descriptor)


def test_where_nothing_can_be_kept_it_runs_all_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROOST_CACHE", str(tmp_path / "file"))
    made = artefact_of_bytes(EMPTY, Options())
    assert made.size > 0
    os.close(made.descriptor)


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"\0asm",
        b"\0asm\1\0\0\0\xff\xff",
        b"(module",
        b"\x7fELF" + bytes(100),
        b"(module (func (unreachable",
        b"\xff\xfe",
    ],
)
def test_what_is_no_webassembly_is_refused_with_words(cache: Path, source: bytes) -> None:
    with pytest.raises(Invalid, match="can not be compiled"):
        artefact_of_bytes(source, Options())


def test_compiled_code_is_no_input(cache: Path) -> None:
    made = artefact_of_bytes(EMPTY, Options())
    code = os.pread(made.descriptor, made.size, 0)
    os.close(made.descriptor)
    with pytest.raises(Invalid, match="can not be compiled"):
        artefact_of_bytes(code, Options())


def test_a_directory_is_known_by_its_name_and_by_the_way_to_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    grants = (Grant(str(tmp_path / "data"), "/home/me/data"), Grant(str(tmp_path / "file"), "/etc/x.conf", True))
    found = {each.name: each for each in preopens(grants, "/home/me")}
    assert found["/home/me/data"] == Preopen("/home/me/data", "/home/me/data", str(tmp_path / "data"), False)
    assert found["data"].inside == "/home/me/data"
    assert found["/etc"] == Preopen("/etc", "/etc", "", True)
    assert found["/"].inside == NOTHING
    assert not found["/"].writable


def test_the_working_directory_below_a_grant_is_the_dot(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    found = {each.name: each for each in preopens((Grant(str(tmp_path), "/srv", True),), "/srv/a")}
    assert found["."] == Preopen(".", "/srv/a", f"{tmp_path}/a", True)


def test_a_report_of_a_hostile_process_is_read_with_bounds() -> None:
    report = WasmRuntime()._report
    assert report.read() is None
    report.write(Stop("trap", "x" * 100_000))
    report._page[:2] = b"\xff\xff"
    assert report.read() is None or len(report.read().message) < 4096  # type: ignore[union-attr]
    report.write(Stop("trap", "red \x1b[31m"))
    assert report.read() == Stop("trap", "red [31m")
