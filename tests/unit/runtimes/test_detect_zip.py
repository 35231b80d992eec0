"""Archives that hold programs, archives that do not, and archives that are made to hurt."""

from __future__ import annotations

import struct
import time
import zipfile

import pytest

from tests.unit.runtimes.samples import archive, detected, jar, java, manifest


def end_record(count: int, size: int, offset: int) -> bytes:
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)


def entry(path: bytes, *, offset: int = 0, size: int = 0, extra: bytes = b"") -> bytes:
    fields = (b"PK\x01\x02", 20, 20, 0, 8, 0, 0, 0, size, size, len(path), len(extra), 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3I5H2I", *fields) + path + extra


def as_zip64(content: bytes) -> bytes:
    """The same archive, its end told by the records of zip64 only."""
    at = content.rindex(b"PK\x05\x06")
    count, size, offset = struct.unpack_from("<HII", content, at + 10)
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, offset)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    return content[:at] + record + locator + end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def test_a_jar_has_its_main_class_and_the_java_it_needs() -> None:
    found = detected(jar(65, more="Class-Path: lib/a.jar\r\n  lib/b.jar\r\n"))
    assert (found.kind, found.refusal) == ("jar", "")
    assert found.details == {
        "class_path": ["lib/a.jar", "lib/b.jar"], "class_version": 65, "java": 21, "main": "pkg.Main", "preview": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        jar(method=zipfile.ZIP_STORED),
        jar(before=b"#!/bin/sh\nexec java -jar $0\n"),
        jar(before=bytes(100_000)),
        jar(comment=b"c" * 900),
        jar(comment=b"c" * 10_000),
        as_zip64(jar()),
        as_zip64(jar(before=b"x" * 333)),
        archive(
            {"META-INF/MANIFEST.MF": "main-class: pkg.\n Main\n\nName: x\nMain-Class: no\n", "pkg/Main.class": java()}
        ),
    ],
    ids=["stored", "behind a script", "behind 100 kB", "comment", "long comment", "zip64", "zip64 behind", "folded"],
)
def test_a_jar_is_found_wherever_it_stands_and_however_it_is_packed(content: bytes) -> None:
    found = detected(content)
    assert (found.kind, found.details["main"], found.details["class_version"]) == ("jar", "pkg.Main", 61)


def test_the_class_version_is_told_by_another_class_where_the_main_class_is_elsewhere() -> None:
    files = {
        "META-INF/MANIFEST.MF": manifest("x.Y", "Class-Path: other.jar\r\n"),
        "module-info.class": java(69),
        "a/B.class": java(52),
    }
    assert detected(archive(files)).details["class_version"] == 52


@pytest.mark.parametrize(
    ("files", "kind", "word", "fix"),
    [
        ({"META-INF/MANIFEST.MF": "Manifest-Version: 1.0\n\n", "a/B.class": java()}, "jar", "no Main-Class", "jar of the program"),
        ({"a/B.class": java()}, "jar", "without a manifest", "jar --create"),
        ({"META-INF/MANIFEST.MF": manifest("pkg.Other"), "a/B.class": java()}, "jar", "does not hold it", "build it again"),
        ({"META-INF/MANIFEST.MF": manifest(), "pkg/Main.class": java(200)}, "jar", "version 200", "again"),
        ({"META-INF/MANIFEST.MF": "\n", "WEB-INF/web.xml": "<a/>"}, "war", "web application", "Tomcat"),
        ({"META-INF/MANIFEST.MF": "\n", "AndroidManifest.xml": "", "classes.dex": ""}, "apk", "Android", "machine with Android"),
        ({"readme.txt": "hello"}, "zip", "without a program", "unzip"),
        ({}, "zip", "without a program", "unzip"),
    ],
)  # fmt: skip
def test_archives_without_a_program_say_what_they_are(
    files: dict[str, bytes | str], kind: str, word: str, fix: str
) -> None:
    found = detected(archive(files))
    assert found.kind == kind
    assert word in found.refusal
    assert fix in found.fix


