"""What people and programs see: tables, JSON, YAML, names, errors; what comes from a guest never reaches a terminal raw."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

from roost.errors import RoostError

FORMATS = ("table", "json", "yaml", "name")

_PLAIN = "\N{REPLACEMENT CHARACTER}"
_SEQUENCE = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
"""Terminal control sequences (ECMA-48: CSI, strings, two-character ones) and control characters other than tab, newline and return."""


class Table(NamedTuple):
    """Columns of a table: heading and how to get the cell from an object; `kind` names the rows when there are none."""

    kind: str
    columns: Sequence[tuple[str, Callable[[Any], Any]]]


def clean(text: str) -> str:
    """`text` without anything that a terminal obeys (escape sequences, control and bidirectional characters); lines stay."""
    return "".join(char if char.isprintable() or char == "\n" else _PLAIN for char in text)


def clean_stream(data: bytes) -> bytes:
    """A piece of a guest's console without anything that a terminal obeys; lines, tabs and text stay."""
    return _SEQUENCE.sub(b"", data)


def show(value: Any, form: str, table: Table) -> None:
    """Print one object (a dict) or several (a list)."""
    rows = value if isinstance(value, list) else [value]
    if form == "json":
        print(json.dumps(value, indent=2, ensure_ascii=False))
    elif form == "yaml":
        print(yaml_text(value), end="")
    elif form == "name":
        print("\n".join(str(row.get("name")) for row in rows)) if rows else None
    else:
        print_table(rows, table)


def yaml_text(value: Any) -> str:
    """YAML in the order of the fields; several objects are several documents."""
    import yaml

    documents = value if isinstance(value, list) else [value]
    text: str = yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, default_flow_style=False, width=110)
    return text


def print_table(rows: Sequence[Any], table: Table, out: TextIO | None = None) -> None:
    """Print a table with columns as wide as they need to be; says so when it is empty."""
    out = out or sys.stdout
    if not rows:
        print(f"no {table.kind}", file=sys.stderr)
        return
    lines = [[heading for heading, _ in table.columns]]
    lines += [[clean(_cell(get(row))).replace("\n", " ") for _, get in table.columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for number, line in enumerate(lines):
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        print(bold(text, out) if number == 0 else text, file=out)


def _cell(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "-"
    return "yes" if value is True else "no" if value is False else str(value)


def colours(out: TextIO) -> bool:
    """Whether `out` wants colours: a terminal, and nobody said NO_COLOR (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and out.isatty()


def bold(text: str, out: TextIO) -> str:
    """`text` in bold where colours are wanted."""
    return f"\x1b[1m{text}\x1b[0m" if colours(out) else text


def paint(text: str, colour: int, out: TextIO) -> str:
    """`text` in an ANSI colour (31 red, 32 green, 33 yellow) where colours are wanted."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colours(out) else text


def print_error(error: RoostError) -> None:
    """What, why and fix on standard error; several problems one a line."""
    problems = getattr(error, "problems", ())
    why = [f"{path}: {message}" if path else message for path, message in problems] or error.why.splitlines()
    lines = [paint("error:", 31, sys.stderr) + " " + clean(error.what).replace("\n", " ")]
    lines += [("  why: " if number == 0 else "       ") + clean(line) for number, line in enumerate(why)]
    lines += ["  fix: " + clean(error.fix)] if error.fix else []
    print("\n".join(lines), file=sys.stderr)


def size(count: int | None) -> str:
    """Bytes in words."""
    if not count:
        return "-"
    from roost.model.size import show as show_size

    return show_size(count)


def age(stamp: str) -> str:
    """How long ago an RFC 3339 time was: 5s, 12m, 3h, 8d."""
    from datetime import UTC, datetime

    try:
        seconds = int((datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds())
    except (ValueError, TypeError):
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{max(seconds, 0)}s"
