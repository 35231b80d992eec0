"""WebAssembly by its sections: module or component, which host it was made for, and whether it can be started."""

from __future__ import annotations

from roost.light import Any, Iterator, NamedTuple
from roost.runtimes.base import Found
from roost.runtimes.detect_file import Bounded, Damaged, File, KiB, refuse, text

_MODULE, _COMPONENT = (1, 0), (13, 1)
"""Version and layer of the core specification 1 to 3, and of the component model's present binary format."""
_SLICE = 24 * KiB
"""Bytes of one section that are looked at."""
_MOST_NAMES = 4096
_SHOWN = 8
_LONGEST_NAME = 4 * KiB

_KNOWN = {"wasi_snapshot_preview1"}
_HOSTS = (
    ("gojs", "was built by Go for a browser (GOOS=js)", "build it for WASI: GOOS=wasip1 GOARCH=wasm go build"),
    ("go", "was built by Go for a browser (GOOS=js)", "build it for WASI: GOOS=wasip1 GOARCH=wasm go build"),
    ("wbg", "was built by wasm-bindgen for JavaScript", "build it for WASI: cargo build --target wasm32-wasip1"),
    ("__wbindgen_placeholder__", "was built by wasm-bindgen for JavaScript", "build it for WASI: cargo build --target wasm32-wasip1"),
    ("wasi_unstable", "was built for WASI before preview 1", "build it with a wasi-sdk of 2020 or later (wasi_snapshot_preview1)"),
    ("wasix_32v1", "was built for WASIX, which only Wasmer has", "build it for WASI preview 1"),
    ("wasi", "starts threads (wasi-threads), which WASI preview 1 does not have", "build it without -pthread"),
)  # fmt: skip
_OTHER_HOST = "run it in the host it was made for, or give it these functions from Python: roost.Wasm"
_COMPONENT_KNOWN = (
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
)


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int


