"""The first-boot set-up by the shipped static agent, in a directory that stands for a guest's root."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from roost.errors import CommandFailed
from roost.hypervisor import hostkeys
from roost.hypervisor.agentwire import encode_setup
from roost.hypervisor.base import Setup
from tests.guest.native import client, shipped
from tests.needs import needs_program, repetitions

pytestmark = [
    pytest.mark.skipif(os.getuid() != 0, reason="users can be made by root only"), needs_program("unshare", "setpriv")
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


@pytest.fixture
def ssh(root: Path) -> Path:
    """Its SSH server's directory, with the keys of another machine."""
    directory = root / "etc/ssh"
    directory.mkdir()
    for name in (
        "sshd_config",
        "moduli",
        *(f"ssh_host_{kind}_key{end}" for kind in ("rsa", "ecdsa") for end in ("", ".pub")),
    ):
        (directory / name).write_text(f"old {name}\n")
    (directory / "ssh_host_ecdsa_key-cert.pub").write_text("certificate\n")
    return directory


def host_key(kind: str, private: str = "-----BEGIN X\nsecret\n", public: str = "ssh-x AAAA") -> str:
    """A line that gives the machine a host key."""
    return f"host-key {kind} {b64encode(private.encode()).decode()} {public}\n"


def journals(root: Path) -> dict[str, str]:
    """The journal's directories, and where those that are links lead."""
    return {path.name: str(path.readlink()) if path.is_symlink() else "" for path in root.glob("var/log/journal/*")}


def inside(root: Path) -> tuple[str, ...]:
    """The agent with that root and a host name of its own; it can not touch this host's clock and network."""
    harmless = ("setpriv", "--bounding-set=-sys_time,-net_admin,-sys_boot,-kill")
    return (*harmless, "unshare", "--uts", f"--root={root}", "--wd=/", "/agent")


