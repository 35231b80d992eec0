"""XML from strangers as a small tree: no document type, no entities, and bounds on bytes, depth, elements and attributes (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from xml.parsers import expat

from roost.storage.formats.content import Unfit

LONGEST = 4 << 20
"""Bytes of a document."""

_DEEPEST = 32
_MOST = 20_000
_MOST_ATTRIBUTES = 64
_MOST_TEXT = 64 << 10


class Element:
    """An element: names without their namespaces, `space` is that of its own."""

    def __init__(self, space: str, name: str, attributes: dict[str, str]) -> None:
        self.space = space
        self.name = name
        self.attributes = attributes
        self.children: list[Element] = []
        self.text = ""

    def all(self, *names: str) -> Iterator[Element]:
        """The children with one of these names."""
        return (child for child in self.children if child.name in names)

    def first(self, *names: str) -> Element | None:
        """The first of them."""
        return next(self.all(*names), None)

    def below(self, name: str) -> Iterator[Element]:
        """All descendants of this name."""
        for child in self.children:
            if child.name == name:
                yield child
            yield from child.below(name)

    def value(self, *names: str) -> str:
        """The text of the first child with one of these names, or nothing."""
        found = self.first(*names)
        return found.text.strip() if found is not None else ""

    def get(self, name: str, otherwise: str = "") -> str:
        """An attribute."""
        return self.attributes.get(name, otherwise)


def parse(data: bytes) -> Element:
    """The root of a document. Raises Unfit for what is no XML, has a document type, or is too large."""
    if len(data) > LONGEST:
        raise Unfit(f"its descriptor has more than {LONGEST} bytes")
    builder = _Builder()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartDoctypeDeclHandler = builder.refuse
    parser.EntityDeclHandler = builder.refuse
    parser.ExternalEntityRefHandler = builder.refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.take
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise Unfit(f"its descriptor is no XML that can be read: {error}") from None
    if builder.root is None:
        raise Unfit("its descriptor is empty")
    return builder.root


class _Builder:
    def __init__(self) -> None:
        self.root: Element | None = None
        self._open: list[Element] = []
        self._count = 0

    def refuse(self, *_: object) -> int:
        """Entities grow without bounds and lead to files: a descriptor needs none."""
        raise Unfit("its descriptor has a document type or entities, which no appliance needs")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > _MOST or len(self._open) >= _DEEPEST or len(attributes) > _MOST_ATTRIBUTES:
            raise Unfit("its descriptor is larger or deeper than any appliance needs")
        space, _, local = name.rpartition(" ")
        element = Element(space, local, {key.rpartition(" ")[2]: value for key, value in attributes.items()})
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)

    def end(self, _: str) -> None:
        self._open.pop()

    def take(self, text: str) -> None:
        element = self._open[-1]
        if len(element.text) + len(text) > _MOST_TEXT:
            raise Unfit("its descriptor holds a text that is too long")
        element.text += text
