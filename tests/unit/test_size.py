"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.model import size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512", 512), ("256MiB", 256 << 20), ("2GiB", 2 << 30), ("2G", 2 << 30), ("1.5g", 3 << 29), ("4kB", 4096)],
)
def test_a_size_is_read(text: str, expected: int) -> None:
    assert size.parse(text) == expected


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1e9", "12XB", "1 2", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        size.parse(text)


@given(st.integers(0, 1 << 60))
def test_what_is_shown_is_near_what_is(number: int) -> None:
    assert abs(size.parse(size.show(number)) - number) <= number * 0.06
