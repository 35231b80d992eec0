"""Disks of every format with a known pattern, made by qemu-img, and archives of them."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Mapping
from pathlib import Path

from tests.conformance.test_images import qemu_img

SIZE = 3 * (1 << 20) + 512
"""No whole number of any format's blocks."""


def pattern(directory: Path) -> Path:
    """A raw disk with data, holes and an odd end."""
    chance = random.Random(6)
    data = bytearray(SIZE)
    for start in (0, 70_000, 1 << 20, SIZE - 700):
        data[start : start + 700] = chance.randbytes(700)
    path = directory / "pattern.raw"
    path.write_bytes(data)
    return path


def made(directory: Path, driver: str, options: str = "") -> Path:
    """The pattern in another format, in a directory of its own."""
    place = directory / f"{driver}-{options.partition(',')[0].partition('=')[2]}"
    place.mkdir()
    target = place / f"disk.{driver}"
    qemu_img("convert", "-f", "raw", "-O", driver, *(("-o", options) if options else ()), pattern(directory), target)
    return target


def tar(files: Mapping[str, bytes]) -> bytes:
    """An archive of these files, in this order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()
