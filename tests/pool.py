"""The pool of images that live tests share: a template is built at most once a checkout, and every daemon under test gets hard links."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from roost.model.meta import Arch
from roost.storage.templates import TEMPLATES, find
from tests.checkout import ROOT

CACHE = ROOT / ".cache"
POOL = Path(os.environ.get("ROOST_TEST_IMAGES") or CACHE / "test-images")
"""Laid out like a state directory. A test that damages an image copies it first: the file is the same in every daemon's state."""

SHARED = ("images", "recipes")
VERDICT = "accelerator.json"


def provide(state: Path, name: str, arch: str, build: Callable[[], object]) -> None:
    """Have the template `name` in a state directory: from the pool, else by `build()`, which makes it there, and in the pool from then on.

    Whoever wants one that is being built by another test waits for that: a build takes minutes of a processor.
    """
    recipe = find(TEMPLATES, name, cast(Arch, arch)).recipe()
    if (state / "recipes" / recipe).exists():
        return
    with _locked(f"{recipe}.lock"):
        fill(state)
        if not (state / "recipes" / recipe).exists():
            build()
            keep(state)


def fill(state: Path) -> None:
    """Give a new state directory the images of the pool, and the accelerator verdict of this host."""
    with _locked():
        for name in SHARED:
            _link_tree(POOL / name, state / name)
        if (POOL / VERDICT).is_file():
            shutil.copy2(POOL / VERDICT, state / VERDICT)


def keep(state: Path) -> None:
    """Put what a daemon built from recipes into the pool."""
    with _locked():
        for recipe in _entries(state / "recipes"):
            image = (state / "recipes" / recipe.name).resolve()
            if image.is_dir() and (image / "manifest.json").is_file():
                _link_tree(image, POOL / "images" / image.name)
                _link_tree(recipe, POOL / "recipes" / recipe.name)
        if (state / VERDICT).is_file():
            shutil.copy2(state / VERDICT, POOL / VERDICT)


def new_state() -> Path:
    """A new state directory on the file system of the pool, so that images can be linked."""
    CACHE.mkdir(exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="state-", dir=CACHE))


@contextmanager
def _locked(name: str = "lock") -> Iterator[None]:
    POOL.mkdir(parents=True, exist_ok=True)
    with (POOL / name).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def _link_tree(source: Path, target: Path) -> None:
    """What is in `source` and not in `target`, by hard link where the file system allows; links are copied as links."""
    if source.is_symlink() or source.is_file():
        _link(source, target)
        return
    for entry in _entries(source):
        target.mkdir(parents=True, exist_ok=True)
        _link_tree(entry, target / entry.name)
    if source.is_dir() and target.is_dir():
        shutil.copystat(source, target)


def _link(source: Path, target: Path) -> None:
    if target.is_symlink() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
