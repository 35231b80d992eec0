"""The picture of bench/clone.py: what it takes to get another machine, how long the parent stands still, and storms of clones.

python bench/clone_plot.py NUMBERS.json PICTURE.png     draws it again
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.figures import Made, median, percentile

OURS, THEIRS, VIRSH = "#1f6f8b", "#b8b8b8", "#8a8a8a"
Bars = Sequence[tuple[str, str, str, str]]
"""(what, whose figures, which of them, colour)."""

MACHINES: Bars = (
    ("quick-sandbox (its Alpine): cold start", "quick-sandbox", "boot", THEIRS),
    ("libvirt: cold start", "virsh", "boot", VIRSH),
    ("libvirt: restore", "virsh", "answer", VIRSH),
    ("quick-sandbox (its Alpine): revert", "quick-sandbox", "answer", THEIRS),
    ("Roost: cold start", "roost", "cold", OURS),
    ("Roost: restore", "roost", "restore-command", OURS),
    ("Roost: warm launch", "roost", "warm-command", OURS),
    ("Roost: clone of a running machine", "roost", "clone-command", OURS),
)
PAUSES: Bars = (
    ("libvirt: save, 512 MiB", "virsh", "save", VIRSH),
    ("quick-sandbox (its Alpine): checkpoint, 512 MiB", "quick-sandbox", "checkpoint", THEIRS),
    ("Roost: first clone, 2 GiB, by a counter inside", "roost", "felt-2048-warm", OURS),
    ("Roost: first clone, 2 GiB, by the host", "roost", "pause-2048-warm", OURS),
    ("Roost: next clone, 2 GiB, by the host", "roost", "pause-2048-again", OURS),
    ("Roost: first clone, 512 MiB, by a counter inside", "roost", "felt-512-warm", OURS),
    ("Roost: first clone, 512 MiB, by the host", "roost", "pause-512-warm", OURS),
    ("Roost: next clone, 512 MiB, by the host", "roost", "pause-512-again", OURS),
)


def draw(figures: Mapping[str, Made], path: Path) -> None:
    """Write the picture; without matplotlib say how to get it."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plot: pip install matplotlib, or the extra `bench`")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (machines, pauses, storms) = pyplot.subplots(
        3, 1, figsize=(10, 11.5), height_ratios=(8, 8, 6), layout="constrained"
    )
    picture.suptitle("Another machine, emulated (TCG), debian:12, 1 CPU, 512 MiB; medians", fontsize=13)
    _bars(machines, figures, MACHINES, "seconds until the first command has run (log scale)")
    _bars(pauses, figures, PAUSES, "seconds that the running machine stands still (log scale)")
    _storms(storms, figures["roost"])
    picture.savefig(path, dpi=110)
    pyplot.close(picture)


def _bars(axes: Any, figures: Mapping[str, Made], bars: Bars, label: str) -> None:
    """Horizontal bars with their figures, and a line from the least to the most; what was not measured has none."""
    for number, (_, whose, name, colour) in enumerate(bars):
        values = figures.get(whose, {}).get(name)
        if not values:
            axes.annotate("not measured", (0, number), (4, 0), ("axes fraction", "data"), "offset points", va="center")
            continue
        axes.barh(number, median(values), color=colour, height=0.68)
        axes.plot([min(values), max(values)], [number, number], color="black", linewidth=1, marker="|")
        axes.annotate(_seconds(median(values)), (max(values), number), (6, 0), "data", "offset points", va="center")
    axes.set_yticks(range(len(bars)), [what for what, *_ in bars])
    known = [value for _, whose, name, _ in bars for value in figures.get(whose, {}).get(name, ())]
    axes.set_xscale("log")
    axes.set_xlim(10 ** math.floor(math.log10(min(known, default=1))), 2 * max(known, default=1))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _storms(axes: Any, made: Made) -> None:
    """How many of the clones that were asked for at once answer after how long."""
    names = sorted((name for name in made if name.startswith("answers-")), key=lambda name: int(name.split("-")[1]))
    for name, shade in zip(names, ("#9ccfd8", "#3e8fb0", "#16425b", "#000000"), strict=False):
        values = sorted(made[name])
        shares = [100 * (number + 1) / len(values) for number in range(len(values))]
        what = f"{name.split('-')[1]} at once: p50 {_seconds(median(values))}, p95 {_seconds(percentile(values, 0.95))}"
        axes.step([0, *values], [0, *shares], where="post", color=shade, linewidth=2, label=what)
    axes.set_xlabel("seconds from the request until a clone of a running machine answers")
    axes.set_ylabel("clones that answer, %")
    axes.set_ylim(0, 104)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        axes.legend(loc="lower right", frameon=False)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
