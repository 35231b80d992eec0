"""What live tests share: real daemons, real machines, and the proof that nothing is left of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this directory is live."""
    for item in items:
        if HERE in Path(str(item.path)).parents:
            item.add_marker(pytest.mark.live)


@pytest.fixture(scope="session")
def shared_daemon() -> Iterator[Daemon]:
    """One daemon for all tests that do not harm it. Prefer `daemon`."""
    daemon = Daemon()
    try:
        yield daemon.start()
    finally:
        left = daemon.close()
    assert not left, "left behind after all machines were deleted and the daemon ended:\n" + "\n".join(left)


@pytest.fixture
def daemon(shared_daemon: Daemon) -> Iterator[Daemon]:
    """The shared daemon; what the test launched is deleted after it."""
    before = [item["name"] for item in shared_daemon.machines()]
    yield shared_daemon
    shared_daemon.delete_machines(*before)


@pytest.fixture
def new_daemon() -> Iterator[Callable[..., Daemon]]:
    """Makes daemons of the test's own, to be killed, restarted or starved (keywords: environment). Not started yet."""
    made: list[Daemon] = []

    def make(**environ: str) -> Daemon:
        made.append(Daemon(**environ))
        return made[-1]

    yield make
    left = [line for daemon in made for line in daemon.close()]
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def tiny(shared_daemon: Daemon) -> Iterator[str]:
    """The name of a running tiny machine that tests may run commands in."""
    yield from running(shared_daemon, "tiny", "shared-tiny")


@pytest.fixture(scope="session")
def debian(shared_daemon: Daemon) -> Iterator[str]:
    """The name of a running Debian 12 machine that tests may run commands in. The template takes minutes to build the first time."""
    yield from running(shared_daemon, "debian:12", "shared-debian")


def running(daemon: Daemon, template: str, name: str) -> Iterator[str]:
    """A machine of the shared daemon, running as long as the fixture lives."""
    daemon.roost("launch", template, name, timeout=1200)
    yield name
    daemon.roost("delete", name, "--yes", check=False)
