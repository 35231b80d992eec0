"""Times as people write them: 500ms, 30s, 10m, 1h, 7d; a number alone is seconds."""

from __future__ import annotations

from roost.model.quantity import scaled

_SECOND = 1_000_000
_UNITS = {"": _SECOND, "ms": 1000, "s": _SECOND, "m": 60 * _SECOND, "h": 3600 * _SECOND, "d": 86400 * _SECOND}
LONGEST = 366 * 86400.0
"""Seconds that a duration may have: a leap year."""


def parse(text: str) -> float:
    """Seconds in `text`, more than 0. Raises ValueError that says what is accepted."""
    found = scaled(text, _UNITS)
    if found is None:
        raise ValueError(f"{text!r} is not a duration: write 30s, 10m, 1h or 7d, at most 366d")
    return checked(found / _SECOND, text)


def checked(seconds: float, text: object = None) -> float:
    """`seconds`, when a duration may be so long. Raises ValueError that says what is accepted."""
    if not 0 < seconds <= LONGEST:
        shown = seconds if text is None else text
        raise ValueError(f"{shown!r} is not a duration: write 30s, 10m, 1h or 7d, at most 366d")
    return seconds


def show(seconds: float) -> str:
    """`seconds` exactly, as `parse` reads them to the microsecond: "30s", "1.5s"."""
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"
