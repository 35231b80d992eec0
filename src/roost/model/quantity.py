"""Numbers with a unit, as people write them; of light imports, because `roost run` reads its flags with it."""

from __future__ import annotations

from roost.light import Mapping

_LONGEST, _FINEST = 19, 6
"""Digits before and after the point: more than any size or time has."""


def scaled(text: str, units: Mapping[str, int]) -> int | None:
    """`text` ("512", "1.5 GiB") in the smallest unit, rounded down; None when it is no number with one of `units` (by lower-case name)."""
    text = text.strip()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    factor = units.get(text[len(number) :].lower())
    whole, point, fraction = number.rstrip().partition(".")
    if factor is None or not _digits(whole, _LONGEST) or (point and not _digits(fraction, _FINEST)):
        return None
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)


def _digits(text: str, most: int) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= most
