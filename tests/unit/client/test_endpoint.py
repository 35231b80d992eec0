"""Which daemon is meant, and that nobody else's is taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from roost.client import endpoint
from roost.client.endpoint import Endpoint, connect, find
from roost.errors import Forbidden, Invalid, NotStarted, Unavailable
from roost.host.sockets import listen_unix


@pytest.mark.parametrize("address", ["unix:/run/x.sock", "unix:///run/x.sock", "/run/x.sock"])
def test_roost_host_names_a_socket(address: str) -> None:
    assert find(environ={"ROOST_HOST": address}) == Endpoint(Path("/run/x.sock"))


def test_what_is_given_wins_over_the_environment() -> None:
    assert find("unix:/a", {"ROOST_HOST": "unix:/b"}).socket == Path("/a")


@pytest.mark.parametrize("address", ["https://box:8443", "box", "unix:"])
def test_other_addresses_are_refused_for_now(address: str) -> None:
    with pytest.raises(Invalid):
        find(address)


def test_a_user_gets_the_systems_daemon_when_it_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api.sock").touch()
    monkeypatch.setattr(endpoint, "SYSTEM_SOCKET", tmp_path / "api.sock")
    assert find(environ={"HOME": "/home/u"}, uid=1000) == Endpoint(tmp_path / "api.sock", owners=frozenset({0}))


def test_moved_directories_mean_ones_own_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "api.sock").touch()
    monkeypatch.setattr(endpoint, "SYSTEM_SOCKET", tmp_path / "api.sock")
    found = find(environ={"ROOST_RUN": "/r", "ROOST_STATE": "/s"}, uid=1000)
    assert found.socket == Path("/r/api.sock")
    assert found.config is not None


def test_a_user_without_a_systems_daemon_gets_his_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "SYSTEM_SOCKET", tmp_path / "none.sock")
    assert find(environ={"XDG_RUNTIME_DIR": "/run/user/1000"}, uid=1000).socket == Path("/run/user/1000/roost/api.sock")


def test_nobody_listening_means_that_nothing_happened(tmp_path: Path) -> None:
    with pytest.raises(NotStarted, match="no connection"):
        connect(Endpoint(tmp_path / "none.sock"))


def test_a_dead_socket_means_that_nothing_happened(tmp_path: Path) -> None:
    listen_unix(tmp_path / "dead.sock").close()
    with pytest.raises(NotStarted):
        connect(Endpoint(tmp_path / "dead.sock"))


def test_a_strangers_daemon_is_refused(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "api.sock"), pytest.raises(Forbidden, match="no connection"):
        connect(Endpoint(tmp_path / "api.sock", owners=frozenset({os.getuid() + 1})))


def test_ones_own_daemon_is_taken(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "api.sock"):
        connect(Endpoint(tmp_path / "api.sock", owners=frozenset({os.getuid()}))).close()


def test_a_file_in_place_of_the_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "api.sock").write_text("no socket")
    with pytest.raises((Unavailable, NotStarted)):
        connect(Endpoint(tmp_path / "api.sock"))
