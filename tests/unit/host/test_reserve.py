"""Space that is kept for the control plane."""

from __future__ import annotations

from pathlib import Path

from roost.host.reserve import SIZE, Reserve


def test_the_space_is_really_taken_and_given_back(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.hold()
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= SIZE
    reserve.release()
    reserve.release()
    assert list(tmp_path.iterdir()) == []


def test_holding_twice_is_holding_once(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve")
    reserve.hold()
    reserve.hold()
    assert (tmp_path / "reserve").stat().st_size == SIZE


def test_nothing_is_set_aside_where_nothing_can_be_written(tmp_path: Path) -> None:
    Reserve(tmp_path / "missing" / "reserve").hold()
    assert list(tmp_path.iterdir()) == []
