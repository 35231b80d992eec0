"""Zip archives by their own directory, which may stand behind anything: programs of Java and Python, and what only looks like them.

The directory is walked so far as the budget goes, and no more than a few KiB are ever inflated: sizes, counts and ratios that an archive
claims cost nothing.
"""

from __future__ import annotations

from roost.light import Any, NamedTuple
from roost.runtimes.base import Found
from roost.runtimes.detect_file import Bounded, Damaged, File, KiB, refuse, text

_ENTRY, _LOCAL, _END, _END64, _LOCATOR64 = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_STORED, _DEFLATED, _ENCRYPTED = 0, 8, 1
_TAIL, _LONG_TAIL = KiB, 12 * KiB
"""Bytes at the end that are searched for the end record: the long tail where the head promises an archive."""
_RESERVED = 12 * KiB
"""Bytes of the budget that the directory leaves for the manifest and a class."""
_MANIFEST, _MOST_MANIFEST, _MOST_COMPRESSED = b"META-INF/MANIFEST.MF", 32 * KiB, 8 * KiB
_MOST_PATHS = 256


class _Entry(NamedTuple):
    """An entry of the directory: `offset` is that of its local header, `size` its compressed bytes."""

    flags: int
    method: int
    size: int
    offset: int


class _Directory(NamedTuple):
    """The entries that were reached, of equal names the last as with Java and Python, and whether these are all."""

    entries: dict[bytes, _Entry]
    whole: bool


