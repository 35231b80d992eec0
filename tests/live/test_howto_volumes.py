"""The document on volumes says what happens."""

from __future__ import annotations

import pytest

from tests.checkout import ROOT
from tests.live.test_tutorial_networks import Follower, follow, follower

__all__ = ["follower"]


@pytest.mark.parametrize("follower", ["user"], indirect=True)
def test_the_howto_says_what_happens(follower: Follower) -> None:
    follow(follower, (ROOT / "docs/howto/volumes.md").read_text())
