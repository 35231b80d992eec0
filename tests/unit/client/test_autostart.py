"""Starting a daemon: one wins, its errors reach whoever asked, and it outlives them."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from roost.client import autostart
from roost.client.autostart import start
from roost.client.endpoint import Endpoint, connect, peer
from roost.config import Config
from roost.errors import QuotaExceeded, RoostError, Unavailable

LISTEN = """
import os, socket, sys, time
open(os.environ["ROOST_TEST_COUNT"], "a").write("x")
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["ROOST_TEST_SOCKET"])
listener.listen()
os.write(int(sys.argv[1]), b"ready\\n")
os.close(int(sys.argv[1]))
for _ in range(50):
    connection, _ = listener.accept()
    if connection.recv(1) == b"q":
        break
"""
REFUSE = """
import os, sys
os.write(int(sys.argv[1]), b'{"error": {"code": "quota-exceeded", "what": "no more daemons", "why": "w", "fix": "f"}}\\n')
"""


def stand_in(text: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", text)


def test_of_many_who_want_a_daemon_one_starts_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOST_TEST_COUNT", str(tmp_path / "count"))
    monkeypatch.setenv("ROOST_TEST_SOCKET", str(config.socket))
    failures: list[RoostError] = []

    def work() -> None:
        try:
            start(config, stand_in(LISTEN))
        except RoostError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with connect(Endpoint(config.socket)) as connection:
        owner = peer(connection)
        connection.send(b"q")
    assert failures == []
    assert (tmp_path / "count").read_text() == "x"
    assert owner.pid in [child.pid for child in autostart._started]


def test_what_keeps_the_daemon_from_starting_is_raised(config: Config) -> None:
    with pytest.raises(QuotaExceeded, match="no more daemons"):
        start(config, stand_in(REFUSE))


def test_a_daemon_that_dies_at_once_is_told_with_the_place_of_its_log(config: Config) -> None:
    with pytest.raises(Unavailable) as caught:
        start(config, stand_in("print('last words')"))
    assert "daemon.log" in caught.value.why
    assert "last words" in (config.state / "daemon.log").read_text()


def test_the_systems_unit_is_not_competed_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unit").symlink_to("0123")
    monkeypatch.setattr(autostart, "UNIT", tmp_path / "unit")
    with pytest.raises(Unavailable, match="does not listen"):
        start(Config(state=Path("/var/lib/roost"), run=Path("/run/roost")), stand_in(LISTEN))
