"""Machines from the templates, used as people use them: by the kernel directly, by BIOS and by UEFI, and for other processors."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ARCH, Daemon
from tests.live.test_usernet import free_port
from tests.needs import needs_program, skip_if_the_mirror_is_out_of_step

pytestmark = [pytest.mark.timeout(1800), needs_program("qemu-system-x86_64", "mmdebstrap", "qemu-img")]

FIRMWARES = ("direct", "bios", "uefi")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new SSH key; beside it its public half."""
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def port() -> int:
    """A port of the host that leads to the SSH server of the machine that boots directly."""
    return free_port()


@pytest.fixture(scope="module")
def machines(shared_daemon: Daemon, key: Path, port: int) -> Iterator[dict[str, Any]]:
    """A Debian 12 by each firmware, booted side by side and up to its login prompt: what `show` says of them."""
    shared_daemon.provide("debian:12")
    shared_daemon.roost("template", "build", "debian:12")
    more = ["--disk", "12GiB", "--user", "ann", "--ssh-key", f"{key}.pub"]
    arguments = {
        "direct": [*more, "--firmware", "direct", "--hostname", "inside", "--publish", f"{port}:22"],
        "bios": ["--firmware", "bios"],
        "uefi": ["--firmware", "uefi"],
    }

    def boot(firmware: str) -> dict[str, Any]:
        shared_daemon.roost("launch", "debian:12", f"by-{firmware}", *arguments[firmware], timeout=600)
        wait = ["sh", "-c", "systemctl is-system-running --wait"]
        said = shared_daemon.roost("exec", f"by-{firmware}", "--", *wait, check=False, timeout=600)
        shown: dict[str, Any] = shared_daemon.json("show", f"by-{firmware}")
        return shown | {"systemd": said.stdout.strip()}

    with ThreadPoolExecutor(len(FIRMWARES)) as threads:
        yield dict(zip(FIRMWARES, threads.map(boot, FIRMWARES), strict=True))
    for firmware in FIRMWARES:
        shared_daemon.roost("delete", f"by-{firmware}", "--yes", check=False)


def inside(daemon: Daemon, name: str, script: str, **options: Any) -> str:
    """What a shell script says in a machine."""
    return daemon.roost("exec", name, "--", "sh", "-c", script, **options).stdout.strip()


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_debian_boots_to_its_end(shared_daemon: Daemon, machines: dict[str, Any], firmware: str) -> None:
    shown = machines[firmware]
    assert shown["systemd"] in ("running", "degraded")
    assert shown["status"]["firmware"] == firmware
    assert shown["status"]["agent"] == "roost"
    nonce = secrets.token_hex(8)
    efi = "0" if firmware == "uefi" else "1"
    script = f". /etc/os-release; echo {nonce} $VERSION_ID; test -d /sys/firmware/efi; echo $?; findmnt -no PARTLABEL /"
    assert inside(shared_daemon, f"by-{firmware}", script).split() == [nonce, "12", efi, "root"]


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_the_console_shows_the_login(shared_daemon: Daemon, machines: dict[str, Any], firmware: str) -> None:
    assert f"{machines[firmware]['spec']['hostname'] or 'by-' + firmware} login:" in until(
        lambda: shared_daemon.roost("logs", f"by-{firmware}").stdout, "login:"
    )


@pytest.mark.parametrize("firmware", FIRMWARES)
def test_its_machine_id_is_its_uid(shared_daemon: Daemon, machines: dict[str, Any], firmware: str) -> None:
    uid = machines[firmware]["meta"]["uid"].replace("-", "")
    assert inside(shared_daemon, f"by-{firmware}", "cat /etc/machine-id") == uid


def test_machines_differ_in_what_must_differ(shared_daemon: Daemon, machines: dict[str, Any]) -> None:
    script = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub; ls /etc/ssh/ssh_host_*_key | wc -l; hostname"
    said = [inside(shared_daemon, f"by-{firmware}", script).splitlines() for firmware in FIRMWARES]
    assert len({lines[0] for lines in said}) == len({lines[1] for lines in said}) == 3
    assert all(int(lines[2]) >= 2 for lines in said)
    assert [lines[3] for lines in said] == ["inside", "by-bios", "by-uefi"]


