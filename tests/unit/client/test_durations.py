"""Times as people write them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from roost.client.durations import moment_after, seconds, stamp
from roost.errors import Invalid

NOW = datetime(2026, 11, 23, 9, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("30s", 30), ("10m", 600), ("1h", 3600), ("7d", 604800), (1.5, 1.5)]
)
def test_a_duration_is_seconds(text: str | float, value: float) -> None:
    assert seconds(text, "every") == value


@pytest.mark.parametrize(
    "text", ["", "often", "1w", "-1h", "1h30m", "0", "367d", "٣s", 0, -1.0, float("nan"), float("inf")]
)
def test_what_is_no_duration_is_refused_by_its_field(text: str | float) -> None:
    with pytest.raises(Invalid) as refused:
        seconds(text, "every")
    assert refused.value.problems[0].path == "every"


def test_an_expiry_is_a_moment() -> None:
    assert moment_after("7d", NOW) == "2026-11-30T09:15:00Z"
    assert moment_after(60, NOW) == "2026-11-23T09:16:00Z"
    assert moment_after("2027-01-01T00:00:00Z", NOW) == "2027-01-01T00:00:00Z"
    assert moment_after(None, NOW) is None


def test_a_stamp_is_a_name_that_sorts_by_time() -> None:
    assert stamp(NOW) == "20261123-091500"
