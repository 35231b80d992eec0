"""A daemon with fake guests for each module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.client.served import Served, served


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon that serves while the module's tests run."""
    with served(tmp_path_factory.mktemp("d")) as running:
        yield running
