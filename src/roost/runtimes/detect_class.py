"""Java class files: their version, their name, and whether they can be started."""

from __future__ import annotations

from roost.light import Any
from roost.runtimes.base import Found
from roost.runtimes.detect_file import Bounded, Damaged, File, refuse, text

OLDEST, NEWEST = 45, 99
"""Major versions: Java 1.1 has 45, Java 17 has 61, Java 25 has 69. What is above is no class file that anybody has seen."""
_PREVIEW = 0xFFFF
_MODULE = 0x8000
_SIZES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2, 17: 4, 18: 4, 19: 2, 20: 2}
"""Bytes of each entry of the constant pool after its tag (JVM specification 4.4); 1 is text of any length."""


class _Class:
    """A cursor over the start of a class file."""

    def __init__(self, data: bytes, whole: bool) -> None:
        self.data, self.whole, self.at = data, whole, 8
        self.texts: dict[int, bytes] = {}
        self.names: dict[int, int] = {}

    def number(self, size: int) -> int:
        self.skip(size)
        return int.from_bytes(self.data[self.at - size : self.at], "big")

    def skip(self, size: int) -> None:
        self.at += size
        if self.at > len(self.data):
            raise Damaged("the class ends too early") if self.whole else Bounded

    def pool(self) -> None:
        """Read the constant pool: texts, and which text names a class."""
        count, index = self.number(2), 1
        while index < count:
            tag = self.number(1)
            if tag == 1:
                size = self.number(2)
                self.skip(size)
                self.texts[index] = self.data[self.at - size : self.at]
            elif tag == 7:
                self.names[index] = self.number(2)
            elif tag in _SIZES:
                self.skip(_SIZES[tag])
            else:
                raise Damaged(f"its constant pool holds the unknown tag {tag}")
            index += 2 if tag in (5, 6) else 1

    def name(self) -> str:
        """The class that the next number refers to, in dots."""
        return text(self.texts.get(self.names.get(self.number(2), 0), b"")).replace("/", ".")

    def members(self) -> set[bytes]:
        """The names of the next table, of fields or methods."""
        found = set()
        for _ in range(self.number(2)):
            self.skip(2)
            found.add(self.texts.get(self.number(2), b""))
            self.skip(2)
            for _ in range(self.number(2)):
                self.skip(2)
                self.skip(self.number(4))
        return found


def version(head: bytes) -> dict[str, Any]:
    """The details that the first eight bytes of a class file give."""
    major = int.from_bytes(head[6:8], "big")
    return {"class_version": major, "java": max(major - 44, 1), "preview": int.from_bytes(head[4:6], "big") == _PREVIEW}


def read(file: File) -> Found:
    """A class that Java can start, or why it can not."""
    head = file.at(0, 8)
    details = {**version(head), "main": ""}
    if details["class_version"] > NEWEST:
        why = f"is a Java class of version {details['class_version']}, which no Java has"
        return refuse("class", why, "fetch or build it again", details=details)
    data = file.some(0, min(file.size, file.left))
    found = _Class(data, len(data) == file.size)
    try:
        found.pool()
        access = found.number(2)
        details["main"], parent = found.name(), found.name()
        if access & _MODULE:
            return refuse(
                "class",
                "describes a Java module and holds no program",
                "name the class with the main method",
                details=details,
            )
        found.skip(2 * found.number(2))
        found.members()
        methods = found.members()
    except Bounded:
        return Found("class", "", details)
    if b"main" not in methods and parent in ("java.lang.Object", "java.lang.Record", "java.lang.Enum"):
        return refuse(
            "class",
            f"is a Java class without a main method ({details['main']})",
            "name the class that has one",
            details=details,
        )
    return Found("class", "", details)
