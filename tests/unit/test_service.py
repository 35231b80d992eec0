"""What the daemon owes its host: private directories, one instance, a word to systemd, failpoints that exist."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path
from typing import get_args

import pytest

import roost
from roost.control import plan
from roost.errors import Conflict, Forbidden, Unavailable
from roost.host import failpoints, service


def test_a_directory_becomes_private(tmp_path: Path) -> None:
    place = tmp_path / "a" / "state"
    service.private_directory(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    place.chmod(0o777)
    service.private_directory(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_link_in_place_of_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "real")
    with pytest.raises(Unavailable):
        service.private_directory(tmp_path / "state")


@pytest.mark.skipif(os.getuid() != 0, reason="makes a directory of another user")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.mkdir()
    os.chown(place, 1001, 1001)
    with pytest.raises(Forbidden) as refused:
        service.private_directory(place)
    assert "uid 1001" in refused.value.why


def test_the_second_daemon_is_told_who_the_first_is(tmp_path: Path) -> None:
    with service.only_one(tmp_path / "lock"), pytest.raises(Conflict) as refused, service.only_one(tmp_path / "lock"):
        pass
    assert str(os.getpid()) in refused.value.why
    with service.only_one(tmp_path / "lock"):
        pass


def test_systemd_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        service.tell_systemd("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        service.tell_systemd("READY=1", {})
        assert manager.recv(100) == b"READY=1"
    service.tell_systemd("STOPPING=1", {"NOTIFY_SOCKET": str(tmp_path / "nobody")})


@pytest.mark.parametrize("text", ["nowhere:kill", "daemon.locked:explode", "daemon.locked"])
def test_a_failpoint_that_does_not_exist_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no such failpoint"):
        failpoints.parse({"ROOST_FAILPOINT": text})


async def test_a_failpoint_that_is_not_armed_does_nothing() -> None:
    await failpoints.reach("daemon.locked")


def test_every_failpoint_in_the_code_is_in_the_register() -> None:
    sources = "\n".join(path.read_text() for path in Path(roost.__path__[0]).rglob("*.py"))
    reached = set(re.findall(r'failpoints\.reach\(\s*"([^"]+)"', sources))
    assert reached <= set(failpoints.POINTS)


def test_every_step_of_a_machine_is_a_failpoint() -> None:
    steps = {point for point in failpoints.POINTS if point.startswith("machine.")}
    assert steps == {f"machine.{step}" for step in get_args(plan.Step)} | {
        "machine.started",
        "machine.resumed",
        "machine.wiring",
    }


@pytest.mark.skipif(os.getuid() != 0, reason="gives a directory to a group")
def test_members_of_the_group_may_pass_through_to_the_socket(tmp_path: Path) -> None:
    group = service.group_id("nogroup")
    assert group is not None and service.group_id("no-such-group") is None
    service.private_directory(tmp_path / "run", group)
    seen = (tmp_path / "run").stat()
    assert (stat.S_IMODE(seen.st_mode), seen.st_gid) == (0o710, group)
