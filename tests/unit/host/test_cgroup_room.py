"""Room for a guest that gives memory away: the bound rises above what is in use, and is never lowered."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.host.cgroups import CGroup


@pytest.mark.parametrize(
    ("limit", "usage"), [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")]
)
@pytest.mark.parametrize(("bound", "after"), [("1000", "1300"), ("2000", "2000"), ("max", "max")])
def test_the_bound_rises_above_what_is_in_use(tmp_path: Path, limit: str, usage: str, bound: str, after: str) -> None:
    (tmp_path / limit).write_text(f"{bound}\n")
    (tmp_path / usage).write_text("800\n")
    CGroup((tmp_path, tmp_path / "absent")).make_room(500)
    assert (tmp_path / limit).read_text().strip() == after