def _number(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def read(file: File) -> Found | None:
    """What the archive is; None when there is none, or none that decides what the file is."""
    announced = file.head.startswith(b"PK")
    try:
        directory = _directory(file, announced)
        found = _program(file, directory) if directory else None
    except (Damaged, Bounded) as problem:
        if not announced:
            return None
        return refuse("zip", f"is a zip archive that is damaged or cut off: {problem}", "fetch or build it again")
    if found is None and announced:
        return _no_program(directory) if directory else None
    return found


def _directory(file: File, announced: bool) -> _Directory | None:
    """The archive's directory; None when the file does not end as an archive does."""
    if file.size < 22:
        return None
    start, tail = _end_record(file, _TAIL)
    if tail is None and announced:
        start, tail = _end_record(file, _LONG_TAIL)
    if tail is None:
        if file.head.startswith(_LOCAL):
            raise Damaged("its directory is missing")
        return None
    count, size, offset = _number(tail, 10, 2), _number(tail, 12, 4), _number(tail, 16, 4)
    if count == 0xFFFF or size == 0xFFFFFFFF or offset == 0xFFFFFFFF:
        start, count, size, offset = _end64(file, start) or (start, count, size, offset)
    before = start - size - offset  # bytes in front of the archive
    if size < 0 or before < 0:
        raise Damaged(f"its directory of {size} bytes should begin at byte {offset}")
    return _walk(file, before + offset, size, count, before)


def _end_record(file: File, length: int) -> tuple[int, bytes | None]:
    """Where the end record starts, and the record."""
    start = max(0, file.size - length)
    data = file.some(start, file.size - start)
    at = data.rfind(_END)
    while at >= 0:
        record = data[at : at + 22]
        if len(record) == 22 and start + at + 22 + _number(record, 20, 2) <= file.size:
            return start + at, record
        at = data.rfind(_END, 0, at)
    return 0, None


def _end64(file: File, end: int) -> tuple[int, int, int, int] | None:
    """Start, count, size and offset from the record of zip64, which stands before its locator; None when there is none."""
    locator = file.some(end - 20, 20) if end >= 20 else b""
    if locator[:4] != _LOCATOR64:
        return None
    start = end - 76
    record = file.at(start, 56) if start >= 0 else b""
    if record[:4] != _END64:
        raise Damaged("its record of zip64 is missing")
    return start, _number(record, 32, 8), _number(record, 40, 8), _number(record, 48, 8)


def _walk(file: File, start: int, size: int, count: int, before: int) -> _Directory:
    """Read the entries that the budget reaches."""
    data = file.some(start, min(size, max(0, file.left - _RESERVED)))
    entries: dict[bytes, _Entry] = {}
    at = seen = 0
    while at + 46 <= len(data):
        if data[at : at + 4] != _ENTRY:
            raise Damaged(f"its directory is wrong at byte {start + at}")
        name, extra, comment = _number(data, at + 28, 2), _number(data, at + 30, 2), _number(data, at + 32, 2)
        path = data[at + 46 : at + 46 + name]
        if len(path) == name:
            offset = before + _number(data, at + 42, 4)
            entries[path] = _Entry(
                _number(data, at + 8, 2), _number(data, at + 10, 2), _number(data, at + 20, 4), offset
            )
            seen += 1
        at += 46 + name + extra + comment
    return _Directory(entries, len(data) == size and seen >= count)


def _content(file: File, entry: _Entry, compressed: int, most: int) -> bytes:
    """Up to `most` bytes of an entry, made from at most `compressed` ones. Raises Damaged, Bounded."""
    header = file.at(entry.offset, 30)
    if header[:4] != _LOCAL or entry.flags & _ENCRYPTED or entry.method not in (_STORED, _DEFLATED):
        raise Damaged(
            "it is encrypted, or packed in a way that Java does not read"
            if header[:4] == _LOCAL
            else "an entry is missing"
        )
    start = entry.offset + 30 + _number(header, 26, 2) + _number(header, 28, 2)
    data = file.some(start, min(entry.size, compressed))
    if entry.method == _STORED:
        return data[:most]
    import zlib

    try:
        return zlib.decompressobj(-15).decompress(data, most)
    except zlib.error as error:
        raise Damaged(f"an entry does not unpack ({error})") from None


def _program(file: File, directory: _Directory) -> Found | None:
    """A program of Java or Python, or a package of a kind that has its own name."""
    entries = directory.entries
    manifest = (
        _attributes(_content(file, entries[_MANIFEST], _MOST_COMPRESSED, _MOST_MANIFEST))
        if _MANIFEST in entries
        else None
    )
    if manifest and manifest.get("main-class"):
        return _jar(file, directory, manifest)
    if b"__main__.py" in entries or b"__main__.pyc" in entries:
        return Found("pyz", "", {"interpreter": _interpreter(file.head)})
    if b"AndroidManifest.xml" in entries:
        fix = "run it in a machine with Android; Roost runs no apps"
        return refuse("apk", "is an app of Android", fix)
    if any(name.startswith(b"WEB-INF/") for name in entries):
        fix = "give it to its server, such as Tomcat or Jetty, and run that"
        return refuse("war", "is a web application of Java (war), which a servlet container runs", fix)
    classes = any(name.endswith(b".class") for name in entries)
    if manifest is not None and (classes or file.head.startswith(b"PK")):
        fix = "run the jar of the program that uses it; a program's jar names its main class in META-INF/MANIFEST.MF"
        return refuse("jar", "is a Java library: its manifest has no Main-Class", fix, details={"main": ""})
    if classes and not directory.whole:
        return Found("jar", "", {"class_path": [], "class_version": 0, "java": 0, "main": "", "preview": False})
    return None


def _no_program(directory: _Directory) -> Found:
    if directory.whole and any(name.endswith(b".class") for name in directory.entries):
        fix = (
            "add META-INF/MANIFEST.MF with its Main-Class: jar --create --file NEW.jar --main-class NAME -C DIRECTORY ."
        )
        return refuse("jar", "is a zip archive of Java classes without a manifest", fix, details={"main": ""})
    return refuse(
        "zip",
        "is a zip archive without a program that starts by itself",
        "unpack it, and run the program in it: unzip FILE",
    )


def _jar(file: File, directory: _Directory, manifest: dict[str, str]) -> Found:
    from roost.runtimes import detect_class

    main = manifest["main-class"]
    paths = manifest.get("class-path", "").split()[:_MOST_PATHS]
    details: dict[str, Any] = {"class_path": paths, "class_version": 0, "java": 0, "main": main, "preview": False}
    own = (main.replace(".", "/") + ".class").encode("utf-8", "replace")
    entry = directory.entries.get(own) or next(
        (each for name, each in directory.entries.items() if _plain_class(name)), None
    )
    head = _content(file, entry, KiB, 8) if entry else b""
    if head[:4] == b"\xca\xfe\xba\xbe" and len(head) == 8:
        details.update(detect_class.version(head))
    if details["class_version"] > detect_class.NEWEST:
        why = f"holds Java classes of version {details['class_version']}, which no Java has"
        return refuse("jar", why, "fetch or build it again", details=details)
    if directory.whole and not paths and own not in directory.entries:
        fix = "build it again with the class that its manifest names"
        return refuse("jar", f"names the main class {main[:200]}, and does not hold it", fix, details=details)
    return Found("jar", "", details)


def _plain_class(name: bytes) -> bool:
    """Whether it is a class that any Java loads: not one for newer releases only, and no module's description."""
    return name.endswith(b".class") and not name.startswith(b"META-INF/") and not name.endswith(b"module-info.class")


def _attributes(data: bytes) -> dict[str, str]:
    """The main section of a manifest, by lower-case names; a line that begins with a space goes on with the one before."""
    found: dict[str, str] = {}
    name = ""
    for line in text(data).replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if not line:
            break
        if line.startswith(" "):
            found[name] = found.get(name, "") + line[1:]
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            found[name] = value.strip(" ")
    return {name: value.strip() for name, value in found.items()}


def _interpreter(head: bytes) -> str:
    """What a first line of #! names; "" without one."""
    if not head.startswith(b"#!"):
        return ""
    return head[2:].partition(b"\n")[0].strip().decode("utf-8", "surrogateescape")