def agent(root: Path, *argv: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    """Run a built-in."""
    return subprocess.run((*inside(root), *argv), input=lines, capture_output=True, text=True, timeout=20)


def setup(root: Path, lines: str) -> subprocess.CompletedProcess[str]:
    """Apply the lines."""
    return agent(root, "setup", lines=lines)


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


@pytest.mark.fault(44)
def test_given_host_keys_are_the_only_ones_from_then_on(root: Path, ssh: Path) -> None:
    done = setup(root, LINES + host_key("ed25519") + host_key("ecdsa", "-----BEGIN Y\n", "ecdsa-x BBBB"))
    assert (done.returncode, done.stderr) == (0, "")
    kept = {path.name: path.read_text() for path in ssh.glob("ssh_host_*")}
    assert kept == {
        "ssh_host_ed25519_key": "-----BEGIN X\nsecret\n",
        "ssh_host_ed25519_key.pub": "ssh-x AAAA\n",
        "ssh_host_ecdsa_key": "-----BEGIN Y\n",
        "ssh_host_ecdsa_key.pub": "ecdsa-x BBBB\n",
    }
    assert (ssh / "ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert (ssh / "ssh_host_ed25519_key.pub").stat().st_mode & 0o777 == 0o644
    assert (ssh / "moduli").exists()


@pytest.mark.parametrize(
    "line",
    [
        host_key("../x"), host_key("ed25519", "no key"), host_key("ed25519", public=""), "host-key ed25519 %%% ssh-x AAAA\n",
        "host-key\n", "host-key ed25519\n", host_key("x" * 17), host_key("ed25519", public="A" * 1100),
    ],
)  # fmt: skip
def test_what_is_no_host_key_is_refused_without_being_shown(root: Path, ssh: Path, line: str) -> None:
    done = setup(root, LINES + line)
    assert (done.returncode, done.stderr) == (1, "host-key: Invalid argument\n")


@pytest.mark.parametrize("line", ["entropy 00", "entropy xyz", f"entropy {'0' * 130}", f"entropy {'0' * 63}x"])
def test_entropy_of_another_size_or_kind_is_refused(root: Path, line: str) -> None:
    done = setup(root, f"{line}\nmachine-id {ID}\n")
    assert (done.returncode, done.stderr) == (1, "entropy: Invalid argument\n")
    assert not (root / "var/lib/roost/setup").exists()


@pytest.mark.parametrize(
    "line", ["link", "link a b", "link 52:54:00:00:00:01", "link 52:54:00:00:00:01 53:54:00:00:00:02"]
)
def test_what_is_no_pair_of_addresses_is_refused(root: Path, line: str) -> None:
    assert setup(root, f"{line}\n").stderr == "link: Invalid argument\n"


@pytest.mark.fault(44)
def test_the_journal_the_seed_and_the_cloud_instance_of_another_machine_do_not_stay(root: Path) -> None:
    setup(root, LINES)
    for name in (f"var/log/journal/{ID}", "var/lib/cloud/data", "var/lib/cloud/instances/parent", "var/lib/systemd"):
        (root / name).mkdir(parents=True)
    (root / "var/lib/cloud/data/instance-id").write_text("parent\n")
    (root / "var/lib/cloud/instance").symlink_to("instances/parent")
    (root / "var/lib/systemd/random-seed").write_bytes(b"seed")
    assert setup(root, LINES.replace(ID, OTHER_ID)).returncode == 0
    assert journals(root) == {OTHER_ID: "", ID: OTHER_ID}
    assert not (root / "var/lib/cloud/instance").is_symlink()
    assert not (root / "var/lib/cloud/data/instance-id").exists()
    assert not (root / "var/lib/systemd/random-seed").exists()


def test_a_cloud_instance_without_a_seed_is_not_begun_again(root: Path) -> None:
    (root / "var/lib/cloud/data").mkdir(parents=True)
    (root / "var/lib/cloud/data/instance-id").write_text("iid-datasource-none\n")
    setup(root, LINES)
    assert (root / "var/lib/cloud/data/instance-id").exists()


def test_a_sealed_machine_has_no_identity_until_the_next_setup(root: Path, ssh: Path) -> None:
    setup(root, LINES + host_key("ed25519"))
    (root / f"var/log/journal/{ID}").mkdir(parents=True)
    (root / "var/log/wtmp").write_bytes(b"logins")
    (root / "root/.bash_history").write_text("secret command\n")
    (root / "home/alice/.bash_history").write_text("secret command\n")
    done = agent(root, "seal")
    assert (done.returncode, done.stderr) == (0, "")
    assert (root / "etc/machine-id").read_text() == (root / "var/log/wtmp").read_text() == ""
    assert (root / "etc/hostname").read_text() == "localhost\n"
    assert journals(root) == {"sealed": "", ID: "sealed"}
    assert not [
        *ssh.glob("ssh_host_*"),
        *root.glob("root/.b*"),
        *root.glob("home/*/.bash_h*"),
        *root.glob("var/lib/roost/*"),
    ]
    assert ID not in subprocess.run(["grep", "-r", ID, root], capture_output=True, text=True, check=False).stdout
    assert setup(root, LINES.replace(ID, OTHER_ID) + host_key("ed25519")).returncode == 0
    assert journals(root) == {OTHER_ID: "", ID: OTHER_ID}
    assert agent(root, "seal").returncode == agent(root, "seal").returncode == 0


WORDS = (
    "entropy",
    "machine-id",
    "host-key",
    "hostname",
    "link",
    "key",
    "user",
    "user-key",
    "grow-root",
    "",
    "\x00",
)


@pytest.mark.parametrize("seed", range(repetitions(15, 500)))
def test_any_lines_are_done_or_complained_of(root: Path, ssh: Path, seed: int) -> None:
    chance = random.Random(seed)
    rests = (
        ID,
        "a" * 5000,
        "52:54:00:00:00:01 52:54:00:00:00:02",
        "-1",
        "ed25519 LS0tLS1CRUdJTiA= x",
        "alice 1",
        "%s%n",
        "\xff \xff \xff",
    )
    lines = "".join(f"{chance.choice(WORDS)} {chance.choice(rests)}{chance.choice(rests)}\n" for _ in range(40))
    assert setup(root, lines).returncode in (0, 1)


@pytest.mark.fault(44)
async def test_the_agent_takes_an_identity_itself_and_says_what_failed(root: Path, ssh: Path) -> None:
    ours, theirs = socket.socketpair()
    argv = [*inside(root), "--port-fd", str(theirs.fileno()), "/no-mounts"]
    with theirs:
        process = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: ASYNC220
    try:
        host = await client(ours)
        wanted = Setup("kid", OTHER_ID, host_keys=hostkeys.make())
        await host.setup(wanted)
        assert (root / "etc/machine-id").read_text() == f"{OTHER_ID}\n"
        assert (ssh / "ssh_host_ecdsa_key").read_text() == wanted.host_keys[1].private
        with pytest.raises(CommandFailed, match="entropy: Invalid argument"):
            await host.setup(wanted._replace(machine_id=ID, entropy=b"short"))
        with pytest.raises(CommandFailed, match="machine-id: Invalid argument; hostname: Invalid argument"):
            await host.setup(wanted._replace(machine_id="x", hostname="a/b"))
        await host.close()
    finally:
        process.kill()
        process.wait()


@pytest.mark.fault(44)
def test_private_keys_travel_encoded_on_one_line_and_identity_comes_in_its_order() -> None:
    keys = hostkeys.make()
    wanted = Setup("web", ID, ["ssh-x A"], entropy=bytes(32), host_keys=keys, link=("a", "b"), grow_root=True)
    lines = encode_setup(wanted, 1.5).decode().splitlines()
    words = ["clock", "entropy", "machine-id", "host-key", "host-key", "hostname", "link", "key", "grow-root"]
    assert [line.split()[0] for line in lines] == words
    assert "BEGIN" not in "".join(lines)
