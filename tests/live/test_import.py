"""Disks from outside: good ones boot, hostile ones are refused with nothing left of them, downloads are what was asked for."""

from __future__ import annotations

import hashlib
import http.server
import secrets
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.appliances import vmware
from tests.daemon import ROOST, Daemon
from tests.disks import tar
from tests.needs import needs_program
from tests.qcow2 import header

pytestmark = [pytest.mark.timeout(1800), needs_program("qemu-system-x86_64", "mmdebstrap", "qemu-img")]

MiB = 1 << 20
HELLO = bytes.fromhex(
    "fc 31c0 8ed8 be217c"  # cld; ds = 0; si = text
    "ac 84c0 7411 88c4"  # next: al = [si++]; if it is 0 go to end; ah = al
    "bafd03 ec a820 74fb"  # wait until the serial port takes a byte
    "88e0 b2f8 ee ebea"  # send it; go to next
    "f4 ebfd"  # end: hlt
)
"""The code of a boot sector that writes the text behind it to the first serial port."""


def left(daemon: Daemon) -> set[str]:
    """What is in the image pool, by name."""
    return {path.name for name in ("images", "building") for path in (daemon.state / name).glob("*")}


def nothing_new(daemon: Daemon, before: set[str]) -> bool:
    """Whether the pool is as it was, a moment after what failed: what is thrown away goes in the background."""
    deadline = time.monotonic() + 60
    while left(daemon) - before and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left(daemon) - before


def qemu_img(*argv: object) -> None:
    subprocess.run(["qemu-img", *map(str, argv)], check=True, capture_output=True)


def boot_disk(path: Path, text: str) -> Path:
    """A raw disk that says the text and halts."""
    path.write_bytes((HELLO + text.encode() + b"\r\n\0").ljust(510, b"\0") + b"\x55\xaa" + bytes(MiB - 512))
    return path


def says(daemon: Daemon, name: str, text: str, seconds: float = 60) -> bool:
    """Whether a text comes on a machine's console."""
    deadline = time.monotonic() + seconds
    while text not in daemon.roost("logs", name, check=False).stdout:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.3)
    return True


@pytest.fixture
def imported(daemon: Daemon) -> Iterator[str]:
    """A name for an image, deleted afterwards with what was launched from it."""
    yield "imported"
    daemon.delete_machines("shared-tiny", "shared-debian")
    daemon.roost("image", "delete", "imported", "--ignore-missing")


@pytest.mark.parametrize("format", ["raw", "qcow2"])
def test_a_disk_boots_by_bios(daemon: Daemon, imported: str, tmp_path: Path, format: str) -> None:
    nonce = secrets.token_hex(8)
    disk = boot_disk(tmp_path / "disk.raw", nonce)
    if format == "qcow2":
        qemu_img("convert", "-f", "raw", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
    daemon.roost("image", "import", str(tmp_path / f"disk.{format}"), "--name", imported)
    daemon.roost("launch", imported, "hello", "--firmware", "bios", "--network", "none", "--no-wait")
    assert says(daemon, "hello", nonce)
    assert daemon.json("show", "hello")["status"]["firmware"] == "bios"


def test_an_image_is_exported_whole_and_can_be_read_elsewhere(
    daemon: Daemon, tiny: str, imported: str, tmp_path: Path
) -> None:
    disk = boot_disk(tmp_path / "disk.raw", secrets.token_hex(8))
    daemon.roost("image", "import", str(disk), "--name", imported)
    daemon.roost("image", "export", imported, str(tmp_path / "out.qcow2"))
    qemu_img("convert", "-f", "qcow2", "-O", "raw", tmp_path / "out.qcow2", tmp_path / "again.raw")
    assert (tmp_path / "again.raw").read_bytes() == disk.read_bytes()
    again = daemon.roost("image", "export", imported, str(tmp_path / "out.qcow2"), check=False)
    assert again.returncode == 4
    none = daemon.roost("image", "export", "tiny", str(tmp_path / "tiny.qcow2"), check=False)
    assert none.returncode == 4
    assert not (tmp_path / "tiny.qcow2").exists()


def test_a_disk_goes_out_as_a_vmdk_and_comes_back_in_an_ova(
    daemon: Daemon, tiny: str, imported: str, tmp_path: Path
) -> None:
    nonce = secrets.token_hex(8)
    daemon.roost("image", "import", str(boot_disk(tmp_path / "disk.raw", nonce)), "--name", imported)
    daemon.roost("image", "export", imported, str(tmp_path / "disk.vmdk"))
    daemon.roost("image", "delete", imported)
    vmdk = (tmp_path / "disk.vmdk").read_bytes()
    (tmp_path / "disk.ova").write_bytes(tar({"vm.ovf": vmware(size=len(vmdk)), "disk.vmdk": vmdk}))
    daemon.roost("image", "import", str(tmp_path / "disk.ova"), "--name", imported)
    daemon.roost("image", "export", imported, str(tmp_path / "again"), "--format", "raw")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "disk.raw").read_bytes()
    daemon.roost("launch", imported, "hello", "--firmware", "bios", "--network", "none", "--no-wait")
    assert says(daemon, "hello", nonce)