def test_a_zipapp_is_python_with_or_without_its_first_line() -> None:
    plain = archive({"__main__.py": "print(1)"})
    assert [detected(head + plain).details for head in (b"", b"#!/usr/bin/env python3\n")] == [
        {"interpreter": ""}, {"interpreter": "/usr/bin/env python3"},
    ]  # fmt: skip


def test_a_script_with_an_archive_behind_it_stays_a_script() -> None:
    assert detected(b"#!/bin/sh\nunzip $0\n" + archive({"data.txt": "x"})).kind == "script"


@pytest.mark.fault(54)
def test_an_archive_that_claims_exabytes_is_refused_at_once() -> None:
    claims = (
        b"PK\x03\x04" + bytes(100) + struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 1 << 63, 1 << 62)
    )
    found = detected(
        claims + struct.pack("<4sIQI", b"PK\x06\x07", 0, 104, 1) + end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    )
    assert (found.kind, "damaged" in found.refusal) == ("zip", True)


@pytest.mark.fault(54)
def test_a_bomb_in_place_of_a_manifest_is_inflated_by_a_few_kilobytes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import zlib

    inflated: list[int] = []
    plain = zlib.decompressobj

    class Counting:
        def __init__(self, bits: int) -> None:
            self.inner = plain(bits)

        def decompress(self, data: bytes, most: int = 0) -> bytes:
            made = self.inner.decompress(data, most)
            inflated.append(len(made))
            return made

    bomb = archive({"META-INF/MANIFEST.MF": "X: " + "a" * (16 << 20)})
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    assert detected(bomb).kind == "jar"
    assert inflated
    assert sum(inflated) <= 32 << 10


@pytest.mark.fault(54)
def test_a_directory_of_a_million_entries_costs_no_more_than_what_is_read_of_it() -> None:
    directory = entry(b"") * 1_000_000
    content = b"PK\x03\x04" + bytes(26) + directory + end_record(0xFFFF, len(directory), 30)
    started = time.process_time()
    found = detected(content)
    assert time.process_time() - started < 0.2
    assert found.kind == "zip"


@pytest.mark.fault(54)
def test_a_jar_with_more_entries_than_are_read_is_left_to_java() -> None:
    files: dict[str, bytes | str] = {f"pkg/Class{number:05}.class": b"" for number in range(2000)}
    found = detected(archive({**files, "META-INF/MANIFEST.MF": manifest()}, method=zipfile.ZIP_STORED))
    assert (found.kind, found.refusal, found.details["main"]) == ("jar", "", "")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_equal_names_the_last_counts_as_it_does_for_java() -> None:
    import io

    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for main in ("a.First", "pkg.Main"):
            made.writestr("META-INF/MANIFEST.MF", manifest(main))
        made.writestr("pkg/Main.class", java())
    assert detected(stream.getvalue()).details["main"] == "pkg.Main"


@pytest.mark.parametrize("cut", [10, 30, 60, 200])
def test_a_cut_jar_is_damaged(cut: int) -> None:
    found = detected(jar()[:-cut])
    assert (found.kind, "damaged or cut off" in found.refusal) == ("zip", True)


@pytest.mark.parametrize(
    ("old", "new"), [(b"PK\x03\x04", b"PK\x03\x05"), (b"PK\x01\x02", b"PK\x01\x03")], ids=["local", "directory"]
)
def test_a_damaged_jar_is_refused(old: bytes, new: bytes) -> None:
    content = jar()
    at = content.rindex(old, 0, content.rindex(b"pkg/Main.class"))
    assert "damaged" in detected(b"PK\x03\x04" + content[4:at] + new + content[at + 4 :]).refusal


def test_an_encrypted_manifest_is_no_secret_but_a_refusal() -> None:
    content = bytearray(jar())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert "encrypted" in detected(bytes(content)).refusal
