"""A file that becomes another is noticed, however it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from roost.host import filewatch
from roost.host.filewatch import FileWatch


def _replace(home: Path) -> None:
    (home / "new").write_text("b")
    (home / "new").rename(home / "etc" / "file")


def _relink(home: Path) -> None:
    (home / "etc" / "new").symlink_to("../run/c")
    (home / "etc" / "new").rename(home / "etc" / "link")


@pytest.mark.parametrize(
    ("watched", "act"),
    [
        ("file", lambda home: (home / "etc" / "file").write_text("b")),
        ("file", _replace),
        ("file", lambda home: (home / "etc" / "file").unlink()),
        ("missing", lambda home: (home / "etc" / "missing").write_text("b")),
        ("link", _relink),
        ("link", lambda home: (home / "run" / "b").write_text("b")),
        ("mounted", lambda home: (home / "run" / "elsewhere").write_text("b")),
    ],
)
def test_a_change_is_told_once(
    watched: str, act: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filewatch, "_SETTLE", 0.01)
    for directory in ("etc", "run"):
        (tmp_path / directory).mkdir()
    (tmp_path / "etc" / "file").write_text("a")
    (tmp_path / "run" / "elsewhere").write_text("a")
    (tmp_path / "etc" / "mounted").hardlink_to(tmp_path / "run" / "elsewhere")  # changed by another path, as a mount is
    (tmp_path / "etc" / "link").symlink_to("../run/b")

    async def main() -> int:
        told = asyncio.Semaphore(0)
        watch = FileWatch(tmp_path / "etc" / watched, told.release)
        act(tmp_path)
        await asyncio.wait_for(told.acquire(), 5)
        (tmp_path / "etc" / "beside").write_text("nothing of it")
        await asyncio.sleep(0.03)
        watch.close()
        watch.close()
        return told._value

    assert asyncio.run(main()) == 0
