"""Unix sockets by path, short and long, live and dead."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.errors import Conflict
from roost.host import sockets


@pytest.fixture(params=[1, 120])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("s") / ("d" * request.param)
    directory.mkdir()
    return directory / "qmp.sock"


def test_what_listens_can_be_connected_to(path: Path) -> None:
    with sockets.listen_unix(path), sockets.connect_unix(path) as ours:
        assert path.is_socket()
        assert ours.getblocking() is False


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_socket_has_exactly_the_mode(path: Path, mode: int) -> None:
    with sockets.listen_unix(path, mode):
        assert path.stat().st_mode & 0o777 == mode


def test_a_dead_socket_is_replaced(path: Path) -> None:
    sockets.listen_unix(path).close()
    with sockets.listen_unix(path), sockets.connect_unix(path):
        pass


def test_a_live_socket_is_not_taken_over(path: Path) -> None:
    with sockets.listen_unix(path), pytest.raises(Conflict, match="a running process listens"):
        sockets.listen_unix(path)


def test_another_kind_of_file_is_left_alone(path: Path) -> None:
    path.write_text("data")
    with pytest.raises(Conflict, match="another kind"):
        sockets.listen_unix(path)
    assert path.read_text() == "data"


def test_nobody_there_is_an_error_at_once(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sockets.connect_unix(path)
    sockets.listen_unix(path).close()
    with pytest.raises(ConnectionRefusedError):
        sockets.connect_unix(path)


def test_a_listener_that_accepts_nobody_does_not_hold_us_up(path: Path) -> None:
    with sockets.listen_unix(path):
        waiting = []
        with pytest.raises(BlockingIOError):
            waiting.extend(sockets.connect_unix(path) for _ in range(200))
        for connection in waiting:
            connection.close()
