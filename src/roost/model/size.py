"""Sizes as people write them: 256MiB, 2GiB; K, M, G alone mean the same powers of two."""

from __future__ import annotations

from roost.model.quantity import scaled

_POWERS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_UNITS = {prefix + rest: factor for prefix, factor in _POWERS.items() for rest in ("", "b", "ib")}
_SHOWN = (("PiB", 1 << 50), ("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def parse(text: str) -> int:
    """Bytes in `text` ("512", "256MiB", "1.5G"). Raises ValueError that says what is accepted."""
    found = scaled(text, _UNITS)
    if found is None:
        raise ValueError(f"{text!r} is not a size: write 256MiB or 2GiB")
    return found


def show(size: int) -> str:
    """`size` bytes in the largest unit that keeps it readable: "512MiB", "1.5GiB"."""
    for unit, factor in _SHOWN:
        if size >= factor:
            return f"{size / factor:.1f}".removesuffix(".0") + unit
    return f"{size}B"


def exact(size: int) -> str:
    """`size` bytes as `parse` reads them back, not rounded: "512MiB", "1537KiB"."""
    return next((f"{size // factor}{unit}" for unit, factor in _SHOWN if size and size % factor == 0), f"{size}B")
