"""Sizes as people write them: 256MiB, 2GiB; K, M, G alone mean the same powers of two."""

from __future__ import annotations

import re

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"\s*(\d{1,18})(?:\.(\d{1,6}))?\s*([KMGTP]?)(?:i?B)?\s*", re.IGNORECASE | re.ASCII)


def parse(text: str) -> int:
    """Bytes in `text` ("512", "256MiB", "1.5G"). Raises ValueError that says what is accepted."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 256MiB or 2GiB")
    whole, fraction, unit = match.groups()
    factor = _UNITS[unit.upper()]
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)


def show(size: int) -> str:
    """`size` bytes in the largest unit that keeps it readable: "512MiB", "1.5GiB"."""
    for unit, factor in (("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + unit
    return f"{size}B"
