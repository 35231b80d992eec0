"""How fast foreign disks become images, and images foreign disks, against the same conversion by a bare `qemu-img convert`.

    scripts/bench conversion           a disk of 512 MiB, 3 times each way, interleaved
    python bench/conversion.py 2048 5  MiB, times

Ours is all between a file that was received and a disk in the pool, without its digest: the judge of the header, the jail, qemu-img in it, and
for qcow2 the check of every reference. Half of the disk is data, a quarter of that text, the rest holes.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path

from bench.figures import median
from roost.host.paths import ImageFiles
from roost.model.meta import MiB
from roost.storage import conversion, exporting, formats, importing
from roost.storage.formats import Format

LIMIT = 1 << 40
INPUTS: tuple[tuple[Format, str], ...] = (
    ("raw", ""), ("qcow2", ""), ("vmdk", "subformat=streamOptimized"), ("vmdk", "subformat=monolithicSparse"),
    ("vhd", "subformat=dynamic"), ("vhdx", ""), ("vdi", ""),
)  # fmt: skip
OUTPUTS: tuple[Format, ...] = ("raw", "vmdk", "vhdx", "vdi")


def disk(path: Path, size: int) -> None:
    """A disk of `size` MiB."""
    chance = random.Random(1)
    words = b"".join(chance.randbytes(4).hex().encode() + b" " for _ in range(MiB // 9 + 1))[:MiB]
    with path.open("wb") as file:
        file.truncate(size * MiB)
        for place in range(0, size, 2):
            file.seek(place * MiB)
            file.write(words if place % 8 == 0 else chance.randbytes(MiB))


def bare(source: Path, target: Path, *argv: str) -> float:
    """Seconds of the tool alone."""
    target.unlink(missing_ok=True)
    begin = time.perf_counter()
    subprocess.run(["qemu-img", "convert", *argv, source, target], check=True)
    return time.perf_counter() - begin


async def timed(work: Awaitable[object]) -> float:
    """Seconds that it takes."""
    begin = time.perf_counter()
    await work
    return time.perf_counter() - begin


async def into(source: Path, place: Path) -> None:
    """A foreign disk into an image."""
    product = ImageFiles(place / "image")
    product.directory.mkdir()
    await importing.rewrite(source, product, "disk", LIMIT)


async def out_of(image: Path, place: Path, format: Format) -> None:
    """An image into a foreign disk, up to its first piece."""
    await anext(await exporting.stream(conversion.whole(image, "qcow2"), place, format, "disk"))


def report(what: str, ours: list[float], theirs: list[float], size: int) -> None:
    """One line: both, and ours as a share of the tool's speed."""
    mine, its = median(ours), median(theirs)
    print(
        f"{what:<34} {size / mine:7.0f} MiB/s   bare qemu-img {size / its:7.0f} MiB/s   {its / mine:5.2f} of its speed",
        flush=True,
    )


async def main(size: int, times: int) -> None:
    """Make the disks, then measure in turn."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("ROOST_BENCH_DIRECTORY")) as name:
        place = Path(name)
        raw = place / "disk.raw"
        disk(raw, size)
        for format, options in INPUTS:
            source = place / f"in.{format}"
            driver = formats.DRIVERS[format]
            bare(raw, source, "-f", "raw", "-O", driver, *(("-o", options) if options else ()))
            ours, theirs = [], []
            for turn in range(times):
                theirs.append(bare(source, place / "out", "-f", driver, "-O", "qcow2"))
                work = place / f"{format}{options}{turn}"
                work.mkdir()
                ours.append(await timed(into(source, work)))
                (work / "image" / "disk.qcow2").unlink()
            report(f"{format} {options.partition('=')[2]} to an image", ours, theirs, size)
        image = place / "image.qcow2"
        bare(raw, image, "-f", "raw", "-O", "qcow2")
        for format in OUTPUTS:
            options = conversion.OPTIONS[format]
            more = ("-O", formats.DRIVERS[format], *(("-o", options) if options else ()))
            ours, theirs = [], []
            for _ in range(times):
                theirs.append(bare(image, place / "out", "-f", "qcow2", *more))
                ours.append(await timed(out_of(image, place, format)))
            report(f"an image to {format}", ours, theirs, size)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(main(*(arguments or [512, 3])) if len(arguments) != 1 else main(arguments[0], 3))
