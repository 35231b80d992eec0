"""Scripts by their first line, WebAssembly text, and words for what nothing here runs."""

from __future__ import annotations

from roost.runtimes.base import Found
from roost.runtimes.detect_file import File, refuse, text

_LANGUAGES = {
    "sh": "shell", "bash": "shell", "dash": "shell", "ash": "shell", "ksh": "shell", "mksh": "shell", "zsh": "shell", "busybox": "shell",
    "fish": "fish", "python": "python", "pypy": "python", "perl": "perl", "ruby": "ruby", "node": "javascript", "nodejs": "javascript",
    "deno": "javascript", "bun": "javascript", "qjs": "javascript", "lua": "lua", "luajit": "lua", "php": "php", "tclsh": "tcl",
    "wish": "tcl", "expect": "tcl", "awk": "awk", "gawk": "awk", "mawk": "awk", "sed": "sed", "make": "make", "rscript": "r",
    "guile": "scheme", "sbcl": "lisp", "java": "java", "groovy": "groovy", "escript": "erlang", "elixir": "elixir", "julia": "julia",
}  # fmt: skip
"""The interpreter table: the language of an interpreter by its name without a version."""

_LONGEST_LINE = 4096
"""Bytes of a first line: more than Linux takes (255)."""

_OTHERS = (
    (b"\x1f\x8b", "gzip data", "unpack it: tar xzf FILE, or gunzip FILE"),
    (b"BZh", "bzip2 data", "unpack it: tar xjf FILE, or bunzip2 FILE"),
    (b"\xfd7zXZ\0", "xz data", "unpack it: tar xJf FILE, or unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "unpack it: unzstd FILE"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it: 7z x FILE"),
    (b"Rar!", "a RAR archive", "unpack it: unrar x FILE"),
    (b"!<arch>\ndebian", "a Debian package", "unpack it: dpkg-deb -x FILE DIRECTORY"),
    (b"!<arch>\n", "a library of object files", "run a program that was linked with it"),
    (b"\xed\xab\xee\xdb", "an RPM package", "unpack it: rpm2cpio FILE | cpio -id"),
    (b"\xd0\xcf\x11\xe0", "a compound document, as Windows' installers (msi) are", "unpack it: msiextract FILE"),
    (b"QFI\xfb", "a disk image (qcow2)", "start a machine from it: roost launch ./FILE"),
    (b"KDMV", "a disk image (VMDK)", "start a machine from it: roost launch ./FILE"),
    (b"vhdxfile", "a disk image (VHDX)", "start a machine from it: roost launch ./FILE"),
    (b"dex\n", "Android bytecode (dex)", "take the program's build for Linux"),
    (b"BC\xc0\xde", "LLVM bitcode", "compile it: clang FILE -o program"),
    (b"\x1bLua", "Lua bytecode", "run its source"),
    (b"%PDF", "a PDF document", ""),
    (b"\x89PNG", "a picture (PNG)", ""),
    (b"SQLite format 3\0", "a SQLite database", ""),
)  # fmt: skip
"""Heads of files that people might try, what they are, and what to do with them."""

_SUPPORTED = "WebAssembly, ELF, jar and class, Windows and .NET programs, scripts that begin with #!"


def read(file: File) -> Found:
    """A script, WebAssembly text, or nothing known."""
    head = file.head
    if head.startswith(b"#!"):
        return _script(head)
    if _is_wat(head):
        return Found("wat")
    return _unknown(head)


def _unknown(head: bytes) -> Found:
    """What it is instead of a program."""
    if not head:
        return refuse("unknown", "is empty", "fetch or build it again")
    if head.startswith(b"\xef\xbb\xbf#!"):
        return refuse(
            "unknown",
            "is a script behind a byte order mark, which hides its #! line",
            "save it as UTF-8 without the mark",
        )
    for start, what, fix in _OTHERS:
        if head.startswith(start):
            return refuse("unknown", f"is {what}, not a program", fix, details=_first(head))
    if head[257:262] == b"ustar":
        return refuse("unknown", "is a tar archive, not a program", "unpack it: tar xf FILE", details=_first(head))
    if _is_text(head):
        fix = "say in its first line what runs it, as in #!/usr/bin/env python3"
        return refuse("unknown", "is text without a #! line, so nothing says what runs it", fix, details=_first(head))
    why = f"is of no kind that is known here: it begins with {head[:8].hex(' ')}"
    return refuse("unknown", why, f"what runs: {_SUPPORTED}; --vm NAME forces a runtime", details=_first(head))


def _first(head: bytes) -> dict[str, str]:
    return {"first_bytes": head[:16].hex()}


def _script(head: bytes) -> Found:
    line = head[2:_LONGEST_LINE].partition(b"\n")[0].strip().decode("utf-8", "surrogateescape")
    path, _, rest = line.partition(" ") if " " in line else line.partition("\t")
    if not path:
        return refuse("script", "begins with #! and names no interpreter", "write which, as in #!/usr/bin/env python3")
    arguments = [rest.strip()] if rest.strip() else []
    name = path.rpartition("/")[2]
    if name == "env":
        name, arguments = _of_env(rest)
        if not name:
            return refuse(
                "script",
                "begins with #!/usr/bin/env and names no interpreter",
                "write which, as in #!/usr/bin/env python3",
            )
    details = {"arguments": arguments, "interpreter": path, "language": _language(name), "name": name}
    if not path.isprintable():
        why = "begins with #! and names no program in its first line"
        return refuse("script", why, "fetch or build it again", details=details)
    return Found("script", "", details)


def _of_env(rest: str) -> tuple[str, list[str]]:
    """What `env` would start: the program and its arguments. Without -S, env gets all that stands there as one word."""
    words = rest.split()
    split = bool(words) and (words[0].startswith(("-S", "-vS")) or words[0].startswith("--split-string"))
    if split:
        first = words[0].removeprefix("-vS").removeprefix("-S").removeprefix("--split-string").removeprefix("=")
        words = [first, *words[1:]] if first else words[1:]
    while words and (words[0].startswith("-") or "=" in words[0]):
        words = words[1:]
    if not words:
        return "", []
    return words[0].rpartition("/")[2], words[1:]


def _language(name: str) -> str:
    return _LANGUAGES.get(name.lower().rstrip("0123456789.-"), "")


def _is_wat(head: bytes) -> bool:
    """Whether it begins as WebAssembly's text does, after white space and comments."""
    rest = head.lstrip()
    for _ in range(64):
        if rest.startswith(b";;"):
            rest = rest.partition(b"\n")[2].lstrip()
        elif rest.startswith(b"(;"):
            rest = rest.partition(b";)")[2].lstrip()
        else:
            break
    return any(
        rest.startswith(word) and rest[len(word) : len(word) + 1].strip(b" \t\r\n();$") == b""
        for word in (b"(module", b"(component")
    )


def _is_text(head: bytes) -> bool:
    """Whether it reads as UTF-8 without control characters; the last character may be cut off."""
    control = bytes({*range(32), 127} - {9, 10, 12, 13, 27})
    return "\N{REPLACEMENT CHARACTER}" not in text(head)[:-1] and head.translate(None, control) == head
