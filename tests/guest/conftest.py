"""A running native agent for the tests of this directory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from roost.hypervisor.agent import RoostAgent
from tests.guest.native import connected


@pytest.fixture
async def agent() -> AsyncIterator[RoostAgent]:
    """The client of an agent of the test's own."""
    async with connected() as client:
        yield client
