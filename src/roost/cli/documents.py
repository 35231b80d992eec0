"""Documents in files: YAML or JSON, several in one file, read with a bound and without YAML's traps."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from roost.errors import Invalid


class Loader(yaml.SafeLoader):
    """Plain values only. Aliases are refused (a few lines of them make gigabytes), and so is a key that stands twice (the first is lost)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node, unless it is an alias."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(None, None, f"aliases (*name) are not allowed; line {self.line + 1}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping whose keys stand once."""
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
        return super().construct_mapping(node, deep)


def load(text: str, name: str) -> list[Any]:
    """The documents in `text` (JSON is YAML); empty ones are left out. Raises Invalid that names the line."""
    try:
        return [document for document in yaml.load_all(text, Loader) if document is not None]
    except (yaml.YAMLError, RecursionError) as error:
        raise Invalid(
            f"{name} can not be read", " ".join(str(error).split()) or "it is nested too deeply", "correct the file"
        ) from None
