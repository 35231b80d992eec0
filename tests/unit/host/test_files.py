"""Files are written whole, read with a bound, and removed without following links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.errors import Invalid
from roost.host import files


def test_a_file_is_replaced_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    files.atomic_write(path, b"new", 0o640)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o640)


def test_a_failed_write_keeps_the_old_content_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        files.atomic_write(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "a").symlink_to("target")
    files.atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "a").is_symlink()


def test_a_file_beyond_the_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert files.read_bounded(path, 5) == b"12345"
    with pytest.raises(Invalid, match="longer than 4 bytes"):
        files.read_bounded(path, 4)


def test_a_pipe_or_device_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    with pytest.raises(Invalid, match="not a regular file"):
        files.read_bounded(tmp_path / "a", 5)
    with pytest.raises(Invalid, match="not a regular file"):
        files.read_bounded(Path("/dev/zero"), 5)


def test_a_tree_is_removed_and_what_its_links_lead_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/link").symlink_to(tmp_path / "kept")
    (tree / "deep").chmod(0o500)
    files.remove_tree(tree)
    files.remove_tree(tree)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept/file").exists()


def test_free_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    assert 0 < files.free_space(tmp_path) < 1 << 60
