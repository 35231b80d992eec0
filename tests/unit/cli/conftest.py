"""The command, called in this process as a user calls it, on a daemon with fake guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from roost.cli.main import main
from tests.unit.client.served import Served, served


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Roost = Callable[..., Result]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon that serves while the module's tests run."""
    with served(tmp_path_factory.mktemp("d")) as running:
        yield running


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Roost:
    """`roost` without a daemon."""
    monkeypatch.setenv("ROOST_HOST", "unix:/nonexistent/api.sock")

    def run(*words: str) -> Result:
        capfd.readouterr()
        code = main(words)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def roost(call: Roost, daemon: Served, monkeypatch: pytest.MonkeyPatch) -> Roost:
    """`roost` with the daemon."""
    monkeypatch.setenv("ROOST_HOST", f"unix:{daemon.socket}")
    return call