def test_the_root_file_system_has_the_size_asked_for(shared_daemon: Daemon, machines: dict[str, Any]) -> None:
    script = "df --output=size -B1M / | tail -1; cat /sys/block/vda/size"
    usable, sectors = map(int, inside(shared_daemon, "by-direct", script).split())
    assert sectors * 512 == 12 << 30
    assert usable > 11 << 10


def test_keys_and_users_are_made(shared_daemon: Daemon, machines: dict[str, Any], key: Path) -> None:
    public = key.with_suffix(".pub").read_text().strip()
    script = "cat /root/.ssh/authorized_keys; stat -c '%U %a' /root/.ssh/authorized_keys; cat ~ann/.ssh/authorized_keys"
    said = inside(shared_daemon, "by-direct", f"{script}; stat -c '%U %a' ~ann/.ssh/authorized_keys")
    assert said.splitlines() == [public, "root 600", public, "ann 600"]
    as_ann = shared_daemon.roost("exec", "-u", "ann", "by-direct", "--", "sh", "-c", "id -un; sudo -n id -un")
    assert as_ann.stdout.split() == ["ann", "root"]


@needs_program("ssh", "ssh-keygen")
@pytest.mark.parametrize("who", ["root", "ann"])
def test_ssh_lets_the_key_in(machines: dict[str, Any], key: Path, port: int, who: str) -> None:
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "IdentitiesOnly=yes"]
    flags = [word for option in options for word in ("-o", option)]
    done = subprocess.run(
        ["ssh", "-F", "none", "-i", key, "-p", str(port), *flags, f"{who}@127.0.0.1", "id -un; hostname"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [who, "inside"], done.stderr


def test_a_template_is_built_once(shared_daemon: Daemon, machines: dict[str, Any]) -> None:
    assert len({shown["status"]["image"] for shown in machines.values()}) == 1
    assert max(shown["status"]["timing"]["image"] for shown in machines.values()) < 5
    built = [entry for entry in (shared_daemon.state / "recipes").iterdir() if entry.is_symlink()]
    before = {entry.name: entry.stat().st_ino for entry in built}
    shared_daemon.roost("template", "build", "debian:12", timeout=30)
    assert {entry.name: entry.stat().st_ino for entry in (shared_daemon.state / "recipes").iterdir()} == before
    assert list((shared_daemon.state / "building").iterdir()) == []


def test_debian_13_boots(daemon: Daemon) -> None:
    daemon.roost("launch", "debian:13", "trixie", timeout=1200)
    script = ". /etc/os-release; echo $VERSION_ID; hostname; findmnt -no PARTLABEL /"
    assert inside(daemon, "trixie", script).split() == ["13", "trixie", "root"]
    daemon.roost("stop", "trixie")
    assert "force" not in daemon.json("show", "trixie")["status"]["exit"]


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_another_processor_runs_debians_kernel(daemon: Daemon, arch: str) -> None:
    if not Path(f"/usr/bin/qemu-system-{arch}").exists():
        pytest.skip(f"qemu-system-{arch} is not installed")
    options = ("--arch", arch, "--network", "none")
    launched = daemon.roost("launch", "tiny", f"on-{arch}", *options, timeout=900, check=False)
    skip_if_the_mirror_is_out_of_step(launched.stderr)
    assert launched.returncode == 0, launched.stderr
    machine, kernel = inside(daemon, f"on-{arch}", "uname -m; uname -v", timeout=300).splitlines()
    assert machine == arch
    assert "Debian" in kernel
    assert "eth0" not in inside(daemon, f"on-{arch}", "ip link")
    daemon.roost("stop", f"on-{arch}", timeout=120)
    ended = daemon.json("show", f"on-{arch}")["status"]
    assert (ended["phase"], "force" in ended["exit"]) == ("stopped", False)
    daemon.roost("delete", f"on-{arch}", "--yes")
    assert daemon.roost("show", f"on-{arch}", check=False).returncode == 3
    # Its template does not take the place of the host's own.
    daemon.roost("template", "build", "tiny", "--arch", arch, timeout=900)
    built = {image["name"]: image["status"]["arch"] for image in daemon.json("image", "list")}
    assert built[f"tiny-{arch}"] == arch
    assert built.get("tiny", ARCH) == ARCH


def until(say: Any, wanted: str, seconds: float = 60) -> str:
    """What `say()` returns once it contains what is wanted, or at the end of the time."""
    deadline = time.monotonic() + seconds
    while wanted not in (said := str(say())) and time.monotonic() < deadline:
        time.sleep(0.5)
    return said