def test_a_debian_disk_from_elsewhere_boots_and_answers(daemon: Daemon, imported: str, tmp_path: Path) -> None:
    daemon.provide("debian:12")
    daemon.roost("template", "build", "debian:12")
    digest = daemon.json("image", "show", "debian:12")["status"]["digest"]
    disk = tmp_path / "debian.qcow2"
    shutil.copyfile(daemon.state / "images" / digest.replace(":", "-") / "disk.qcow2", disk)
    daemon.roost("image", "import", str(disk), "--name", imported, timeout=300)
    daemon.roost("launch", imported, "elsewhere", "--firmware", "bios", timeout=600)
    nonce = secrets.token_hex(8)
    said = daemon.roost("exec", "elsewhere", "--", "sh", "-c", f". /etc/os-release; echo $ID $VERSION_ID {nonce}")
    assert said.stdout.split() == ["debian", "12", nonce]


def _data_file(directory: Path, evil: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={directory / 'data'},data_file_raw=on", evil, MiB)


def _backing(directory: Path, evil: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-u", "-F", "raw", "-b", "/etc/passwd", evil, MiB)


def _truncated(directory: Path, evil: Path) -> None:
    boot_disk(directory / "whole.raw", "whole")
    qemu_img("convert", "-f", "raw", "-O", "qcow2", directory / "whole.raw", evil)
    evil.write_bytes(evil.read_bytes()[:100])


def _cut(directory: Path, evil: Path) -> None:
    _truncated(directory, evil)
    evil.write_bytes(evil.read_bytes())
    qemu_img("convert", "-f", "raw", "-O", "qcow2", directory / "whole.raw", evil)
    with evil.open("r+b") as file:
        file.truncate(2 << 16)


def _exbibytes(directory: Path, evil: Path) -> None:
    evil.write_bytes(header(virtual=(8 << 60) - 512).ljust(8 << 16, b"\0"))


def _encrypted(directory: Path, evil: Path) -> None:
    evil.write_bytes(header(crypt=1).ljust(8 << 16, b"\0"))


def _vmdk(directory: Path, evil: Path) -> None:
    evil.write_bytes(struct.pack("<4sI", b"KDMV", 1).ljust(MiB, b"\0"))


@pytest.mark.parametrize("make", [_data_file, _backing, _truncated, _cut, _exbibytes, _encrypted, _vmdk])
def test_a_hostile_disk_is_refused_and_leaves_nothing(
    daemon: Daemon, imported: str, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    evil, before = tmp_path / "evil.qcow2", left(daemon)
    make(tmp_path, evil)
    done = daemon.roost("image", "import", str(evil), "--name", imported, check=False, timeout=60)
    assert done.returncode == 2, done.stderr
    assert [word for word in ("error: ", "why: ", "fix: ") if word not in done.stderr] == []
    assert "Traceback" not in done.stderr + daemon.log()
    assert nothing_new(daemon, before)


@pytest.fixture
def website(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server of this host: its address and its directory."""
    root = tmp_path / "site"
    root.mkdir()
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", root
        server.shutdown()


def test_a_download_is_taken_with_its_checksum_only(
    new_daemon: Callable[..., Daemon], website: tuple[str, Path]
) -> None:
    url, root = website
    nonce = secrets.token_hex(8)
    disk = boot_disk(root / "disk.raw", nonce)
    right = hashlib.sha256(disk.read_bytes()).hexdigest()
    daemon = new_daemon(ROOST_FETCH_ALLOW="127.0.0.0/8").start()
    before = left(daemon)
    wrong = ["--name", "wrong", "--sha256", "0" * 64]
    done = daemon.roost("image", "import", f"{url}/disk.raw", *wrong, check=False)
    assert done.returncode == 2, done.stderr
    assert "sha256" in done.stderr
    assert nothing_new(daemon, before)
    assert daemon.roost("image", "import", f"{url}/disk.raw", check=False).returncode == 2
    daemon.roost("image", "import", f"{url}/disk.raw", "--name", "right", "--sha256", right)
    daemon.roost("launch", "right", "hello", "--firmware", "bios", "--network", "none", "--no-wait")
    assert says(daemon, "hello", nonce)


def test_a_download_from_this_host_is_refused_unless_allowed(daemon: Daemon, website: tuple[str, Path]) -> None:
    url, root = website
    disk = boot_disk(root / "disk.raw", "never")
    digest = hashlib.sha256(disk.read_bytes()).hexdigest()
    before = left(daemon)
    done = daemon.roost("image", "import", f"{url}/disk.raw", "--name", "inner", "--sha256", digest, check=False)
    daemon.roost("image", "delete", "inner", "--ignore-missing")
    assert done.returncode == 2, done.stderr
    assert "ROOST_FETCH_ALLOW" in done.stderr
    assert nothing_new(daemon, before)


def test_a_build_that_died_with_the_daemon_is_done_again(new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    daemon.environ["ROOST_HOST"] = f"unix:{daemon.socket}"
    for name in ("images", "recipes"):
        shutil.rmtree(daemon.state / name, ignore_errors=True)
    daemon.start()
    argv = [*ROOST, "template", "build", "tiny"]
    with subprocess.Popen(argv, env=daemon.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as waiting:
        deadline = time.monotonic() + 60
        while not any((daemon.state / "building").glob("*/*")):
            assert time.monotonic() < deadline, "the build did not begin"
            time.sleep(0.02)
        daemon.kill()
        waiting.wait(60)
    assert list((daemon.state / "recipes").glob("*")) == []
    daemon.start()
    daemon.roost("template", "build", "tiny", timeout=300)
    daemon.roost("launch", "tiny", "built", timeout=300)
    daemon.roost("exec", "built", "--", "true")
    assert list((daemon.state / "building").iterdir()) == []
    assert len(list((daemon.state / "images").iterdir())) == 1
