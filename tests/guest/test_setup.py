"""The first-boot set-up by the shipped static agent, in a directory that stands for a guest's root."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.guest.native import shipped
from tests.needs import needs_program

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="users can be made by root only"), needs_program("unshare")
]  # fmt: skip

ID, OTHER_ID = "0123456789abcdef0123456789abcdef", "f" * 32
LINES = f"""\
hostname web.example
machine-id {ID}
key ssh-ed25519 AAAA root@host
user alice 1
user-key alice ssh-ed25519 BBBB alice@host
user bob 0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The least of a root file system."""
    for name in ("etc/sudoers.d", "etc/skel", "root", "proc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\ncarol:x:1000:1000::/home/carol:/bin/sh")
    (tmp_path / "etc/group").write_text("root:x:0:\n")
    (tmp_path / "etc/shadow").write_text("root:*:1::::::\n")
    (tmp_path / "etc/shadow").chmod(0o640)
    (tmp_path / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 old\n10.0.0.1 peer\n")
    (tmp_path / "etc/skel/.profile").write_text("# profile\n")
    shutil.copy(shipped(), tmp_path / "agent")
    return tmp_path


def setup(root: Path, lines: str) -> subprocess.CompletedProcess[str]:
    """Apply the lines, in a UTS namespace of its own: this host keeps its name."""
    argv = ["unshare", "--uts", f"--root={root}", "--wd=/", "/agent", "setup"]
    return subprocess.run(argv, input=lines, capture_output=True, text=True, timeout=20)


def test_a_machine_gets_its_name_and_identity(root: Path) -> None:
    assert setup(root, LINES).returncode == 0
    assert (root / "etc/hostname").read_text() == "web.example\n"
    assert (root / "etc/hosts").read_text() == "127.0.0.1 localhost\n10.0.0.1 peer\n127.0.1.1 web.example\n"
    assert (root / "etc/machine-id").read_text() == f"{ID}\n"


def test_users_are_made_with_homes_keys_and_sudo(root: Path) -> None:
    setup(root, LINES)
    assert (root / "etc/passwd").read_text().splitlines()[1:] == [
        "carol:x:1000:1000::/home/carol:/bin/sh",
        "alice:x:1001:1001::/home/alice:/bin/sh",
        "bob:x:1002:1002::/home/bob:/bin/sh",
    ]
    assert (root / "etc/group").read_text() == "root:x:0:\nalice:x:1001:\nbob:x:1002:\n"
    assert [line.split(":")[:2] for line in (root / "etc/shadow").read_text().splitlines()][1:] == [
        ["alice", "*"],
        ["bob", "*"],
    ]
    assert (root / "home/alice/.profile").stat().st_uid == 1001
    assert (root / "home/alice/.ssh/authorized_keys").read_text() == "ssh-ed25519 BBBB alice@host\n"
    assert os.listdir(root / "etc/sudoers.d") == ["90-roost-alice"]  # noqa: PTH208


def test_modes_and_owners_are_tight(root: Path) -> None:
    setup(root, LINES)
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in (
        "root/.ssh", "root/.ssh/authorized_keys", "home/alice/.ssh", "home/alice/.ssh/authorized_keys",
        "etc/sudoers.d/90-roost-alice", "etc/shadow",
    )}  # fmt: skip
    assert list(modes.values()) == [0o700, 0o600, 0o700, 0o600, 0o440, 0o640]
    assert (root / "home/alice/.ssh").stat().st_uid == (root / "home/alice/.ssh/authorized_keys").stat().st_uid == 1001


def test_it_is_done_once_for_each_machine_id(root: Path) -> None:
    setup(root, LINES)
    (root / "etc/hostname").write_text("changed by the user\n")
    assert setup(root, LINES).returncode == 0
    assert (root / "etc/hostname").read_text() == "changed by the user\n"


def test_a_clone_gets_an_identity_of_its_own_and_nothing_twice(root: Path) -> None:
    setup(root, LINES)
    assert setup(root, LINES.replace(ID, OTHER_ID).replace("web", "web2")).returncode == 0
    assert (root / "etc/machine-id").read_text() == f"{OTHER_ID}\n"
    assert (root / "etc/hostname").read_text() == "web2.example\n"
    assert (root / "etc/passwd").read_text().count("alice") == 2
    assert (root / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA root@host\n"


@pytest.mark.parametrize("line", ["user a:b 1", "user ../x 1", "hostname a/b", "machine-id short", "nonsense x"])
def test_what_is_wrong_is_said_and_the_rest_is_done(root: Path, line: str) -> None:
    done = setup(root, f"{line}\nkey ssh-ed25519 AAAA\n")
    assert (done.returncode, "Invalid argument" in done.stderr) == (1, True)
    assert (root / "root/.ssh/authorized_keys").read_text() == "ssh-ed25519 AAAA\n"
    assert not (root / "var/lib/roost/setup").exists()