class _Cursor:
    """Reads the binary format's numbers and names from part of a section."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def byte(self) -> int:
        if self.at >= len(self.data):
            raise Bounded
        self.at += 1
        return self.data[self.at - 1]

    def number(self) -> int:
        """An unsigned LEB128 of at most 64 bits (the longest there are: limits of memory64)."""
        value = shift = 0
        if self.at < len(self.data) and self.data[self.at] < 0x80:  # nearly all are
            self.at += 1
            return self.data[self.at - 1]
        while shift < 70:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        raise Damaged("a number in it has no end")

    def name(self) -> str:
        count = self.number()
        if self.at + count > len(self.data) or count > _LONGEST_NAME:
            raise Bounded
        self.at += count
        return text(self.data[self.at - count : self.at])


def read(file: File) -> Found:
    """A module or a component."""
    head = file.at(0, 8)
    version = int.from_bytes(head[4:6], "little"), int.from_bytes(head[6:8], "little")
    if version == _MODULE:
        return _module(file)
    if version == _COMPONENT:
        return _component(file)
    why = f"is WebAssembly of version {version[0]}, layer {version[1]}, which is not known here"
    return refuse("wasm", why, "build it with a current compiler, or take a newer Roost")


def _sections(file: File) -> Iterator[_Section]:
    """The sections that can be reached: bodies are skipped, and many small ones cost what may be read. Raises Damaged at a cut."""
    offset = 8
    while offset < file.size:
        header = file.some(offset, 11)
        if len(header) < 2:
            return
        cursor = _Cursor(header)
        try:
            kind, size = cursor.byte(), cursor.number()
        except Bounded:
            raise Damaged(f"a section's head at byte {offset} is cut off") from None
        body = offset + cursor.at
        if body + size > file.size:
            raise Damaged(f"section {kind} ends at byte {body + size}, and the file at {file.size}")
        yield _Section(kind, body, size)
        offset = body + size


def _module(file: File) -> Found:
    imports: list[tuple[str, str]] = []
    exports: list[str] = []
    whole, end = True, 8
    for section in _sections(file):
        end = section.offset + section.size
        if section.kind in (2, 7):
            part, all_read = _listed(file, section, _import if section.kind == 2 else _export)
            whole &= all_read
            imports += part if section.kind == 2 else ()
            exports += part if section.kind == 7 else ()
    modules = sorted({module for module, _ in imports})
    entry = "_start" in exports
    whole &= end == file.size
    details = {"imports": modules[:32], "start": entry or not whole, "wasi": "p1" if _KNOWN & set(modules) else ""}
    foreign = [(module, name) for module, name in imports if module not in _KNOWN]
    if foreign:
        return _foreign(foreign, details)
    if whole and not entry:
        why = f"is a WebAssembly library: it has no _start{_listing('; it exports ', exports)}"
        return refuse(
            "wasm", why, "call its functions from Python with roost.Wasm, or build it as a program", details=details
        )
    return Found("wasm", "", details)


def _listed(file: File, section: _Section, item: Any) -> tuple[list[Any], bool]:
    """The items of a section so far as they may be read, and whether these are all."""
    cursor = _Cursor(file.some(section.offset, min(section.size, _SLICE)))
    found: list[Any] = []
    try:
        count = cursor.number()
        while len(found) < min(count, _MOST_NAMES):
            found.append(item(cursor))
    except Bounded:
        return found, False
    return found, len(found) == count


def _import(cursor: _Cursor) -> tuple[str, str]:
    module, name = cursor.name(), cursor.name()
    _skip_type(cursor)
    return module, name


def _skip_type(cursor: _Cursor) -> None:
    """Go past the type of an import: a function, table, memory, global or tag."""
    kind = cursor.byte()
    if kind == 0:
        cursor.number()
    elif kind == 1:
        _skip_value_type(cursor)
        _skip_limits(cursor)
    elif kind == 2:
        _skip_limits(cursor)
    elif kind == 3:
        _skip_value_type(cursor)
        cursor.byte()
    elif kind == 4:
        cursor.byte()
        cursor.number()
    else:
        raise Damaged(f"it imports something of the unknown kind {kind}")


def _skip_value_type(cursor: _Cursor) -> None:
    if cursor.byte() in (0x63, 0x64):  # a reference to a type of the module, by its number
        cursor.number()


def _skip_limits(cursor: _Cursor) -> None:
    flags = cursor.byte()
    for present in (True, flags & 1, flags & 8):
        if present:
            cursor.number()


def _export(cursor: _Cursor) -> str:
    """The name of an exported function; "" for what is no function."""
    name, kind = cursor.name(), cursor.byte()
    cursor.number()
    return name if kind == 0 else ""


def _foreign(foreign: list[tuple[str, str]], details: dict[str, Any]) -> Found:
    modules = {module for module, _ in foreign}
    names = _listing("", [f"{module}.{name}" for module, name in foreign])
    for module, why, fix in _HOSTS:
        if module in modules:
            return refuse("wasm", f"{why}: it imports {names}", fix, details=details)
    if any(name.startswith(("emscripten_", "__syscall_", "invoke_", "_emscripten")) for _, name in foreign):
        why = f"was built by Emscripten for JavaScript: it imports {names}"
        return refuse("wasm", why, "build it for WASI: emcc -sSTANDALONE_WASM, or with the wasi-sdk", details=details)
    return refuse(
        "wasm", f"needs functions of a host that is not WASI: it imports {names}", _OTHER_HOST, details=details
    )


def _listing(before: str, names: list[str]) -> str:
    """Some names, how many more there are, in printable characters."""
    shown = [name[:80] for name in names if name]
    if not shown:
        return ""
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return before + ", ".join(shown[:_SHOWN]) + more


def _component(file: File) -> Found:
    """A component: its imports and exports are many small sections, so that reading ends where the budget does."""
    imports: list[str] = []
    exports: list[str] = []
    end = 8
    for section in _sections(file):
        end = section.offset + section.size
        if section.kind == 10:
            imports += _named(file, section)
        elif section.kind == 11:
            exports += _named(file, section)
    whole = end == file.size
    details: dict[str, Any] = {"exports": sorted(exports)[:32], "imports": sorted(imports)[:64]}
    later = [name for name in imports + exports if name.startswith("wasi:") and "@0.3" in name]
    details["wasi"] = "p3" if later else "p2" if any(name.startswith("wasi:") for name in imports + exports) else ""
    if later:
        why = f"was built for WASI 0.3, which is not run here yet: {_listing('', later)}"
        return refuse("component", why, "build it for WASI 0.2: --target wasm32-wasip2", details=details)
    foreign = [name for name in imports if not name.startswith(_COMPONENT_KNOWN)]
    if foreign:
        why = f"needs interfaces that no program gets here: it imports {_listing('', foreign)}"
        return refuse("component", why, "compose it with a component that exports them: wac plug", details=details)
    if whole and not any(name.startswith("wasi:cli/run@0.2") for name in exports):
        why = f"is a component without wasi:cli/run{_listing('; it exports ', exports)}"
        return refuse("component", why, "build it as a program of the world wasi:cli/command", details=details)
    return Found("component", "", details)


def _named(file: File, section: _Section) -> list[str]:
    """The names that a section of imports or exports holds; where a type follows that is not known, the first one."""
    cursor = _Cursor(file.some(section.offset, min(section.size, 2 * KiB)))
    found: list[str] = []
    try:
        for _ in range(min(cursor.number(), _MOST_NAMES)):
            cursor.byte()
            found.append(cursor.name())
            if section.kind == 10:
                _skip_described(cursor)
            else:
                _skip_export(cursor)
    except (Bounded, Damaged):
        pass
    return found


def _skip_described(cursor: _Cursor) -> None:
    """Go past the description of an import: what sort, and which type."""
    sort = cursor.byte()
    if sort == 0:
        cursor.byte()
        cursor.number()
    elif sort in (1, 4, 5) or (sort == 3 and cursor.byte() == 0):
        cursor.number()
    elif sort == 2:
        raise Bounded


def _skip_export(cursor: _Cursor) -> None:
    if cursor.byte() == 0:
        cursor.byte()
    cursor.number()
    if cursor.byte():
        _skip_described(cursor)
