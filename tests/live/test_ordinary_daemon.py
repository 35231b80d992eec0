"""The daemon of an ordinary user: no root, no group, only what the kernel gives everybody."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import leftovers, pool
from tests.checkout import ROOT
from tests.needs import needs_program, needs_root
from tests.somebody import UID, Ordinary, processes, python_for

pytestmark = [needs_root, needs_program("qemu-system-x86_64", "mmdebstrap"), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def somebody() -> Iterator[Ordinary]:
    """A user with the sources, the images of the pool, and nothing else; nothing of his is left at the end."""
    home = Path(tempfile.mkdtemp(prefix="roost-user-", dir="/tmp"))
    try:
        for name in ("src", "guest"):
            shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
        _own(home)
        who = Ordinary(home, python_for(home))
        yield who
        who.roost("delete", "--all", "--yes", check=False)
        who.roost("serve", "--stop", check=False)
        left = leftovers.wait_until_none(who.state, who.run)
    finally:
        for pid in processes():
            os.kill(pid, 9)
        shutil.rmtree(home, ignore_errors=True)
    assert left == [], "left behind:\n" + "\n".join(left)


def _own(home: Path) -> None:
    """Copy the pool's images for the user, for hard links to root's files he could not delete; all is his."""
    linked = pool.new_state()
    try:
        pool.fill(linked)
        (linked / pool.VERDICT).unlink(missing_ok=True)
        shutil.copytree(linked / "recipes", home / "state/recipes", symlinks=True, dirs_exist_ok=True)
        for recipe in (home / "state/recipes").iterdir():
            image = linked / "images" / recipe.readlink().name
            if json.loads((image / "manifest.json").read_text())["format"] == "none":
                shutil.copytree(image, home / "state/images" / image.name, dirs_exist_ok=True)
            else:
                recipe.unlink()
    except FileNotFoundError:
        pass  # an empty pool: the user builds it himself
    finally:
        shutil.rmtree(linked)
    subprocess.run(["chown", "-R", f"{UID}:{UID}", home], check=True)
    home.chmod(0o700)


@pytest.fixture(scope="module")
def mine(somebody: Ordinary) -> dict[str, Any]:
    """A running tiny machine of the user."""
    somebody.roost("launch", "tiny", "mine", timeout=600)
    return somebody.show("mine")


def test_a_user_launches_and_enters_a_machine(somebody: Ordinary, mine: dict[str, Any]) -> None:
    said = somebody.roost("exec", "mine", "--", "sh", "-c", "id -u; hostname")
    assert said.stdout.split() == ["0", "mine"]
    assert mine["status"]["phase"] == "running"


def test_its_machine_is_jailed_as_far_as_a_user_can(somebody: Ordinary, mine: dict[str, Any]) -> None:
    isolation = mine["status"]["isolation"]
    assert isolation["boundary"] == "jail"
    wanted = {"user namespace", "mount namespace", "pid namespace", "network namespace", "no capabilities"}
    assert wanted | {"no new privileges", "seccomp"} <= set(isolation["layers"])
    missing = {line.partition(":")[0] for line in isolation["missing"]}
    assert "own uid" in missing, "a user has only his own"
    assert missing <= {"own uid", "control group"}
    assert not missing & set(isolation["layers"])
    lines = Path(f"/proc/{mine['status']['pid']}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert set(status["Uid"].split()) == {str(UID)}
    assert {int(status[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_nobody_else_may_ask_the_users_daemon(somebody: Ordinary, mine: dict[str, Any]) -> None:
    assert oct(somebody.run.stat().st_mode & 0o077) == "0o0"
    assert {(somebody.run / "api.sock").stat().st_uid, somebody.state.stat().st_uid} == {UID}


def test_its_network_needs_no_privilege(somebody: Ordinary, mine: dict[str, Any]) -> None:
    wait = "for i in $(seq 100); do test -s /etc/resolv.conf && break; sleep 0.1; done; ip -4 -o addr show dev eth0"
    assert "inet 10.0.2.15/24" in somebody.roost("exec", "mine", "--", "sh", "-c", wait).stdout


def test_a_user_has_templates_copies_and_snapshots_too(somebody: Ordinary, mine: dict[str, Any]) -> None:
    somebody.roost("launch", "tiny", "second")
    assert somebody.show("second")["status"]["timing"]["path"] == "warm"
    somebody.roost("exec", "mine", "--", "sh", "-c", "echo remembered >/run/nonce")
    somebody.roost("snapshot", "mine", "kept")
    somebody.roost("clone", "mine", "kid")
    said = somebody.roost("exec", "kid", "--", "sh", "-c", "hostname; cat /run/nonce")
    assert said.stdout.split() == ["kid", "remembered"]
    somebody.roost("exec", "mine", "--", "rm", "/run/nonce")
    somebody.roost("restore", "mine", "kept", "--yes")
    assert somebody.roost("exec", "mine", "--", "cat", "/run/nonce").stdout == "remembered\n"
    somebody.roost("delete", "second", "kid", "--yes")
    somebody.roost("delete", "snapshot", "mine.kept", "--yes")


def test_stop_and_delete_leave_nothing(somebody: Ordinary, mine: dict[str, Any]) -> None:
    somebody.roost("stop", "mine")
    stopped = somebody.show("mine")["status"]
    assert (stopped["phase"], "force" in stopped["exit"]) == ("stopped", False)
    somebody.roost("delete", "mine", "--yes")
    assert somebody.roost("show", "mine", check=False).returncode == 3
    somebody.roost("serve", "--stop")
    deadline = time.monotonic() + 20
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes() == []
    assert leftovers.wait_until_none(somebody.state, somebody.run, [mine["meta"]["uid"]]) == []
