"""When a host can spare memory for a sandbox that waits."""

from __future__ import annotations

import pytest

from roost.runtimes.spare import affordable

CALM = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
TIGHT = CALM.replace("some avg10=0.00", "some avg10=10.00")


@pytest.mark.parametrize(
    ("available", "pressure", "expected"),
    [(1 << 20, CALM, True), ((1 << 20) - 1, CALM, False), (1 << 24, TIGHT, False), (1 << 20, "", True)],
    ids=["a GiB", "less", "others wait for memory", "a kernel that does not tell"],
)
def test_it_is_made_where_memory_is_left(available: int, pressure: str, expected: bool) -> None:
    assert affordable(f"MemTotal: 99 kB\nMemAvailable: {available} kB\n", pressure) is expected


def test_a_host_that_tells_nothing_has_none() -> None:
    assert not affordable("", "")
