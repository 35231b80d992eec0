"""Times as the policies of programs write them: exact, and with parts of a second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model import duration, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10", 10), ("250ms", 0.25), ("1.5s", 1.5), ("1.5 h", 5400), ("0.000001", 1e-6), ("366d", 366 * 86400)],
)
def test_a_time_is_read(text: str, expected: float) -> None:
    assert duration.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0", "0.0000001s", "367d", "1e3", "-1", "1,5s", ".5", "5.", "1 year", "1us", "٣s", "9" * 30]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        duration.parse(text)


@given(st.integers(1, 366 * 86400 * 10**6))
def test_what_is_shown_is_read_back(microseconds: int) -> None:
    assert duration.parse(duration.show(microseconds / 1e6)) == microseconds / 1e6


@given(st.integers(0, 1 << 60))
def test_an_exact_size_is_read_back(count: int) -> None:
    assert size.parse(size.exact(count)) == count
